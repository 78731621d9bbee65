"""Side-by-side timing and peak memory, tables of them, and the record of the machine that a number came from."""

from __future__ import annotations

import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from ltm_pyro.training.provenance import processor

__all__ = ["Comparison", "compare", "machine", "peak_bytes", "seconds_of", "show", "spread", "table", "write_result"]


@dataclass(frozen=True)
class Comparison:
    """Seconds of named functions, run in turn, and their ratios to one of them round by round.

    Args:
        seconds: of every function, one entry per round.
        reference: the function that the ratios are to.
    """

    seconds: dict[str, list[float]]
    reference: str

    def ratios(self, name: str, to: str | None = None) -> list[float]:
        """Seconds of a function / seconds of another (None: of the reference) in the same round."""
        other = self.seconds[self.reference if to is None else to]
        return [a / b for a, b in zip(self.seconds[name], other, strict=True)]

    def summary(self) -> dict[str, Any]:
        """Medians, extremes and every single value, of the seconds and of the ratios."""
        functions = {
            name: {"seconds": spread(values), "ratio": spread(self.ratios(name))}
            for name, values in self.seconds.items()
        }
        return {"reference": self.reference, "functions": functions}

    def table(self) -> str:
        """One line for every function."""
        found = self.summary()["functions"]
        rows = [[name, show(about["seconds"]), show(about["ratio"])] for name, about in found.items()]
        return table(["", "seconds", f"ratio to {self.reference}"], rows)


def compare(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    reference: str | None = None,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Times every function once a round; which of them goes first changes from round to round.

    Args:
        functions: by name.
        rounds: how often each is timed.
        reference: the function that the ratios are to; None is the last.
        warmup: how often each runs before, unmeasured.
        clock: seconds now.
    """
    names = list(functions)
    for _ in range(warmup):
        for name in names:
            functions[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_of(functions[name], clock))
    return Comparison(seconds, names[-1] if reference is None else reference)


def seconds_of(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long one call takes; on a GPU the clock waits for the device on both ends."""
    _wait()
    began = clock()
    function()
    _wait()
    return clock() - began


def peak_bytes(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The most memory of tensors that one call holds at a time, beyond what stood before it.

    On the CPU from torch's profiler, which sees every allocation of torch's own, temporaries inside an operation too,
    but not the buffers that MKL and oneDNN keep.
    """
    if torch.device(device).type == "cuda":
        _wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        _wait()
        return int(torch.cuda.max_memory_allocated() - before)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        function()
    events: Any = profile.profiler.kineto_results.events()
    sizes: list[int] = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()) if e.name() == "[memory]"]
    return max(accumulate(sizes, initial=0))


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    about = {
        "processor": processor(),
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
    about = {"command": f"just bench {shlex.join(sys.argv[1:])}", "machine": machine(), **result}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return path


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The median, the extremes and every value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "all": list(values)}


def show(about: Mapping[str, Any], scale: float = 1.0) -> str:
    """``median (min … max)`` of a `spread`, times ``scale``; the median alone where all are the same."""
    median, least, most = (_brief(scale * about[key]) for key in ("median", "min", "max"))
    return median if about["min"] == about["max"] else f"{median} ({least} … {most})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in cells)


def _brief(value: float) -> str:
    """Three significant digits, or the whole number where that has more."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
