"""Langevin chains against exact posteriors: adjusted ones keep them, unadjusted ones are off by a known amount."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from chain_checks import assert_moments, gamma_model, gamma_posterior
from dense_normals import dense_normals
from linear_gaussian import LinearGaussianModel
from tiny_models import ragged_batch, tiny_model
from torch.distributions import MultivariateNormal

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import Amortized, LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI, importance_weights, langevin
from ltm_pyro.priors import PRIORS, MixturePrior, SupervisedPrior


def test_adjusted_chains_have_the_exact_means_and_variances():
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4, 4, 4)
    chains = langevin(model, batch, draws=400, warmup=150, chains=16, seed=1)
    mean, precision = model.exact_posterior(batch)
    assert chains.method == "mala"
    assert chains.sites["z"].shape == (400, 16, 3, 1, 2, 2)
    assert_moments(chains, mean, torch.linalg.inv(precision).diag())
    assert (chains.summary().r_hat < 1.05).all()
    # Correlations too: a chain per dimension would miss them.
    z = chains.sites["z"].flatten(3).flatten(0, 1)
    for b in range(3):
        torch.testing.assert_close(torch.cov(z[:, b].T), torch.linalg.inv(precision), atol=0.02, rtol=0)


@pytest.mark.parametrize("step_size", [0.04, 0.004])
def test_unadjusted_chains_have_the_variance_that_their_step_size_implies(step_size):
    r"""For a normal of precision Λ the stationary covariance is Λ^-1 (I - s Λ / 2)^-1."""
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4)
    chains = langevin(
        model, batch, draws=400, warmup=100, thin=2, step_size=step_size, adjusted=False, chains=64, seed=1
    )
    mean, precision = model.exact_posterior(batch)
    exact = torch.linalg.inv(precision)
    biased = exact @ torch.linalg.inv(torch.eye(4) - step_size * precision / 2)
    assert chains.method == "ula"
    assert (chains.acceptance == 1).all()
    assert_moments(chains, mean, biased.diag())
    excess = (biased.diag() / exact.diag() - 1).max()
    assert excess > 0.3 if step_size == 0.04 else excess < 0.05
    if step_size == 0.04:
        with pytest.raises(AssertionError):
            assert_moments(chains, mean, exact.diag())


def test_thinning_keeps_every_so_many_steps():
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4, 4)
    settings = {"warmup": 3, "chains": 2, "seed": 5, "step_size": 0.01, "adjusted": False}
    every, third = (langevin(model, batch, draws=d, thin=t, **settings) for d, t in ((12, 1), (4, 3)))
    assert torch.equal(every.sites["z"][2::3], third.sites["z"])


def test_one_unadjusted_step_is_the_papers_equation():
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4)
    settings = {"warmup": 0, "chains": 4000, "seed": 5, "adjusted": False}
    first, second = langevin(model, batch, draws=2, step_size=0.03, **settings).sites["z"].flatten(2)
    mean, precision = model.exact_posterior(batch)
    noise = (second - first - 0.03 * (mean - first) @ precision) / 0.06**0.5
    assert (noise.mean(0).abs() < 5 / 4000**0.5).all()
    assert (noise.var(0) - 1).abs().max() < 5 * (2 / 4000) ** 0.5


@pytest.mark.parametrize("adjusted", [True, False])
def test_a_chain_does_not_depend_on_its_batch(adjusted, float64):
    model, batch = tiny_model(), ragged_batch(6, 3, 5)
    settings = {"draws": 6, "warmup": 6, "step_size": 1e-3, "adjusted": adjusted, "chains": 2, "seed": 2}
    together = langevin(model, batch, **settings)
    part = TokenBatch(batch.tokens[1:2, :3], batch.lengths[1:2], batch.start[1:2])
    alone = langevin(model, part, **settings)
    torch.testing.assert_close(together.sites["z"][:, :, 1:2], alone.sites["z"], atol=1e-9, rtol=1e-7)
    more = langevin(model, batch, **settings | {"chains": 3, "seed": 2})
    torch.testing.assert_close(more.sites["z"][:, :2], together.sites["z"], atol=1e-9, rtol=1e-7)
    other = langevin(model, batch, **settings | {"seed": 3})
    assert (other.sites["z"] - together.sites["z"]).abs().min() > 0


def test_chains_from_a_constrained_prior_do_not_depend_on_their_batch_nor_move_the_global_stream():
    model, batch = gamma_model(), ragged_batch(4, 4, 4)
    before = torch.get_rng_state()
    together = langevin(model, batch, draws=5, warmup=2, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    alone = langevin(model, batch[[2]], draws=5, warmup=2, seed=2)
    torch.testing.assert_close(together.sites["level"][:, :, 2:], alone.sites["level"])


def test_a_positive_site_has_the_posterior_of_a_grid():
    model, batch = gamma_model(), ragged_batch(4, 4, 4)
    chains = langevin(model, batch, draws=400, warmup=150, chains=16, seed=1)
    mean, variance, _ = gamma_posterior(model, batch)
    assert chains.sites["level"].shape == (400, 16, 3)
    assert (chains.sites["level"] > 0).all()
    assert_moments(chains, mean, variance, site="level")


def test_thoughts_below_an_enumerated_site_have_the_exact_mixture_posterior():
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4, 4, 4)
    model.prior = prior = MixturePrior((1, 2, 2), components=3, spread=1.0)
    with torch.no_grad():
        prior.log_scale.normal_(-0.5, 0.3)
        prior.logits.normal_()
    chains = langevin(model, batch, draws=400, warmup=150, chains=16, seed=1)

    w, y = model.matrix.detach(), model.table[batch.tokens].flatten(-2)
    log_weights, means, covariances = (part.detach() for part in dense_normals(prior))
    evidence = MultivariateNormal(means @ w.T, w @ covariances @ w.T + model.scale**2 * torch.eye(8))
    weights = (log_weights + evidence.log_prob(y[:, None])).softmax(-1)[..., None]
    assert ((weights > 0.05) & (weights < 0.95)).any()
    precisions = torch.linalg.inv(covariances)
    covariances = torch.linalg.inv(precisions + w.T @ w / model.scale**2)
    means = ((y @ w / model.scale**2)[:, None, None] + (means[:, None] @ precisions)) @ covariances
    mean = (weights * means[:, :, 0]).sum(1)
    spread = covariances.diagonal(dim1=-2, dim2=-1) + (means[:, :, 0] - mean[:, None]) ** 2
    assert_moments(chains, mean, (weights * spread).sum(1))


def test_thoughts_of_a_known_class_have_the_exact_posterior_of_that_class():
    model, batch = LinearGaussianModel(orthogonal=False), replace(ragged_batch(4, 4), labels=torch.tensor([1, 0]))
    model.prior = SupervisedPrior((1, 2, 2), classes=2, spread=1.0)
    chains = langevin(model, batch, draws=300, warmup=150, chains=16, seed=1)
    _, precision = model.exact_posterior(batch)  # the classes' scales are 1
    y, mu = model.table[batch.tokens].flatten(-2), model.prior.mu.detach().flatten(1)
    covariance = torch.linalg.inv(precision)
    assert_moments(chains, (y @ model.matrix.detach() / model.scale**2 + mu[[1, 0]]) @ covariance, covariance.diag())


@pytest.mark.parametrize("name", PRIORS)
def test_chains_run_under_every_prior(name):
    model, batch = tiny_model(), ragged_batch(5, 3)
    model.prior = PRIORS[name](model.decoder.thought_shape)
    guide = Amortized(model) if name == "vamp" else LocalNormal(model)
    posterior = FastSlowSVI(model, guide, fast=FastConfig(steps=3)).infer(batch, seed=0)
    for init in (None, posterior):
        chains = langevin(model, batch, draws=4, warmup=4, chains=2, init=init, seed=0)
        assert chains.thoughts().shape == (4, 2, 2, *model.decoder.thought_shape)
        assert (chains.acceptance > 0).all()
    assert importance_weights(posterior, 5).log_weights.isfinite().all()


@pytest.mark.parametrize("step_size", [1e-4, 1.0])
def test_the_step_size_of_every_chain_adapts_to_the_acceptance_asked_for(step_size):
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4, 4)
    chains = langevin(model, batch, draws=200, warmup=200, step_size=step_size, chains=8, seed=0)
    assert (chains.acceptance - 0.574).abs().max() < 0.15  # of 200 draws
    assert abs(float(chains.acceptance.mean()) - 0.574) < 0.05
    assert chains.step_size.shape == (8, 2)
    fixed = langevin(model, batch, draws=2, warmup=20, step_size=step_size, adapt=False, seed=0)
    assert (fixed.step_size == step_size).all()


def test_chains_start_at_the_draws_of_a_fitted_posterior():
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4, 4)
    svi = FastSlowSVI(model, LocalNormal(model, init_log_var=-2.0), fast=FastConfig(steps=30, lr=0.2))
    posterior = svi.infer(batch, seed=0)
    chains = langevin(model, batch, draws=1, warmup=0, step_size=1e-12, adjusted=False, init=posterior, seed=0)
    torch.testing.assert_close(chains.sites["z"][0], posterior.sample(4), atol=1e-4, rtol=0)
    with pytest.raises(LTMError, match="posterior of other sequences"):
        langevin(model, batch[[0]], init=posterior)


def test_wrong_numbers_and_runaway_chains_are_told():
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4)
    with pytest.raises(LTMError, match=r"at least 1.* got 0, 1"):
        langevin(model, batch, draws=0)
    with pytest.raises(LTMError, match=r"step_size above 0.* and 0$"):
        langevin(model, batch, step_size=0.0)
    with pytest.raises(LTMError, match="between 0 and 1, got 1"):
        langevin(model, batch, target_accept=1.0)
    with pytest.raises(LTMError, match="lower step_size = 3"):
        langevin(model, batch, draws=40, warmup=0, step_size=3.0, adjusted=False)


def test_weights_are_constant_and_still_learnable_afterwards():
    model, batch = tiny_model(), ragged_batch(4)
    langevin(model, batch, draws=1, warmup=1, seed=0)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
