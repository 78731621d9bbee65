"""The default guide: a local normal for the sites of any prior, on any support."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from tiny_models import ragged_batch, tiny_decoder, tiny_model

from ltm_pyro.errors import LTMError
from ltm_pyro.guides import LocalNormal, latent_sites
from ltm_pyro.infer import FastConfig, FastSlowSVI, SequenceELBO
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator
from ltm_pyro.priors import Prior


class TwoSites(Prior):
    """Normal thoughts scaled, slot by slot, by a site on another support."""

    def __init__(self, shape, scale):
        super().__init__(shape)
        self.scale = scale

    def forward(self, batch_size):
        scale = pyro.sample("scale", self.scale)
        direction = pyro.sample("direction", dist.Normal(0.0, 1.0).expand((batch_size, *self.shape)).to_event(3))
        return direction * scale[..., None, :, None]


SUPPORTS = {
    "positive": lambda n: dist.Gamma(2.0, 2.0).expand((n,)).to_event(1),
    "simplex": lambda n: dist.Dirichlet(torch.ones(n)),
    "interval": lambda n: dist.Uniform(1.0, 2.0).expand((n,)).to_event(1),
    "real": lambda n: dist.StudentT(5.0).expand((n,)).to_event(1),
}


def two_site_model(support: str) -> LatentThoughtModel:
    decoder = tiny_decoder(thoughts_per_layer=3)
    return LatentThoughtModel(decoder, TwoSites(decoder.thought_shape, SUPPORTS[support](3)))


@pytest.mark.parametrize("support", SUPPORTS)
def test_a_prior_with_two_sites_on_any_support_trains_with_no_further_code(support):
    model, batch = two_site_model(support), ragged_batch(6, 3, 1)
    guide = LocalNormal(model, init_log_var=-3.0)
    assert [s.name for s in guide.sites] == ["scale", "direction"]
    local = guide.init_local(batch)
    size = 2 if support == "simplex" else 3
    assert local["scale.mu"].shape == local["scale.log_var"].shape == (3, size)
    assert local["direction.mu"].shape == (3, 2, 3, 8)

    svi = FastSlowSVI(
        model,
        guide,
        fast=FastConfig(steps=8, lr=0.1),
        slow=torch.optim.AdamW(model.parameters(), lr=1e-2),
        elbo=SequenceELBO(num_particles=4),
    )
    before = svi.infer(batch, steps=0, seed=1).elbo_terms(64).elbo
    posterior = svi.infer(batch, seed=1)
    assert (posterior.elbo_terms(64).elbo > before).all()
    losses = [float(svi.step(batch, seed=i).loss) for i in range(2)]
    assert losses[-1] < losses[0]

    draws = posterior.sites(20)
    assert draws["scale"].shape == (20, 3, 3)
    assert SUPPORTS[support](3).support.check(draws["scale"]).all()
    assert posterior.sample(20).shape == (20, 3, *model.decoder.thought_shape)
    assert posterior.mean.shape == (3, *model.decoder.thought_shape)


def test_the_density_of_a_constrained_site_is_that_of_the_transformed_normal():
    model, batch = two_site_model("positive"), ragged_batch(4, 2)
    guide = LocalNormal(model)
    mu, log_var = torch.randn(2, 3), torch.randn(2, 3)
    local = guide.init_local(batch) | {"scale.mu": mu, "scale.log_var": log_var}
    trace = poutine.trace(guide).get_trace(batch, local)
    trace.compute_log_prob()
    value = trace.nodes["scale"]["value"]
    # biject_to(positive) is exp: a log-normal.
    expected = torch.distributions.LogNormal(mu, (0.5 * log_var).exp()).log_prob(value).sum(-1)
    torch.testing.assert_close(trace.nodes["scale"]["log_prob"], expected, atol=1e-5, rtol=1e-5)


def test_a_real_site_is_sampled_as_the_normal_itself():
    model, batch = tiny_model(), ragged_batch(4, 2)
    guide = LocalNormal(model)
    local = guide.init_local(batch)
    fn = poutine.trace(guide).get_trace(batch, local).nodes["z"]["fn"]
    assert isinstance(fn.base_dist, torch.distributions.Normal)
    torch.testing.assert_close(fn.base_dist.loc, local["z.mu"])
    torch.testing.assert_close(fn.base_dist.scale, (0.5 * local["z.log_var"]).exp())


def test_local_parameters_start_where_they_are_told_and_belong_to_the_sequence():
    model, batch = tiny_model(thought_width=40), ragged_batch(4, 2, 3)
    guide = LocalNormal(model, init_log_var=-2.0, init_log_var_spread=0.5, init_mu_spread=0.01)
    local = guide.init_local(batch, SequenceGenerator(batch.keys, 5))
    n = local["z.mu"].numel()
    for name, mean, spread in (("z.log_var", -2.0, 0.5), ("z.mu", 0.0, 0.01)):
        value = local[name]
        assert value.is_leaf
        assert value.requires_grad
        assert abs(value.mean() - mean) < 5 * spread / n**0.5  # five standard errors
        assert abs(value.std() - spread) < 5 * spread / (2 * n) ** 0.5
    alone = guide.init_local(batch[[1]], SequenceGenerator(batch[[1]].keys, 5))
    for name, value in local.items():
        assert torch.equal(alone[name][0], value[1])
    assert (LocalNormal(model).init_local(batch)["z.mu"] == 0).all()


def test_random_starts_without_a_generator_come_from_torchs_global_stream():
    guide, batch = LocalNormal(tiny_model()), ragged_batch(3)
    starts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        starts.append(guide.init_local(batch)["z.log_var"].detach())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_reading_the_sites_leaves_the_global_stream_alone():
    model = tiny_model()
    before = torch.get_rng_state()
    (site,) = latent_sites(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert (site.name, site.event_shape, site.unconstrained_shape) == ("z", (2, 2, 8), (2, 2, 8))
    assert site.transform is None


class Misplaced(Prior):
    """A second site with a batch dimension beside that of the sequences."""

    def __init__(self, shape, batch_shape):
        super().__init__(shape)
        self.batch_shape = batch_shape

    def forward(self, batch_size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand((batch_size, *self.shape)).to_event(3))
        wrong = pyro.sample("wrong", dist.Normal(0.0, 1.0).expand(self.batch_shape))
        return z + wrong.sum()


@pytest.mark.parametrize("batch_shape", [(4, 1), (1, 2), (2, 3, 1)])
def test_a_site_with_batch_dimensions_beside_the_sequences_is_refused(batch_shape):
    decoder = tiny_decoder()
    with pytest.raises(LTMError, match=r"'wrong'.*to_event"):
        LocalNormal(LatentThoughtModel(decoder, Misplaced(decoder.thought_shape, batch_shape)))


class Nothing(Prior):
    def forward(self, batch_size):
        return torch.zeros(batch_size, *self.shape)


def test_a_prior_that_samples_nothing_is_refused():
    decoder = tiny_decoder()
    with pytest.raises(LTMError, match="Nothing"):
        LocalNormal(LatentThoughtModel(decoder, Nothing(decoder.thought_shape)))
