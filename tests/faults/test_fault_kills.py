"""Kills and signals at random moments: the end of the run is what it would have been."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_harness import SETTINGS, newest_whole, same_end, wait_for_step, workers
from nursery import Job, Nursery

from ltm_pyro.training import RunDirectory

End = Callable[[Job, random.Random], None]

EVERY = ["--set=training.checkpoint_every=1", "--set=training.eval_every=50", "--set=training.log_every=2"]


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    place = tmp_path / "printed"
    place.mkdir()
    found = Nursery(place)
    yield found
    found.close()


def lives(nursery: Nursery, corpus: Path, out: Path, *, number: int, ranks: int, end: End, early: bool = True) -> None:
    """Trains a run through so many ends, and once to its own end; another run of the same is never disturbed."""
    run, draw = out / "run", random.Random(number)
    options = ["--data", corpus, *SETTINGS, *EVERY, "--steps", 100 + 20 * number]
    whole = nursery.start("train", *options, "--out", out / "whole", ranks=ranks)
    assert set(whole.wait(600)) == {0}, whole.printed()
    reached: list[int] = []
    for life in range(number):
        again = (run / "config.json").exists()
        job = nursery.start("train", *(["--resume"] if again else options), "--out", run, ranks=ranks)
        if early and life % 5 == 4:  # while it reads, or loads
            time.sleep(draw.uniform(0, 1))
        else:  # in the loop: steps, rows, checkpoints, validations, pruning
            wait_for_step(job.poll, run, reached[-1] + 1 if reached else 1)
            time.sleep(draw.uniform(0, 0.15))
        assert job.poll() is None, job.printed()
        end(job, draw)
        assert not RunDirectory(run).is_locked()
        reached.append(newest_whole(run))
        assert reached == sorted(reached)  # no end loses a checkpoint
    last = nursery.start("train", "--resume", "--out", run, ranks=ranks)
    assert set(last.wait(600)) == {0}, last.printed()
    assert same_end(out / "whole", run)
    print(f"\nended at steps {reached}")


def kill_all(job: Job, draw: random.Random) -> None:
    job.send(signal.SIGKILL)
    assert set(job.wait(60)) == {-signal.SIGKILL}


def kill_one_rank(job: Job, draw: random.Random) -> None:
    """The other rank ends by itself, and says why."""
    chosen = draw.randrange(2)
    job.send(signal.SIGKILL, rank=chosen)
    codes = job.wait(60)
    assert codes == [-signal.SIGKILL if rank == chosen else 2 for rank in range(2)], job.printed()
    _, errors = job.printed()
    assert "another rank ended" in errors, errors
    assert re.search(r"the last checkpoint, step-\d+, stands: start the job again with --resume", errors), errors
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "end", "name"),
    [
        (1, kill_all, "kill -9 of the training"),
        (2, kill_one_rank, "kill -9 of one of two ranks"),
        (2, kill_all, "kill -9 of both of two ranks"),
    ],
)
def test_kills(nursery: Nursery, corpus: Path, tmp_path: Path, kills: int, tally, ranks: int, end: End, name: str):
    lives(nursery, corpus, tmp_path, number=kills, ranks=ranks, end=end, early=end is kill_all)
    tally(f"{name}, at random moments", injected=kills, exact=kills)


def test_two_kills(nursery: Nursery, corpus: Path, tmp_path: Path, tally):
    lives(nursery, corpus, tmp_path, number=2, ranks=1, end=kill_all)
    tally("kill -9 of the training, at random moments", injected=2, exact=2)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals(nursery: Nursery, corpus: Path, tmp_path: Path, kills: int, tally, number: signal.Signals, ranks: int):
    def end(job: Job, draw: random.Random) -> None:
        sent = time.monotonic()
        job.send(number)
        codes = job.wait(60)
        assert time.monotonic() - sent < 30
        assert (set(codes), job.printed()[1]) == ({130}, ""), job.printed()
        assert "saved. Go on with:" in job.printed()[0]

    times = max(kills // 5, 1)
    lives(nursery, corpus, tmp_path, number=times, ranks=ranks, end=end, early=False)
    who = "the training" if ranks == 1 else f"{ranks} ranks"
    tally(f"{number.name} to {who}, at random moments", injected=times, exact=times)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_torchrun(torchrun, corpus: Path, tmp_path: Path, tally, number: signal.Signals):
    """As it is started in practice: one rank killed, or the launcher asked to end; the job ends by itself."""
    run = tmp_path / "run"
    job: subprocess.Popen = torchrun("train", "--data", corpus, *SETTINGS, *EVERY, "--steps", 1000, "--out", run)
    wait_for_step(job.poll, run, 2)
    asked = time.monotonic()
    os.kill(workers(job)[1] if number == signal.SIGKILL else job.pid, number)
    printed, errors = job.communicate(timeout=120)
    assert time.monotonic() - asked < 100
    assert job.returncode != 0
    if number == signal.SIGTERM:
        assert "saved. Go on with:" in printed
    else:
        assert "Signal 9" in errors or "SIGKILL" in errors, errors  # torchrun's word for it
    step = newest_whole(run)
    assert 2 <= step < 1000
    again: subprocess.Popen = torchrun("train", "--resume", "--out", run, "--steps", step + 1)
    assert (again.communicate(timeout=300), again.returncode)[1] == 0
    tally(f"{number.name} under torchrun", injected=1, exact=1)
