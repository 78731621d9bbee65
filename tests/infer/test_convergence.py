"""The early stop: a sequence that is done leaves the batch, and nothing but the cost tells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import ragged_batch, tiny_model

from ltm_pyro.batch import TokenBatch
from ltm_pyro.guides import GUIDES, LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI, SequenceELBO
from ltm_pyro.infer.convergence import Convergence
from ltm_pyro.priors import PRIORS

OPTIONS: dict[str, dict[str, Any]] = {
    "mixture": {"enumerated": True, "components": 3},
    "supervised": {"classes": 3},
    "energy": {"langevin_steps": 2, "normalizer_draws": 16, "langevin_chains": 4},
}
PAIRS = [
    (prior, guide)
    for prior in PRIORS
    for guide in GUIDES
    if GUIDES[guide].refined and not PRIORS[prior].refusal(GUIDES[guide])
]


def labelled(*lengths: int) -> TokenBatch:
    batch = ragged_batch(*lengths)
    labels = torch.arange(len(lengths)) % 4 - 1  # unknown, and three classes
    scored = torch.arange(batch.tokens.shape[1]) % 3 > 0
    return TokenBatch(batch.tokens, batch.lengths, batch.start, scored.expand(len(lengths), -1), labels)


def engine(prior: str = "gaussian", guide: str = "local-normal", **settings: Any) -> FastSlowSVI:
    model = tiny_model()
    torch.manual_seed(0)
    model.prior = PRIORS[prior](model.prior.shape, **OPTIONS.get(prior, {}))
    q = GUIDES[guide](model)
    elbo = settings.pop("elbo", None)
    fast = FastConfig(**{"steps": 24, "lr": 0.3, "tolerance": 1.5} | settings)
    weights = [*model.parameters(), *q.parameters()]
    return FastSlowSVI(model, q, fast=fast, slow=torch.optim.SGD(weights, lr=0.0), elbo=elbo)


def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences that are done stay in the batch, where their steps are undone, until all are."""

    def all_or_none(self: Convergence) -> torch.Tensor | None:
        return self.done.nonzero()[:0, 0] if bool(self.done.all()) else None

    monkeypatch.setattr(Convergence, "going_on", all_or_none)


@pytest.mark.parametrize(("prior", "guide"), PAIRS)
def test_a_sequence_that_leaves_the_batch_ends_where_it_would_have_been_held(float64, monkeypatch, prior, guide):
    batch = labelled(9, 4, 12, 7, 2)
    left = engine(prior, guide).infer(batch, seed=1)
    held(monkeypatch)
    stayed = engine(prior, guide).infer(batch, seed=1)
    assert left.steps_taken == stayed.steps_taken
    for name, value in stayed.local.items():
        torch.testing.assert_close(left.local[name], value, atol=1e-8, rtol=0)  # rounding, which Adam amplifies
    rows = [step.sequences for step in left.fast_steps]
    assert rows == sorted(rows, reverse=True)
    assert rows[:8] == [5] * 8  # what is judged is eight steps long
    assert {step.sequences for step in stayed.fast_steps} == {5}


def test_these_sequences_leave_one_after_the_other():
    rows = [step.sequences for step in engine().infer(labelled(9, 4, 12, 7, 2), seed=1).fast_steps]
    assert len(set(rows)) >= 3


@pytest.mark.parametrize("noise", ["fresh", "fixed"])
@pytest.mark.parametrize("slow_gradient", ["final", "trajectory"])
@pytest.mark.parametrize("particles", [1, 2])
def test_a_slow_step_is_that_of_sequences_that_are_held(float64, monkeypatch, noise, slow_gradient, particles):
    def step() -> tuple[Any, FastSlowSVI]:
        svi = engine(noise=noise, slow_gradient=slow_gradient, elbo=SequenceELBO(particles))
        return svi.step(labelled(9, 4, 12, 7, 2), seed=1), svi

    left, by_leaving = step()
    held(monkeypatch)
    stayed, by_holding = step()
    torch.testing.assert_close(left.loss, stayed.loss)
    for actual, expected in zip(by_leaving.model.parameters(), by_holding.model.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, atol=1e-8, rtol=1e-6)


def test_posterior_does_not_depend_on_who_leaves_when(float64):
    batch = labelled(9, 4, 12, 7, 2)
    whole = engine().infer(batch, seed=1)
    for rows in ([0], [3, 2], [4, 3, 2, 1, 0]):
        part = engine().infer(batch[rows], seed=1)
        for name, value in part.local.items():
            torch.testing.assert_close(value, whole.local[name][rows], atol=1e-8, rtol=0)


def test_each_sequence_is_computed_for_no_longer_than_alone():
    batch = labelled(9, 4, 12, 7, 2)
    alone = [engine().infer(batch[[b]], seed=1).steps_taken for b in range(5)]
    together = engine().infer(batch, seed=1).fast_steps
    assert [sum(n > t for n in alone) for t in range(max(alone))] == [step.sequences for step in together]
    counts = batch.num_scored.tolist()
    scored = [sum(c for c, n in zip(counts, alone, strict=True) if n > t) for t in range(max(alone))]
    assert scored == [step.tokens for step in together]


def test_the_last_sequence_ends_the_loop_where_it_is_held():
    model = tiny_model()
    svi = FastSlowSVI(model, LocalNormal(model), fast=FastConfig(steps=30, lr=0.3, tolerance=50.0))
    posterior = svi.infer(ragged_batch(5), seed=1)
    assert posterior.steps_taken == 8
    assert all(not value.requires_grad for value in posterior.local.values())
