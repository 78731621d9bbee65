"""A run with warm starts resumes bit for bit, wherever between two checkpoints and their flushes it was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_resume import Crash, Interrupt, assert_same_end, crash
from tiny_runs import assert_same_tensors, new_trainer, reopened, untimed, weights_of

from ltm_pyro.data import Data
from ltm_pyro.infer import warm_start
from ltm_pyro.infer.warm_start import PosteriorTable
from ltm_pyro.training import Observer, Trainer, read_checkpoint

# Batches of a third of the texts, so that every text is met again before the end.
WARM = {"inference.warm_start": True, "training.batch_size": 12}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Trainer:
    trainer = new_trainer(tmp_path_factory.mktemp("whole") / "run", data, WARM)
    assert trainer.fit()
    return trainer


def stored(trainer: Trainer, data: Data) -> dict[str, torch.Tensor]:
    """The starts of every training text, from the files alone."""
    batch = data.train.batch(range(len(data.train)))
    table = PosteriorTable(trainer.run.path / "posteriors")
    assert len(table) == len(set(batch.keys.tolist()))
    return table.start(batch.keys, trainer.learner.guide.init_local(batch))


def assert_same_run(trainer: Trainer, whole: Trainer, data: Data) -> None:
    assert_same_end(trainer, whole)
    assert_same_tensors(stored(trainer, data), stored(whole, data))


def test_starts_from_the_epoch_before_change_what_is_learned_from_the_second_on(tmp_path: Path, data: Data, whole):
    cold = new_trainer(tmp_path / "cold", data, {"training.batch_size": 12})
    cold.fit()
    rows = [[row["loss"] for row in untimed(t.metrics.rows()) if row["split"] == "train"] for t in (whole, cold)]
    assert len(data.train) > 24
    assert rows[0][:2] == rows[1][:2]
    assert rows[0][3] != rows[1][3]
    assert any(not torch.equal(value, weights_of(cold)[name]) for name, value in weights_of(whole).items())


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_stopped_by_ctrl_c_goes_on_exactly(tmp_path: Path, data: Data, whole: Trainer, step: int):
    assert not new_trainer(tmp_path / "run", data, WARM, observer=Interrupt(step)).fit()
    second = reopened(tmp_path / "run", data)
    assert second.fit()
    assert_same_run(second, whole, data)


@pytest.mark.parametrize("step", [1, 2, 5, 6])
def test_a_run_killed_between_checkpoints_goes_on_exactly(tmp_path: Path, data: Data, whole: Trainer, step: int):
    crash(new_trainer(tmp_path / "run", data, WARM, observer=Crash(step)))
    second = reopened(tmp_path / "run", data)
    assert second.step == 2 * ((step - 1) // 2)
    assert second.fit()
    assert_same_run(second, whole, data)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_run_killed_after_a_checkpoint_and_before_its_flush_goes_on_exactly(
    tmp_path: Path, data: Data, whole: Trainer, monkeypatch: pytest.MonkeyPatch, number: int
):
    calls = []

    def flush(table, **how):
        calls.append(table)
        if len(calls) == number:
            raise RuntimeError("killed")
        whole_flush(table, **how)

    whole_flush = PosteriorTable.flush
    with monkeypatch.context() as patch:
        patch.setattr(PosteriorTable, "flush", flush)
        crash(new_trainer(tmp_path / "run", data, WARM))
    assert (tmp_path / "run" / "posteriors" / "rows.bin").exists() == (number > 1)
    second = reopened(tmp_path / "run", data)
    assert second.step == 2 * number
    assert second.fit()
    assert_same_run(second, whole, data)


@pytest.mark.parametrize("at", [2, 3, 4])  # the keys of the first flush, the rows and the keys of the second
def test_a_run_killed_within_a_flush_goes_on_exactly(
    tmp_path: Path, data: Data, whole: Trainer, monkeypatch: pytest.MonkeyPatch, at: int
):
    files = []

    def opened(path):
        files.append(path.name)
        if len(files) == at:
            raise RuntimeError("killed")
        return whole_opened(path)

    whole_opened = warm_start._opened
    with monkeypatch.context() as patch:
        patch.setattr(warm_start, "_opened", opened)
        crash(new_trainer(tmp_path / "run", data, WARM))
    assert files == ["rows.bin", "keys.bin", "rows.bin", "keys.bin"][:at]
    second = reopened(tmp_path / "run", data)
    assert second.fit()
    assert_same_run(second, whole, data)


def test_a_run_killed_just_after_a_flush_goes_on_exactly(tmp_path: Path, data: Data, whole: Trainer):
    class CrashWhenSaved(Observer):
        def saved(self, path: Path) -> None:
            if path.name == "step-00000004":
                raise RuntimeError("killed")

    crash(new_trainer(tmp_path / "run", data, WARM, observer=CrashWhenSaved()))
    # The files have the rows already; the checkpoint's are written over them.
    second = reopened(tmp_path / "run", data)
    assert second.step == 4
    assert second.fit()
    assert_same_run(second, whole, data)


def test_a_checkpoint_holds_what_was_stored_since_the_last_alone(whole: Trainer):
    folder = whole.run.path / "checkpoints"
    for name in ("step-00000002", "step-00000004", "step-00000006"):
        keys = read_checkpoint(folder / name).posteriors["keys"].tolist()
        assert len(keys) == len(set(keys))
        assert 12 <= len(keys) <= 24


def test_a_run_whose_table_was_deleted_goes_on_with_the_rows_of_its_checkpoint(tmp_path: Path, data: Data):
    crash(new_trainer(tmp_path / "run", data, WARM, observer=Crash(5)))
    for path in (tmp_path / "run" / "posteriors").iterdir():
        path.unlink()
    second = reopened(tmp_path / "run", data)
    assert len(second.learner.svi.starts) == len(read_checkpoint(second.store.paths()[0]).posteriors["keys"])
    assert second.fit()


def test_a_run_that_starts_over_forgets_its_table(tmp_path: Path, data: Data):
    first = new_trainer(tmp_path / "run", data, WARM, observer=Crash(1))
    crash(first)
    first.learner.svi.starts.flush()
    assert len(PosteriorTable(tmp_path / "run" / "posteriors")) == 12
    assert len(reopened(tmp_path / "run", data).learner.svi.starts) == 0
