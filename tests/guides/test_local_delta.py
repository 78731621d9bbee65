"""The point guide: the modes of known densities, and no number that would pass for a bound."""

from __future__ import annotations

from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussianModel
from tiny_models import ragged_batch, tiny_decoder, tiny_model
from tiny_runs import new_trainer, tiny_data

from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import evaluate
from ltm_pyro.guides import LocalDelta
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator
from ltm_pyro.priors import Prior

SURE = FastConfig(steps=200, lr=0.1, lr_decay=0.0)


def test_it_finds_the_mode_of_a_normal_posterior_correlated_or_not():
    for orthogonal in (True, False):
        model, batch = LinearGaussianModel(orthogonal=orthogonal), ragged_batch(4, 4, 4)
        posterior = FastSlowSVI(model, LocalDelta(model), fast=SURE).infer(batch, seed=0)
        expected, _ = model.exact_posterior(batch)
        torch.testing.assert_close(posterior.mean.flatten(1), expected, atol=1e-3, rtol=0)
        assert torch.equal(posterior.sample(2)[0], posterior.mean)


class Apart(Prior):
    """A Gamma site that the thoughts do not depend on, so that its posterior is its prior."""

    def forward(self, batch_size):
        pyro.sample("rate", dist.Gamma(torch.full((batch_size, 2), 3.0), torch.tensor([2.0, 5.0])).to_event(1))
        return pyro.sample("z", dist.Normal(torch.zeros(batch_size, *self.shape), 1.0).to_event(3))


def test_the_mode_of_a_positive_site_is_that_of_its_density_in_its_own_units():
    decoder, batch = tiny_decoder(), ragged_batch(3, 1)
    model = LatentThoughtModel(decoder, Apart(decoder.thought_shape))
    posterior = FastSlowSVI(model, LocalDelta(model), fast=SURE).infer(batch, seed=0)
    # (a - 1) / b; the mode of the logarithm's density would be a / b.
    expected = torch.tensor([2 / 2, 2 / 5]).expand(2, 2)
    torch.testing.assert_close(posterior.sites()["rate"][0], expected, atol=1e-3, rtol=0)


def test_in_the_kls_place_stands_the_negative_log_prior():
    decoder, batch = tiny_decoder(), ragged_batch(3, 1)
    model = LatentThoughtModel(decoder, Apart(decoder.thought_shape))
    posterior = FastSlowSVI(model, LocalDelta(model, init_mu_spread=0.5), fast=FastConfig(steps=3)).infer(batch, seed=0)
    rate, z = (posterior.sites()[name][0] for name in ("rate", "z"))
    gamma = torch.distributions.Gamma(3.0, torch.tensor([2.0, 5.0])).log_prob(rate).sum(-1)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(posterior.kl, -(gamma + normal))
    likelihood = model.likelihood(z, batch, None).log_prob(batch.tokens)
    torch.testing.assert_close(posterior.terms.log_likelihood, likelihood.detach())
    torch.testing.assert_close(posterior.terms.elbo, likelihood.detach() + gamma + normal)


def test_points_start_at_the_origin_or_around_it_each_sequence_on_its_own():
    model, batch = tiny_model(), ragged_batch(4, 2, 3)
    assert (LocalDelta(model).init_local(batch)["z.point"] == 0).all()
    guide = LocalDelta(model, init_mu_spread=0.5)
    together = guide.init_local(batch, SequenceGenerator(batch.keys, 5))["z.point"]
    alone = guide.init_local(batch[[1]], SequenceGenerator(batch[[1]].keys, 5))["z.point"]
    assert torch.equal(alone[0], together[1])
    assert abs(together.std() - 0.5) < 5 * 0.5 / (2 * together.numel()) ** 0.5


def test_neither_an_evaluation_nor_training_calls_it_a_bound(tmp_path: Path):
    data = tiny_data(tmp_path, layout="documents")
    trainer = new_trainer(tmp_path / "run", data, {"guide.name": "local-delta", "training.steps": 2})
    trainer.fit()
    rows = trainer.metrics.rows()
    train = [row for row in rows if row["split"] == "train"]
    assert all("kl" not in row for row in train)
    for row in train:
        assert row["loss"] == pytest.approx(row["reconstruction"] + row["negative_log_prior"])

    report = evaluate(trainer.learner.svi, data.validation, range(4))
    row = report.to_dict()
    assert [row[name] for name in ("elbo", "elbo_se", "kl", "kl_se")] == [None] * 4
    posterior = trainer.learner.svi.infer(data.validation.batch(range(4)), seed=0)
    expected = -posterior.terms.elbo.sum() / posterior.batch.num_scored.sum()
    assert row["log_joint"] == pytest.approx(float(expected), rel=1e-4)
    assert row["log_joint"] == report.mean("log_joint")[0]
    for name in ("elbo", "kl"):
        with pytest.raises(LTMError, match=f"a point estimate has no {name}: it reports reconstruction and log_joint"):
            report.mean(name)
    validation = [row for row in rows if row["split"] == "validation"]
    assert validation
    assert all(row["elbo"] is None and row["log_joint"] > 0 for row in validation)
