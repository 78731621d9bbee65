"""Importance weights against exact evidence, and their Pareto shape against theory and ArviZ."""

from __future__ import annotations

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from chain_checks import gamma_model, gamma_posterior
from linear_gaussian import LinearGaussianModel
from tiny_models import ragged_batch, tiny_model

from ltm_pyro.errors import LTMError
from ltm_pyro.guides import Amortized, LocalDelta, LocalFlow, LocalLowRank, LocalNormal, SemiAmortized
from ltm_pyro.infer import FastConfig, FastSlowSVI, ImportanceWeights, Posterior, importance_weights


def widened(model: LinearGaussianModel, batch, log_ratio: float) -> Posterior:
    """The exact factorised posterior with exp(log_ratio) times its variance."""
    mean, precision = model.exact_posterior(batch)
    shape = (len(batch), 1, 2, 2)
    log_var = (log_ratio - precision.diag().log()).expand(len(batch), 4).reshape(shape)
    local = {"z.mu": mean.reshape(shape), "z.log_var": log_var}
    return Posterior(model, LocalNormal(model), batch, local, seed=0, steps_taken=0)


def test_weights_find_the_exact_evidence_within_their_standard_error():
    model, batch = LinearGaussianModel(orthogonal=True), ragged_batch(4, 4, 4)
    weights = importance_weights(widened(model, batch, 0.5), 5000, chunk_size=2000)
    assert weights.log_weights.shape == (5000, 3)
    error = (weights.log_evidence - model.log_evidence(batch)).abs()
    assert (error < 4 * weights.standard_error).all()
    assert (weights.standard_error < 0.02).all()
    # For normals of d dimensions and variance ratio r, S / ESS = (r / √(2 r - 1))^d.
    ratio = math.exp(0.5)
    expected = 5000 * (math.sqrt(2 * ratio - 1) / ratio) ** 4
    assert (weights.effective_sample_size / expected - 1).abs().max() < 0.05


def test_weights_of_the_exact_posterior_are_all_the_evidence():
    model, batch = LinearGaussianModel(orthogonal=True), ragged_batch(4, 4)
    weights = importance_weights(widened(model, batch, 0.0), 100)
    torch.testing.assert_close(weights.log_weights, model.log_evidence(batch).expand(100, 2), atol=1e-4, rtol=0)
    assert (weights.effective_sample_size > 99.9).all()


def test_the_pareto_shape_is_large_where_q_is_too_narrow_and_small_where_it_is_wide():
    """The weights' tail has shape 1 - r where q has r times the variance of the posterior."""
    model, batch = LinearGaussianModel(orthogonal=True), ragged_batch(4, 4)
    narrow = importance_weights(widened(model, batch, math.log(0.1)), 4000)
    assert (narrow.k_hat > 0.7).all()
    assert (narrow.k_hat < 1.2).all()
    wide = importance_weights(widened(model, batch, math.log(1.5)), 4000)
    assert (wide.k_hat < 0.2).all()


def test_shape_and_smoothed_weights_are_those_of_arviz(float64):
    arviz = pytest.importorskip("arviz", reason="ArviZ is an extra: pip install 'ltm-pyro[arviz]'")
    tails = torch.tensor([0.1, 0.4, 0.8, 1.3])
    log_weights = tails * torch.distributions.Exponential(1.0).sample((10_000, 4)) - 700
    weights = ImportanceWeights(log_weights)
    smoothed, k_hat = arviz.psislw(log_weights.T.numpy(), normalize=False)
    torch.testing.assert_close(weights.k_hat, torch.from_numpy(k_hat), atol=1e-6, rtol=0)
    torch.testing.assert_close(weights.smoothed, torch.from_numpy(smoothed).T, atol=1e-5, rtol=0)
    assert ((weights.k_hat - tails).abs() < 3 * (1 + tails) / 300**0.5).all()  # 3 √S weights, and their fit's error


def test_too_few_weights_have_no_finite_shape():
    weights = ImportanceWeights(torch.randn(6, 2))
    assert (weights.k_hat == math.inf).all()
    assert torch.equal(weights.smoothed, weights.log_weights)
    assert (ImportanceWeights(torch.full((50, 2), -3.0)).k_hat == -math.inf).all()  # equal ones have no tail


def test_a_positive_site_has_the_evidence_of_a_grid():
    model, batch = gamma_model(), ragged_batch(4, 4, 4)
    svi = FastSlowSVI(model, LocalNormal(model, init_log_var=-0.5), fast=FastConfig(steps=150, lr=0.05, lr_decay=0.1))
    posterior = svi.infer(batch, seed=0)
    wide = {"level.mu": posterior.local["level.mu"], "level.log_var": posterior.local["level.log_var"] + 1.0}
    weights = importance_weights(replace(posterior, local=wide), 10_000, chunk_size=5000)
    _, _, evidence = gamma_posterior(model, batch)
    assert ((weights.log_evidence - evidence).abs() < 5 * weights.standard_error + 1e-3).all()
    assert (weights.standard_error < 0.05).all()


@pytest.mark.parametrize("guide", [LocalNormal, LocalLowRank, LocalFlow, Amortized, SemiAmortized])
def test_weights_depend_neither_on_the_batch_nor_on_how_they_are_cut(guide):
    model, batch = tiny_model(), ragged_batch(6, 3, 5)
    svi = FastSlowSVI(model, guide(model), fast=FastConfig(steps=4))
    together = importance_weights(svi.infer(batch, seed=1), 9)
    alone = importance_weights(svi.infer(batch[[1]], seed=1), 9, chunk_size=2)
    torch.testing.assert_close(together.log_weights[:, 1:2], alone.log_weights, atol=1e-3, rtol=1e-4)
    assert not together.log_weights.requires_grad


def test_the_mean_log_weight_is_the_elbo():
    model, batch = tiny_model(), ragged_batch(6, 3)
    posterior = FastSlowSVI(model, LocalNormal(model, init_log_var=-2.0), fast=FastConfig(steps=4)).infer(batch, seed=1)
    weights = importance_weights(posterior, 2000).log_weights
    error = weights.std(0) / 2000**0.5
    assert ((weights.mean(0) - posterior.elbo_terms(2000).elbo).abs() < 6 * error).all()


class Auxiliary(LocalNormal):
    def forward(self, batch, local):
        super().forward(batch, local)
        with pyro.plate("more", len(batch), dim=-1):
            pyro.sample("extra", dist.Normal(torch.zeros(len(batch)), 1.0))


@pytest.mark.parametrize(("guide", "message"), [
    (LocalDelta, "LocalDelta draws without a density"),
    (Auxiliary, r"the guide samples \['extra', 'z'\] and the prior \['z'\]"),
])  # fmt: skip
def test_a_guide_without_the_density_of_every_site_is_refused(guide, message):
    model, batch = tiny_model(), ragged_batch(4)
    guide = guide(model)
    posterior = Posterior(model, guide, batch, guide.init_local(batch), seed=0, steps_taken=0)
    with pytest.raises(LTMError, match=message):
        importance_weights(posterior, 4)
