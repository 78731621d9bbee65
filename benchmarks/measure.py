"""Side-by-side timing, and the record of the machine that a number came from."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Comparison", "compare", "machine", "write_result"]


@dataclass(frozen=True)
class Comparison:
    """Seconds of two functions, run in turn, and their ratio pair by pair."""

    first: list[float]
    second: list[float]

    @property
    def ratios(self) -> list[float]:
        """First / second of each pair."""
        return [a / b for a, b in zip(self.first, self.second, strict=True)]

    def summary(self) -> dict[str, Any]:
        """Medians, extremes and every single time."""
        return {
            "first_s": _spread(self.first),
            "second_s": _spread(self.second),
            "ratio": _spread(self.ratios),
        }


def compare(first: Callable[[], object], second: Callable[[], object], *, pairs: int, warmup: int = 1) -> Comparison:
    """Times two functions ``pairs`` times; which of them goes first changes from pair to pair."""
    for _ in range(warmup):
        first()
        second()
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        for which in order:
            times[which].append(_seconds((first, second)[which]))
    return Comparison(*times)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    about = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about


def write_result(name: str, result: dict[str, Any], folder: Path | None = None) -> Path:
    """Writes NAME.json, with the command and the machine, into ``folder`` (benchmarks/results where that is None)."""
    path = (folder or Path(__file__).parent / "results") / f"{name}.json"
    about = {"command": f"just bench {' '.join(sys.argv[1:])}", "machine": machine(), **result}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(about, indent=2) + "\n")
    return path


def _seconds(function: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _spread(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "all": values}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
