"""The curves of training runs, side by side: training losses and validations against steps, tokens or operations.

A picture keeps apart what does not compare: −log p(x) and its bounds, the joint of a point estimate, the reconstruction
without the KL, and the KL have a panel each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ltm_pyro.errors import LTMError
from ltm_pyro.training.run import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "XAxis", "draw_curves", "read_curves"]

XAxis = Literal["steps", "tokens", "flops"]
_KEYS: dict[XAxis, str] = {"steps": "step", "tokens": "training_tokens", "flops": "training_flops"}

_X_LABELS: dict[XAxis, str] = {
    "steps": "slow steps",
    "tokens": "tokens trained on",
    "flops": "training FLOPs (multiply-add = 2)",
}
_PANELS = {
    "bound": "loss (validation: −log p(x) or an upper bound on it)",
    "log_joint": "loss of a point estimate: −log p(x, z), no bound",
    "reconstruction": "reconstruction: the KL is left out, no bound",
    "kl": "KL(q ‖ p)",
}
# Okabe & Ito (2008): distinct to every kind of colour vision. Their yellow is too pale for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.")  # when the colours have all been used


@dataclass(frozen=True)
class Curve:
    """One number of one run as training went on, in nats per token.

    Args:
        run: name of the run.
        split: ``train`` or ``validation``.
        quantity: the number's name in metrics.jsonl.
        panel: what it compares with.
        x: where each value stands on the chosen axis.
        y: the values.
        errors: standard errors of the values, NaN where there is none; None for a training curve.
    """

    run: str
    split: Literal["train", "validation"]
    quantity: str
    panel: str
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    errors: list[float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        errors = None if self.errors is None else [None if np.isnan(e) else e for e in self.errors]
        return {
            "run": self.run,
            "split": self.split,
            "quantity": self.quantity,
            "x": self.x,
            "y": self.y,
            "standard_errors": errors,
        }


def read_curves(runs: Sequence[str | Path], x: XAxis = "steps") -> list[Curve]:
    """The curves of runs, in their order: training first, then each protocol that validation reports, by its own name.

    A validation stands where training had got to at its step.

    Args:
        runs: run directories.
        x: the axis; ``tokens`` and ``flops`` are what training had taken by then.

    Raises:
        LTMError: a run is missing, has no metrics yet, or never recorded what the axis asks for.
    """
    directories = [RunDirectory.open(path) for path in runs]
    found = []
    for directory, name in zip(directories, _names([d.path for d in directories]), strict=True):
        rows = directory.metrics.rows()
        if not rows:
            raise LTMError(f"{directory.path} has no metrics yet: train it for a step, or leave it out")
        if x != "steps" and not all(_is_number(row.get(_KEYS[x])) for row in rows):
            raise LTMError(
                f"{directory.path} has no {_KEYS[x]} in its metrics.jsonl: plot against steps (--x steps), or leave it "
                "out"
            )
        found += _curves_of(name, rows, _KEYS[x])
    return found


def draw_curves(curves: Sequence[Curve], path: str | Path, x: XAxis = "steps", *, log: bool = False) -> None:
    """Draws curves into a PNG or SVG file, a colour for each run; in an SVG the text stays text.

    Args:
        curves: what `read_curves` returned for the same ``x``.
        path: the file to write; its suffix says which kind.
        x: names the axis.
        log: make that axis logarithmic, which leaves out what stands at 0.

    Raises:
        LTMError: another suffix, no curve, matplotlib is not installed, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg"):
        raise LTMError(f"cannot draw {path}: give a name that ends in .png or .svg")
    if not curves:
        raise LTMError("there is no curve to draw: the runs have neither a loss nor a validation")
    try:
        import matplotlib
    except ImportError as error:
        raise LTMError("drawing curves needs the package matplotlib: pip install 'ltm-pyro[plot]'") from error
    figure = _figure(curves, x, log)
    try:
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ltm-pyro"}):
            if path.suffix.lower() == ".svg":
                figure.savefig(path, metadata={"Date": None})
            else:
                figure.savefig(path, dpi=150)
    except OSError as error:
        raise LTMError(f"cannot write {path}: {error.strerror}; choose another file") from error


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where two are called alike."""
    short = [path.absolute().name for path in paths]
    return [str(path) if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]


def _curves_of(run: str, rows: Sequence[Mapping[str, Any]], key: str) -> list[Curve]:
    found: dict[tuple[str, str], Curve] = {}
    for row in rows:
        split = row.get("split")
        if split not in ("train", "validation"):
            continue
        for quantity in _quantities(row):
            panel = quantity if quantity in _PANELS else "bound"
            if split == "train" and "negative_log_prior" in row and quantity == "loss":
                panel = "log_joint"
            errors: list[float] | None = [] if split == "validation" else None
            curve = found.setdefault((split, quantity), Curve(run, split, quantity, panel, errors=errors))
            curve.x.append(float(row[key]))
            curve.y.append(float(row[quantity]))
            if curve.errors is not None:
                error = row[f"{quantity}_se"]
                curve.errors.append(float(error) if _is_number(error) else float("nan"))
    return list(found.values())


def _quantities(row: Mapping[str, Any]) -> list[str]:
    """Names of a row's losses: of a training row the fixed ones, of a validation all that come with an error."""
    if row["split"] == "train":
        names = ["loss", "reconstruction", "kl"]
    else:
        names = [name for name in row if f"{name}_se" in row]
    return [name for name in names if _is_number(row.get(name))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _figure(curves: Sequence[Curve], x: XAxis, log: bool) -> Figure:
    """One panel above another. Not by pyplot, which would keep the figure and choose a window for it."""
    from matplotlib.figure import Figure

    panels = [panel for panel in _PANELS if any(curve.panel == panel for curve in curves)]
    figure = Figure(figsize=(7, 1.4 + 2.4 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
    runs = list(dict.fromkeys(curve.run for curve in curves))
    entries: dict[str, dict[str, Any]] = {run: {} for run in runs}
    for panel, axes in zip(panels, grid, strict=True):
        for curve in (c for c in curves if c.panel == panel):
            drawn = _draw(axes, curve, runs.index(curve.run), _marker(curve, curves))
            if panel == _first_panel(curve.run, curves):
                entries[curve.run][f"{curve.split} {curve.quantity}"] = drawn
        given = any(curve.quantity == "nelbo" and curve.panel == panel for curve in curves)
        axes.set_title(_PANELS[panel] + ("; nelbo: length given" if given else ""), loc="left", fontsize="small")
        axes.set_ylabel("nats per token")
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1].set_xlabel(_X_LABELS[x])
    grid[-1].set_xscale("log" if log else "linear")
    figure.align_ylabels()
    _add_legend(figure, entries)
    return figure


def _marker(curve: Curve, curves: Sequence[Curve]) -> str:
    """A shape for each quantity of the curve's panel."""
    names = dict.fromkeys(c.quantity for c in curves if c.panel == curve.panel and c.split == "validation")
    return _MARKERS[[*names].index(curve.quantity) % len(_MARKERS)] if curve.quantity in names else ""


def _first_panel(run: str, curves: Sequence[Curve]) -> str:
    """The panel that the legend shows a run by."""
    return next(panel for panel in _PANELS if any((c.run, c.panel) == (run, panel) for c in curves))


def _add_legend(figure: Figure, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """One entry for each run and protocol of its first panel; the training loss where nothing was validated."""
    shown: dict[str, Any] = {}
    for run, drawn in entries.items():
        validated = {name: line for name, line in drawn.items() if name.startswith("validation ")}
        shown |= {f"{run}: {name}": line for name, line in (validated or drawn).items()}
    legend = figure.legend(
        list(shown.values()),
        list(shown),
        title="line: training; points: validation ± s.e.",
        loc="outside upper left",
        frameon=False,
        ncols=2,
        alignment="left",
        fontsize="small",
        title_fontsize="small",
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar in a run's name means nothing


def _draw(axes: Axes, curve: Curve, run: int, marker: str) -> Any:
    rounds, place = divmod(run, len(_COLOURS))
    colour, line = _COLOURS[place], _LINES[rounds % len(_LINES)]
    if curve.split == "train":
        return axes.plot(curve.x, curve.y, color=colour, lw=0.9, ls=line, alpha=0.6)[0]
    fill = "none" if rounds else "full"
    return axes.errorbar(
        curve.x, curve.y, curve.errors, color=colour, fmt=marker, ms=4, lw=1, ls=":", capsize=2, fillstyle=fill
    )
