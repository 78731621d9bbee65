"""The one exception that means "your input, not our bug": the command line prints it as a single line."""

from __future__ import annotations

import errno

__all__ = ["DivergenceError", "LTMError", "unwritable"]


class LTMError(Exception):
    """A bad value that came from outside: it names the input, says what was expected, and gives the mend.

    The command line turns this exception, and only this one, into one line on standard error and exit code 2.
    """


class DivergenceError(LTMError):
    """Training whose loss or gradient is no longer finite."""


def unwritable(what: object, error: OSError, then: str) -> LTMError:
    """The error for what the system would not write: its cause, the mend for that cause, and ``then``, what comes next.

    Args:
        what: what was to be written, a path or words that hold one.
        error: from the system.
        then: how the sentence goes on: "and resume the run", "or choose another --out".
    """
    mends = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some of the quota",
        errno.EROFS: "mount it for writing",
        errno.EACCES: "get the right to write there",
        errno.EPERM: "get the right to write there",
    }
    mend = mends.get(error.errno or 0, "check the path and the disk")
    return LTMError(f"cannot write {what}: {error.strerror or error}; {mend}, {then}")
