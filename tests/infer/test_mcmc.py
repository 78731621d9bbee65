"""HMC and NUTS chains through Pyro against exact posteriors, and against Langevin dynamics on a real decoder."""

from __future__ import annotations

import inspect

import pytest
import torch
from chain_checks import assert_moments, gamma_model, gamma_posterior
from linear_gaussian import LinearGaussianModel
from tiny_models import ragged_batch, tiny_model

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.infer import langevin, mcmc


@pytest.mark.parametrize(("kernel", "draws"), [("nuts", 120), ("hmc", 250)])
def test_chains_have_the_exact_means_and_variances(kernel, draws):
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4)
    chains = mcmc(model, batch, kernel=kernel, draws=draws, warmup=80, chains=2, seed=1)
    mean, precision = model.exact_posterior(batch)
    assert chains.method == kernel
    assert chains.sites["z"].shape == (draws, 2, 1, 1, 2, 2)
    assert_moments(chains, mean, torch.linalg.inv(precision).diag())
    assert (chains.divergences == 0).all()
    assert ((chains.acceptance > 0.6) & (chains.acceptance <= 1)).all()
    assert ((chains.step_size > 0.1) & (chains.step_size < 3)).all()


def test_a_positive_site_has_the_posterior_of_a_grid():
    model, batch = gamma_model(), ragged_batch(4)
    chains = mcmc(model, batch, draws=150, warmup=60, chains=2, seed=1)
    mean, variance, _ = gamma_posterior(model, batch)
    assert_moments(chains, mean, variance, site="level")


@pytest.mark.parametrize("kernel", ["nuts", "hmc"])
def test_a_chain_is_the_same_in_any_batch_and_leaves_the_global_stream_alone(kernel):
    model, batch = tiny_model(layers=1), ragged_batch(6, 3)
    settings = {"kernel": kernel, "draws": 3, "warmup": 3, "chains": 2, "max_tree_depth": 3, "seed": 4}
    before = torch.get_rng_state()
    together = mcmc(model, batch, **settings)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    alone = mcmc(model, TokenBatch(batch.tokens[1:, :3], batch.lengths[1:], batch.start[1:]), **settings)
    assert torch.equal(together.sites["z"][:, :, 1:], alone.sites["z"])
    assert torch.equal(together.step_size[:, 1:], alone.step_size)
    assert not torch.equal(together.sites["z"][:, 0], together.sites["z"][:, 1])


@pytest.mark.slow
def test_langevin_and_nuts_agree_on_a_transformer():
    model, batch = tiny_model(layers=1, hidden=4, heads=1), ragged_batch(7)
    nuts = mcmc(model, batch, draws=100, warmup=60, chains=2, seed=1)
    mala = langevin(model, batch, draws=300, warmup=200, chains=32, seed=1)
    draws = mala.sites["z"].flatten(0, 1)
    error = draws.std(0) * mala.effective_sample_size()["z"].rsqrt()
    assert error.max() < 0.1
    other = draws.std(0) * nuts.effective_sample_size()["z"].rsqrt()
    assert ((nuts.mean - mala.mean).abs() < 5 * (other**2 + error**2).sqrt()).all()
    assert (mala.summary().r_hat < 1.1).all()


def test_wrong_settings_are_told():
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4)
    with pytest.raises(LTMError, match="'gibbs' is no kernel: take 'nuts' or 'hmc'"):
        inspect.unwrap(mcmc)(model, batch, kernel="gibbs")  # without the tests' own check of types
    with pytest.raises(LTMError, match="at least 1, got 0"):
        mcmc(model, batch, draws=0)
