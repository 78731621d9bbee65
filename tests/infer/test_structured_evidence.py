"""Structured priors under a linear-Gaussian likelihood, where the evidence is a normal density or a sum of such."""

from __future__ import annotations

from dataclasses import replace

import pyro
import pytest
import torch
from linear_gaussian import LinearGaussianModel
from pyro import poutine
from tiny_models import ragged_batch

from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI, Posterior
from ltm_pyro.priors import HierarchicalPrior, LearnedGaussianPrior, MarkovPrior, MixturePrior

SHAPE = (1, 2, 2)
PRIORS = {
    "learned-gaussian": lambda: LearnedGaussianPrior(SHAPE),
    "mixture": lambda: MixturePrior(SHAPE, components=3),
    "hierarchical": lambda: HierarchicalPrior(SHAPE, topics=2),
    "hierarchical, not centred": lambda: HierarchicalPrior(SHAPE, topics=2, centred=False),
    "markov": lambda: MarkovPrior(SHAPE),
}


def log_weights(posterior: Posterior, draws: int) -> torch.Tensor:
    """(S, B) log p(x, z) - log q(z) under a q three times as wide, whose weights have light tails."""
    local = {n: value + 1.1 if n.endswith("log_var") else value for n, value in posterior.local.items()}
    posterior = replace(posterior, local=local)
    batch = posterior.batch

    def particles(program):
        return pyro.plate("particles", draws, dim=-2)(program)

    with torch.no_grad():
        guide = poutine.trace(particles(lambda: posterior.guide(batch, posterior.local))).get_trace()
        model = poutine.trace(poutine.replay(particles(lambda: posterior.model(batch)), trace=guide)).get_trace()
        for trace in (guide, model):
            trace.compute_log_prob()
        total = model.nodes["tokens"]["log_prob"]
        for site in posterior.guide.sites:
            total = total + model.nodes[site.name]["log_prob"] - guide.nodes[site.name]["log_prob"]
    return total


@pytest.mark.parametrize("name", PRIORS)
def test_importance_weights_find_the_exact_evidence_and_the_elbo_stays_below_it(name):
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4, 4, 4)
    model.prior = PRIORS[name]()
    with torch.no_grad():
        for parameter in model.prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    guide = LocalNormal(model, init_log_var=-1.0)
    posterior = FastSlowSVI(model, guide, fast=FastConfig(steps=200, lr=0.1, lr_decay=0.02)).infer(batch, seed=0)
    evidence, draws = model.log_evidence(batch), 100_000

    weights = log_weights(posterior, draws)
    top = weights.max(0).values
    ratios = (weights - top).exp()
    estimate = ratios.mean(0).log() + top
    error = ratios.std(0) / ratios.mean(0) / draws**0.5  # of the logarithm, by the delta method
    assert (error < 0.05).all()
    assert ((estimate - evidence).abs() < 4 * error + 1e-3).all()

    terms = posterior.elbo_terms(20_000)
    assert (terms.elbo < evidence + 0.02).all()
    assert (terms.elbo > evidence - 1.5).all()  # the mean-field gap of these sizes; a wrong KL is off by more
    assert (terms.kl > 0).all()
