"""Ctrl-C, SIGTERM and SIGUSR1 as a wish to stop after the present step, and the time that it is given for that."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

__all__ = ["OutOfTime", "StopRequest"]

# What asks: a person; a scheduler or a spot instance about to go away; Slurm's --signal=USR1@120.
_ASKING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
_SAME_WISH = 1.0  # seconds in which a launcher hands on what its whole group has been sent already


class OutOfTime(KeyboardInterrupt):
    """What was to be finished after the wish to stop took too long, or the wish was repeated."""


class StopRequest:
    """Context in which SIGINT, SIGTERM and SIGUSR1 set a flag.

    Work inside `bounded` ends with `OutOfTime` ``grace`` seconds after SIGTERM or SIGUSR1, or at a second one of these;
    all other work, the writing of a checkpoint, is let be. A person's SIGINT waits, and a second one interrupts
    whatever is done. A signal that a launcher repeats within a second counts once.

    Outside the main thread, where Python allows no handlers, the flag stays down.

    Args:
        grace: seconds; None waits for as long as it takes.
        alone: False where other ranks wait for this one: it may not give up work and go on, so that a second signal,
            inside `bounded`, is a `KeyboardInterrupt`.
    """

    def __init__(self, grace: float | None = None, alone: bool = True) -> None:
        self.signal: signal.Signals | None = None
        self.grace = grace
        self.alone = alone
        self._before: dict[int, Any] = {}
        self._timed = False
        self._at = 0.0  # of the first signal, by the clock that nobody sets
        self._over = False
        self._within = False

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _ASKING:
                self._before[number] = signal.signal(number, self._handle)
            if self.grace is not None and hasattr(signal, "setitimer"):
                self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._time_over)
                self._timed = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Context of work that may be given up.

        Raises:
            OutOfTime: it took too long after the signal, or there was a second one.
        """
        self._within = True
        try:
            if self._over:
                self._end()
            yield
        finally:
            self._within = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._at = signal.Signals(number), now
            if self._timed and self.grace is not None and not self._personal(number):
                signal.setitimer(signal.ITIMER_REAL, max(self.grace, 1e-3))
        elif self._personal(number):
            raise KeyboardInterrupt
        elif now - self._at > _SAME_WISH:
            self._give_up()

    def _personal(self, number: int) -> bool:
        """Whether it is Ctrl-C and comes from no launcher, which hands it on to its workers beside the terminal."""
        return number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ

    def finish(self) -> None:
        """From here on the work inside `bounded` is brought to its end: half of what is left is worse than none."""
        self._within = False

    def _time_over(self, number: int, frame: FrameType | None) -> None:
        self._give_up()

    def _give_up(self) -> None:
        self._over = True
        if self._within:
            self._within = False  # so that nothing is raised in what clears up
            self._end()

    def _end(self) -> NoReturn:
        raise OutOfTime if self.alone else KeyboardInterrupt
