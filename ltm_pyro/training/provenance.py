"""sessions.jsonl: which command, code and machine trained a run, a line for each start and resume, and for each end."""

from __future__ import annotations

import functools
import json
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import ltm_pyro
from ltm_pyro.data.files import first_line
from ltm_pyro.errors import DivergenceError
from ltm_pyro.ranks import present_ranks

__all__ = ["differences", "environment", "git_state", "processor", "read_sessions", "recorded_session", "versions"]

_FILE = "sessions.jsonl"
_PACKAGES = {
    "torch": "torch",
    "pyro": "pyro-ppl",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "datasets": "datasets",
}


def versions() -> dict[str, str | None]:
    """The versions of this package, of Python and of what a run's numbers depend on; None for what is not installed."""
    found: dict[str, str | None] = {"ltm_pyro": ltm_pyro.__version__, "python": platform.python_version()}
    for name, package in _PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """``{"revision": …, "dirty": …}`` of the checkout that keeps a folder, or None.

    None also where git is not installed, or where the folder only lies inside somebody's checkout, as an environment
    does in a project's: its files must be the checkout's own. ``dirty`` says whether a tracked file is changed.

    Args:
        folder: of a package; None is this one.
    """
    return _git_state(Path(ltm_pyro.__file__).parent if folder is None else folder)


@functools.cache  # what matters is the code that was imported, not what an editor has made of it since
def _git_state(folder: Path) -> dict[str, Any] | None:
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
        return {"revision": _git(folder, "rev-parse", "HEAD").strip(), "dirty": bool(changed.strip())}
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    # A hook's or a script's GIT_DIR would point at another checkout.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env["GIT_OPTIONAL_LOCKS"] = "0"
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=20).stdout


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The command, the versions of the code and the machine of this process, as sessions.jsonl has them.

    Nothing of it is read from an environment variable, where secrets stand.

    Args:
        device: that is trained on.
    """
    gpu = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None
    return {
        "command": shlex.join(sys.orig_argv),
        "directory": str(Path.cwd()),
        "versions": versions(),
        "git": git_state(),
        "platform": platform.platform(),
        "processor": processor(),
        "cuda": torch.version.cuda,
        "gpu": gpu,
        "world_size": present_ranks().size,
        "host": platform.node(),
    }


@contextmanager
def recorded_session(folder: Path, step: Callable[[], int], device: torch.device | str = "cpu") -> Iterator[None]:
    """Context of one stretch of a run's training: a line of sessions.jsonl when it begins, another when it ends.

    A stretch that was killed has no second line. What cannot be written is a warning: training does not wait for it.

    Args:
        folder: the run's.
        step: tells the slow steps taken so far.
        device: that is trained on.
    """
    if not present_ranks().is_main:
        yield
        return
    _note(folder, lambda: {"event": "start", "at": _now(), "step": step(), **environment(device)})
    outcome: dict[str, Any] = {"outcome": "ended"}
    try:
        yield
    except BaseException as error:
        word = "diverged" if isinstance(error, DivergenceError) else "failed"
        outcome = {"outcome": "interrupted" if isinstance(error, KeyboardInterrupt) else word}
        outcome["reason"] = first_line(error)
        raise
    finally:
        # Where training has failed, a full disk perhaps, its own error says enough.
        _note(folder, lambda: {"event": "end", "at": _now(), "step": step(), **outcome}, warn="reason" not in outcome)


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """The stretches of a run's training, oldest first: each as it began, and ``end``, how it ended.

    ``end`` is None while it lasts and after a kill. A line that a kill has cut short is left out.
    """
    path = folder / _FILE
    found: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(row, dict):
            continue
        if row.get("event") == "start":
            found.append({**row, "end": None})
        elif row.get("event") == "end" and found and found[-1]["end"] is None:
            found[-1]["end"] = row
    return found


def differences(session: Mapping[str, Any]) -> list[str]:
    """How this process's code differs from that of a session: this package, its revision, torch."""
    known, present = session.get("versions"), versions()
    known = known if isinstance(known, dict) else {}
    found = [
        f"{name.replace('_', '-')} {known[name]}, here {present[name]}"
        for name in ("ltm_pyro", "torch")
        if known.get(name) not in (None, present[name])
    ]
    then, now = session.get("git"), git_state()
    if isinstance(then, dict) and now is not None and then.get("revision") != now["revision"]:
        found.append(f"revision {str(then.get('revision'))[:12]}, here {now['revision'][:12]}")
    return found


def _note(folder: Path, row: Callable[[], Mapping[str, Any]], *, warn: bool = True) -> None:
    try:
        path = folder / _FILE
        cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        with path.open("ab") as file:
            # After a line that a kill has cut short, on a line of its own.
            file.write((b"\n" if cut else b"") + json.dumps(row()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if warn:
            warnings.warn(
                f"cannot write {folder / _FILE}: {error.strerror or error}; training goes on without that line",
                stacklevel=3,
            )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def processor() -> str:
    """The model of this machine's processor, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
