"""What a run directory says of its run: how far it is, whether it goes on, how long it takes, and what to do next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from ltm_pyro.config import Settings
from ltm_pyro.guides import GUIDES, Guide
from ltm_pyro.training.provenance import differences, read_sessions
from ltm_pyro.training.run import RunDirectory

__all__ = ["Advice", "RunStatus", "State", "read_status"]

State = Literal["never started", "running", "stopped", "finished", "diverged"]
"""No step was taken; a process trains; it has steps left; it has none; its loss was no longer finite."""

_RECENT = 50  # rows that the speed is read from


@dataclass(frozen=True)
class Advice:
    """Something to do next.

    Args:
        why: in a few words.
        command: to be pasted.
    """

    why: str
    command: str


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    Args:
        path: the run's folder.
        settings: of the run.
        state: see `State`.
        reason: why it stopped, if that was written down.
        step: slow steps behind the newest checkpoint.
        trained: slow steps that metrics.jsonl tells of; those past the checkpoint are lost unless the run goes on.
        checkpoints: names, newest first.
        checkpoint_age: seconds since the newest was written.
        steps_per_second: of the last rows, validations and checkpoints left out; None before there are two.
        seconds_left: at that speed, from ``trained`` on while it runs, else from the checkpoint on.
        tokens: scored by all steps so far; None where that was not counted.
        flops: of all steps so far; None where that was not counted.
        rows: of metrics.jsonl.
        sessions: of sessions.jsonl (`read_sessions`).
        differences: between the code that last trained the run and the installed one.
    """

    path: Path
    settings: Settings
    state: State
    reason: str | None
    step: int
    trained: int
    checkpoints: list[str]
    checkpoint_age: float | None
    steps_per_second: float | None
    seconds_left: float | None
    tokens: int | None
    flops: int | None
    rows: list[dict[str, Any]]
    sessions: list[dict[str, Any]]
    differences: list[str]

    @property
    def steps(self) -> int:
        """Slow steps in all."""
        return self.settings.training.steps

    @property
    def unsaved(self) -> int:
        """Steps after the newest checkpoint."""
        return max(0, self.trained - self.step)

    @property
    def advice(self) -> list[Advice]:
        """What to do next, the nearest first; empty for a run that is best left alone."""
        run = shlex.quote(str(self.path))
        resume = f"ltm-pyro train --resume --out {run}"
        found = []
        if self.state == "diverged":
            found += _against_divergence(self.settings, resume)
        elif self.state in ("never started", "stopped"):
            found.append(Advice("go on" if self.checkpoints else "start again from the first step", resume))
        elif self.state == "running":
            found.append(Advice("see how far it is", f"ltm-pyro info {run}"))
        if self.checkpoints:
            found.append(Advice("read what it writes", f"ltm-pyro sample {run} --num 3"))
            samples = {"ar": "", "mdlm": " --samples 16"}.get(self.settings.model.name, " --samples 4")
            found.append(Advice("what it is worth, in nats per token", f"ltm-pyro eval {run}{samples}"))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {
            "run": str(self.path),
            "state": self.state,
            "reason": self.reason,
            "step": self.step,
            "steps": self.steps,
            "trained": self.trained,
            "unsaved": self.unsaved,
            "checkpoints": self.checkpoints,
            "checkpoint_age": self.checkpoint_age,
            "steps_per_second": self.steps_per_second,
            "seconds_left": self.seconds_left,
            "training_tokens": self.tokens,
            "training_flops": self.flops,
            "train": next((row for row in reversed(self.rows) if row.get("split") == "train"), None),
            "validation": [row for row in self.rows if row.get("split") == "validation"],
            "sessions": self.sessions,
            "differences": self.differences,
            "next": [{"why": one.why, "command": one.command} for one in self.advice],
            "settings": self.settings.to_dict(),
        }


def read_status(directory: RunDirectory) -> RunStatus:
    """Reads what a run directory says of its run; nothing in it is changed.

    Raises:
        LTMError: config.json is damaged.
    """
    settings, rows, sessions = directory.settings, directory.metrics.rows(), read_sessions(directory.path)
    checkpoints = directory.store().paths()
    step = int(checkpoints[0].name.removeprefix("step-")) if checkpoints else 0
    training = [row for row in rows if row.get("split") == "train"]
    trained = max(step, int(training[-1]["step"]) if training else 0)
    end = (sessions[-1]["end"] or {}) if sessions else {}
    running = is_in_use(directory.path)
    state = _state(settings.training.steps, step, bool(rows or checkpoints), end, running)
    speed = _speed(training)
    left = settings.training.steps - (trained if state == "running" else step)
    last = rows[-1] if rows else {}
    return RunStatus(
        path=directory.path,
        settings=settings,
        state=state,
        reason=None if state in ("running", "finished") else end.get("reason"),
        step=step,
        trained=trained,
        checkpoints=[path.name for path in checkpoints],
        checkpoint_age=_age(checkpoints[0] / "state.json") if checkpoints else None,
        steps_per_second=speed,
        seconds_left=max(0, left) / speed if speed else None,
        tokens=last.get("training_tokens"),
        flops=last.get("training_flops"),
        rows=rows,
        sessions=sessions,
        differences=differences(sessions[-1]) if sessions else [],
    )


def is_in_use(folder: Path) -> bool | None:
    """Whether a process holds the lock of a run directory; None where that cannot be told."""
    try:
        from ltm_pyro.training.lock import is_locked
    except ImportError:
        return None
    return is_locked(folder)


def _state(steps: int, step: int, begun: bool, end: Mapping[str, Any], running: bool | None) -> State:
    if running:
        return "running"
    if step >= steps:
        return "finished"
    if end.get("outcome") == "diverged":
        return "diverged"
    return "stopped" if begun else "never started"


def _speed(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Steps per second over the last rows: the tokens between two of them, at the speed that the later one names."""
    recent, seconds = rows[-_RECENT:], 0.0
    if len(recent) < 2:
        return None
    try:
        for before, after in pairwise(recent):
            seconds += (after["training_tokens"] - before["training_tokens"]) / after["tokens_per_s"]
        return float(recent[-1]["step"] - recent[0]["step"]) / seconds
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _against_divergence(settings: Settings, resume: str) -> list[Advice]:
    """The changes that a run whose loss is no longer finite may go on with, the likeliest first."""
    training, inference = settings.training, settings.inference
    slow = {"training.slow_lr": training.slow_lr / 2, "training.slow_lr_final": training.slow_lr_final / 2}
    found = [Advice("go on with half the slow learning rate", _with(resume, slow))]
    if settings.model.name == "ltm" and inference.fast_steps:
        natural = GUIDES.get(settings.guide.name, Guide).natural_under(inference.fast_optimizer)
        fast = {"inference.fast_lr": inference.fast_lr / 2, "inference.fast_lr_final": inference.fast_lr_final / 2}
        fast = {"inference.natural_lr": inference.natural_lr / 2} if natural else fast
        found.append(Advice("or with half the fast one", _with(resume, fast)))
    if training.clip_norm is None:
        found.append(Advice("or with a limit to the gradient", _with(resume, {"training.clip_norm": 1.0})))
    if training.dtype != "float32":
        found.append(Advice("or in single precision", _with(resume, {"training.dtype": "float32"})))
    return found


def _with(resume: str, changes: Mapping[str, Any]) -> str:
    return " ".join([resume, *(f"--set {address}={value}" for address, value in changes.items())])
