"""Bytes of tensors alive at once, as they are made and freed: for what has no formula, and to check the formulas."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["measured_peak"]


def measured_peak(run: Callable[[], Any], held: Iterable[Tensor] = (), *, but: Container[int] = ()) -> int:
    """Most bytes of tensors that are alive at once while ``run`` is called.

    On a GPU, what torch's allocator counts, all that was there before included. On the CPU, every storage that an
    operation reads or makes counts from then until it is freed; what a kernel needs inside itself is not seen.

    Args:
        run: what to measure.
        held: tensors that count from the start, whenever they are first used: weights, an optimiser's moments.
        but: on the CPU, storages of these numbers of bytes are left out.
    """
    held = list(held)
    if any(tensor.is_cuda for tensor in held):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    meter = _Meter(but)
    with meter:
        meter.count(held)
        run()
    return meter.peak


class _Meter(TorchDispatchMode):
    """Live storages by identity, and the greatest sum of their bytes."""

    def __init__(self, but: Container[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.but = but
        self.alive: dict[int, int] = {}
        self.total = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count(value for value in tree_iter((args, kwargs, result)) if isinstance(value, Tensor))
        return result

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Counts the storages that are not counted yet."""
        for tensor in tensors:
            if tensor.layout != torch.strided:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self.alive and storage.nbytes() not in self.but:
                self.alive[storage._cdata] = storage.nbytes()
                self.total += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata)
        self.peak = max(self.peak, self.total)

    def _free(self, identity: int) -> None:
        self.total -= self.alive.pop(identity)
