"""Kills and signals at random moments: the end of the run is what it would have been."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_harness import SETTINGS, newest_whole, same_end, wait_for_step, workers

Start = Callable[..., subprocess.Popen]
End = Callable[[subprocess.Popen, random.Random], None]

EVERY = ["--set=training.checkpoint_every=1", "--set=training.eval_every=50", "--set=training.log_every=2"]


def lives(
    start: Start, corpus: Path, out: Path, *, number: int, steps: int, ranks: int, end: End, early: bool = True
) -> None:
    """Trains a run through so many ends, and once to its own end; another run of the same is never disturbed."""
    options = ["--data", corpus, *SETTINGS, *EVERY, "--steps", steps]
    whole = start("train", *options, "--out", out / "whole", ranks=ranks)
    run, draw = out / "run", random.Random(number)
    reached: list[int] = []
    for life in range(number):
        again = (run / "config.json").exists()
        process = start("train", *(["--resume"] if again else options), "--out", run, ranks=ranks)
        if early and life % 5 == 4:  # while it imports, reads, or loads
            time.sleep(draw.uniform(0, 6))
        else:  # in the loop: steps, rows, checkpoints, validations, pruning
            wait_for_step(process, run, reached[-1] + 1 if reached else 1)
            time.sleep(draw.uniform(0, 0.15))
        assert process.poll() is None, process.communicate()
        end(process, draw)
        reached.append(newest_whole(run))
        assert reached == sorted(reached)  # no end loses a checkpoint
    assert reached[-1] < steps, f"the run ended before the last of {number}: {reached}"
    last = start("train", "--resume", "--out", run, ranks=ranks)
    assert (last.communicate(timeout=500), last.returncode)[1] == 0
    assert (whole.communicate(timeout=500), whole.returncode)[1] == 0
    assert same_end(out / "whole", run)
    print(f"\nended at steps {reached}")


def kill_all(process: subprocess.Popen, draw: random.Random) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def kill_one_rank(process: subprocess.Popen, draw: random.Random) -> None:
    """Kills one of two ranks; the job ends by itself, and says why."""
    found: list[int] = []
    while len(found) < 2 and process.poll() is None:
        found = workers(process)
    killed = time.monotonic()
    os.kill(draw.choice(found), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert "SIGKILL" in errors or "Signal 9" in errors, errors  # torchrun's word for it


@pytest.mark.slow
def test_kill_9_of_a_training(start: Start, corpus: Path, tmp_path: Path, kills: int, tally):
    lives(start, corpus, tmp_path, number=kills, steps=300 + 30 * kills, ranks=1, end=kill_all)
    tally("kill -9 of the training, at random moments", injected=kills, exact=kills)


@pytest.mark.slow
def test_kill_9_of_one_rank(start: Start, corpus: Path, tmp_path: Path, kills: int, tally):
    lives(start, corpus, tmp_path, number=kills, steps=300 + 10 * kills, ranks=2, end=kill_one_rank, early=False)
    tally("kill -9 of one of two ranks, at random moments", injected=kills, exact=kills)


@pytest.mark.slow
def test_kill_9_of_all_ranks(start: Start, corpus: Path, tmp_path: Path, kills: int, tally):
    lives(start, corpus, tmp_path, number=kills, steps=300 + 20 * kills, ranks=2, end=kill_all)
    tally("kill -9 of both ranks and their launcher, at random moments", injected=kills, exact=kills)


def signalled(number: signal.Signals) -> End:
    def end(process: subprocess.Popen, draw: random.Random) -> None:
        sent = time.monotonic()
        process.send_signal(number)
        printed, errors = process.communicate(timeout=60)
        assert time.monotonic() - sent < 30
        assert (process.returncode, errors) == (130, ""), errors
        assert "saved. Go on with:" in printed

    return end


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal(start: Start, corpus: Path, tmp_path: Path, kills: int, tally, number: signal.Signals):
    times = max(kills // 5, 1)
    lives(start, corpus, tmp_path, number=times, steps=100 + 60 * times, ranks=1, end=signalled(number), early=False)
    tally(f"{number.name}, at random moments", injected=times, exact=times)


@pytest.mark.slow
def test_sigterm_of_the_launcher_of_two_ranks(start: Start, corpus: Path, tmp_path: Path, kills: int, tally):
    def end(process: subprocess.Popen, draw: random.Random) -> None:
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
        assert "saved. Go on with:" in printed

    times = max(kills // 10, 1)
    lives(start, corpus, tmp_path, number=times, steps=100 + 60 * times, ranks=2, end=end, early=False)
    tally("SIGTERM to the launcher of two ranks, at random moments", injected=times, exact=times)
