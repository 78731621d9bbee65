"""What the sweeps share: one setting varied, all else equal, an autoregressive model beside it, several seeds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.plain import plain_preset
from benchmarks.priors_guides import SMALL as WITH_LABELS
from benchmarks.reproduce.recipe import read_data, spread_over, trained
from ltm_pyro.config import Settings
from ltm_pyro.data import Data
from ltm_pyro.evaluation import Report
from ltm_pyro.training import LoadedRun, RunDirectory

__all__ = [
    "AR",
    "FRESH",
    "Cell",
    "base_settings",
    "options_of_sweeps",
    "scored",
    "spent",
    "sweep",
]

FRESH: dict[str, Any] = {
    "inference.noise": "fresh",
    "inference.slow_gradient": "final",
    "inference.init_log_var": 0.0,
}
"""The paper's algorithm, log σ² starting at the prior's."""
AR: dict[str, Any] = {"model.name": "ar"}
"""The same window, and parameters as many."""

# Short sequences in small batches: what a short run lacks first is slow steps.
SMALL: dict[str, Any] = {key: value for key, value in WITH_LABELS.items() if "label" not in key} | {
    "data.sequence_length": 128,
    "training.batch_size": 2,
    "training.slow_lr": 3e-3,
    "training.eval_sequences": 4,
}
SMOKE: dict[str, Any] = {
    "data.documents": 60,
    "data.sequence_length": 64,
    "data.vocab_size": 300,
    "decoder.hidden": 16,
    "decoder.heads": 2,
    "decoder.thought_width": 8,
    "training.batch_size": 2,
    "training.warmup_steps": 1,
    "training.eval_sequences": 2,
}


@dataclass(frozen=True)
class Cell:
    """One training of a sweep: what its rows say of it, and the settings that make it so.

    Args:
        about: the place in the sweep; its values name the folder, too.
        changes: of the base's settings, as ``{"section.key": value}``.
    """

    about: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of the training's folder, but for the seed."""
        return "-".join(f"{value}" for value in self.about.values())


def options_of_sweeps(parser: argparse.ArgumentParser, *, steps: int, sequences: int = 24) -> None:
    """What is trained, on what, and how it is scored."""
    parser.add_argument("--preset", metavar="NAME", help="the networks and their training (default: a very small one)")
    parser.add_argument("--data", metavar="SOURCE", help="text to train on (default: the fables)")
    parser.add_argument("--validation", metavar="SOURCE", help="text to score on (default: held out of --data)")
    parser.add_argument("--tokenizer", metavar="T", help="path or hub name (default: train one)")
    parser.add_argument("--steps", type=int, help=f"slow steps (default: {steps}, or the preset's)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8, help="draws of z of elbo and prequential")
    parser.add_argument("--weights", type=int, default=64, help="draws of z of iwae, where there is one")
    parser.add_argument("--block-size", type=int, default=32, help="tokens of a block of prequential")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences scored at once")
    parser.add_argument("--sequences", type=int, default=sequences, help="validation sequences, spread over all of it")
    parser.set_defaults(small_steps=steps)


def base_settings(options: argparse.Namespace) -> Settings:
    """The settings that a sweep varies; a smoke run's are tiny, and so are its options."""
    changes: dict[str, Any] = dict(FRESH)
    if options.smoke:
        options.seeds, options.samples, options.weights, options.sequences, options.steps = 1, 2, 3, 3, 2
        options.block_size = 16
    if options.preset is None:
        changes |= SMALL | {"training.steps": options.small_steps, "training.eval_every": options.small_steps}
    if options.smoke:
        changes |= SMOKE
    base = plain_preset(options.preset or "tiny").updated(changes)
    named = {
        "data.source": options.data,
        "data.validation": options.validation,
        "data.tokenizer": options.tokenizer,
        "training.steps": options.steps,
        "training.device": options.device,
    }
    return base.updated({key: value for key, value in named.items() if value is not None})


def sweep(
    base: Settings,
    cells: Sequence[Cell],
    options: argparse.Namespace,
    score: Callable[[LoadedRun, Data, list[int]], Iterable[dict[str, Any]]],
) -> Iterator[list[dict[str, Any]]]:
    """Trains and scores every cell, seed by seed; yields all rows so far after each seed.

    Args:
        base: what the cells change.
        cells: in their order.
        options: ``seeds``, ``sequences`` and ``runs``.
        score: rows of a finished run from validation sequences of these indices.
    """
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        seeded = base.updated({"training.seed": seed})
        data = read_data(seeded)
        indices = spread_over(len(data.validation), options.sequences)
        for cell in cells:
            folder = options.runs / f"{cell.folder}-{seed}"
            run = trained(seeded.updated(cell.changes), data, folder)
            about = {**cell.about, "seed": seed, "kind": run.language_model.kind, **spent(run, folder)}
            for row in score(run, data, indices):
                rows.append(about | row)
                print(_progress(rows[-1]), flush=True)
        yield rows


def scored(
    run: LoadedRun,
    data: Data,
    indices: list[int],
    options: argparse.Namespace,
    *,
    fast_steps: int | None,
    iwae: bool = True,
    prequential: bool = True,
) -> dict[str, Any]:
    """Every protocol's value and standard error over sequences, and the nats of each sequence."""
    model = run.language_model

    def report(*protocols: Any, samples: int) -> Report:
        return model.evaluate(
            data.validation,
            indices,
            protocols=protocols,
            samples=samples,
            block_size=options.block_size,
            fast_steps=fast_steps,
            batch_size=options.batch_size,
        )

    if model.kind == "ltm":
        predicted = ["prequential"] if prequential else []
        reports = [report("elbo", "reconstruction", *predicted, samples=options.samples)]
        reports += [report("iwae", samples=options.weights)] if iwae else []
    else:
        reports = [report(model.comparable, samples=1)]
    extra = {key: value for r in reports for key, value in r.to_dict().items() if key.startswith("k_hat")}
    return {
        "scores": {name: dict(zip(("value", "se"), r.mean(name), strict=True)) for r in reports for name in r.values},
        **extra,
        "num_scored": reports[0].num_scored.tolist(),
        "nats": {name: [round(v, 3) for v in value.tolist()] for r in reports for name, value in r.values.items()},
    }


def spent(run: LoadedRun, folder: Path) -> dict[str, Any]:
    """Steps, parameters, tokens and operations of a finished run."""
    last = [row for row in RunDirectory(folder).metrics.rows() if row["split"] == "validation"][-1]
    model: Any = run.language_model
    modules = [model.svi.model, model.svi.guide] if model.kind == "ltm" else [model]
    return {
        "steps": run.step,
        "parameters": sum(p.numel() for module in modules for p in module.parameters()),
        "training_tokens": last["training_tokens"],
        "training_flops": last["training_flops"],
    }


def _progress(row: dict[str, Any]) -> str:
    place = ", ".join(f"{key} {value}" for key, value in row.items() if isinstance(value, (str, int)))
    return f"{place}: " + ", ".join(f"{name} {score['value']:.4f}" for name, score in row["scores"].items())
