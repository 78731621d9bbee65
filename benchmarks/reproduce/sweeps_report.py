"""Tables and plots of the sweeps: means over seeds, differences to another model, the page around them."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.reproduce.recipe import machine_line, save_svg, write
from ltm_pyro.config import Settings
from ltm_pyro.evaluation.protocols import ratio

__all__ = ["difference", "final_page", "found", "k_hat", "mean", "reference_line"]


def found(rows: Iterable[dict[str, Any]], **about: Any) -> list[dict[str, Any]]:
    """The rows of one cell, by seed."""
    matching = [row for row in rows if all(row.get(key) == value for key, value in about.items())]
    return sorted(matching, key=lambda row: row["seed"])


def mean(rows: Sequence[dict[str, Any]], name: str) -> str:
    """``mean ± s.e. over seeds (s.e. over sequences)`` of a score; the second is that of one seed, on average."""
    return _cell([row["scores"][name]["value"] for row in rows], [row["scores"][name]["se"] for row in rows])


def k_hat(rows: Sequence[dict[str, Any]]) -> str:
    """Pareto shape of iwae's weights, the median over sequences, averaged over seeds; above 0.7 they are unreliable."""
    values = [row["k_hat_median"] for row in rows if row["k_hat_median"] is not None]
    return f"{statistics.mean(values):.2f}" if values else "–"


def difference(
    rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], name: str, other_name: str = "likelihood"
) -> str:
    """As `mean`, of the difference to the rows of another model with the same seeds, sequence by sequence."""
    pairs = [_paired(row, other, name, other_name) for row, other in zip(rows, others, strict=True)]
    values, errors = zip(*pairs, strict=True)
    return _cell(values, errors, "+")


def final_page(
    options: argparse.Namespace,
    base: Settings,
    rows: list[dict[str, Any]],
    markdown: Callable[[dict[str, Any]], list[str]],
    draw: Callable[[dict[str, Any], Any], None],
    *,
    full_scale: str,
) -> Path:
    """Writes a sweep's JSON, table and plot, the notes that all of them need, and the command of the paper's scale.

    Args:
        options: of the recipe.
        base: the settings that were varied.
        rows: of `sweep`.
        markdown: the title, the tables and what they say, line by line.
        draw: fills an empty matplotlib figure.
        full_scale: command that makes the same at the paper's size.
    """
    about = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}

    def page(result: dict[str, Any]) -> str:
        seeds = len({row["seed"] for row in result["rows"]})
        asked, training = result["options"], result["settings"]["training"]
        weights = f" (`iwae`: {asked['weights']})" if any("iwae" in row["scores"] for row in result["rows"]) else ""
        bounds = "and `iwae` are upper bounds" if weights else "is an upper bound"
        notes = [
            f"{training['steps']} slow steps of {training['batch_size']} sequences. Nats per token of "
            f"{len(result['rows'][0]['num_scored'])} validation sequences. {_seeds(seeds)} "
            f"S = {asked['samples']} draws{weights}, `prequential` in blocks of {asked['block_size']} tokens.",
            "",
            "`likelihood` is the exact −log p(x) of the autoregressive model, `prequential` a probability, too: these "
            f"two compare. `elbo` {bounds} on −log p(x), which the thoughts of the text itself give. "
            "`reconstruction` is the first term of `elbo` alone: it leaves the KL out, bounds nothing, and is no "
            "perplexity.",
        ]
        ends = [f"At the paper's scale, on a GPU: `{full_scale}`.", "", machine_line(result), ""]
        return "\n".join([*markdown(result), "", *notes, "", *ends])

    def plot(result: dict[str, Any], path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained")
        draw(result, figure)
        save_svg(figure, path)

    return write(options, {"options": about, "settings": base.to_dict(), "rows": rows}, page, plot)


def reference_line(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    """The autoregressive model's likelihood, which a model with thoughts has to beat, as a dashed line."""
    value = statistics.mean(row["scores"]["likelihood"]["value"] for row in rows)
    axis.axhline(value, color="black", linewidth=0.9, linestyle="--", label="AR, same window (likelihood)")


def _seeds(count: int) -> str:
    if count == 1:
        return "One seed; in brackets the standard error over sequences."
    return (
        f"Mean over {count} seeds ± its standard error over them, and in brackets the standard error over sequences "
        "within a seed."
    )


def _paired(row: dict[str, Any], other: dict[str, Any], name: str, other_name: str) -> tuple[float, float]:
    assert (row["seed"], row["num_scored"]) == (other["seed"], other["num_scored"])
    nats = [torch.tensor(r["nats"][n], dtype=torch.float64) for r, n in ((row, name), (other, other_name))]
    return ratio(nats[0] - nats[1], torch.tensor(row["num_scored"]))


def _cell(values: Sequence[float], errors: Sequence[float], sign: str = "") -> str:
    spread = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{spread} ({statistics.mean(errors):.3f})"
