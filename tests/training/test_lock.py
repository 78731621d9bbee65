"""One trainer at a time on a run: who holds it is named, a kill gives it up, and nothing of it is left."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import new_trainer, reopened

from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.training import RunDirectory, Trainer

HOLD = """
import sys, time
from pathlib import Path
from ltm_pyro.training.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock of ``run``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_process_is_named_nothing_is_touched_and_its_death_gives_the_run_free(tmp_path: Path, holder):
    run = RunDirectory(tmp_path / "run")
    assert run.is_locked()
    before = files(run.path)
    words = f"run is in use: process {holder.pid} on {socket.gethostname()}, since 20.* trains there; wait for it, stop"
    with pytest.raises(LTMError, match=words), run.lock():
        pass
    assert files(run.path) == before
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (run.path / ".lock").exists()  # which means nothing
    assert not run.is_locked()
    with run.lock():
        assert json.loads((run.path / ".lock").read_text())["pid"] == os.getpid()
    assert not (run.path / ".lock").exists()


def test_fit_holds_the_lock_and_a_second_trainer_of_the_run_is_refused(tmp_path: Path, data: Data):
    first = new_trainer(tmp_path / "run", data, {"training.steps": 2})
    refused: list[str] = []

    def row_written(row: dict) -> None:
        before = files(tmp_path / "run")
        with pytest.raises(LTMError) as caught:
            reopened(tmp_path / "run", data)
        with pytest.raises(LTMError, match="in use"):
            Trainer(first.settings, data, RunDirectory.open(tmp_path / "run")).fit()
        refused.append(str(caught.value))
        assert files(tmp_path / "run") == before

    first.observer.step = row_written  # type: ignore[method-assign]
    assert first.fit()
    assert len(refused) == 2
    assert all(f"in use: process {os.getpid()}" in text for text in refused)
    assert not first.run.is_locked()
    assert first.metrics.rows()[-1]["step"] == 2


def test_the_lock_may_be_entered_again_from_inside(tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    with run.lock():
        with run.lock():
            assert run.is_locked()
        assert run.is_locked()
        (run.path / "file").write_text("")
    assert not run.is_locked()
    assert os.listdir(run.path) == ["file"]


def test_a_folder_that_nothing_came_into_is_taken_away_again(tmp_path: Path):
    with RunDirectory(tmp_path / "run").lock():
        pass
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fcntl = pytest.importorskip("fcntl")

    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    run = RunDirectory(tmp_path / "run")
    with pytest.warns(UserWarning, match="run is on a file system without locks: see to it yourself"), run.lock():
        assert not run.is_locked()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device; free some space, or choose another --out"),
        (errno.EROFS, "Read-only file system; mount it for writing, or choose another --out"),
        (errno.EACCES, "Permission denied; get the right to write there, or choose another --out"),
    ],
)
@pytest.mark.parametrize("call", ["open", "pwrite"])
def test_a_lock_that_cannot_be_written_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, call: str
):
    def fails(*arguments, **options):
        raise OSError(number, os.strerror(number))

    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(LTMError, match=f"cannot write the run directory .*run: {words}"), run.lock():
            pass
    with run.lock():  # nothing is held that would be in the way
        pass


def test_a_lock_left_by_a_future_or_past_clock_means_nothing(tmp_path: Path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    (run.path / ".lock").write_text('{"pid": 1, "host": "elsewhere", "since": "2199-01-01T00:00:00+00:00"}')
    assert not run.is_locked()
    with run.lock():
        assert run.is_locked()
