"""Active units, KL per layer and I(x; z) against closed forms."""

from __future__ import annotations

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import ExactNormal, SequentialModel
from tiny_models import tiny_decoder

from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import Information, evaluate, information, mutual_information
from ltm_pyro.guides import Amortized, LocalDelta, LocalFlow, LocalLowRank, LocalNormal, SemiAmortized
from ltm_pyro.infer import FastSlowSVI
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import GaussianPrior, LearnedGaussianPrior, MarkovPrior


def noise(samples: int, sequences: int, entries: int) -> torch.Tensor:
    return torch.randn(samples, sequences, entries, dtype=torch.float64)


def test_equal_posteriors_know_nothing_and_far_ones_which_sequence_it_is():
    same = torch.full((7, 3), 2.5), torch.full((7, 3), -1.0)
    assert mutual_information(*same, noise(4, 7, 3)) == pytest.approx(0, abs=1e-12)
    far = 100.0 * torch.arange(7.0)[:, None].expand(7, 3)
    assert mutual_information(far, same[1], noise(4, 7, 3)) == pytest.approx(math.log(7))
    assert mutual_information(far[:1], same[1][:1], noise(4, 1, 3)) == pytest.approx(0, abs=1e-12)


def test_pairs_of_equal_posteriors_know_the_pair():
    mu = 100.0 * (torch.arange(8.0) // 2)[:, None]
    assert mutual_information(mu, torch.zeros(8, 1), noise(4, 8, 1)) == pytest.approx(math.log(4))


def test_it_is_the_information_of_a_linear_gaussian_channel():
    """x ~ N(0, τ²), z | x ~ N(x, s²): I = ½ log(1 + τ² / s²) per entry."""
    tau, s = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.8])
    mu = 30.0 + tau * torch.randn(3000, 2)
    found = mutual_information(mu, (2 * s.log()).expand(3000, 2), noise(2, 3000, 2))
    exact = float(0.5 * (1 + tau.square() / s.square()).log().sum())
    # A term's deviation is about 1, over 3000 x; M far above e^I = 6 leaves next to no bias.
    assert found == pytest.approx(exact, abs=4 / 3000**0.5)


def test_it_is_the_sum_of_densities_written_out():
    mu, log_var, eps = torch.randn(300, 2), 0.5 * torch.randn(300, 2), noise(2, 300, 2)
    q = torch.distributions.Independent(torch.distributions.Normal(mu.double(), (0.5 * log_var).exp().double()), 1)
    z = mu + (0.5 * log_var).exp() * eps
    log_q = q.log_prob(z[:, :, None])  # (draw, its own posterior, any posterior)
    expected = (log_q.diagonal(dim1=1, dim2=2) - log_q.logsumexp(-1)).mean() + math.log(300)
    assert mutual_information(mu, log_var, eps) == pytest.approx(float(expected), rel=1e-5)


class Constructed(LocalNormal):
    """Means of a given spread over the sequences, entry by entry."""

    refined = False

    def __init__(self, model: LatentThoughtModel, spread: torch.Tensor):
        super().__init__(model)
        self.spread = spread

    def init_local(self, batch, generator=None):
        sign = torch.where(batch.keys % 2 == 0, 1.0, -1.0)
        mu = sign[:, None, None, None] * self.spread
        return {"z.mu": mu, "z.log_var": torch.full_like(mu, -1.0)}


def test_active_units_are_the_entries_whose_means_vary(svi: FastSlowSVI, data: Data):
    shape = svi.model.prior.shape
    spread = torch.zeros(math.prod(shape))
    spread[:3] = torch.tensor([1.0, 0.12, 0.08])  # variances of about 1, 0.0144 and 0.0064
    guide = Constructed(svi.model, spread.view(shape))
    keys = data.train.batch(range(20)).keys
    share = float((keys % 2 == 0).double().mean())
    assert 0.3 < share < 0.7
    found = information(FastSlowSVI(svi.model, guide), data.train, range(20))
    assert (found.active_units, found.units) == (2, math.prod(shape))
    single = information(FastSlowSVI(svi.model, guide), data.train, [0])
    assert (single.active_units, single.units) == (None, None)
    assert single.mutual_information == pytest.approx(0, abs=1e-9)
    assert single.mutual_information_limit == 0


