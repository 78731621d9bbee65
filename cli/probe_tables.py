"""What ``ltm-pyro probe`` prints and draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltm_pyro.data.files import first_line
from ltm_pyro.errors import LTMError

__all__ = ["plot_layers", "show_probes"]


def show_probes(out: Console, row: Mapping[str, Any]) -> None:
    """Prints a table for each probe that was made."""
    out.print(f"{row['data']} under {row['run']}, step {row['step']}", highlight=False, soft_wrap=True)
    if "layers" in row:
        _show_layers(out, row["layers"])
    if "swap" in row:
        _show_swap(out, row["swap"])
    for path in ("linear", "spherical"):
        if path in row:
            _show_path(out, path, row[path])


def _show_layers(out: Console, probe: Mapping[str, Any]) -> None:
    for name, title in (
        ("first", "Thoughts of layers 1 … l"),
        ("single", "Thoughts of one layer alone"),
    ):
        rows = probe[name]
        free = "free_accuracy" in rows[0]
        table = Table("kept", "nats/token", "accuracy", *(["free-running"] if free else []), title=title)
        for values in rows:
            kept = values["kept"]
            label = "none" if not kept else str(kept[0]) if len(kept) == 1 else f"{kept[0]} … {kept[-1]}"
            cells = [_number(values, "nats"), _percent(values, "accuracy")]
            table.add_row(label, *cells, *([_percent(values, "free_accuracy")] if free else []))
        out.print(table)
    out.print(
        "The other layers' thoughts are the prior's. nats: reconstruction, its KL left out, no bound. accuracy: the "
        "most probable token given the text's own before it. free-running: greedy decoding puts it in its place.",
        highlight=False,
    )
    _show_about(out, probe, f"{probe['sequences']} sequences, {probe['tokens']} tokens")


def _show_swap(out: Console, swap: Mapping[str, Any]) -> None:
    table = Table("thoughts", "nats/token", title="A document under thoughts")
    for name, label in (("own", "its own"), ("swapped", "another's"), ("gap", "difference")):
        table.add_row(label, _number(swap, name))
    out.print(table)
    _show_about(out, swap, f"{swap['documents']} documents")
    if "agreement" in swap:
        _show_agreement(out, swap["agreement"], "by the grammar: whole fables alone")
        _show_agreement(out, swap["mentions"], "by the words: what a text mentions")
        out.print(
            "Texts are written from layers 1 … l of a's thoughts and the other layers of b's. apart: of the facts in "
            "which a and b differ. others: with the documents that are neither. Two documents agree on "
            f"{_share(swap['agreement']['chance'])} of all facts and on {_share(swap['mentions']['chance'])} of those "
            "that they mention.\n",
            highlight=False,
        )
    for text in swap.get("texts", ()):
        layers = f"{text['layers']} layers of document {text['a']}, the others of {text['b']}"
        _show_text(out, layers, text["text"])


def _show_agreement(out: Console, found: Mapping[str, Any], how: str) -> None:
    columns = ("l", "texts", "as a", "as b", "others", "apart: a", "b")
    table = Table(*columns, title=f"Facts {how}")
    for row in found["layers"]:
        shares = (_share(row[name]) for name in ("a", "b", "others", "a_apart", "b_apart"))
        table.add_row(str(row["layers"]), f"{row['read']} of {row['texts']}", *shares)
    out.print(table)


def _show_path(out: Console, path: str, found: Mapping[str, Any]) -> None:
    table = Table("t", "nats/token of a", "of b", title=f"{path.capitalize()} from a to b")
    for point in found["points"]:
        table.add_row(f"{point['t']:.2f}", _number(point, "a"), _number(point, "b"))
    out.print(table)
    _show_about(out, found, f"{len(found['pairs'])} pairs, -log p(x | z) at a point: no bound")
    for point, texts in zip(found["points"], found.get("texts", ()), strict=False):
        for (a, b), text in zip(found["pairs"], texts, strict=True):
            _show_text(out, f"{path}, t = {point['t']:.2f} from document {a} to {b}", text)


def _show_about(out: Console, row: Mapping[str, Any], what: str) -> None:
    samples = f", S = {row['samples']}" if "samples" in row else ""
    out.print(f"{what}{samples}, T_fast = {row['fast_steps']}, seed {row['seed']}\n", highlight=False, soft_wrap=True)


def _show_text(out: Console, title: str, text: str) -> None:
    out.rule(title, style="dim")
    out.print(Text(text), soft_wrap=not out.is_terminal)


def plot_layers(path: Path, probe: Mapping[str, Any]) -> None:
    """Draws accuracy against the number of layers that keep their thoughts, and against each layer alone.

    Raises:
        LTMError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LTMError("--plot needs the package matplotlib: pip install 'ltm-pyro[plot]'") from error
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    names = {"accuracy": "teacher-forced", "free_accuracy": "free-running"}
    for color, (name, label) in zip(("#4c72b0", "#dd8452"), names.items(), strict=True):
        if name not in probe["first"][0]:
            continue
        _curve(axes, probe["first"], name, color, "o-", f"layers 1 … l, {label}")
        _curve(axes, probe["single"], name, color, "x:", f"layer l alone, {label}", first=1)
    axes.set(xlabel="layer l", ylabel="accuracy of reconstruction", ylim=(-0.02, 1.02))
    axes.set_xticks(range(len(probe["first"])))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise LTMError(f"cannot draw {path}: {first_line(error)}; name a .png, .svg or .pdf in a folder") from error


def _curve(
    axes: Any, rows: Sequence[Mapping[str, Any]], name: str, color: str, style: str, label: str, first: int = 0
) -> None:
    values, errors = [row[name] for row in rows], [row[f"{name}_se"] or 0.0 for row in rows]
    places = range(first, first + len(rows))
    axes.errorbar(places, values, errors, fmt=style, color=color, ms=5, lw=1.2, label=label)


def _number(row: Mapping[str, Any], name: str) -> str:
    error = row[f"{name}_se"]
    return f"{row[name]:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _percent(row: Mapping[str, Any], name: str) -> str:
    error = row[f"{name}_se"]
    return f"{100 * row[name]:.1f} %" + ("" if error is None else f" ± {100 * error:.1f}")


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"
