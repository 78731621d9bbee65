"""The fast loop against a program whose posterior and evidence are known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from linear_gaussian import LinearGaussianModel
from tiny_models import ragged_batch

from ltm_pyro.guides import LocalLowRank, LocalNormal, SemiAmortized
from ltm_pyro.infer import FastConfig, FastSlowSVI, Posterior, SequenceELBO

# Fresh noise keeps Adam moving: the step size decays to 0, and 4096 particles make the gradient 64 times quieter. With
# 32 particles 1000 such steps still leave 3 % in the variances.
FAST, PARTICLES = FastConfig(steps=150, lr=0.1, lr_decay=0.0), 4096
LOW_RANK = FastConfig(steps=400, lr=0.05, lr_decay=0.0)  # factors turn slowly


def fitted(model: LinearGaussianModel, batch, fast: FastConfig = FAST, guide: type = LocalNormal) -> Posterior:
    guide = guide(model, init_log_var=-1.0)
    return FastSlowSVI(model, guide, fast=fast, elbo=SequenceELBO(PARTICLES)).infer(batch, seed=0)


def moments(posterior: Posterior) -> tuple[torch.Tensor, torch.Tensor]:
    return posterior.local["z.mu"].flatten(1), posterior.local["z.log_var"].flatten(1).exp()


def log_likelihood_error(posterior: Posterior, particles: int) -> torch.Tensor:
    """(B,) standard error of an expected log-likelihood over ``particles`` draws."""
    likelihood = posterior.model.likelihood(posterior.sample(2000), posterior.batch, None)
    return likelihood.log_prob(posterior.batch.tokens).std(0) / math.sqrt(particles)


@pytest.mark.parametrize("guide", [LocalNormal, SemiAmortized])  # the others that contain it have tests of their own
def test_the_fast_loop_finds_the_exact_posterior_and_the_elbo_meets_the_evidence(guide):
    model, batch = LinearGaussianModel(orthogonal=True), ragged_batch(4, 4, 4)
    posterior = fitted(model, batch, guide=guide)
    mean, precision = model.exact_posterior(batch)
    torch.testing.assert_close(precision, torch.diag(precision.diag()), atol=1e-5, rtol=0)  # it factorises
    mu, variance = moments(posterior)
    # 1 %, of means against the posterior's standard deviation, because they may be near 0.
    assert ((mu - mean) * precision.diag().sqrt()).abs().max() < 0.01
    assert (variance * precision.diag() - 1).abs().max() < 0.01

    terms, evidence = posterior.elbo_terms(20_000), model.log_evidence(batch)
    error = log_likelihood_error(posterior, 20_000)
    # The gap itself is below 1e-3 nats for parameters within 1 %.
    assert ((terms.elbo - evidence).abs() < 4 * error + 1e-3).all()


def test_the_exact_kl_is_reported():
    model, batch = LinearGaussianModel(orthogonal=True), ragged_batch(4, 4)
    posterior = fitted(model, batch, FastConfig(steps=5, lr=0.1))
    mu, variance = moments(posterior)
    torch.testing.assert_close(posterior.kl, 0.5 * (mu**2 + variance - variance.log() - 1).sum(-1))


def test_the_elbo_of_correlated_thoughts_stays_below_the_evidence_by_the_mean_field_gap():
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4, 4, 4)
    posterior = fitted(model, batch)
    mean, precision = model.exact_posterior(batch)
    # The best factorised normal has the exact mean and the inverse of the precision's diagonal.
    mu, variance = moments(posterior)
    assert ((mu - mean) * precision.diag().sqrt()).abs().max() < 0.015
    assert (variance * precision.diag() - 1).abs().max() < 0.015
    gap = 0.5 * (precision.diag().log().sum() - torch.logdet(precision))
    assert gap > 0.1
    terms, evidence = posterior.elbo_terms(20_000), model.log_evidence(batch)
    error = log_likelihood_error(posterior, 20_000)
    assert ((evidence - terms.elbo - gap).abs() < 4 * error + 1e-2).all()


def test_a_fit_to_one_fixed_noise_beats_the_evidence_on_it_and_its_posterior_does_not():
    model, batch = LinearGaussianModel(orthogonal=True), ragged_batch(4, 4, 4)
    guide = LocalNormal(model, init_log_var=-1.0)
    fast = FastConfig(steps=100, lr=0.1, noise="fixed")
    info = FastSlowSVI(model, guide, fast=fast, slow=torch.optim.SGD(model.parameters(), lr=0.0)).step(batch, seed=0)
    (posterior,) = info.posteriors
    evidence, error = model.log_evidence(batch), log_likelihood_error(posterior, 5000)
    assert (info.terms.elbo > evidence + 0.5).all()
    assert (posterior.elbo_terms(5000).elbo < evidence + 4 * error).all()


def test_slow_steps_raise_the_evidence_of_the_likelihoods_weights():
    model, batch = LinearGaussianModel(orthogonal=True), ragged_batch(4, 4, 4)
    slow = torch.optim.SGD(model.parameters(), lr=0.05)
    fast = FastConfig(steps=60, lr=0.2, lr_decay=0.0)
    guide = LocalNormal(model, init_log_var=-1.0)
    svi = FastSlowSVI(model, guide, fast=fast, slow=slow, elbo=SequenceELBO(PARTICLES))
    before = model.log_evidence(batch).sum() / batch.num_scored.sum()
    matrix = model.matrix.detach().clone().requires_grad_()
    svi.step(batch, seed=0)
    # At the exact posterior the ELBO's gradient is the evidence's own (Fisher's identity).
    y = model.table[batch.tokens].flatten(-2)
    covariance = matrix @ matrix.T + model.scale**2 * torch.eye(8)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(8), covariance).log_prob(y).sum() / 12
    torch.testing.assert_close(evidence, before)
    (expected,) = torch.autograd.grad(-evidence, matrix)
    # With 4096 draws and a fit within a percent the gradient errs by 2 to 3 % of its norm.
    assert (model.matrix.grad - expected).norm() < 0.1 * expected.norm()
    assert model.log_evidence(batch).sum() / batch.num_scored.sum() > before


def test_the_low_rank_guide_finds_the_correlated_posterior_and_closes_the_mean_field_gap():
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4, 4, 4)
    guide = LocalLowRank(model, rank=3, init_log_var=-1.0, init_factor_spread=0.1)
    posterior = FastSlowSVI(model, guide, fast=LOW_RANK, elbo=SequenceELBO(PARTICLES)).infer(batch, seed=0)
    mean, precision = model.exact_posterior(batch)
    exact = torch.linalg.inv(precision)
    factor, diagonal = posterior.local["z.factor"], posterior.local["z.log_var"].flatten(1).exp()
    covariance = factor @ factor.mT + torch.diag_embed(diagonal)
    deviations = exact.diag().sqrt()
    assert ((posterior.local["z.mu"].flatten(1) - mean) / deviations).abs().max() < 0.03
    # Correlations as large as these are far outside what a diagonal covariance can say.
    correlations = exact / deviations[:, None] / deviations
    assert (correlations - torch.eye(4)).abs().max() > 0.3
    assert ((covariance - exact) / deviations[:, None] / deviations).abs().max() < 0.03

    terms, error = posterior.elbo_terms(20_000), log_likelihood_error(posterior, 20_000)
    assert ((terms.elbo - model.log_evidence(batch)).abs() < 4 * error + 5e-3).all()
    # Higher than the best factorised normal by its gap, half of log det diag(Λ) - log det Λ.
    gap = 0.5 * (precision.diag().log().sum() - torch.logdet(precision))
    mean_field = fitted(model, batch).elbo_terms(20_000)
    assert ((terms.elbo - mean_field.elbo - gap).abs() < 8 * error + 2e-2).all()
