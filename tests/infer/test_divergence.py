"""A sequence whose fast loop diverges goes back to its start; every other one is the same bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import ragged_batch, tiny_model
from torch import Tensor

from ltm_pyro.guides import Amortized, LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.infer.divergence import restarted, without
from ltm_pyro.infer.warm_start import PosteriorTable
from ltm_pyro.likelihood import TokenSequence

LENGTHS = (6, 3, 8, 5)
BAD = 1
OTHERS = [0, 2, 3]
FAST = {
    "fresh": FastConfig(steps=6, lr=0.1),
    "fixed": FastConfig(steps=6, lr=0.1, noise="fixed"),
    "early stop": FastConfig(steps=16, lr=0.3, tolerance=1.0),
    "fewer tokens": FastConfig(steps=6, lr=0.1, token_fraction=0.5),
}


def engine(fast: FastConfig, **settings) -> FastSlowSVI:
    model = tiny_model()
    guide = LocalNormal(model, init_log_var=-2.0, init_mu_spread=0.1)
    return FastSlowSVI(model, guide, fast=fast, slow=torch.optim.SGD(model.parameters(), lr=0.0), **settings)


def poison(patch: pytest.MonkeyPatch, value: float, *, when: Callable[[int], bool] = lambda call: True) -> None:
    """Makes the likelihood of one sequence ``value``, and its gradient no better, at some of its calls."""
    calls: list[int] = []
    real = TokenSequence.log_prob

    def poisoned(self: TokenSequence, tokens: Tensor) -> Tensor:
        log_prob = real(self, tokens)
        calls.append(1)
        if not when(len(calls) - 1):
            return log_prob
        return log_prob * torch.where(self.batch.lengths == LENGTHS[BAD], value, 1.0)  # wherever it stands by now

    patch.setattr(TokenSequence, "log_prob", poisoned)


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_others_are_the_same_bit_for_bit_and_the_diverged_one_stands_where_it_started(
    monkeypatch: pytest.MonkeyPatch, fast: str, value: float
):
    svi, batch = engine(FAST[fast]), ragged_batch(*LENGTHS)
    whole, start = svi.infer(batch, seed=5), svi.infer(batch, steps=0, seed=5)
    assert not whole.diverged.any()
    poison(monkeypatch, value)
    hurt = svi.infer(batch, seed=5)
    assert hurt.diverged.tolist() == [False, True, False, False]
    for name, local in hurt.local.items():
        assert torch.equal(local[OTHERS], whole.local[name][OTHERS]), name
        assert torch.equal(local[BAD], start.local[name][BAD]), name


def test_one_bad_step_is_enough_to_diverge(monkeypatch: pytest.MonkeyPatch):
    svi, batch = engine(FAST["fresh"]), ragged_batch(*LENGTHS)
    poison(monkeypatch, math.nan, when=lambda call: call == 3)
    assert svi.infer(batch, seed=5).diverged.tolist() == [False, True, False, False]


def gradients(svi: FastSlowSVI) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in svi.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [None, 1, 3])
def test_the_slow_gradient_is_that_of_the_other_sequences(monkeypatch: pytest.MonkeyPatch, size: int | None):
    svi, batch = engine(FAST["fresh"]), ragged_batch(*LENGTHS)
    svi.step(batch[OTHERS], seed=5)
    expected = gradients(svi)
    steps = svi.fast.steps
    parts = 1 if size == 1 else 0  # which micro-batch it is in
    with monkeypatch.context() as patch:
        poison(patch, math.nan, when=lambda call: call // (steps + 1) == parts and call % (steps + 1) < steps)
        info = svi.step(batch, seed=5, micro_batch_size=size)
    assert info.diverged.tolist() == [False, True, False, False]
    assert torch.isfinite(info.loss)  # that of all sequences, the diverged one's at its start
    # The loss is per scored token of the whole batch, the diverged sequence's among them.
    scale = float(batch.num_scored.sum()) / float(batch[OTHERS].num_scored.sum())
    for name, gradient in gradients(svi).items():
        torch.testing.assert_close(gradient * scale, expected[name], atol=1e-6, rtol=1e-4)


def test_an_infinite_likelihood_in_the_slow_step_leaves_the_other_posteriors_whole(monkeypatch: pytest.MonkeyPatch):
    svi, batch = engine(FAST["fresh"]), ragged_batch(*LENGTHS)
    whole = svi.step(batch, seed=5)
    poison(monkeypatch, math.inf, when=lambda call: call == svi.fast.steps)
    info = svi.step(batch, seed=5)
    assert not info.diverged.any()
    assert info.terms.elbo.isfinite().tolist() == [True, False, True, True]
    assert torch.equal(info.terms.elbo[OTHERS], whole.terms.elbo[OTHERS])
    for name, local in info.posteriors[0].local.items():
        assert torch.equal(local, whole.posteriors[0].local[name])


def test_a_table_of_starts_keeps_only_what_is_finite(tmp_path: Path):
    table = PosteriorTable(tmp_path)
    keys = torch.tensor([1, 2])
    table.store(keys, {"z.mu": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
    table.store(keys, {"z.mu": torch.tensor([[5.0, 6.0], [7.0, math.nan]])})
    found = table.start(keys, {"z.mu": torch.zeros(2, 2)})
    assert found["z.mu"].tolist() == [[5.0, 6.0], [3.0, 4.0]]


def test_an_encoders_posterior_is_taken_as_it_is():
    model = tiny_model()
    svi = FastSlowSVI(model, Amortized(model, width=8, layers=1, heads=2))
    assert svi.infer(ragged_batch(*LENGTHS), seed=0).diverged is None


def test_rows_are_judged_over_all_their_parameters():
    start = {"a": torch.zeros(3), "b": torch.zeros(3, 2)}
    local = {"a": torch.tensor([1.0, math.inf, 1.0]), "b": torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, math.nan]])}
    kept, diverged = restarted(local, start)
    assert diverged.tolist() == [False, True, True]
    assert kept["a"].tolist() == [1.0, 0.0, 0.0]
    assert kept["b"].tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert without(diverged, torch.tensor([1.0, 2.0, 3.0])).tolist() == [1.0, 0.0, 0.0]
