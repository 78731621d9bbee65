"""The state of a run, its speed and what is advised, from what lies in its folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_runs import new_trainer, reopened

from ltm_pyro.data import Data
from ltm_pyro.errors import DivergenceError
from ltm_pyro.training import RunDirectory
from ltm_pyro.training.status import RunStatus, is_in_use, read_status


@pytest.fixture
def run(tmp_path: Path, data: Data) -> Path:
    """A finished run of six steps with checkpoints of 2, 4 and 6, and validations at 0, 3 and 6."""
    new_trainer(tmp_path / "run", data).fit()
    return tmp_path / "run"


def status_of(path: Path) -> RunStatus:
    return read_status(RunDirectory.open(path))


def commands(status: RunStatus) -> list[str]:
    return [one.command for one in status.advice]


def lock(monkeypatch: pytest.MonkeyPatch, held: bool) -> None:
    module = ModuleType("ltm_pyro.training.lock")
    module.is_locked = lambda folder: held
    monkeypatch.setitem(sys.modules, "ltm_pyro.training.lock", module)


def test_a_finished_run(run: Path):
    status = status_of(run)
    assert (status.state, status.step, status.steps, status.trained, status.unsaved) == ("finished", 6, 6, 6, 0)
    assert (status.reason, status.seconds_left) == (None, 0)
    assert status.checkpoints == ["step-00000006", "step-00000004", "step-00000002"]
    last = [row for row in status.rows if row["split"] == "train"][-1]
    assert (status.tokens, status.flops) == (last["training_tokens"], last["training_flops"])
    assert commands(status) == [f"ltm-pyro sample {run} --num 3", f"ltm-pyro eval {run} --samples 4"]
    assert status.differences == []


def test_a_run_that_never_took_a_step(tmp_path: Path, data: Data):
    new_trainer(tmp_path / "a run", data)
    status = status_of(tmp_path / "a run")
    assert (status.state, status.step, status.trained) == ("never started", 0, 0)
    assert (status.steps_per_second, status.seconds_left, status.checkpoint_age) == (None, None, None)
    assert (status.tokens, status.flops, status.sessions) == (None, None, [])
    (one,) = status.advice
    assert one.command == f"ltm-pyro train --resume --out '{tmp_path / 'a run'}'"


def test_a_run_that_was_killed_between_checkpoints_says_what_is_lost(run: Path):
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    lines = (run / "sessions.jsonl").read_text().splitlines(keepends=True)
    (run / "sessions.jsonl").write_text(lines[0])
    status = status_of(run)
    assert (status.state, status.step, status.trained, status.unsaved) == ("stopped", 4, 6, 2)
    assert status.seconds_left == pytest.approx(2 / status.steps_per_second)
    assert commands(status)[0] == f"ltm-pyro train --resume --out {run}"


def test_a_run_with_more_steps_to_take_is_stopped(run: Path, data: Data):
    reopened(run, data, {"training.steps": 7}).fit()
    config = json.loads((run / "config.json").read_text())
    config["settings"]["training"]["steps"] = 40
    (run / "config.json").write_text(json.dumps(config))
    status = status_of(run)
    assert (status.state, status.reason, status.step, status.steps) == ("stopped", None, 7, 40)
    assert len(status.sessions) == 2


@pytest.mark.parametrize("changes", [{}, {"training.clip_norm": None, "training.dtype": "bfloat16"}])
def test_a_run_that_has_diverged_says_why_and_what_to_change(tmp_path: Path, data: Data, changes: dict[str, Any]):
    trainer = new_trainer(tmp_path / "run", data, changes | {"training.max_skipped_steps": 0})
    trainer.learner.step = _poisoned(trainer.learner.step, at=5)
    with pytest.raises(DivergenceError):
        trainer.fit()
    status = status_of(tmp_path / "run")
    assert (status.state, status.step) == ("diverged", 4)
    assert "step 5 is left out" in status.reason
    resume = f"ltm-pyro train --resume --out {tmp_path / 'run'}"
    first, second, *others = commands(status)
    assert first == f"{resume} --set training.slow_lr=0.005 --set training.slow_lr_final=2e-05"
    assert second == f"{resume} --set inference.fast_lr=0.15 --set inference.fast_lr_final=0.17"
    limits = [f"{resume} --set training.clip_norm=1.0", f"{resume} --set training.dtype=float32"]
    assert others[:-2] == (limits if changes else [])


def _poisoned(step: Any, at: int) -> Any:
    """The step, whose gradient is not finite at one of them."""

    def poisoned(batch: Any, **arguments: Any) -> Any:
        taken = step(batch, **arguments)
        if arguments["at"] + 1 == at:
            return taken._replace(gradient_norm=taken.gradient_norm * float("nan"), skipped=True)
        return taken

    return poisoned


def test_a_run_whose_lock_is_held_is_running_whatever_else_is_there(run: Path, monkeypatch: pytest.MonkeyPatch):
    lock(monkeypatch, held=True)
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    status = status_of(run)
    assert (status.state, status.trained, status.unsaved, status.seconds_left) == ("running", 6, 2, 0)
    assert not any("--resume" in command for command in commands(status))
    lock(monkeypatch, held=False)
    assert status_of(run).state == "stopped"


def test_where_nobody_can_tell_who_trains_the_rest_decides(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ltm_pyro.training.lock", None)
    assert is_in_use(run) is None
    assert status_of(run).state == "finished"


def test_the_speed_is_that_of_the_last_rows(run: Path):
    rows = [
        {"step": step, "split": "train", "training_tokens": 100 * step, "tokens_per_s": 10.0 if step <= 100 else 200.0}
        for step in range(1, 161)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert status_of(run).steps_per_second == pytest.approx(2.0)


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "split": "train"}, {"step": 2, "split": "train"}],
        [{"step": s, "split": "train", "training_tokens": None, "tokens_per_s": 1} for s in (1, 2)],
        [{"step": s, "split": "train", "training_tokens": 3, "tokens_per_s": 1} for s in (1, 1)],
        [{"step": 1, "split": "other"}],
        [{"step": 1}],
    ],
)
def test_rows_of_another_version_leave_out_what_they_do_not_say(run: Path, rows: list[dict[str, Any]]):
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status = status_of(run)
    assert status.steps_per_second is None
    assert status.state == "finished"


def test_the_age_is_that_of_the_newest_checkpoint(run: Path):
    then = time.time() - 3600
    os.utime(run / "checkpoints" / "step-00000006" / "state.json", (then, then))
    assert status_of(run).checkpoint_age == pytest.approx(3600, abs=30)


def test_plain_values_are_json(run: Path):
    found = json.loads(json.dumps(status_of(run).to_dict(), allow_nan=False))
    assert found["next"][0]["command"].startswith("ltm-pyro sample ")
    assert found["sessions"][0]["end"]["step"] == 6
