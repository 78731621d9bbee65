"""Thoughts against the same window without them: bounds, prediction and the fables' exact entropy, at equal budgets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.reproduce.comparison import steps_within, training_flops
from benchmarks.reproduce.recipe import options_of, parser_of, read_data, trained
from benchmarks.reproduce.sweeps import AR, scored, spent
from benchmarks.reproduce.sweeps import SMOKE as SWEEPS_SMOKE
from benchmarks.reproduce.sweeps_report import difference, final_page, found, k_hat, mean, reference_line
from ltm_pyro.config import Settings
from ltm_pyro.evaluation import generator_entropy
from ltm_pyro.presets import preset

# Whole fables, of which a token sees eight: names and treasures come back after twenty to a hundred.
SMALL: dict[str, Any] = {
    "data.documents": 20_000,
    "data.validation_fraction": 0.02,
    "data.sequence_length": 448,
    "decoder.layers": 1,
    "decoder.hidden": 64,
    "decoder.num_thoughts": 4,
    "decoder.thought_width": 16,
    "decoder.window": 8,
    "training.slow_lr": 6e-3,
    "training.slow_lr_final": 3e-4,
    "training.warmup_steps": 30,
    "training.eval_sequences": 16,
}
# What is changed in the tiny preset's fast loop and objective.
RECIPE: dict[str, Any] = {
    "decoder.zero_cross_attention": True,
    "inference.fast_beta1": 0.5,
    "inference.fast_beta2": 0.9,
    "inference.init_log_var": -2.0,
    "inference.kl_weight_start": 0.1,
}
EQUAL_FLOPS = "AR, same window, equal FLOPs"
BESIDE: dict[str, dict[str, Any]] = {
    "AR, full attention": AR | {"decoder.window": 10**6},
    "LTM without any of it": {
        "decoder.zero_cross_attention": False,
        "inference.fast_beta1": 0.9,
        "inference.fast_beta2": 0.999,
        "inference.init_log_var": 0.0,
        "inference.kl_warmup_steps": 0,
        "inference.kl_hold_steps": 0,
    },
    "LTM without KL warm-up": {"inference.kl_warmup_steps": 0, "inference.kl_hold_steps": 0},
    "LTM without zero start": {"decoder.zero_cross_attention": False},
    "LTM without fast betas": {"inference.fast_beta1": 0.9, "inference.fast_beta2": 0.999},
    "LTM without narrow start": {"inference.init_log_var": 0.0},
}
"""Other AR models, and the recipe's ingredients put back to what the tiny preset has."""
SMOKE = SWEEPS_SMOKE | {"data.validation_fraction": 0.1}
FULL_SCALE = (
    "just reproduce honest-likelihood --preset paper-ltm-s --data hf:Skylion007/openwebtext --tokenizer gpt2 "
    "--steps 6000 --seeds 1 --sequences 256"
)
BOUNDS = ("elbo", "iwae", "prequential")


