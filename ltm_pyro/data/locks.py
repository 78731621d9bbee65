"""A lock that one process holds at a time, and that goes when its holder does, even by a kill."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

from ltm_pyro.data.cache import unwritable
from ltm_pyro.locks import try_lock, unlock

__all__ = ["FileLock"]

_POLL_SECONDS = 0.05


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
        while not self.held:
            # Where there are no locks, processes may do the same work twice.
            self.held = try_lock(self.descriptor) is not False
            if not self.held and not wait:
                return False
            if not self.held:
                time.sleep(_POLL_SECONDS)
        return True

    def release(self) -> None:
        """Lets others have it."""
        if self.held:
            unlock(self.descriptor)
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
