"""Seconds per token of one slow step while one size changes: N, N_z, T_fast, B or V.

The other sizes stay where the options put them. Every axis is measured in turn with the point that all axes share.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.floor import Floor
from benchmarks.measure import compare, show, spread, table, write_result
from benchmarks.reproduce.recipe import save_svg
from benchmarks.workload import Workload, options_of, parser_of, plain
from ltm_pyro.data.files import optional_import
from ltm_pyro.flops import DecoderSize, slow_step_flops


@dataclass(frozen=True)
class Axis:
    """A size that changes.

    Args:
        option: that holds the shared point's value.
        symbol: the paper's.
        values: measured besides the shared point's.
        smoke: the same in a smoke run.
    """

    option: str
    symbol: str
    values: tuple[int, ...]
    smoke: tuple[int, ...]


AXES = {
    "tokens": Axis("tokens", "N", (256, 512, 1024, 2048, 4096), (16, 32)),
    "thoughts": Axis("thoughts", "N_z", (24, 96, 384), (4, 8)),
    "fast-steps": Axis("fast_steps", "T_fast", (4, 16, 32), (1, 2)),
    "batch": Axis("batch", "B", (1, 2, 4), (1, 2)),
    "vocabulary": Axis("vocabulary", "V", (2048, 16384, 50257), (300, 400)),
}
SMOKE = {"preset": "tiny", "vocabulary": 300, "tokens": 32, "thoughts": 4, "fast_steps": 2, "rounds": 2}


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/scaling.{json,svg}."""
    work = {"preset": "ltm-m", "vocabulary": 2048, "batch": 2, "tokens": 512, "fast_steps": 16, "dtype": "float32"}
    parser = parser_of("scaling", __doc__, rounds=1, **work)
    parser.add_argument("--thoughts", type=int, default=24, help="N_z, a multiple of the layers (default: 24)")
    parser.add_argument(
        "--axes", nargs="+", default=list(AXES), metavar="AXIS[=VALUE,…]", help=f"of {', '.join(AXES)} (default: all)"
    )
    options = options_of(parser, arguments, SMOKE)
    axes = [_axis(parser, text, options.smoke) for text in options.axes]
    optional_import("matplotlib", "just bench scaling", "plot")  # not after minutes of measuring

    floor = Floor.measure(options.device, quick=options.smoke)
    print(floor.line(), flush=True)
    rows = []
    for name, values in axes:
        found = measure(AXES[name], values, floor, options)
        rows += [{"axis": name} | row for row in found]
        symbol, base = AXES[name].symbol, getattr(options, AXES[name].option)
        head = [symbol, "µs / token", f"/ {symbol} = {base}", "MFLOP / token", "of the floor"]
        print(f"\n{name}\n{table(head, [_line(row) for row in found])}", flush=True)
    result = {"options": plain(options), "floor": floor.to_dict(), "rows": rows}
    path = write_result(options.out, result, options.folder)
    draw(result, path.with_suffix(".svg"))
    print(f"written to {path} and .svg")


def measure(axis: Axis, values: list[int], floor: Floor, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One axis: a row for every value, the shared point among them."""
    base = getattr(options, axis.option)
    points = sorted({*values, base})
    works = {}
    for value in points:
        sizes = plain(options) | {axis.option: value}
        works[value] = Workload.of(**sizes, settings={"decoder.num_thoughts": sizes["thoughts"]})
        works[value].warm_up()
    functions: dict[str, Callable[[], object]] = {str(value): work.step for value, work in works.items()}
    compared = compare(functions, rounds=options.rounds, reference=str(base), warmup=0)
    rows = []
    for value, work in works.items():
        count = work.batch.tokens.numel()
        seconds = compared.seconds[str(value)]
        tokens_of_base = works[base].batch.tokens.numel()
        flops = {dense: _flops(work, dense) / count for dense in (False, True)}
        row = {
            "value": value,
            "seconds": spread(seconds),
            "seconds_per_token": spread([s / count for s in seconds]),
            "ratio_per_token": spread([tokens_of_base / count * r for r in compared.ratios(str(value))]),
            "flops_per_token": flops[False],
            "flops_per_token_dense": flops[True],
            "floor_share": floor.seconds(flops[False] * count, getattr(torch, options.dtype)) / min(seconds),
        }
        rows.append(row)
    return rows


def draw(result: dict[str, Any], path: Path) -> None:
    """Time per token against each size, beside the least that the floor allows."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["axis"] for row in result["rows"]))
    figure = Figure(figsize=(3.2 * len(names), 3.2), layout="constrained")
    peak = result["floor"]["flops_per_s"][result["options"]["dtype"]]
    plots = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, axes in zip(names, plots, strict=True):
        rows = [row for row in result["rows"] if row["axis"] == name]
        values = [row["value"] for row in rows]
        medians, least, most = (
            [1e6 * row["seconds_per_token"][which] for row in rows] for which in ("median", "min", "max")
        )
        axes.fill_between(values, least, most, alpha=0.3, linewidth=0)
        axes.plot(values, medians, marker="o", label="one slow step")
        axes.plot(values, [1e6 * row["flops_per_token"] / peak for row in rows], "k:", label="floor of its products")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()
        axes.set_xlabel(AXES[name].symbol)
    plots[0].set_ylabel("µs per token")
    plots[0].legend(frameon=False)
    save_svg(figure, path)


def _axis(parser: argparse.ArgumentParser, text: str, smoke: bool) -> tuple[str, list[int]]:
    """``name`` or ``name=value,value``."""
    name, given, values = text.partition("=")
    if name not in AXES:
        parser.error(f"no axis {name!r}: choose from {', '.join(AXES)}")
    if not given:
        return name, list(AXES[name].smoke if smoke else AXES[name].values)
    try:
        return name, [int(value) for value in values.split(",")]
    except ValueError:
        return parser.error(f"--axes {text}: the values of an axis are whole numbers, as in {name}=1,2")


def _flops(work: Workload, dense: bool) -> int:
    """Of one slow step: every pair of positions (``dense``), or those that the window shows."""
    size = DecoderSize.of(work.svi.model.decoder, dense=dense)
    batch, length = work.batch.tokens.shape
    return slow_step_flops(size, batch, length, batch * length, fast_steps=work.svi.fast.steps)


def _line(row: dict[str, Any]) -> list[str]:
    microseconds, ratio = show(row["seconds_per_token"], 1e6), show(row["ratio_per_token"])
    return [str(row["value"]), microseconds, ratio, f"{row['flops_per_token'] / 1e6:.0f}", f"{row['floor_share']:.0%}"]
