"""What a signal may stop and when: the present step has its grace, an update and a checkpoint are never cut."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same_tensors, new_trainer, reopened, untimed, weights_of

from ltm_pyro.data import Data
from ltm_pyro.infer.fast_loop import FastLoop
from ltm_pyro.training import Trainer, checkpoints
from ltm_pyro.training.signals import OutOfTime, StopRequest

ASKING = [signal.SIGTERM, signal.SIGUSR1]


def wait(seconds: float) -> None:
    """Works on, rather than sleeping: a signal's handler runs between two lines of Python."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def send(*numbers: signal.Signals, pause: float = 0.01) -> None:
    """Sends this process the signals, and works on after each for so many seconds."""
    for number in numbers:
        os.kill(os.getpid(), number)
        wait(pause)


@pytest.mark.parametrize("number", [signal.SIGINT, *ASKING])
def test_a_signal_is_a_wish_and_the_handlers_are_put_back(number: signal.Signals):
    before = [signal.getsignal(s) for s in (signal.SIGINT, *ASKING, signal.SIGALRM)]
    with StopRequest(60) as stop, stop.bounded():
        assert not stop
        send(number)
        assert stop
        assert stop.signal == number
    assert [signal.getsignal(s) for s in (signal.SIGINT, *ASKING, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("number", ASKING)
def test_bounded_work_is_given_up_after_its_grace_and_other_work_is_not(number: signal.Signals):
    with StopRequest(0.05) as stop:
        send(number, pause=0.1)  # not bounded
        with pytest.raises(OutOfTime), stop.bounded():
            raise AssertionError("nothing is begun after the time")
    with StopRequest(0.05) as stop, pytest.raises(OutOfTime), stop.bounded():
        send(number, pause=5)
    with StopRequest(0.05) as stop, stop.bounded():
        os.kill(os.getpid(), number)
        stop.finish()
        wait(0.1)


def test_a_person_is_waited_for_and_may_insist():
    with StopRequest(0.02) as stop, stop.bounded():
        send(signal.SIGINT, pause=0.05)
    with StopRequest(60), pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT, signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, *ASKING])
def test_what_a_launcher_hands_on_counts_once(number: signal.Signals, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with StopRequest(60) as stop, stop.bounded():
        send(number, number)


def test_a_later_signal_gives_bounded_work_up_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ltm_pyro.training.signals._SAME_WISH", 0.01)
    with StopRequest(60) as stop, pytest.raises(OutOfTime), stop.bounded():
        send(signal.SIGUSR1, signal.SIGTERM, pause=0.05)  # Slurm's warning, and its time limit


def send_within(trainer: Trainer, patch: pytest.MonkeyPatch, step: int, place: str, number: signal.Signals) -> None:
    """Sends the signal at a place of one step, and lingers there for longer than the grace."""

    def interrupted(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            if trainer.step == step and not trainer._stop:
                os.kill(os.getpid(), number)
                wait(0.3)
            return result

        return call

    owner, name = {
        "fast loop": (FastLoop, "evaluate"),
        "update": (torch.optim.AdamW, "_init_group"),  # inside the optimiser's step
        "saving": (checkpoints, "write_durably"),
    }[place]
    patch.setattr(owner, name, interrupted(getattr(owner, name)))


@pytest.mark.parametrize("number", ASKING)
@pytest.mark.parametrize(("place", "saved"), [("fast loop", 3), ("update", 4), ("saving", 4)])
@pytest.mark.parametrize("warm", [False, True])
def test_a_step_that_takes_too_long_is_given_up_and_the_checkpoint_is_of_the_one_before(
    tmp_path: Path,
    data: Data,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    saved: int,
    number: signal.Signals,
    warm: bool,
):
    changes = {"training.grace_seconds": 0.1, "training.checkpoint_every": 2, "inference.warm_start": warm}
    changes |= {"training.batch_size": 20, "training.steps": 6}  # an epoch is two and a quarter steps
    whole = new_trainer(tmp_path / "whole", data, changes)
    whole.fit()
    trainer = new_trainer(tmp_path / "run", data, changes)
    with monkeypatch.context() as patch:
        send_within(trainer, patch, 4 if place == "saving" else 3, place, number)
        began = time.monotonic()
        assert not trainer.fit()
        assert time.monotonic() - began < 20
    assert trainer.step == saved
    again = reopened(tmp_path / "run", data)
    assert again.step == saved
    assert again.fit()
    assert_same_tensors(weights_of(again), weights_of(whole))
    assert untimed(again.metrics.rows()) == untimed(whole.metrics.rows())


@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_validation_that_takes_too_long_is_given_up_and_made_after_the_resume(tmp_path: Path, data: Data, at: int):
    whole = new_trainer(tmp_path / "whole", data)
    whole.fit()
    trainer = new_trainer(tmp_path / "run", data, {"training.grace_seconds": 0.05})
    model = type(trainer.learner.language_model(0))
    real = model.evaluate

    def slow(self: Any, *arguments: Any, **options: Any) -> Any:
        if trainer.step == at:
            os.kill(os.getpid(), signal.SIGTERM)
            wait(5)
        return real(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "evaluate", slow)
        assert trainer.fit() == (at == 6)
    assert trainer.learner.modules.training
    assert [p.name[-1] for p in trainer.store.paths()][:1] == ([str(at)] if at else [])
    again = reopened(tmp_path / "run", data)
    assert again.fit()
    assert untimed(again.metrics.rows()) == untimed(whole.metrics.rows())
    assert_same_tensors(weights_of(again), weights_of(whole))
