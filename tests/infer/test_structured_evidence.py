"""Structured priors under a linear-Gaussian likelihood, where the evidence is a normal density or a sum of such."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from linear_gaussian import EmbeddedModel
from tiny_models import ragged_batch

from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI, importance_weights
from ltm_pyro.priors import GaussianPrior, HierarchicalPrior, LearnedGaussianPrior, MarkovPrior, MixturePrior

SHAPE = (1, 2, 2)
PRIORS = {
    "gaussian": lambda: GaussianPrior(SHAPE),
    "learned-gaussian": lambda: LearnedGaussianPrior(SHAPE),
    "mixture": lambda: MixturePrior(SHAPE, components=3),
    "mixture, enumerated": lambda: MixturePrior(SHAPE, components=3, enumerated=True),
    "hierarchical": lambda: HierarchicalPrior(SHAPE, topics=2),
    "hierarchical, not centred": lambda: HierarchicalPrior(SHAPE, topics=2, centred=False),
    "markov": lambda: MarkovPrior((3, 1, 2)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_importance_weights_find_the_exact_evidence_and_the_elbo_stays_below_it(name):
    prior, batch = PRIORS[name](), ragged_batch(4, 4, 4)
    matrix = torch.randn(8, math.prod(prior.shape), generator=torch.Generator().manual_seed(11))
    table = torch.randn(11, 2, generator=torch.Generator().manual_seed(12))
    model = EmbeddedModel(prior, matrix=matrix, table=table, scale=0.7)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    guide = LocalNormal(model, init_log_var=-1.0)
    posterior = FastSlowSVI(model, guide, fast=FastConfig(steps=200, lr=0.1, lr_decay=0.02)).infer(batch, seed=0)
    evidence, draws = model.log_evidence(batch), 100_000

    # Six times as wide, so that the weights have light tails also where the sites are correlated.
    local = {n: value + 1.8 if n.endswith("log_var") else value for n, value in posterior.local.items()}
    weights = importance_weights(replace(posterior, local=local), draws, chunk_size=20_000)
    assert (weights.standard_error < 0.05).all()
    assert ((weights.log_evidence - evidence).abs() < 4 * weights.standard_error + 1e-3).all()
    assert (weights.k_hat < 0.7).all()  # the limit of use

    terms = posterior.elbo_terms(20_000)
    assert (terms.elbo < evidence + 0.02).all()
    assert (terms.elbo > evidence - 3.0).all()  # the mean-field gap is up to 2.5; a KL counted twice is off by 4 to 6
    assert (terms.kl > 0).all()
