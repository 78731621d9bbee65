"""What goes wrong on one of two ranks is known to both: they skip, stop and refuse together."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from many_ranks import run_ranks
from tiny_runs import tiny_settings

from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.likelihood import TokenSequence
from ltm_pyro.ranks import Ranks
from ltm_pyro.training import Observer, RunDirectory, Trainer

pytestmark = pytest.mark.slow  # every rank imports torch

CHANGES = {"training.steps": 4, "training.batch_size": 8, "training.eval_every": 4, "training.checkpoint_every": 1}


def new_run(ranks: Ranks, path: Path, data: Data, changes: dict[str, Any], observer: Observer | None = None) -> Trainer:
    settings = tiny_settings(CHANGES | changes)
    if ranks.is_main:
        RunDirectory.create(path, settings, data.tokenizer, data.class_names)
    ranks.wait()
    return Trainer(settings, data, RunDirectory.open(path), observer)


def poisoned(ranks: Ranks, data: Data, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """A run in which one text's likelihood is NaN in the slow step, whichever rank meets it."""
    trainer = new_run(ranks, folder / "run", data, changes)
    key = data.train.batch([5]).keys
    real = TokenSequence.log_prob

    def log_prob(self: TokenSequence, tokens: torch.Tensor) -> torch.Tensor:
        slow = torch.is_grad_enabled() and trainer.learner.model.decoder.norm.weight.requires_grad
        return real(self, tokens) * torch.where((self.batch.keys == key) & slow, torch.nan, 1.0)

    TokenSequence.log_prob = log_prob  # type: ignore[method-assign] - the process ends with the test
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit()
        except LTMError as found:
            error = str(found)
    weights = torch.cat([p.detach().flatten() for p in trainer.learner.modules.parameters()])
    named = [str(w.message) for w in caught if "is left out" in str(w.message)]
    return {"weights": weights, "skipped": trainer.skipping.total, "named": named, "error": error}


@pytest.mark.parametrize("most", [0, 5])
def test_a_loss_that_is_not_finite_on_one_rank(data: Data, tmp_path: Path, most: int, tally):
    """An epoch is five to six steps of eight: the text is met once in six."""
    changes = {"training.max_skipped_steps": most, "training.steps": 6, "training.eval_every": 6}
    first, second = run_ranks(2, poisoned, data, tmp_path, changes)
    assert first["skipped"] == second["skipped"] >= 1
    assert torch.equal(first["weights"], second["weights"])
    assert bool(first["weights"].isfinite().all())
    assert second["named"] == []  # said once
    said = first["named"] if most else [first["error"]]
    assert len(said) == first["skipped"]
    assert all("not finite for sequence 5 (document" in text for text in said)
    assert first["error"] == second["error"]
    assert (first["error"] is None) == (most > 0)
    tally("NaN in the loss of a text on one of two ranks", injected=1, exact=int(most > 0), refused=int(most == 0))


class Signal(Observer):
    """Sends this process a signal in the row of a step."""

    def __init__(self, step: int):
        self.at = step

    def step(self, row: dict[str, Any]) -> None:
        if row["step"] == self.at:
            os.kill(os.getpid(), signal.SIGUSR1)


def signalled(ranks: Ranks, data: Data, folder: Path) -> int:
    trainer = new_run(ranks, folder / "run", data, {"training.grace_seconds": 0}, None if ranks.is_main else Signal(2))
    assert not trainer.fit()
    return trainer.step


def test_a_signal_to_one_rank_stops_both_and_neither_gives_the_step_up(data: Data, tmp_path: Path, tally):
    assert run_ranks(2, signalled, data, tmp_path) == [2, 2]
    assert RunDirectory.open(tmp_path / "run").store().latest().step == 2
    tally("SIGUSR1 to one of two ranks", injected=1, exact=1)


def locked(ranks: Ranks, data: Data, folder: Path) -> str:
    """Rank 1 stands for another job, which holds the lock; what rank 0 is told."""
    trainer = new_run(ranks, folder / "run", data, {})
    if not ranks.is_main:
        with RunDirectory(folder / "run").lock():
            ranks.wait()  # it holds the lock
            ranks.wait()  # rank 0 was refused
        return ""
    ranks.wait()
    with pytest.raises(LTMError) as error:
        trainer.fit()
    ranks.wait()
    return str(error.value)


def test_a_run_that_another_job_holds_is_refused_by_the_first_rank(data: Data, tmp_path: Path, tally):
    refusal, _ = run_ranks(2, locked, data, tmp_path)
    assert "is in use: process" in refusal
    assert not RunDirectory.open(tmp_path / "run").store().paths()
    tally("a second job of two ranks on one run", injected=1, refused=1)
