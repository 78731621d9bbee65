"""A resumed run equals the uninterrupted one: weights, moments, data order and metrics, bit for bit on the CPU."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import assert_same_tensors, new_trainer, reopened, untimed, weights_of

from ltm_pyro.data import Data, build_data
from ltm_pyro.errors import LTMError
from ltm_pyro.training import Observer, RunDirectory, Trainer, load_run, read_checkpoint

FINAL = "step-00000006"


class Interrupt(Observer):
    """Sends this process a signal while the row of one step is being reported."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGINT):
        self.at = step
        self.number = number

    def step(self, row: dict[str, Any]) -> None:
        if row["step"] == self.at:
            os.kill(os.getpid(), self.number)


class Crash(Observer):
    """Ends training with no chance to save, as a kill would, while the row of one step is being reported."""

    def __init__(self, step: int):
        self.at = step

    def step(self, row: dict[str, Any]) -> None:
        if row["step"] == self.at:
            raise RuntimeError("killed")


def crash(trainer: Trainer) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        trainer.fit()


def assert_same_end(left: Trainer, right: Trainer) -> None:
    assert left.step == right.step == 6
    assert_same_tensors(weights_of(left), weights_of(right))
    ends = [read_checkpoint(t.run.path / "checkpoints" / FINAL) for t in (left, right)]
    assert_same_tensors(ends[0].model, ends[1].model)
    assert_same_tensors(ends[0].optimizer, ends[1].optimizer)
    assert ends[0].optimizer  # equal because compared, not because empty
    assert ends[0].state == ends[1].state
    assert next(copy.deepcopy(left.sampler)) == next(copy.deepcopy(right.sampler))
    assert untimed(left.metrics.rows()) == untimed(right.metrics.rows())
    files = [(t.run.path / "checkpoints" / FINAL / "model.safetensors").read_bytes() for t in (left, right)]
    assert files[0] == files[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Trainer:
    trainer = new_trainer(tmp_path_factory.mktemp("whole") / "run", data)
    assert trainer.fit()
    return trainer


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_stopped_by_ctrl_c_and_resumed_equals_the_uninterrupted_one(
    tmp_path: Path, data: Data, whole: Trainer, step: int
):
    first = new_trainer(tmp_path / "run", data, observer=Interrupt(step))
    assert not first.fit()
    assert first.step == step
    second = reopened(tmp_path / "run", data)
    assert second.step == step
    assert second.fit()
    assert_same_end(second, whole)


@pytest.mark.parametrize("step", [2, 6])
def test_a_run_killed_between_checkpoints_and_resumed_equals_the_uninterrupted_one(
    tmp_path: Path, data: Data, whole: Trainer, step: int
):
    # Checkpoints are made at steps 2, 4 and 6, after the row of the step: the kill loses the steps since.
    crash(new_trainer(tmp_path / "run", data, observer=Crash(step)))
    second = reopened(tmp_path / "run", data)
    assert second.step == 2 * ((step - 1) // 2)
    assert second.fit()
    assert_same_end(second, whole)


def test_a_run_interrupted_at_every_step_equals_the_uninterrupted_one(tmp_path: Path, data: Data, whole: Trainer):
    trainer = new_trainer(tmp_path / "run", data, observer=Interrupt(1))
    for step in range(1, 6):
        assert not trainer.fit()
        trainer = reopened(tmp_path / "run", data)
        trainer.observer = Interrupt(step + 1)
    trainer.fit()
    assert_same_end(trainer, whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"inference.noise": "fixed", "inference.slow_gradient": "trajectory", "training.seed": 7},
        {"training.micro_batch_size": 3, "training.clip_norm": None, "inference.init_mu_spread": 1.0},
        {"prior.name": "energy"},  # whose slow gradient draws from the global stream
    ],
)
def test_resume_is_exact_under_other_settings(tmp_path: Path, data: Data, changes: dict[str, Any]):
    uninterrupted = new_trainer(tmp_path / "whole", data, changes)
    uninterrupted.fit()
    assert not new_trainer(tmp_path / "run", data, changes, observer=Interrupt(3)).fit()
    second = reopened(tmp_path / "run", data)
    second.fit()
    assert_same_end(second, uninterrupted)


