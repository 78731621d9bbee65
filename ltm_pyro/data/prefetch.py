"""Batches made in the background, before training asks for them."""

from __future__ import annotations

import copy
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data.sampler import BatchSampler

__all__ = ["Prefetched"]

T = TypeVar("T")


class Prefetched:
    """``batch_of(indices)``, made by a thread that looks ahead on a copy of the sampler.

    The sampler itself is the caller's: it stands where training does, so that its state is that of the last batch asked
    for, whatever lies ready. Indices that the copy did not foretell, as after the sampler was set to another place,
    give their batch all the same, and the thread begins anew behind them.

    Args:
        sampler: whose batches are asked for.
        batch_of: makes a batch; called in the thread.
        depth: batches that lie ready at most; 0 makes each when it is asked for.
    """

    def __init__(self, sampler: BatchSampler, batch_of: Callable[[Sequence[int]], TokenBatch], depth: int = 2) -> None:
        self._sampler, self._batch_of, self._depth = sampler, batch_of, depth
        self._ahead: _Ahead | None = None

    def __call__(self, indices: Sequence[int]) -> TokenBatch:
        """The batch of the indices that the sampler has just given.

        Raises:
            LTMError: from the sampler or from making the batch.
        """
        if not self._depth:
            return self._batch_of(indices)
        if self._ahead is not None:
            foretold, batch = self._ahead.next()
            if foretold == list(indices):
                if isinstance(batch, BaseException):
                    raise batch
                return batch
            self._ahead.stop()
        self._ahead = _Ahead(copy.copy(self._sampler), self._batch_of, self._depth)
        weakref.finalize(self, self._ahead.stop)
        return self._batch_of(indices)

    def close(self) -> None:
        """Ends the thread; a batch that is asked for later begins anew."""
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None


class _Ahead:
    """The thread and what it has ready: indices and their batch, or the error that came instead."""

    def __init__(self, sampler: BatchSampler, batch_of: Callable[[Sequence[int]], TokenBatch], depth: int) -> None:
        self._ready: queue.Queue[tuple[list[int], TokenBatch | BaseException]] = queue.Queue(depth)
        self._stopped = threading.Event()
        arguments = (sampler, batch_of, self._ready, self._stopped)
        threading.Thread(target=_work, args=arguments, name="prefetch", daemon=True).start()

    def next(self) -> tuple[list[int], TokenBatch | BaseException]:
        """What is ready next, which is waited for."""
        return self._ready.get()

    def stop(self) -> None:
        """Ends the thread after what it is at."""
        self._stopped.set()
        while not self._ready.empty():
            self._ready.get_nowait()


def _work(
    sampler: BatchSampler,
    batch_of: Callable[[Sequence[int]], TokenBatch],
    ready: queue.Queue[tuple[list[int], TokenBatch | BaseException]],
    stopped: threading.Event,
) -> None:
    indices: list[int] = []
    try:
        while not stopped.is_set():
            indices = next(sampler)
            ready.put((indices, batch_of(indices)))
    except BaseException as error:
        ready.put((indices, error))
