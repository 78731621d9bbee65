"""One trainer at a time on a run directory: a lock that the kernel gives up with the process, however it dies."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from ltm_pyro.errors import LTMError, unwritable
from ltm_pyro.locks import try_lock

__all__ = ["RunLock", "is_locked"]


class RunLock:
    """Context in which the run directory ``folder`` is this process's alone to write.

    The lock is ``flock`` on ``.lock``, which says in JSON who holds it: ``pid``, ``host``, ``since``. No clock and no
    list of processes is asked whether it still stands: a file without its lock means nothing. Entered again from
    inside, it does nothing more. Where the file system has no locks, there is a warning and nothing else.

    Args:
        folder: the run directory; made if it is not there, and taken away again if nothing came into it.

    Raises:
        LTMError: on entering: another process holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / ".lock"
        self._descriptor: int | None = None
        self._depth = 0
        self._made = False

    def __enter__(self) -> RunLock:
        self._depth += 1
        if self._depth == 1:
            try:
                self._acquire()
            except BaseException:
                self._depth = 0
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0 and self._descriptor is not None:
            with suppress(OSError):
                self.path.unlink()  # before the lock is gone, so that it is never another's file
            os.close(self._descriptor)
            self._descriptor = None
            if self._made:
                with suppress(OSError):  # it holds a run
                    self.folder.rmdir()

    def _acquire(self) -> None:
        try:
            self._made = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._locked()
            if self._descriptor is not None:
                about = {"pid": os.getpid(), "host": socket.gethostname()}
                about["since"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, (json.dumps(about) + "\n").encode(), 0)
        except OSError as error:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            raise unwritable(f"the run directory {self.folder}", error, "or choose another --out") from error

    def _locked(self) -> int | None:
        """A descriptor that holds the lock of the file that stands at the path; None where there are no locks."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                free = _patiently(descriptor)
                if free is False:
                    raise LTMError(
                        f"{self.folder} is in use: {_holder(self.path)} trains there; wait for it, stop it, or choose "
                        "another --out"
                    )
                if free and _is_at(descriptor, self.path):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            if free is None:
                warnings.warn(
                    f"{self.folder} is on a file system without locks: see to it yourself that no other trainer works "
                    "there",
                    stacklevel=4,
                )
                return None
            # The holder took the file away as it left: there is a new one, or none.


def is_locked(folder: Path) -> bool:
    """Whether a process, this one or another, holds a run directory's lock."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return try_lock(descriptor, shared=True) is False
    finally:
        os.close(descriptor)


def _patiently(descriptor: int) -> bool | None:
    """`try_lock`, a few times: somebody may only have asked whether it is free."""
    for wait in (0.05, 0.1, 0.2):
        free = try_lock(descriptor)
        if free is not False:
            return free
        time.sleep(wait)
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _holder(path: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads(path.read_text(encoding="utf-8"))
        return f"process {about['pid']} on {about['host']}, since {about['since']},"
    return "another process"