@pytest.mark.parametrize("stop", [Interrupt, Crash])
def test_rows_averaged_over_several_steps_are_the_same_after_an_interruption_within_them(
    tmp_path: Path, data: Data, stop: type[Observer]
):
    changes = {"training.log_every": 3, "training.checkpoint_every": 2, "training.eval_every": 2}
    uninterrupted = new_trainer(tmp_path / "whole", data, changes)
    uninterrupted.fit()
    first = new_trainer(tmp_path / "run", data, changes)
    first.observer.validation = lambda row: row["step"] == 4 and os.kill(os.getpid(), signal.SIGTERM)  # type: ignore
    if stop is Crash:
        first.observer = Crash(6)
        crash(first)
    else:
        assert not first.fit()
    second = reopened(tmp_path / "run", data)
    assert second.step == 4  # rows average over steps 1 to 3 and 4 to 6
    second.fit()
    assert_same_end(second, uninterrupted)


def test_sigterm_stops_after_the_step_and_puts_the_old_handler_back(tmp_path: Path, data: Data):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    trainer = new_trainer(tmp_path / "run", data, observer=Interrupt(1, signal.SIGTERM))
    assert not trainer.fit()
    assert [p.name for p in trainer.store.paths()] == ["step-00000001"]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_ctrl_c_interrupts_at_once(tmp_path: Path, data: Data):
    class Twice(Observer):
        def step(self, row: dict[str, Any]) -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    trainer = new_trainer(tmp_path / "run", data, observer=Twice())
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.store.paths() == []


def test_a_finished_run_resumes_to_nothing(tmp_path: Path, data: Data):
    trainer = new_trainer(tmp_path / "run", data, {"training.steps": 2})
    trainer.fit()
    rows = trainer.metrics.rows()
    again = reopened(tmp_path / "run", data)
    assert again.fit()
    assert again.step == 2
    assert again.metrics.rows() == rows


def test_a_run_with_no_checkpoint_yet_starts_over(tmp_path: Path, data: Data, whole: Trainer):
    crash(new_trainer(tmp_path / "run", data, observer=Crash(1)))
    second = reopened(tmp_path / "run", data)
    assert second.step == 0
    assert second.metrics.rows() == []


def test_a_half_written_last_row_of_metrics_is_dropped(tmp_path: Path, data: Data, whole: Trainer):
    crash(new_trainer(tmp_path / "run", data, observer=Crash(5)))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "split": "tr')
    second = reopened(tmp_path / "run", data)
    second.fit()
    assert_same_end(second, whole)


def test_resume_with_another_seed_is_refused(tmp_path: Path, data: Data):
    new_trainer(tmp_path / "run", data, {"training.steps": 2}).fit()
    with pytest.raises(LTMError, match="seed"):
        reopened(tmp_path / "run", data, {"training.seed": 1})


def test_resume_with_data_of_other_classes_is_refused(tmp_path: Path):
    rows = [{"text": f"the cat sat on mat {i}", "y": i % 3, "z": i % 2} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"sequence_length": 32, "vocab_size": 300, "validation_fraction": 0.2, "cache_dir": tmp_path / "cache"}
    by_column = {c: build_data(source=str(tmp_path / "rows.jsonl"), label_column=c, **options) for c in ("y", "z")}
    new_trainer(tmp_path / "run", by_column["y"], {"training.steps": 2}).fit()
    assert RunDirectory.open(tmp_path / "run").class_names == ("0", "1", "2")
    assert load_run(tmp_path / "run", device="cpu").class_names == ("0", "1", "2")
    assert reopened(tmp_path / "run", by_column["y"]).step == 2
    with pytest.raises(LTMError, match="the data have the classes 0, 1, the run was started with 0, 1, 2; resume with"):
        reopened(tmp_path / "run", by_column["z"])


def test_resume_with_more_steps_goes_on(tmp_path: Path, data: Data):
    new_trainer(tmp_path / "run", data, {"training.steps": 2}).fit()
    longer = reopened(tmp_path / "run", data, {"training.steps": 3})
    assert longer.fit()
    assert [row["step"] for row in longer.metrics.rows() if row["split"] == "train"] == [1, 2, 3]


def test_runs_of_the_same_seed_are_the_same_and_of_another_are_not(tmp_path: Path, data: Data, whole: Trainer):
    same = new_trainer(tmp_path / "same", data)
    same.fit()
    assert_same_end(same, whole)
    other = new_trainer(tmp_path / "other", data, {"training.seed": 1})
    other.fit()
    assert other.metrics.rows()[-1]["elbo"] != whole.metrics.rows()[-1]["elbo"]
