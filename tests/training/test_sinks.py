"""TensorBoard and W&B beside metrics.jsonl: what they get, what a resume does, and what their failures cost."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_runs import new_trainer, reopened, tiny_settings, untimed

from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.training import MetricsLog
from ltm_pyro.training.sinks import Sink, TensorBoardSink, WandbSink, build_sinks

ROWS = [{"step": step, "split": "train", "loss": 1.0 / step, "note": "text", "ok": True} for step in range(1, 7)]


class FakeWandb(ModuleType):
    """Keeps what it is told, by run id; raises in the functions named in ``broken``."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.logged: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self.finished: list[int] = []
        self.broken: set[str] = set()

    def init(self, **arguments: Any) -> FakeRun:
        self.fail("init")
        self.inits.append(arguments)
        self.logged.setdefault(arguments["id"], [])
        return FakeRun(self, arguments["id"])

    def fail(self, where: str) -> None:
        if where in self.broken:
            raise ConnectionError(f"no network in {where}\nand more")


class FakeRun:
    url = "https://wandb.example/run"

    def __init__(self, wandb: FakeWandb, name: str):
        self.wandb = wandb
        self.rows = wandb.logged[name]
        self.axes: dict[str, str | None] = {}

    @property
    def step(self) -> int:
        return self.rows[-1][0] + 1 if self.rows else 0

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self.wandb.fail("log")
        if not self.rows or step > self.rows[-1][0]:  # W&B drops the others
            self.rows.append((step, dict(values)))

    def finish(self, exit_code: int) -> None:
        self.wandb.fail("finish")
        self.wandb.finished.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a scalar."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def values_of(path: Path, name: str) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    split, _, key = name.partition("/")
    return [(row["step"], row[key]) for row in rows if row["split"] == split]


def test_nothing_is_sent_anywhere_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert build_sinks(tiny_settings(), tmp_path) == []


@pytest.mark.parametrize(
    ("package", "changes"),
    [("wandb", {"training.wandb": "p"}), ("tensorboard", {"training.tensorboard": True})],
)
def test_a_missing_package_is_refused_before_training_with_the_extra_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, changes: dict[str, Any]
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LTMError, match=rf"training\.{package} needs .* 'ltm-pyro\[{package}\]'"):
        build_sinks(tiny_settings(changes), tmp_path)


@pytest.mark.parametrize("name", ["", "/", "a/", "/b", "a/b/c"])
def test_a_target_that_is_no_project_is_refused(name: str):
    with pytest.raises(LTMError, match=r"training\.wandb must be project or entity/project"):
        tiny_settings({"training.wandb": name})


def test_sinks_obey_the_protocol(tmp_path: Path, wandb: FakeWandb):
    pytest.importorskip("tensorboard")
    for sink in (TensorBoardSink(tmp_path), WandbSink("p", tmp_path, {})):
        assert isinstance(sink, Sink)
        sink.close(failed=False)  # one that was never opened
        sink.rewind(3)
    assert list(tmp_path.iterdir()) == []
    assert wandb.inits == []


def test_tensorboard_shows_what_the_metrics_say_also_after_a_resume(tmp_path: Path, data: Data):
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    trainer = new_trainer(run, data, {"training.tensorboard": True, "training.steps": 6})
    trainer.fit()
    first = values_of(run, "train/loss")
    # As after a kill past step 4, with a resume that takes another way.
    newest = run / "checkpoints" / "step-00000006"
    newest.rename(tmp_path / "aside")
    reopened(run, data, {"training.slow_lr": 1e-4}).fit()
    assert values_of(run, "train/loss")[:4] == first[:4]
    assert values_of(run, "train/loss")[4:] != first[4:]
    for name in ("train/loss", "validation/elbo", "train/kl"):
        shown, kept = scalars(run / "tensorboard", name), values_of(run, name)
        assert [step for step, _ in shown] == [step for step, _ in kept]
        assert [value for _, value in shown] == pytest.approx([value for _, value in kept], rel=1e-6)


