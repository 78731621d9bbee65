"""Sampler: endless shuffled batches of sequence indices that resume on the very next batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ltm_pyro.errors import LTMError

__all__ = ["BatchSampler", "Sampler", "permutation"]


@runtime_checkable
class BatchSampler(Protocol):
    """What trainers ask of a sampler: endless batches of indices, the same on every rank, and where it stands.

    Attributes: ``epoch``, from 0, is that of the next batch.
    """

    epoch: int

    @property
    def progress(self) -> float:
        """Epochs gone through."""

    def __next__(self) -> list[int]: ...

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, fit for JSON."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where the state was taken."""


class Sampler:
    """An endless iterator of batches of indices below ``num_sequences``.

    Each epoch visits every sequence once, in an order that is a function of (seed, epoch) alone. Every batch
    is full: the one that an epoch does not fill goes on with the first sequences of the next.

    Args:
        num_sequences: how many there are.
        batch_size: indices in a batch.
        seed: of the shuffling, at least 0.

    Raises:
        LTMError: a number is out of range.
    """

    def __init__(self, num_sequences: int, batch_size: int, seed: int = 0) -> None:
        for name, value, least in (
            ("num_sequences", num_sequences, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise LTMError(f"{name}={value}: expected at least {least}")
        self.num_sequences = num_sequences
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self._position = 0  # sequences of this epoch already given out
        self._order = permutation(num_sequences, seed, 0)

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        batch: list[int] = []
        while len(batch) < self.batch_size:
            if self._position == self.num_sequences:
                self.epoch, self._position = self.epoch + 1, 0
                self._order = permutation(self.num_sequences, self.seed, self.epoch)
            part = self._order[self._position : self._position + self.batch_size - len(batch)]
            batch += part.tolist()
            self._position += len(part)
        return batch

    @property
    def progress(self) -> float:
        """Epochs gone through, with the fraction of the present one."""
        return self.epoch + self._position / self.num_sequences

    def state_dict(self) -> dict[str, int]:
        """Where the next batch begins; plain integers, fit for JSON."""
        return {
            "seed": self.seed,
            "num_sequences": self.num_sequences,
            "epoch": self.epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues where the state was taken; the batch size may be another.

        Raises:
            LTMError: the state is damaged, or of another seed or another number of sequences.
        """
        for name in ("seed", "num_sequences"):
            if state.get(name) != getattr(self, name):
                raise LTMError(
                    f"the sampler's state was saved with {name}={state.get(name)}, here it is "
                    f"{getattr(self, name)}; resume with the data and seed that the run was started with"
                )
        epoch, position = (state.get(name) for name in ("epoch", "position"))
        if epoch is None or position is None or epoch < 0 or not 0 <= position <= self.num_sequences:
            raise LTMError(
                f"the sampler's state is damaged: epoch={epoch}, position={position} of {self.num_sequences}; resume "
                "from an earlier checkpoint"
            )
        self.epoch, self._position = epoch, position
        self._order = permutation(self.num_sequences, self.seed, self.epoch)


def permutation(count: int, *key: int) -> npt.NDArray[np.int64]:
    """An order of the numbers below ``count`` that is a function of the key alone, for good."""
    # Raw Philox output is fixed for good by numpy's compatibility policy; `Generator.permutation` is not.
    keys = np.random.Philox(np.random.SeedSequence(list(key))).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)
