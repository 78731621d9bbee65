"""Posteriors as objects: moments, reproducible draws, terms, files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import ragged_batch, tiny_model

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI, Posterior
from ltm_pyro.likelihood import TokenSequence


@pytest.fixture
def posterior() -> Posterior:
    model = tiny_model()
    guide = LocalNormal(model, init_log_var=-2.0, init_mu_spread=0.5)
    return FastSlowSVI(model, guide, fast=FastConfig(steps=4, lr=0.1)).infer(ragged_batch(5, 3, 0), seed=2)


def test_the_mean_is_the_location_of_the_local_normal(posterior):
    assert torch.equal(posterior.mean, posterior.local["z.mu"])
    assert len(posterior) == 3


def test_draws_have_the_moments_of_the_local_normal(posterior):
    draws = posterior.sample(4000)
    assert draws.shape == (4000, 3, 2, 2, 8)
    sd = (0.5 * posterior.local["z.log_var"]).exp()
    standard = (draws - posterior.local["z.mu"]) / sd
    # Five standard errors, over 96 entries.
    assert (standard.mean(0).abs() < 5 / 4000**0.5).all()
    assert ((standard.std(0) - 1).abs() < 5 / 8000**0.5).all()
    assert not draws.requires_grad


def test_repeated_draws_repeat_and_the_first_do_not_depend_on_their_number(posterior):
    torch.manual_seed(1)
    few = posterior.sample(3)
    torch.manual_seed(2)
    assert torch.equal(posterior.sample(3), few)
    assert torch.equal(posterior.sample(8)[:3], few)
    assert torch.equal(posterior.sites(3)["z"], few)
    assert posterior.sample().shape == (1, 3, 2, 2, 8)


def test_draws_are_not_those_that_the_terms_are_scored_on(posterior):
    likelihood = TokenSequence(posterior.model.decoder, posterior.sample(1)[0], posterior.batch)
    on_draws = likelihood.log_prob(posterior.batch.tokens)
    assert (on_draws - posterior.elbo_terms(1).log_likelihood)[:2].abs().min() > 1e-4


def test_kl_is_exact_and_never_negative(posterior):
    mu, log_var = posterior.local["z.mu"], posterior.local["z.log_var"]
    expected = 0.5 * (mu**2 + log_var.exp() - log_var - 1).sum((-1, -2, -3))
    torch.testing.assert_close(posterior.kl, expected)
    assert (posterior.kl >= 0).all()
    at_prior = Posterior(
        posterior.model, posterior.guide, posterior.batch, {k: 0 * v for k, v in posterior.local.items()}, 0, 0
    )
    torch.testing.assert_close(at_prior.kl, torch.zeros(3), atol=1e-6, rtol=0)


def test_terms_are_the_expected_log_likelihood_of_the_tokens(posterior):
    terms = posterior.elbo_terms(2000)
    draws = posterior.sample(2000)
    log_prob = TokenSequence(posterior.model.decoder, draws, posterior.batch).log_prob(posterior.batch.tokens)
    error = (2 * log_prob.var(0) / 2000).sqrt()
    assert ((terms.log_likelihood - log_prob.mean(0)).abs() <= 5 * error).all()  # two estimates, five standard errors
    torch.testing.assert_close(terms.elbo, terms.log_likelihood - terms.kl)
    assert not terms.elbo.requires_grad
    assert torch.equal(posterior.terms.elbo, posterior.elbo_terms(1).elbo)


def assert_equal_posteriors(a: Posterior, b: Posterior) -> None:
    assert a.local.keys() == b.local.keys()
    for name, value in a.local.items():
        assert torch.equal(b.local[name], value)
    assert torch.equal(a.batch.mask, b.batch.mask)
    assert torch.equal(a.batch.inputs, b.batch.inputs)
    assert (a.seed, a.steps_taken) == (b.seed, b.steps_taken)
    assert torch.equal(a.sample(2), b.sample(2))
    assert torch.equal(a.terms.elbo, b.terms.elbo)


@pytest.mark.parametrize("scored", [True, False])
def test_saving_and_loading_returns_the_same_posterior(posterior, tmp_path, scored):
    if scored:
        batch = posterior.batch
        chosen = TokenBatch(batch.tokens, batch.lengths, batch.start, torch.rand(3, 5) < 0.5)
        posterior = Posterior(posterior.model, posterior.guide, chosen, posterior.local, 2**61 + 1, 4)
    posterior.save(tmp_path / "p.safetensors")
    loaded = Posterior.load(tmp_path / "p.safetensors", posterior.model, posterior.guide)
    assert (loaded.batch.scored is not None) == scored
    assert_equal_posteriors(posterior, loaded)


class OtherGuide(LocalNormal):
    pass


def test_files_that_hold_no_posterior_of_this_guide_are_refused(posterior, tmp_path):
    path = tmp_path / "p.safetensors"
    posterior.save(path)
    whole = path.read_bytes()
    with pytest.raises(LTMError, match=r"OtherGuide|LocalNormal"):
        Posterior.load(path, posterior.model, OtherGuide(posterior.model))
    for damaged in (whole[: len(whole) // 2], whole[:-1], whole[:4], b"", b"not a posterior at all"):
        path.write_bytes(damaged)
        with pytest.raises(LTMError, match=r"p\.safetensors"):
            Posterior.load(path, posterior.model, posterior.guide)
    with pytest.raises(LTMError, match="missing"):
        Posterior.load(tmp_path / "missing", posterior.model, posterior.guide)
    for metadata in (None, {"ltm_pyro": json.dumps({"format": "another"})}, {"ltm_pyro": "{"}, {"ltm_pyro": "[]"}):
        save_file({"x": torch.zeros(2)}, str(path), metadata=metadata)
        with pytest.raises(LTMError, match=r"p\.safetensors"):
            Posterior.load(path, posterior.model, posterior.guide)


def test_moving_a_posterior_keeps_its_numbers(posterior):
    terms = posterior.terms
    moved = posterior.to("cpu")
    assert_equal_posteriors(posterior, moved)
    assert torch.equal(moved.terms.kl, terms.kl)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_posterior_moved_from_cuda_draws_the_same(posterior):
    expected = posterior.sample(2)
    posterior.model.cuda()
    on_cuda = posterior.to("cuda").sample(2)
    assert on_cuda.is_cuda
    torch.testing.assert_close(on_cuda.cpu(), expected, atol=1e-5, rtol=1e-5)  # other logarithms and cosines


def test_a_posterior_keeps_the_type_that_it_is_scored_in(tmp_path):
    model, batch = tiny_model(), ragged_batch(4, 2)
    svi = FastSlowSVI(model, LocalNormal(model), fast=FastConfig(steps=2), autocast=torch.bfloat16)
    posterior = svi.infer(batch, seed=0)
    posterior.save(tmp_path / "p.safetensors")
    loaded = Posterior.load(tmp_path / "p.safetensors", model, svi.guide)
    assert loaded.autocast is torch.bfloat16
    assert torch.equal(loaded.terms.log_likelihood, posterior.terms.log_likelihood)
