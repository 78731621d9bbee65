"""What the machine can do at best: operations per second of its matrix products, bytes per second of its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import seconds_of, table, write_result
from benchmarks.workload import options_of, parser_of

__all__ = ["Floor"]

# rows, inner, columns: two products of an LTM with H = 512, and a square one.
_SHAPES = ((1024, 512, 2816), (1024, 512, 16384), (2048, 2048, 2048))
_GPU_SHAPES = ((8192, 512, 50304), (16384, 4096, 4096), (8192, 8192, 8192))
_QUICK = ((64, 64, 64),)


@dataclass(frozen=True)
class Floor:
    """The least time that work can take, from the best that was seen.

    Args:
        flops_per_s: by type, a multiply-add counting two.
        bytes_per_s: read and written, together, of a copy.
        products: every product behind ``flops_per_s``: type, library, shape, operations per second.
    """

    flops_per_s: dict[torch.dtype, float]
    bytes_per_s: float
    products: tuple[dict[str, Any], ...] = ()

    @classmethod
    def measure(cls, device: torch.device | str = "cpu", *, quick: bool = False) -> Floor:
        """Times products of float32 and bfloat16 and a copy, seconds in all, with torch's present settings.

        On a CPU as matmul runs them (MKL for float32) and by oneDNN, where torch was built with it.
        """
        device = torch.device(device)
        shapes = _QUICK if quick else _GPU_SHAPES if device.type == "cuda" else _SHAPES
        patience = 0.0 if quick else 0.4
        products: list[dict[str, Any]] = []
        best: dict[torch.dtype, float] = {}
        for dtype in (torch.float32, torch.bfloat16):
            for shape in shapes:
                rows, inner, columns = shape
                x = torch.randn(rows, inner, device=device).to(dtype)
                w = torch.randn(columns, inner, device=device).to(dtype)
                for way, product in _ways(x, w):
                    rate = 2 * rows * inner * columns / _least(product, patience)
                    about = {"dtype": _name(dtype), "way": way, "shape": list(shape), "flops_per_s": rate}
                    products.append(about)
                    best[dtype] = max(rate, best.get(dtype, 0.0))
        size = 2**20 if quick else 2**30 if device.type == "cuda" else 2**28
        source = torch.ones(size, dtype=torch.uint8, device=device)
        copy = partial(torch.empty_like(source).copy_, source)
        return cls(best, 2 * size / _least(copy, patience), tuple(products))

    def seconds(self, flops: float, dtype: torch.dtype = torch.float32, *, moved: float = 0.0) -> float:
        """The least time for so many operations in a type and so many bytes moved, one hiding behind the other."""
        return max(flops / self.flops_per_s[dtype], moved / self.bytes_per_s)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        peaks = {_name(dtype): rate for dtype, rate in self.flops_per_s.items()}
        return {"flops_per_s": peaks, "bytes_per_s": self.bytes_per_s, "products": list(self.products)}

    def line(self) -> str:
        """All of it in one line."""
        peaks = ", ".join(f"{_name(dtype)} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in self.flops_per_s.items())
        return f"floor: {peaks}, memory {self.bytes_per_s / 1e9:.0f} GB/s"


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/floor.json."""
    options = options_of(parser_of("floor", __doc__, rounds=1), arguments, {})
    found = [Floor.measure(options.device, quick=options.smoke) for _ in range(options.rounds)]
    for floor in found:
        rows = [
            [p["dtype"], p["way"], " · ".join(map(str, p["shape"])), f"{p['flops_per_s'] / 1e9:.1f}"]
            for p in floor.products
        ]
        print(table(["type", "library", "rows · inner · columns", "GFLOP/s"], rows))
        print(floor.line())
    result = {"device": options.device, "rounds": [floor.to_dict() for floor in found]}
    print(f"written to {write_result(options.out, result, options.folder)}")


def _ways(x: Tensor, w: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    yield "matmul", lambda: x @ w.T
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if x.device.type == "cpu" and onednn is not None:
        product = partial(onednn, x, w, None, "none", [], "")
        try:
            product()
        except RuntimeError:  # the operator is there, and this build or processor cannot run it
            return
        yield "oneDNN", product


def _least(function: Callable[[], object], patience: float) -> float:
    """The least of at least three times, and of as many as fit ``patience`` seconds."""
    function()
    times = [seconds_of(function) for _ in range(3)]
    while sum(times) < patience:
        times.append(seconds_of(function))
    return min(times)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
