"""Scoring q on the noise that it was fitted to flatters it, so it is no protocol."""

from __future__ import annotations

import copy

import pytest
import torch

from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import evaluate
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.language_model import ThoughtLanguageModel

STEPS = 48


def with_noise(svi: FastSlowSVI, noise: str) -> FastSlowSVI:
    """The trained model under a long fast loop; its slow steps change nothing."""
    model, guide = copy.deepcopy((svi.model, svi.guide))
    still = torch.optim.SGD(model.parameters(), lr=1e-12)
    return FastSlowSVI(model, guide, fast=FastConfig(steps=STEPS, noise=noise), slow=still)


def test_the_elbo_on_the_fitted_noise_is_optimistic_on_a_trained_model(svi: FastSlowSVI, data: Data):
    fixed = with_noise(svi, "fixed")
    batch = data.validation.batch(range(len(data.validation)))
    gaps = []
    for seed in range(8):
        info = fixed.step(batch, seed=seed)
        assert info.terms is not None
        fitted = -info.terms.elbo.sum()
        honest = -info.posteriors[0].elbo_terms(16).elbo.sum()
        gaps.append(float(honest - fitted) / int(batch.num_scored.sum()))
    gaps_t = torch.tensor(gaps)
    # The fit saw one ε per sequence: every seed is better on its own noise than on noise drawn afterwards.
    assert gaps_t.mean() > 4 * gaps_t.std() / len(gaps) ** 0.5
    assert gaps_t.mean() > 0.005


def test_under_fixed_noise_elbo_is_still_scored_on_noise_drawn_after_the_fit(svi: FastSlowSVI, data: Data):
    indices = range(len(data.validation))
    fixed = with_noise(svi, "fixed")
    reported = evaluate(fixed, data.validation, indices, samples=16, batch_size=100)
    batch = data.validation.batch(indices)
    afterwards = fixed.infer(batch, seed=0).elbo_terms(16)
    assert torch.allclose(reported.values["elbo"], -afterwards.elbo.double(), rtol=1e-4)
    info = fixed.step(batch, seed=0)
    assert info.terms is not None
    assert reported.mean("elbo")[0] > float(-info.terms.elbo.sum()) / int(batch.num_scored.sum())


def test_the_elbo_on_the_fitted_noise_is_refused_as_a_protocol(svi: FastSlowSVI, data: Data):
    words = "fitted-elbo is no protocol: .* flatters it .* reconstruction.* inference.noise = fixed"
    with pytest.raises(LTMError, match=words):
        evaluate(svi, data.validation, [0], protocols=["fitted-elbo"])
    with pytest.raises(LTMError, match=words):
        ThoughtLanguageModel(svi).evaluate(data.validation, [0], protocols=["fitted-elbo"])
