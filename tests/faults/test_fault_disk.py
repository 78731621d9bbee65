"""A disk that is full, read-only or not ours at every write of a run: one line with the cause, and nothing is lost."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from quota import Quota, full_disk
from tiny_runs import TINY, assert_same_tensors, new_trainer, reopened, tiny_settings, weights_of

from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.training import CheckpointStore, RunDirectory, Trainer

CHANGES = {"inference.warm_start": True, "training.steps": 4, "training.eval_every": 2, "training.log_every": 1}
NAMES = {
    errno.ENOSPC: "No space left on device",
    errno.EROFS: "Read-only file system",
    errno.EACCES: "Permission denied",
}
MENDS = {errno.ENOSPC: "free some space", errno.EROFS: "mount it for writing", errno.EACCES: "get the right to write"}


def assert_named(error: LTMError, number: int, folder: Path) -> None:
    """One line with the path, the cause and the mend."""
    assert re.search(f"cannot write .*{folder.name}.*: {NAMES[number]}; {MENDS[number]}", str(error)), error


def train(run: Path, data: Data) -> Trainer:
    """A run from its beginning, as the command line does it."""
    settings = tiny_settings(CHANGES)
    directory = RunDirectory(run)
    with directory.lock():
        trainer = Trainer(settings, data, directory)
        RunDirectory.create(run, settings, data.tokenizer, data.class_names)
        trainer.fit()
    return trainer


def resume(run: Path, data: Data) -> Trainer:
    trainer = reopened(run, data)
    with trainer.run.lock():
        trainer.run.write_settings(trainer.settings, data.tokenizer.vocab_size, data.class_names)
        trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Data) -> tuple[Trainer, int]:
    """An undisturbed run, and how much room it takes."""
    path = tmp_path_factory.mktemp("whole") / "run"
    with full_disk(Quota(path)) as quota:
        trainer = train(path, data)
    return trainer, quota.used


def fail_and_go_on(run: Path, data: Data, whole: Trainer, after: int, number: int) -> int:
    """Trains on a disk that fails after so many bytes, then on a sound one; returns the step of the last checkpoint."""
    with full_disk(Quota(run, after, number)), pytest.raises(LTMError) as error:
        train(run, data)
    assert_named(error.value, number, run)
    directory = RunDirectory(run)
    assert not directory.is_locked()
    before = [path.name for path in directory.store().paths()]
    if before:
        directory.store().latest()  # whole, with no warning: warnings are errors here
    again = resume(run, data) if directory.exists else train(run, data)  # or nothing of the run is there yet
    assert_same_tensors(weights_of(again), weights_of(whole))
    assert again.store.latest().state == whole.store.latest().state
    return int(before[0][5:]) if before else 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", NAMES)
def test_at_some_bytes_of_a_run(tmp_path: Path, data: Data, whole: tuple[Trainer, int], number: int, tally):
    trainer, used = whole
    draw = random.Random(number)
    for i in range(2):
        fail_and_go_on(tmp_path / str(i), data, trainer, draw.randrange(used), number)
    tally(f"{NAMES[number]}, at random bytes of a run", injected=2, exact=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_at_many_bytes_of_a_run(tmp_path: Path, data: Data, whole: tuple[Trainer, int], tally):
    trainer, used = whole
    draw = random.Random(0)
    reached = [fail_and_go_on(tmp_path / str(i), data, trainer, draw.randrange(used), errno.ENOSPC) for i in range(60)]
    assert set(reached) == {0, 2, 4} or set(reached) == {0, 2}
    tally(f"{NAMES[errno.ENOSPC]}, at random bytes of a run", injected=60, exact=60)


@pytest.mark.filterwarnings("error")
def test_at_every_write_of_a_checkpoint(tmp_path: Path, whole: tuple[Trainer, int], tally):
    """Every call that needs room and every kilobyte of the files, the first and last bytes of each among them."""
    newest = whole[0].store.latest()
    folder = tmp_path / "checkpoints"
    CheckpointStore(folder).save(newest)
    kept = {path.name: path.read_bytes() for path in (folder / f"step-{newest.step:08d}").iterdir()}
    with full_disk(Quota(tmp_path / "dry")) as quota:
        CheckpointStore(tmp_path / "dry").save(newest)
    failed = 0
    near = {0, 1, 2, 3, 4, 5}
    total = quota.used
    for after in sorted(near | {total - k for k in range(1, 8)} | set(range(0, total, 1024))):
        heir = tmp_path / "heir"
        shutil.copytree(folder, heir)
        later = type(newest)(newest.step + 1, newest.model, newest.optimizer, newest.state, newest.posteriors)
        with full_disk(Quota(heir, after)):
            try:
                CheckpointStore(heir).save(later)
            except LTMError as error:
                assert_named(error, errno.ENOSPC, heir)
                failed += 1
            else:
                assert after >= total - 2  # the parent folder is there already
        found = CheckpointStore(heir).latest()
        assert found.step in (newest.step, later.step)  # the rename may be done, and its fsync not
        assert {p.name: p.read_bytes() for p in (heir / f"step-{newest.step:08d}").iterdir()} == kept
        shutil.rmtree(heir)
    tally("No space left on device, at every call and kilobyte of a save", injected=failed, refused=failed)


SCRIPT = """
import sys
from ltm_pyro.cli.main import main
main(sys.argv[1:])
"""


def on_a_small_disk(place: Path, size: str, command: list[str]) -> subprocess.CompletedProcess:
    """Runs a command with a tmpfs of that size at ``place``, which only the command sees."""
    script = (
        f'mount -t tmpfs -o size={size} tmpfs "$0" && "$@"; code=$?; ls -A "$0/run/checkpoints" 2>/dev/null; exit $code'
    )
    return subprocess.run(["unshare", "-rm", "sh", "-c", script, str(place), *command], capture_output=True, text=True)


@pytest.mark.slow
def test_a_small_tmpfs(tmp_path: Path, corpus: Path, tally):
    place = tmp_path / "disk"
    place.mkdir()
    try:
        usable = on_a_small_disk(place, "1m", ["true"]).returncode == 0
    except FileNotFoundError:
        usable = False
    if not usable:
        pytest.skip("no tmpfs can be mounted here (unshare -rm): the stub at the file layer stands in for it")
    settings = [f"--set={address}={value}" for address, value in (TINY | {"training.keep_checkpoints": 100}).items()]
    options = ["--data", str(corpus), *settings, "--set=training.checkpoint_every=1", "--steps", "60"]
    command = [sys.executable, "-c", SCRIPT, "train", *options, "--out", str(place / "run")]
    done = on_a_small_disk(place, "1m", command)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.fullmatch(r"Error: cannot write .*: No space left on device; free some space, and .*\n", done.stderr)
    steps = sorted(int(name[5:]) for name in done.stdout.split() if re.fullmatch(r"step-\d{8}", name))
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 1
    tally("a tmpfs of 1 MiB that fills up", injected=1, refused=1)


@pytest.mark.parametrize("what", ["run", "checkpoints", "metrics.jsonl"])
def test_a_folder_that_is_not_ours(tmp_path: Path, data: Data, what: str, tally, monkeypatch: pytest.MonkeyPatch):
    """By the real permissions where they bind, that is for all users but root."""
    new_trainer(tmp_path / "run", data, {"training.steps": 2}).fit()
    place = tmp_path / "run" if what == "run" else tmp_path / "run" / what
    mode = place.stat().st_mode
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    place.chmod(0o555 if place.is_dir() else 0o444)
    try:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere: the stub's EACCES stands in for this")
        with pytest.raises(LTMError) as error:
            reopened(tmp_path / "run", data, {"training.steps": 4}).fit()
        assert_named(error.value, errno.EACCES, tmp_path)
    finally:
        place.chmod(mode)
    assert {path: path.read_bytes() for path in before} == before
    tally("a folder without the right to write", injected=1, refused=1)


def test_a_read_only_cache_is_named(tmp_path: Path, corpus: Path, tally):
    from ltm_pyro.data import build_data

    options: dict[str, Any] = {"sequence_length": 32, "vocab_size": 300, "validation_fraction": 0.2}
    with full_disk(Quota(tmp_path, 0, errno.EROFS)), pytest.raises(LTMError, match=r"Read-only file system.*cache_dir"):
        build_data(source=str(corpus), cache_dir=tmp_path / "cache", **options)
    tally("a read-only cache", injected=1, refused=1)
