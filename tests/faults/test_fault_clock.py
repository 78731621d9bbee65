"""A clock that jumps back, ahead or wildly: training, checkpoints and caches never ask it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import assert_same_tensors, new_trainer, reopened, untimed, weights_of

from ltm_pyro.data import Data
from ltm_pyro.data.cache import cached_folder

YEAR = 365.25 * 24 * 3600
CLOCKS: dict[str, Callable[[random.Random], float]] = {
    "years ahead": lambda draw: 20 * YEAR,
    "years back": lambda draw: -20 * YEAR,
    "at random": lambda draw: draw.uniform(-20, 20) * YEAR,
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_training_and_resume(tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch, clock: str, tally):
    whole = new_trainer(tmp_path / "whole", data)
    whole.fit()
    real, draw = time.time, random.Random(0)
    monkeypatch.setattr(time, "time", lambda: real() + CLOCKS[clock](draw))
    first = new_trainer(tmp_path / "run", data)
    first.observer.step = lambda row: row["step"] == 3 and os.kill(os.getpid(), signal.SIGTERM)  # type: ignore
    assert not first.fit()
    for number, path in enumerate(first.store.paths()):  # the newest looks like the oldest
        os.utime(path, (1e9 + number * YEAR,) * 2)
    again = reopened(tmp_path / "run", data)
    assert again.step == 3
    again.fit()
    assert_same_tensors(weights_of(again), weights_of(whole))
    assert untimed(again.metrics.rows()) == untimed(whole.metrics.rows())
    tally(f"a clock {clock}", injected=1, exact=1)


BUILD = """
import sys, time
from pathlib import Path
from ltm_pyro.data.cache import cached_folder

def build(folder):
    (folder / "half").write_text("")
    print(folder, flush=True)
    time.sleep(600)

cached_folder(Path(sys.argv[1]), build, lambda folder: folder)
"""


def test_a_cache_leaves_a_process_at_work_alone_and_clears_up_after_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally
):
    other = subprocess.Popen([sys.executable, "-c", BUILD, str(tmp_path / "big")], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        place = Path(other.stdout.readline().strip())
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 20 * YEAR)
        cached_folder(tmp_path / "small", lambda folder: None, lambda folder: None)
        assert (place / "half").exists()
    finally:
        other.kill()
        other.communicate()
    assert place.exists()
    cached_folder(tmp_path / "another", lambda folder: None, lambda folder: None)
    assert not place.exists()
    monkeypatch.setattr(time, "time", lambda: real() - 20 * YEAR)
    cached_folder(tmp_path / "third", lambda folder: None, lambda folder: None)
    tally("a clock years ahead beside a process that fills the cache", injected=1, exact=1)
