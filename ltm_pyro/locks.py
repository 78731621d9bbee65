"""Locks that the kernel keeps, and gives up with the process that holds them; no clock has a part in it."""

from __future__ import annotations

import errno
from contextlib import suppress

__all__ = ["try_lock", "unlock"]

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # what file systems without flock say


def try_lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Takes the ``flock`` of an open file or folder, until its descriptor is closed, and waits for nobody.

    Args:
        descriptor: of the file.
        shared: whether others may hold it, too, that ask for no more than that.

    Returns: whether it was free; None where the system or the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def unlock(descriptor: int) -> None:
    """Gives back what `try_lock` took, also from the processes that have inherited the descriptor."""
    try:
        import fcntl
    except ImportError:
        return
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
