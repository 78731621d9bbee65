"""Trainings as processes: waiting for how far they got, their ranks, and what stands on the disk."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tiny_runs import TINY, untimed

from ltm_pyro.errors import LTMError
from ltm_pyro.training import RunDirectory, read_checkpoint

SETTINGS = [f"--set={address}={value}" for address, value in TINY.items()]
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def wait_for_step(poll: Callable[[], object], run: Path, step: int) -> None:
    """Waits for a checkpoint of the step or a later one, or until ``poll`` has the job's end."""
    deadline = time.monotonic() + 240
    while poll() is None and not any(int(p.name[5:]) >= step for p in RunDirectory(run).store().paths()):
        assert time.monotonic() < deadline, "the run made no progress in four minutes"
        time.sleep(0.002)


def newest_whole(run: Path) -> int:
    """Step of the newest whole checkpoint, 0 for none; a kill must never leave one that is not whole."""
    paths = RunDirectory(run).store().paths()
    whole = [path for path in paths if is_whole(path)]
    # Pruning removes a folder file by file, so that the oldest may be caught half removed.
    assert whole in (paths, paths[:-1])
    return int(whole[0].name[5:]) if whole else 0


def is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except LTMError:
        return False
    return True


def same_end(left: Path, right: Path) -> bool:
    """Whether two finished runs have the same last checkpoint, rows and files; nothing half-written is left over."""
    runs = [RunDirectory.open(path) for path in (left, right)]
    newest = [run.store().paths()[0] for run in runs]
    files = all((newest[0] / name).read_bytes() == (newest[1] / name).read_bytes() for name in FILES)
    rows = untimed(runs[0].metrics.rows()) == untimed(runs[1].metrics.rows())
    names = [sorted(path.name for path in (run.path / "checkpoints").iterdir()) for run in runs]
    return files and rows and names[0] == names[1]


def workers(launcher: subprocess.Popen) -> list[int]:
    """Processes of the ranks that torchrun has started, in their order; empty before it has, and outside Linux."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent != launcher.pid:
                continue
            variables = dict(v.split("=", 1) for v in (place / "environ").read_text().split("\0") if "=" in v)
            found[int(variables["RANK"])] = int(place.name)
        except (OSError, ValueError, KeyError, IndexError):  # it ended meanwhile, or is no rank
            continue
    return [found[rank] for rank in sorted(found)]
