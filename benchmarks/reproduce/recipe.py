"""What the recipes share: runs that are trained once, and results as JSON, Markdown and a plot."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.measure import machine
from ltm_pyro.config import Settings
from ltm_pyro.data import Data, build_data
from ltm_pyro.data.corpora import Split
from ltm_pyro.data.fables import generate
from ltm_pyro.training import LoadedRun, RunDirectory, Trainer, load_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "RESULTS",
    "machine_line",
    "options_of",
    "parser_of",
    "plain",
    "read_data",
    "save_svg",
    "spread_over",
    "trained",
    "write",
    "write_fables",
]

RESULTS = Path(__file__).parents[1] / "results"


def parser_of(name: str, about: str, *, runs: str | None = None) -> argparse.ArgumentParser:
    """Options that every recipe has; ``runs`` names the recipe whose trainings this one shares."""
    parser = argparse.ArgumentParser(prog=f"just reproduce {name}", description=about)
    parser.add_argument("--smoke", action="store_true", help="seconds, not hours: shows only that the recipe works")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="where the trainings go, and are found again")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go (default: benchmarks/results)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.set_defaults(name=name, shared=runs or name)
    return parser


def options_of(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed options; a smoke run writes where no recorded result is lost, and trains anew."""
    options = parser.parse_args(arguments)
    base, end = Path("runs") / "reproduce", "-smoke" if options.smoke else ""
    options.runs = options.runs or base / f"{options.shared}{end}"
    options.out = options.out or (base / f"{options.name}{end}" if options.smoke else RESULTS)
    torch.set_num_threads(options.threads)
    return options


def plain(options: argparse.Namespace) -> dict[str, Any]:
    """The options as plain values, but for where runs and results are."""
    return {k: v for k, v in vars(options).items() if k not in ("runs", "out", "shared")}


def spread_over(count: int, most: int | None) -> list[int]:
    """At most so many of ``count`` indices, spread evenly over all; None is all."""
    wanted = count if most is None else min(count, most)
    return [index * count // wanted for index in range(wanted)]


def read_data(settings: Settings) -> Data:
    """The data of a run with these settings."""
    return build_data(**asdict(settings.data), seed=settings.training.seed)


def write_fables(path: Path, count: int, split: Split = "train") -> Path:
    """A text file of fables between blank lines, for smoke runs of recipes that ask for real text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [" ".join(fable.text.split()) for fable in generate(count, seed=0, split=split)]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


def trained(settings: Settings, data: Data, folder: Path) -> LoadedRun:
    """A finished run in ``folder``: trained now, gone on with, or taken as it is, if it has the same settings.

    Raises:
        SystemExit: the folder holds a run with other settings.
    """
    run = RunDirectory(folder)
    if run.exists and _that_decide(run.settings) != _that_decide(settings):
        sys.exit(f"{folder} holds a run with other settings: remove it, or choose another --runs")
    found = run.exists and run.store().paths()
    if not (found and load_run(folder, device=settings.training.device).step == settings.training.steps):
        if not run.exists:
            run = RunDirectory.create(folder, settings, data.tokenizer, data.class_names)
        trainer = Trainer(settings, data, run)
        trainer.resume()
        print(f"training {folder}", flush=True)
        if not trainer.fit():
            sys.exit(130)
    return load_run(folder, device=settings.training.device)


def _that_decide(settings: Settings) -> Settings:
    """The settings without those that change where data lie and how fast they come, and nothing of what is learned."""
    return replace(settings, data=replace(settings.data, cache_dir=None, workers=None, prefetch=0))


def write(
    options: argparse.Namespace,
    result: dict[str, Any],
    markdown: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], None],
) -> Path:
    """Writes NAME.json, NAME.md and NAME.svg into the folder of the results; returns the first."""
    name = getattr(options, "result_name", options.name)
    path = Path(options.out) / f"{name}.json"
    command = f"just reproduce {shlex.join(sys.argv[1:])}"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"command": command, "machine": machine(), "smoke": options.smoke, **result}
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    whole = json.loads(path.read_text(encoding="utf-8"))  # tables and plots are made of what was written
    path.with_suffix(".md").write_text(markdown(whole), encoding="utf-8")
    draw(whole, path.with_suffix(".svg"))
    print(f"written to {path}, .md and .svg")
    return path


def save_svg(figure: Figure, path: Path) -> None:
    """Writes a figure whose text stays text, and whose bytes are the same for the same numbers."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ltm-pyro"}):
        figure.savefig(path, metadata={"Date": None})


def machine_line(result: dict[str, Any]) -> str:
    """The machine and the command, as the last lines of a table."""
    about = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return f"`{result['command']}` on: {about}."
