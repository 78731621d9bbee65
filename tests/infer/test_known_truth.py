"""Learned priors against the truth that the data come from, by exact evidence of sequences held out."""

from __future__ import annotations

import math

import pytest
import torch
from dense_normals import dense_normals
from linear_gaussian import EmbeddedModel

from ltm_pyro.batch import TokenBatch
from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI, SequenceELBO
from ltm_pyro.priors import GaussianPrior, HierarchicalPrior, MarkovPrior, MixturePrior, Prior

TRAINED, HELD_OUT = 4000, 4000
# Of the observation: small enough that a sequence's diagonal normal is close to its exact posterior, and that the prior
# decides the evidence; the truths' own scales are 0.3 to 0.44.
NOISE = 0.15
# With Adam's usual betas a loop this short ends while the means still swing past their posteriors.
FAST = FastConfig(steps=16, betas=(0.5, 0.9))


def three_kinds() -> MixturePrior:
    """Like the other truths, with mean 0 and variance 1 in every entry, so that N(0, I) is right about each alone."""
    prior = MixturePrior((1, 2, 2), components=3)
    weights, variance = torch.tensor([0.5, 0.3, 0.2]), 0.3**2
    means = torch.tensor([[-1.0, 0.0, 1.0, -1.0], [1.0, -1.0, -1.0, 0.0], [0.0, 1.5, -1.0, 1.5]])
    means = means - weights @ means
    means = means * ((1 - variance) / (weights @ means.square())).sqrt()
    return filled(prior, logits=weights.log(), mu=means.view_as(prior.mu), log_scale=0.5 * math.log(variance))


def a_chain() -> MarkovPrior:
    turns = torch.tensor([1.2, -2.0])
    cos, sin = turns.cos(), turns.sin()
    transition = 0.95 * torch.stack([cos, -sin, sin, cos], dim=-1).view(2, 2, 2)
    return filled(MarkovPrior((3, 1, 2)), A=transition, log_s=0.5 * math.log(1 - 0.95**2))


def two_topics() -> HierarchicalPrior:
    angles = torch.tensor([0.0, 0.5, 1.0, 1.6, 2.2, 2.7, 3.5, 5.0])
    weight = 0.9 * torch.stack([angles.cos(), angles.sin()], dim=-1)
    prior = HierarchicalPrior((2, 2, 2), topics=2)
    return filled(prior, weight=weight.view_as(prior.weight), log_scale=0.5 * math.log(1 - 0.9**2))


@torch.no_grad()
def filled(prior: Prior, **values: torch.Tensor | float) -> Prior:
    for name, value in values.items():
        parameter = prior.get_parameter(name)
        parameter.copy_(torch.as_tensor(value).expand_as(parameter))
    return prior


def sequences(rows: torch.Tensor) -> TokenBatch:
    """One token each, which indexes the table of observations."""
    return TokenBatch(rows[:, None], torch.ones_like(rows), torch.zeros_like(rows))


def model_of_data(truth: Prior) -> EmbeddedModel:
    """A known orthogonal map of the truth's thoughts; the model's prior is the truth."""
    size = math.prod(truth.shape)
    matrix = torch.linalg.qr(torch.randn(size, size)).Q
    model = EmbeddedModel(truth, matrix=matrix, table=torch.empty(0), scale=NOISE)
    thoughts = model.sample_prior(TRAINED + HELD_OUT).flatten(1)
    model.table = thoughts @ matrix.T + NOISE * torch.randn(TRAINED + HELD_OUT, size)
    return model


