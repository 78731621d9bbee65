"""A lock that one process holds at a time, and that goes when its holder does, even by a kill."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from ltm_pyro.data.cache import unwritable

try:
    import fcntl
except ImportError:  # pragma: no cover - no such locks on this system: processes then may do a chunk twice
    fcntl = None  # type: ignore[assignment]

__all__ = ["FileLock"]


class FileLock:
    """An advisory lock; also held by processes that ``descriptor`` was passed to, until they end or it is released.

    Used as a context, it waits, and is closed in the end.

    Args:
        path: a file for it, which is made and stays.

    Raises:
        LTMError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise unwritable(path.parent, error) from error
        self.held = False

    def acquire(self, wait: bool = True) -> bool:
        """Takes the lock; returns whether it is held now, which it always is after a wait."""
        try:
            if fcntl is not None and not self.held:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        self.held = True
        return True

    def release(self) -> None:
        """Lets others have it."""
        if fcntl is not None and self.held:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        self.held = False

    def close(self) -> None:
        """Releases it for good."""
        self.release()
        os.close(self.descriptor)

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
