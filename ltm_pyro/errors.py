"""The one exception that means "your input, not our bug": the command line prints it as a single line."""

from __future__ import annotations

__all__ = ["DivergenceError", "LTMError"]


class LTMError(Exception):
    """A bad value that came from outside: it names the input, says what was expected, and gives the mend.

    The command line turns this exception, and only this one, into one line on standard error and exit code 2.
    """


class DivergenceError(LTMError):
    """Training whose loss or gradient is no longer finite."""