def test_wandb_gets_every_row_under_one_run_also_after_a_resume(tmp_path: Path, data: Data, wandb: FakeWandb):
    run = tmp_path / "stories"
    new_trainer(run, data, {"training.wandb": "team/project"}).fit()
    (first,) = wandb.inits
    assert (first["entity"], first["project"], first["name"]) == ("team", "project", "stories")
    assert (first["resume"], first["dir"]) == ("allow", str(run))
    assert first["config"]["decoder"]["hidden"] == 16
    (rows,) = wandb.logged.values()
    sent = [(row["step"], row["train/loss"]) for _, row in rows if "train/loss" in row]
    assert sent == values_of(run, "train/loss")
    assert [row["step"] for _, row in rows if "validation/elbo" in row] == [0, 3, 6]
    (run / "checkpoints" / "step-00000006").rename(tmp_path / "aside")
    reopened(run, data).fit()
    assert wandb.inits[1]["id"] == first["id"]
    (rows,) = wandb.logged.values()
    # Nothing is dropped, because W&B's own counter goes on, and steps 5 and 6 stand there twice, alike.
    steps = [row["step"] for _, row in rows if "train/loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6, 5, 6]
    losses = [row["train/loss"] for _, row in rows if "train/loss" in row]
    assert losses[4:6] == losses[6:]
    assert wandb.finished == [0, 0]


def test_wandb_goes_on_counting_where_it_tells_nothing_of_the_sessions_before(tmp_path: Path, wandb: FakeWandb):
    for rows in (ROWS[:4], ROWS[2:]):
        sink = WandbSink("project", tmp_path, {})
        for row in rows:
            sink.append(row)
        sink.close(failed=False)
        counted = [step for step, _ in wandb.logged[wandb.inits[0]["id"]]]
        wandb.logged[wandb.inits[0]["id"]].clear()  # offline, every session is a folder of its own
        assert len(counted) == 4
    assert counted == [5, 6, 7, 8]
    assert wandb.inits[0]["id"] == wandb.inits[1]["id"]


def test_another_project_is_another_run_and_a_damaged_note_too(tmp_path: Path, wandb: FakeWandb):
    for target, damage in (("one", None), ("one", None), ("two", None), ("two", b"{"), ("two", b'{"id": 3}')):
        if damage is not None:
            (tmp_path / "wandb.json").write_bytes(damage)
        sink = WandbSink(target, tmp_path, {})
        sink.append(ROWS[0])
        sink.close(failed=True)
    ids = [arguments["id"] for arguments in wandb.inits]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4
    assert wandb.finished == [1] * 5


def test_wandb_draws_against_the_step_and_gets_numbers_alone(tmp_path: Path, wandb: FakeWandb):
    sink = WandbSink("project", tmp_path, {})
    sink.append(ROWS[1])
    assert sink._run.axes == {"step": None, "*": "step"}
    assert wandb.logged[wandb.inits[0]["id"]] == [(1, {"step": 2, "train/loss": 0.5})]


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failure_of_wandb_is_one_warning_and_changes_nothing(
    tmp_path: Path, data: Data, wandb: FakeWandb, where: str
):
    new_trainer(tmp_path / "plain", data).fit()
    wandb.broken = {where}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert new_trainer(tmp_path / "run", data, {"training.wandb": "project"}).fit()
    (warning,) = [w for w in caught if "Weights & Biases" in str(w.message)]
    assert f"failed (no network in {where}) and gets no more metrics; training goes on" in str(warning.message)
    plain, run = (MetricsLog(tmp_path / name / "metrics.jsonl").rows() for name in ("plain", "run"))
    assert untimed(run) == untimed(plain)


def test_a_folder_that_tensorboard_cannot_have_is_one_warning(tmp_path: Path, data: Data):
    pytest.importorskip("tensorboard")
    trainer = new_trainer(tmp_path / "run", data, {"training.tensorboard": True, "training.steps": 2})
    (tmp_path / "run" / "tensorboard").write_text("a file")
    with pytest.warns(UserWarning, match="TensorBoard failed .* training goes on") as caught:
        assert trainer.fit()
    assert len([w for w in caught if "TensorBoard" in str(w.message)]) == 1


def test_a_training_that_fails_is_a_failed_run_of_wandb(tmp_path: Path, data: Data, wandb: FakeWandb):
    trainer = new_trainer(
        tmp_path / "run", data, {"training.wandb": "project", "training.slow_lr": 1e30, "training.max_skipped_steps": 0}
    )
    with pytest.raises(LTMError, match="not finite"):
        trainer.fit()
    assert wandb.finished == [1]


@pytest.mark.slow  # W&B starts a process of its own for every session
def test_the_real_wandb_offline(tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*gets no more metrics")
        new_trainer(run, data, {"training.wandb": "team/project", "training.steps": 4}).fit()
        reopened(run, data, {"training.steps": 6}).fit()
    sessions = sorted(path.name for path in (run / "wandb").glob("offline-run-*"))
    about = json.loads((run / "wandb.json").read_text())
    assert len(sessions) == 2
    assert all(name.endswith(f"-{about['id']}") for name in sessions)
    assert about["rows"] == len((run / "metrics.jsonl").read_text().splitlines())
