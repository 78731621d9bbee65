"""The low-rank guide: its density, its KL, and the posteriors that it is needed for."""

from __future__ import annotations

import pyro
import pytest
import torch
from tiny_models import ragged_batch, tiny_decoder, tiny_model
from torch.distributions import MultivariateNormal, kl_divergence

from ltm_pyro.errors import LTMError
from ltm_pyro.guides import LocalLowRank, LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI, SequenceELBO
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, sequence_noise
from ltm_pyro.priors import LearnedGaussianPrior, Prior

SIZE = 32  # entries of the tiny decoder's thoughts


class PositivePrior(Prior):
    def forward(self, batch_size):
        scale = pyro.sample("scale", pyro.distributions.Gamma(torch.full((batch_size, 2), 3.0), 3.0).to_event(1))
        z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(batch_size, *self.shape), 1.0).to_event(3))
        return scale.sum(-1)[:, None, None, None] * z


def shaken(local):
    return {name: value.detach() + 0.3 * torch.randn_like(value) for name, value in local.items()}


def dense(local, prefix="z"):
    """The guide's normal of each sequence, written out."""
    factor = local[f"{prefix}.factor"]
    covariance = factor @ factor.mT + torch.diag_embed(local[f"{prefix}.log_var"].flatten(1).exp())
    return MultivariateNormal(local[f"{prefix}.mu"].flatten(1), covariance)


def traced(guide, batch, local):
    with sequence_noise(SequenceGenerator(batch.keys, 0)):
        trace = pyro.poutine.trace(guide).get_trace(batch, local)
    trace.compute_log_prob()
    return trace


def test_its_density_and_draws_are_those_of_the_dense_normal():
    model, batch = tiny_model(), ragged_batch(3, 5)
    guide = LocalLowRank(model, rank=3, init_log_var=-1.0)
    local = shaken(guide.init_local(batch))
    site = traced(guide, batch, local).nodes["z"]
    expected = dense(local).log_prob(site["value"].flatten(1))
    torch.testing.assert_close(site["log_prob"], expected, atol=1e-4, rtol=1e-5)

    program = pyro.plate("particles", 50_000, dim=-2)(lambda: guide(batch, local))
    with sequence_noise(SequenceGenerator(batch.keys, 0)):
        draws = pyro.poutine.trace(program).get_trace().nodes["z"]["value"]
    covariance = torch.cov(draws[:, 0].flatten(1).T)
    assert (covariance - dense(local).covariance_matrix[0]).abs().max() < 0.1  # standard errors are below 0.01


def test_its_kl_to_a_diagonal_normal_is_the_dense_normals():
    decoder, batch = tiny_decoder(), ragged_batch(3, 5)
    prior = LearnedGaussianPrior(decoder.thought_shape)
    with torch.no_grad():
        prior.mu.normal_()
        prior.log_scale.normal_(std=0.3)
    model = LatentThoughtModel(decoder, prior)
    guide = LocalLowRank(model, rank=3, init_log_var=-1.0)
    local = shaken(guide.init_local(batch))
    terms = SequenceELBO().terms(lambda: model(batch), lambda: guide(batch, local))
    diagonal = torch.diag((2 * prior.log_scale.detach()).exp().flatten())
    expected = kl_divergence(dense(local), MultivariateNormal(prior.mu.detach().flatten(), diagonal))
    torch.testing.assert_close(terms.kl.detach(), expected, atol=1e-3, rtol=1e-5)


def test_a_posterior_does_not_depend_on_its_batch():
    model, batch = tiny_model(), ragged_batch(4, 7, 2)
    svi = FastSlowSVI(model, LocalLowRank(model, init_log_var=-1.0), fast=FastConfig(steps=8))
    together, alone = svi.infer(batch, seed=1), svi.infer(batch[[1]], seed=1)
    for name, value in alone.local.items():
        torch.testing.assert_close(value[0], together.local[name][1], atol=1e-4, rtol=0)
    torch.testing.assert_close(alone.sample(2)[:, 0], together.sample(2)[:, 1], atol=1e-4, rtol=0)


def test_it_serves_a_prior_with_two_sites_and_a_constrained_support():
    decoder, batch = tiny_decoder(), ragged_batch(4, 7)
    model = LatentThoughtModel(decoder, PositivePrior(decoder.thought_shape))
    svi = FastSlowSVI(model, LocalLowRank(model, rank=1, init_log_var=-1.0), fast=FastConfig(steps=8))
    sites = svi.infer(batch, seed=0).sites(5)
    assert sites["scale"].shape == (5, 2, 2)
    assert (sites["scale"] > 0).all()
    assert sites["z"].shape == (5, 2, *decoder.thought_shape)


def test_a_rank_of_nothing_is_refused():
    with pytest.raises(LTMError, match="rank of 1 or more"):
        LocalLowRank(tiny_model(), rank=0)


def test_without_factors_its_kl_is_the_diagonal_guides():
    model, batch = tiny_model(), ragged_batch(3)
    low, diagonal = LocalLowRank(model, init_factor_spread=0.0), LocalNormal(model)
    local = shaken(diagonal.init_local(batch))
    flat = local | {"z.factor": torch.zeros(1, SIZE, 4)}
    kls = [
        SequenceELBO().terms(lambda: model(batch), lambda g=guide, p=params: g(batch, p)).kl
        for guide, params in ((low, flat), (diagonal, local))
    ]
    torch.testing.assert_close(kls[0], kls[1])
