"""Three kinds of model of equal parameters on the same tokens, for recipes that ask them more than their loss."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.plain import plain_preset
from benchmarks.reproduce.recipe import trained
from ltm_pyro.config import Settings
from ltm_pyro.data import Data
from ltm_pyro.evaluation.protocols import ratio
from ltm_pyro.language_model import ThoughtLanguageModel
from ltm_pyro.training import LoadedRun, RunDirectory

__all__ = ["TITLES", "mean_difference", "options_of_training", "settings_of", "spent", "spent_table", "train"]

TITLES = {"ltm": "LTM", "ar": "AR, same window", "mdlm": "MDLM"}
"""The kinds of model, by the name of `Settings.model`."""


def options_of_training(parser: argparse.ArgumentParser) -> None:
    """What is trained; the recipe's own small settings unless there is a preset."""
    parser.add_argument("--preset", metavar="NAME", help="settings of this preset instead of the recipe's small ones")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument("--steps", type=int, help="slow steps")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order, noise, and of what is drawn")


def settings_of(options: argparse.Namespace, small: dict[str, Any], smoke: dict[str, Any], steps: int) -> Settings:
    """The LTM's settings: preset or ``small`` ones, then a smoke run's, then ``--steps``, ``--seed`` and ``--set``."""
    base = plain_preset(options.preset or "tiny")
    if not options.preset:
        base = base.updated({**small, "training.steps": steps})
    base = base.updated(smoke if options.smoke else {})
    changes: dict[str, Any] = {"training.seed": options.seed, "training.device": options.device}
    if options.steps:
        changes["training.steps"] = options.steps
    return base.updated(changes | dict(change.split("=", 1) for change in options.set))


def train(settings: Settings, data: Data, model: str, folder: Path) -> LoadedRun:
    """A run of one kind of model with the LTM's settings, validated and kept four times."""
    steps = settings.training.steps
    often = {"training.eval_every": max(steps // 4, 1), "training.checkpoint_every": max(steps // 4, 1)}
    changed = settings.updated(often | ({} if model == "ltm" else {"model.name": model}))
    return trained(changed, data, folder)


def spent(run: LoadedRun, folder: Path) -> dict[str, Any]:
    """Parameters, steps, tokens and operations of a training, and its last validation."""
    rows = [row for row in RunDirectory(folder).metrics.rows() if row["split"] == "validation"]
    model = run.language_model
    modules: list[Any] = [model.svi.model, model.svi.guide] if isinstance(model, ThoughtLanguageModel) else [model]
    name = model.default_protocols[0]
    return {
        "model": model.kind,
        "parameters": sum(p.numel() for m in modules for p in m.parameters()),
        "steps": run.step,
        "training_tokens": rows[-1]["training_tokens"],
        "training_flops": rows[-1]["training_flops"],
        "validation": {"protocol": name, "value": rows[-1][name]},
    }


def spent_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table of `spent`."""
    lines = [
        "| model | parameters | slow steps | tokens | FLOPs | last validation, nats per token |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        last = row["validation"]
        lines.append(
            f"| {row.get('title') or TITLES[row['model']]} | {row['parameters']:,} | {row['steps']} "
            f"| {row['training_tokens']:,} | {row['training_flops']:.2e} | {last['value']:.4f} ({last['protocol']}) |"
        )
    return lines


def mean_difference(nats: Sequence[float], others: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Of two models on the same sequences, per token, and its standard error (ratio estimator)."""
    gaps = torch.tensor(nats, dtype=torch.float64) - torch.tensor(others, dtype=torch.float64)
    return ratio(gaps, torch.tensor(counts))
