"""StreamSampler: endless shuffled batches of indices into windows that come one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any, Protocol, runtime_checkable

from ltm_pyro.data.sampler import permutation
from ltm_pyro.errors import LTMError

__all__ = ["INDEX_BITS", "StreamSampler", "Windows"]

INDEX_BITS = 32
"""Of an index, those that tell the place in its window; the higher ones are the window's number."""


@runtime_checkable
class Windows(Protocol):
    """What is sampled from: a row of windows, each with a number of sequences."""

    window_chunks: int

    def window(self, number: int) -> Sized | None:
        """A window; None behind the last."""

    def digest(self, number: int) -> str:
        """What stands for a window's content."""


class StreamSampler:
    """An endless iterator of batches of indices into a stream.

    Each epoch visits every sequence once: window after window, each in an order that is a function of (seed, epoch,
    window). Every batch is full: it goes on with the next window, or the next epoch.

    Args:
        data: the stream.
        batch_size: indices in a batch.
        seed: of the shuffling, at least 0.

    Raises:
        LTMError: a number is out of range.
    """

    def __init__(self, data: Windows, batch_size: int, seed: int = 0) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise LTMError(f"{name}={value}: expected at least {least}")
        self.batch_size, self.seed = batch_size, seed
        self.epoch = 0
        self._data = data
        self._window = self._position = 0  # where the next batch begins
        self._windows: int | None = None  # in an epoch, once one has ended
        self._order: Any = None

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        batch: list[int] = []
        while len(batch) < self.batch_size:
            if self._order is None and not self._shuffle():
                self._windows = self._window
                self.epoch, self._window, self._position = self.epoch + 1, 0, 0
                continue
            part = self._order[self._position : self._position + self.batch_size - len(batch)]
            batch += ((self._window << INDEX_BITS) + part).tolist()
            self._position += len(part)
            if self._position == len(self._order):
                self._window, self._position, self._order = self._window + 1, 0, None
        return batch

    def _shuffle(self) -> bool:
        """Draws the window's order; False behind the last window."""
        window = self._data.window(self._window)
        if window is None:
            if self._window == 0:
                raise LTMError("the stream has no documents; give a source that has text")
            return False
        self._order = permutation(len(window), self.seed, self.epoch, self._window)
        return True

    @property
    def progress(self) -> float:
        """Epochs gone through; after the first, which tells how long one is, with the windows of the present one."""
        return self.epoch + (self._window / self._windows if self._windows else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, and what stands for the tokens there; fit for JSON."""
        return {
            "seed": self.seed,
            "window_chunks": self._data.window_chunks,
            "epoch": self.epoch,
            "window": self._window,
            "position": self._position,
            "windows": self._windows,
            "digest": self._data.digest(self._window) if self._position else "",
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where the state was taken; the batch size, and the number of ranks, may be others.

        Raises:
            LTMError: the state is damaged, or of another seed, window or text.
        """
        for name, here in (("seed", self.seed), ("window_chunks", self._data.window_chunks)):
            if state.get(name) != here:
                raise LTMError(
                    f"the sampler's state was saved with {name}={state.get(name)}, here it is {here}; resume with the "
                    "data and seed that the run was started with"
                )
        epoch, window, position = (state.get(name, -1) for name in ("epoch", "window", "position"))
        if not all(isinstance(value, int) and value >= 0 for value in (epoch, window, position)):
            raise LTMError(
                f"the sampler's state is damaged: epoch={epoch}, window={window}, position={position}; resume from an "
                "earlier checkpoint"
            )
        self.epoch, self._window, self._position = epoch, window, position
        self._windows, self._order = state.get("windows"), None
        if position and (self._data.digest(self._window) != state.get("digest") or not self._shuffle()):
            raise LTMError(
                f"the stream's window {window} is not the one that the run was saved in: the source has changed; "
                "resume with the data that the run was started with"
            )