def learn(model: EmbeddedModel, prior: Prior, *, steps: int) -> float:
    """Fits a prior, and nothing else, to the first rows of the table; returns the last fifth's mean ELBO."""
    model.prior = prior
    guide = LocalNormal(model, init_log_var=2 * math.log(NOISE))
    slow = torch.optim.Adam(prior.parameters(), lr=0.08)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(slow, steps)
    svi = FastSlowSVI(model, guide, fast=FAST, slow=slow, elbo=SequenceELBO(2))
    losses = []
    for _ in range(steps):
        losses.append(svi.step(sequences(torch.randint(TRAINED, (256,)))).loss)
        decay.step()
    return -torch.stack(losses[-steps // 5 :]).mean().item()


def evidences(model: EmbeddedModel, *priors: Prior) -> list[float]:
    """Mean exact log-evidence of the sequences held out, in nats, under each prior."""
    held_out = sequences(torch.arange(TRAINED, TRAINED + HELD_OUT))
    return [model.log_evidence(held_out, prior).mean().item() for prior in priors]


def assert_evidence_is_the_truths(model: EmbeddedModel, truth: Prior, learned: Prior) -> None:
    best, reached, plain = evidences(model, truth, learned, GaussianPrior(truth.shape))
    assert abs(reached - best) <= 0.02 * abs(best)
    assert abs(plain - best) > 0.2 * abs(best)
    # The units of the observation move the evidence, and with it what 2 % are; they do not move this.
    assert reached - plain > 0.95 * (best - plain)


@pytest.mark.parametrize(("build", "start", "steps"), [
    (a_chain, lambda: MarkovPrior((3, 1, 2)), 60),
    (two_topics, lambda: HierarchicalPrior((2, 2, 2), topics=2), 100),
], ids=["Markov chain", "topics"])  # fmt: skip
def test_a_learned_normal_prior_reaches_the_truths_evidence_and_covariance(build, start, steps):
    truth = build()
    model, learned = model_of_data(truth), start()
    _, true_mean, true_covariance = dense_normals(truth)
    # The start does not know them.
    assert (dense_normals(learned)[2] - true_covariance).abs().max() > 0.6
    learn(model, learned, steps=steps)
    assert_evidence_is_the_truths(model, truth, learned)
    _, mean, covariance = dense_normals(learned)
    # Of variances of 1; six seeds erred by up to 0.14 and 0.12.
    assert (mean - true_mean).abs().max() < 0.2
    assert (covariance - true_covariance).abs().max() < 0.2


def assert_kinds_are_the_truths(learned: MixturePrior, truth: MixturePrior) -> None:
    """Components that share a kind count as one: their sum is what the data know."""
    weights, means, _ = dense_normals(learned)
    true_weights, true_means, _ = dense_normals(truth)
    kind = torch.nn.functional.one_hot(torch.cdist(means, true_means).argmin(1), len(true_means)).float()
    share = kind * weights.exp()[:, None]  # (components, kinds)
    found = share.sum(0)
    assert (found - true_weights.exp()).abs().max() < 0.05
    mean = share.T @ means / found[:, None]
    assert (mean - true_means).abs().max() < 0.15


def test_a_learned_mixture_reaches_the_truths_evidence_and_finds_its_kinds():
    truth = three_kinds()
    # The default's eight components: spare ones share a kind, and a start does not miss one.
    model, learned = model_of_data(truth), MixturePrior(truth.shape)
    learn(model, learned, steps=120)
    assert_evidence_is_the_truths(model, truth, learned)
    assert_kinds_are_the_truths(learned, truth)


@pytest.mark.slow
def test_a_mixture_of_as_many_components_as_kinds_finds_each_from_the_best_of_a_few_starts():
    truth = three_kinds()
    model, starts = model_of_data(truth), [MixturePrior(truth.shape, components=3) for _ in range(4)]
    # Some starts end with two components on one kind and one on two; their ELBO of the training data is lower.
    _, best = max((learn(model, start, steps=120), number) for number, start in enumerate(starts))
    assert_evidence_is_the_truths(model, truth, starts[best])
    assert_kinds_are_the_truths(starts[best], truth)
    # Every component is one kind now, so that its scales are known, too.
    torch.testing.assert_close(starts[best].log_scale.exp(), truth.log_scale.exp().clone(), atol=0.1, rtol=0)
