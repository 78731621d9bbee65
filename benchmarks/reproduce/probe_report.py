"""The table and the plot of `probe`."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.reproduce.recipe import machine_line, save_svg

__all__ = ["draw", "table"]

TITLES = {
    "paper": "the paper's algorithm: fresh noise, slow gradient at the final q, log σ² from 0",
    "released": "the released code's regime: fixed noise, slow gradient over the trajectory, log σ² from −5",
}
SHORT = {"paper": "paper's algorithm", "released": "released code's regime"}
COLOURS = {"paper": "#0072B2", "released": "#D55E00"}


def table(result: dict[str, Any]) -> str:
    """Curves over layers, swap gaps and interpolations of both regimes, as Markdown."""
    rows, options = result["rows"], result["options"]
    settings = result["settings"]
    lines = [
        f"# {result['title']}",
        "",
        f"A decoder of {settings['decoder']['layers']} layers with {settings['decoder']['num_thoughts']} thoughts, "
        f"{options['steps']} slow steps, T_fast = {settings['inference']['fast_steps']}, trained in two regimes. "
        f"{rows[0]['layers']['sequences']} validation sequences of "
        f"{rows[0]['layers']['tokens'] // rows[0]['layers']['sequences']} tokens, S = {options['samples']}; mean over "
        f"{len({row['seed'] for row in rows})} seed(s) ± standard error over sequences. "
        "[What the probes are](../../docs/probes.md). None of their numbers is a probability of text: the KL is left "
        "out of all.",
        "",
        "The paper's figure: with six layers reconstruction jumps in the last one; with twelve it rises slowly to "
        "layer 8 and is above 95 % at 9 and 10. It does not say whether the decoder read the text's own tokens, so "
        "both accuracies stand here: *teacher-forced* (it did) and *free-running* (its own).",
    ]
    for regime in options["regimes"]:
        found = [row for row in rows if row["regime"] == regime]
        lines += ["", f"## {TITLES[regime][0].upper()}{TITLES[regime][1:]}", "", *_evaluation(found)]
        lines += ["", "| thoughts kept | nats per token | teacher-forced | free-running |", "| --- | --- | --- | --- |"]
        for which in ("first", "single"):
            for number, values in enumerate(found[0]["layers"][which]):
                if which == "single" and values["kept"] == [1]:
                    continue  # the same as the first one kept
                same = [row["layers"][which][number] for row in found]
                cells = (_mean(same, "nats", 1), _mean(same, "accuracy", 100), _mean(same, "free_accuracy", 100))
                lines.append(f"| {_kept(values['kept'])} | {' | '.join(cells)} |")
        lines += ["", _gains(found), "", *_swap(found), "", *_paths(found)]
    lines += ["", "At full scale, on a GPU:", "", *(f"    {line}" for line in result["full_scale"]), ""]
    return "\n".join([*lines, machine_line(result), ""])


def _evaluation(found: list[dict[str, Any]]) -> list[str]:
    reports = [row["evaluation"] for row in found]
    return [
        f"What it costs: `elbo` {_mean(reports, 'elbo', 1)} nats per token (an upper bound), of which KL "
        f"{_mean(reports, 'kl', 1)}; `reconstruction` {_mean(reports, 'reconstruction', 1)} (no bound); `prequential` "
        f"{_mean(reports, 'prequential', 1)} (a probability)."
    ]


def _gains(found: list[dict[str, Any]]) -> str:
    """Which layer brings how much, going up."""
    curves = [[values["nats"] for values in row["layers"]["first"]] for row in found]
    steps = [statistics.mean(c[at - 1] - c[at] for c in curves) for at in range(1, len(curves[0]))]
    told = ", ".join(f"{gain:+.3f} by layer {number}" for number, gain in enumerate(steps, 1))
    return f"Nats per token gained over the prior's draws, layer by layer: {told}; {sum(steps):+.3f} in all."


def _swap(found: list[dict[str, Any]]) -> list[str]:
    swaps = [row["swap"] for row in found]
    return [
        f"Swap: a document's tokens under its own thoughts {_mean(swaps, 'own', 1)} nats per token, under another's "
        f"{_mean(swaps, 'swapped', 1)}; the gap is {_mean(swaps, 'gap', 1)}."
    ]


def _paths(found: list[dict[str, Any]]) -> list[str]:
    """Both documents' -log p(x | z(t)) along both paths."""
    lines = [
        "Interpolation from document a's posterior mean to b's, −log p(x | z(t)) of a / of b, nats per token:",
        "",
        "| path | " + " | ".join(f"t = {p['t']:.2f}" for p in found[0]["interpolation"]["linear"]["points"]) + " |",
        "| --- |" + " --- |" * len(found[0]["interpolation"]["linear"]["points"]),
    ]
    for path in ("linear", "spherical"):
        points = zip(*(row["interpolation"][path]["points"] for row in found), strict=True)
        cells = (" / ".join(f"{statistics.mean(p[name] for p in same):.3f}" for name in "ab") for same in points)
        lines.append(f"| {path} | {' | '.join(cells)} |")
    return lines


def _kept(layers: list[int]) -> str:
    if not layers:
        return "none (draws of the prior)"
    return f"{layers[0]} alone" if len(layers) == 1 else f"1 … {layers[-1]}"


def _mean(values: list[dict[str, Any]], name: str, unit: int) -> str:
    """Mean over seeds with its standard error over sequences; ``unit`` 100 for percent."""
    mean = statistics.mean(v[name] for v in values)
    error = math.sqrt(sum((v[f"{name}_se"] or 0.0) ** 2 for v in values)) / len(values)
    return f"{mean:.3f} ± {error:.3f}" if unit == 1 else f"{unit * mean:.1f} ± {unit * error:.1f} %"


def draw(result: dict[str, Any], path: Path) -> None:
    """Nats and accuracies against the layers that keep their thoughts, a line for every seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for row in result["rows"]:
        colour, values = COLOURS[row["regime"]], row["layers"]["first"]
        label = SHORT[row["regime"]] if row["seed"] == 0 else None
        for axis, name, style in (
            (axes[0], "nats", "-"),
            (axes[1], "accuracy", "-"),
            (axes[1], "free_accuracy", ":"),
        ):
            y, error = [v[name] for v in values], [v[f"{name}_se"] or 0.0 for v in values]
            axis.errorbar(
                range(len(values)), y, error, color=colour, ls=style, marker="o", ms=4, lw=1.2, alpha=0.8, label=label
            )
            label = label if axis is axes[0] else None
    axes[0].set(ylabel="reconstruction, nats per token (no KL: no bound)")
    axes[1].set(ylabel="accuracy: teacher-forced —, free-running ···")
    axes[0].legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.set(
            xlabel="layers 1 … l that keep their thoughts", xticks=range(len(result["rows"][0]["layers"]["first"]))
        )
        axis.grid(alpha=0.3)
    save_svg(figure, path)