def test_the_kl_of_the_layers_adds_up_to_the_kl(data: Data):
    for prior_class in (GaussianPrior, LearnedGaussianPrior):
        svi = two_layers(prior_class)
        if prior_class is LearnedGaussianPrior:
            torch.nn.init.normal_(svi.model.prior.mu)
            torch.nn.init.normal_(svi.model.prior.log_scale, std=0.3)
        found = information(svi, data.train, range(5), fast_steps=2, batch_size=2, seed=3)
        report = evaluate(svi, data.train, range(5), fast_steps=2, seed=3)
        assert len(found.kl_per_layer) == 2
        assert min(found.kl_per_layer) > 0
        assert sum(found.kl_per_layer) == pytest.approx(report.mean("kl")[0], rel=1e-4)
    assert found.kl_per_layer[0] != pytest.approx(found.kl_per_layer[1], rel=1e-3)


def two_layers(prior_class: type) -> FastSlowSVI:
    decoder = tiny_decoder(layers=2, hidden=8, heads=2, thoughts_per_layer=2, vocab_size=300)
    model = LatentThoughtModel(decoder, prior_class(decoder.thought_shape))
    return FastSlowSVI(model, LocalNormal(model, init_log_var=-1.0))


def test_what_is_not_defined_is_left_out(data: Data):
    svi = two_layers(MarkovPrior)
    found = information(svi, data.train, range(3), fast_steps=1)
    assert found.kl_per_layer is None
    assert found.mutual_information is not None
    for guide in (LocalDelta, LocalFlow, LocalLowRank):
        other = FastSlowSVI(svi.model, guide(svi.model))
        assert information(other, data.train, range(3), fast_steps=1) == Information()


def test_guides_with_an_encoder_are_compared_too(data: Data):
    model = two_layers(GaussianPrior).model
    for guide in (Amortized(model, width=16, layers=1, heads=2), SemiAmortized(model, width=16, layers=1, heads=2)):
        found = information(FastSlowSVI(model, guide), data.train, range(4), fast_steps=1)
        assert None not in found.to_dict().values()


def test_a_positive_site_has_information_and_no_active_units(data: Data):
    svi = two_layers(PositivePrior)
    found = information(svi, data.train, range(4), fast_steps=3)
    assert (found.active_units, found.units, found.kl_per_layer) == (None, None, None)
    assert 0 < found.mutual_information <= math.log(4)


class PositivePrior(GaussianPrior):
    """Thoughts that are all positive."""

    def forward(self, batch_size: int):
        normal = dist.LogNormal(self.zero, self.one)
        return pyro.sample("z", normal.expand((batch_size, *self.shape)).to_event(3))


def test_the_batch_size_changes_nothing_and_json_takes_it(svi: FastSlowSVI, data: Data):
    state = torch.get_rng_state()
    one, many = (information(svi, data.train, range(6), batch_size=size, seed=2) for size in (1, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.mutual_information == pytest.approx(many.mutual_information, abs=1e-4)
    assert one.kl_per_layer == pytest.approx(many.kl_per_layer, rel=1e-5)
    assert 0 < one.mutual_information <= one.mutual_information_limit == pytest.approx(math.log(6))
    assert json.loads(json.dumps(one.to_dict())) == one.to_dict()


def test_the_exact_posterior_knows_less_than_its_kl(data: Data):
    """E KL(q ‖ p) = I(x; z) + KL(q(z) ‖ p), Hoffman & Johnson's surgery."""
    model = SequentialModel()
    svi = FastSlowSVI(model, ExactNormal(model))
    found = information(svi, data.train, range(30), samples=50)
    kl = float(evaluate(svi, data.train, range(30)).values["kl"].mean())
    assert 0.1 < found.mutual_information < kl


def test_nothing_to_compare_is_refused(svi: FastSlowSVI, data: Data):
    with pytest.raises(LTMError, match="no sequences to evaluate"):
        information(svi, data.train, [])
    with pytest.raises(LTMError, match="samples must be 1 or more, got 0"):
        information(svi, data.train, [0], samples=0)
    with pytest.raises(LTMError, match="a draw of every posterior or more, got none"):
        mutual_information(torch.zeros(2, 1), torch.zeros(2, 1), [])