def main(arguments: list[str]) -> None:
    """Trains, scores and writes honest-likelihood.{json,md,svg}."""
    parser = parser_of("honest-likelihood", __doc__.splitlines()[0])
    parser.add_argument("--preset", metavar="NAME", help="the networks and their training (default: a very small one)")
    parser.add_argument("--data", metavar="SOURCE", default="fables", help="text to train on")
    parser.add_argument("--tokenizer", metavar="T", default="train", help="path or hub name (default: train one)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--also", nargs="*", default=[], choices=list(BESIDE), help="other trainings")
    parser.add_argument("--also-seeds", type=int, default=1, help="seeds of these")
    parser.add_argument("--equal-flops", type=int, default=1, help="seeds of the AR model with the LTM's FLOPs")
    parser.add_argument("--steps", type=int, default=1000, help="slow steps of the LTM")
    parser.add_argument("--samples", type=int, default=32, help="draws of z of elbo and prequential")
    parser.add_argument("--weights", type=int, default=64, help="draws of z of iwae")
    parser.add_argument("--eval-fast-steps", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--block-size", type=int, default=32, help="tokens of a block of prequential")
    parser.add_argument("--batch-size", type=int, default=16, help="sequences scored at once")
    parser.add_argument("--sequences", type=int, default=16, help="validation sequences, spread over all of it")
    options = options_of(parser, arguments)
    if options.smoke:
        options.seeds, options.steps, options.samples, options.weights, options.sequences = 1, 4, 2, 3, 3
        options.eval_fast_steps, options.block_size, options.also = [1, 2], 32, list(BESIDE)
    base = base_settings(options)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        rows += _of_seed(base.updated({"training.seed": seed}), options)
        final_page(options, base, rows, _markdown, _draw, full_scale=FULL_SCALE)


def base_settings(options: Any) -> Settings:
    """The recipe's LTM; a smoke run's is tiny."""
    steps = options.steps
    changes = (SMALL if options.preset is None else {}) | RECIPE | (SMOKE if options.smoke else {})
    return preset(options.preset or "tiny").updated(
        changes
        | {
            "data.source": options.data,
            "data.tokenizer": options.tokenizer,
            "inference.kl_hold_steps": steps // 3,
            "inference.kl_warmup_steps": max(steps // 3, 1),
            "training.steps": steps,
            "training.eval_every": max(steps // 10, 1),
            "training.checkpoint_every": steps,
            "training.device": options.device,
        }
    )


def _of_seed(settings: Settings, options: Any) -> list[dict[str, Any]]:
    data = read_data(settings)
    wanted = min(len(data.validation), options.sequences)
    indices = [number * len(data.validation) // wanted for number in range(wanted)]
    entropy = None
    if settings.data.source == "fables":
        entropy = generator_entropy(data.validation, indices, data.tokenizer)
    autoregressive = settings.updated(AR)
    models = {"AR, same window": autoregressive, "LTM": settings}
    if settings.training.seed < options.equal_flops:
        equal = steps_within(autoregressive, data, training_flops(settings, data))
        models[EQUAL_FLOPS] = autoregressive.updated({"training.steps": equal})
    if settings.training.seed < options.also_seeds:
        models |= {name: settings.updated(BESIDE[name]) for name in options.also}
    rows = []
    for name, chosen in models.items():
        folder = options.runs / f"{name.replace(', ', '-').replace(' ', '-')}-{settings.training.seed}"
        run = trained(chosen, data, folder)
        about = {"model": name, "seed": settings.training.seed, "generator_entropy": entropy, **spent(run, folder)}
        for steps in options.eval_fast_steps if run.language_model.kind == "ltm" else [None]:
            # Every prefix is fitted anew, so prediction is dear: with the first number of fast steps alone.
            first = steps == options.eval_fast_steps[0]
            scores = scored(run, data, indices, options, fast_steps=steps, prequential=first)
            row = about | {"eval_fast_steps": steps, **scores}
            rows.append(row)
            shown = ", ".join(f"{key} {score['value']:.4f}" for key, score in row["scores"].items())
            print(f"{name}, seed {row['seed']}, T_fast {steps}: {shown}", flush=True)
    return rows


def closed(rows: Sequence[dict[str, Any]], references: Sequence[dict[str, Any]], name: str) -> list[float]:
    """The share of the way from the AR model of the same window to the entropy, seed by seed."""
    shares = []
    for row, reference in zip(rows, references, strict=True):
        start = reference["scores"]["likelihood"]["value"]
        shares.append((start - row["scores"][name]["value"]) / (start - row["generator_entropy"]))
    return shares


def _markdown(result: dict[str, Any]) -> list[str]:
    rows = result["rows"]
    lines = [
        "# honest-likelihood: thoughts against the same window without them",
        "",
        "| model | seeds | T_fast, evaluation | reconstruction (no KL) | elbo | iwae | k̂ of iwae | "
        "prequential or likelihood | the same − AR | gap closed: elbo, iwae, prequential | steps | FLOPs |",
        f"| --- |{' --- |' * 11}",
    ]
    first = found(rows, model="AR, same window")
    if first[0]["generator_entropy"] is not None:
        entropy = statistics.mean(row["generator_entropy"] for row in first)
        lines.append(f"| the generator itself | {len(first)} | – | – | – | – | – | {entropy:.3f} | – | 1 | – | – |")
    for name, steps in dict.fromkeys((row["model"], row["eval_fast_steps"]) for row in rows):
        cell = found(rows, model=name, eval_fast_steps=steps)
        seeds = {row["seed"] for row in cell}
        references = [row for row in first if row["seed"] in seeds]
        spent_on = f"{cell[0]['steps']} | {cell[0]['training_flops']:.2e}"
        if steps is None:
            difference_to = difference(cell, references, "likelihood")
            shares = _shares(cell, references, ["likelihood"])
            value = mean(cell, "likelihood")
            lines.append(
                f"| {name} | {len(cell)} | – | – | – | – | – | {value} | {difference_to} | {shares} | {spent_on} |"
            )
            continue
        values = " | ".join(mean(cell, score) for score in ("reconstruction", "elbo", "iwae"))
        names = [score for score in BOUNDS if score in cell[0]["scores"]]
        predicted = "– | –"
        if "prequential" in names:
            predicted = f"{mean(cell, 'prequential')} | {difference(cell, references, 'prequential')}"
        lines.append(
            f"| {name} | {len(cell)} | {steps} | {values} | {k_hat(cell)} | {predicted} "
            f"| {_shares(cell, references, names)} | {spent_on} |"
        )
    return [*lines, "", "The share is 0 at the AR model of the same window and tokens, 1 at the generator's entropy."]


def _shares(rows: list[dict[str, Any]], references: list[dict[str, Any]], names: Sequence[str]) -> str:
    if rows[0]["generator_entropy"] is None:
        return "–"
    return ", ".join(f"{statistics.mean(closed(rows, references, name)):+.2f}" for name in names)


def _draw(result: dict[str, Any], figure: Any) -> None:
    """Every model's bounds and probability, seed by seed, between the AR model and the entropy."""
    rows = result["rows"]
    names = list(dict.fromkeys(row["model"] for row in rows))
    figure.set_size_inches(8, 0.6 + 0.5 * len(names))
    axis = figure.subplots()
    colours = {"likelihood": "black", "prequential": "#D55E00", "elbo": "#0072B2", "iwae": "#56B4E9"}
    most = max((row["eval_fast_steps"] for row in rows if row["eval_fast_steps"]), default=None)
    for name, colour in colours.items():
        points = [
            (row["scores"][name]["value"], names.index(row["model"]))
            for row in rows
            if name in row["scores"] and (name == "prequential" or row["eval_fast_steps"] in (None, most))
        ]
        axis.scatter(*zip(*points, strict=True), s=18, color=colour, label=name, alpha=0.8)
    reference_line(_Upright(axis), found(rows, model="AR, same window"))
    if rows[0]["generator_entropy"] is not None and math.isfinite(rows[0]["generator_entropy"]):
        axis.axvline(rows[0]["generator_entropy"], color="black", linewidth=0.8, linestyle=":", label="entropy, exact")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("validation, nats per token")
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)


class _Upright:
    """An axis on which a reference line stands."""

    def __init__(self, axis: Any):
        self.axis = axis

    def axhline(self, value: float, **how: Any) -> None:
        """The line, at a place of the horizontal axis."""
        self.axis.axvline(value, **how)
