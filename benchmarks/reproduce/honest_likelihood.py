"""Thoughts against the same window without them: bounds, prediction and the fables' exact entropy, at equal budgets."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.plain import plain_preset
from benchmarks.reproduce.comparison import steps_within, training_flops
from benchmarks.reproduce.explained import plan_explained
from benchmarks.reproduce.kept import kept
from benchmarks.reproduce.recipe import options_of, parser_of, plain, read_data, spread_over, trained
from benchmarks.reproduce.sweeps import AR, scored, spent
from benchmarks.reproduce.sweeps import SMOKE as SWEEPS_SMOKE
from benchmarks.reproduce.sweeps_report import difference, final_page, found, k_hat, mean, reference_line
from ltm_pyro.config import Settings
from ltm_pyro.data import Data
from ltm_pyro.evaluation import generator_entropy

# Whole fables, of which a token sees eight: names and treasures come back after twenty to a hundred.
SMALL: dict[str, Any] = {
    "data.documents": 60_000,
    "data.validation_fraction": 0.01,
    "data.sequence_length": 448,
    "decoder.layers": 1,
    "decoder.hidden": 64,
    "decoder.window": 8,
    "decoder.num_thoughts": 16,
    "decoder.thought_width": 16,
    "inference.fast_steps": 4,
    "training.slow_lr": 6e-3,
    "training.slow_lr_final": 3e-4,
    "training.warmup_steps": 30,
    "training.eval_sequences": 16,
}
# What is changed in the paper's decoder, fast loop and objective.
RECIPE: dict[str, Any] = {
    "decoder.thought_addresses": True,
    "decoder.thought_gain": 0.0,
    "inference.init_log_var": 0.0,
    "inference.fast_optimizer": "natural",
    "inference.kl_weight_start": 0.05,
}
# Adam with a memory as short as the loop is: its usual decays overshoot in four steps.
ADAM: dict[str, Any] = {
    "inference.fast_optimizer": "adam",
    "inference.fast_beta1": 0.5,
    "inference.fast_beta2": 0.9,
}
AT_ONCE: dict[str, Any] = {"inference.kl_warmup_steps": 0, "inference.kl_hold_steps": 0}
EQUAL_FLOPS = "AR, same window, equal FLOPs"
BESIDE: dict[str, dict[str, Any]] = {
    "AR, full attention": AR | {"decoder.window": 10**6},
    "LTM without addresses": {"decoder.thought_addresses": False},
    "LTM without zero gain": {"decoder.thought_gain": None},
    "LTM without natural steps": ADAM,
    "LTM without KL warm-up": AT_ONCE,
    "LTM without any of it": {"decoder.thought_addresses": False, "decoder.thought_gain": None} | ADAM | AT_ONCE,
    "LTM, narrow start": {"decoder.thought_gain": None, "inference.natural_init_log_var": -3.0},
    "LTM, 8 thoughts": {"decoder.num_thoughts": 8},
    "LTM, 4 thoughts": {"decoder.num_thoughts": 4},
    "LTM, 2 thoughts": {"decoder.num_thoughts": 2},
    "LTM, 32 thoughts": {"decoder.num_thoughts": 32},
}
"""Another AR model, one ingredient of the recipe left out at a time and then all of them, the start of short trainings,
and other numbers of thoughts. log σ² starts at 0 in all but the narrow start, and Adam has a short memory: of the
paper's start at −5 four of its steps leave most of the KL."""
SMOKE = SWEEPS_SMOKE | {"data.validation_fraction": 0.1}
FULL_SCALE = (
    "just reproduce honest-likelihood --preset paper-ltm-s --data hf:Skylion007/openwebtext --tokenizer gpt2 "
    "--steps 6000 --seeds 1 --sequences 256"
)
BOUNDS = ("elbo", "iwae", "prequential")
OWNED = 0.25
"""A variable of the plan that explains more than this share of a thought's variance is named with it."""
ASKED = ("samples", "weights", "eval_fast_steps", "block_size", "batch_size")
"""The options that scores depend on."""


def main(arguments: list[str]) -> None:
    """Trains, scores and writes honest-likelihood.{json,md,svg}, or those of ``--result``."""
    parser = parser_of("honest-likelihood", __doc__.splitlines()[0])
    parser.add_argument("--preset", metavar="NAME", help="the networks and their training (default: a very small one)")
    parser.add_argument("--data", metavar="SOURCE", default="fables", help="text to train on")
    parser.add_argument("--validation", metavar="SOURCE", help="text to score on (default: held out of --data)")
    parser.add_argument("--tokenizer", metavar="T", default="train", help="path or hub name (default: train one)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument("--title", default="thoughts against the same window without them")
    parser.add_argument("--result", dest="result_name", default="honest-likelihood", help="name of the results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--also", nargs="*", default=[], choices=list(BESIDE), help="other trainings")
    parser.add_argument("--also-seeds", type=int, default=1, help="seeds of these")
    parser.add_argument("--equal-flops", type=int, default=3, help="seeds of the AR model with the LTM's FLOPs")
    parser.add_argument("--steps", type=int, default=6000, help="slow steps of the LTM")
    parser.add_argument("--samples", type=int, default=32, help="draws of z of elbo and prequential")
    parser.add_argument("--weights", type=int, default=1024, help="draws of z of iwae")
    parser.add_argument(
        "--eval-fast-steps", type=int, nargs="+", default=[64, 256, 16, 4], help="of scores; prequential has the first"
    )
    parser.add_argument("--block-size", type=int, default=8, help="tokens of a block of prequential")
    parser.add_argument("--batch-size", type=int, default=16, help="sequences scored at once")
    parser.add_argument("--sequences", type=int, default=32, help="validation sequences, spread over all of it")
    options = options_of(parser, arguments)
    if options.smoke:
        options.seeds, options.steps, options.samples, options.weights, options.sequences = 1, 4, 2, 3, 3
        options.eval_fast_steps, options.block_size, options.also = [1, 2], 32, list(BESIDE)
    base = base_settings(options)
    uneven = [name for name in options.also if BESIDE[name].get("decoder.num_thoughts", 0) % base.decoder.layers]
    if uneven and not options.smoke:
        sys.exit(
            f"--also {uneven[0]!r}: so many thoughts do not divide over {base.decoder.layers} layers: leave it out"
        )
    options.also = [name for name in options.also if name not in uneven]
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        seeded = base.updated({"training.seed": seed})
        data = read_data(seeded)
        for name, chosen in trainings(seeded, data, options).items():
            rows += rows_of(name, chosen, data, options)
        final_page(options, base, rows, _markdown, _draw, full_scale=FULL_SCALE)


def base_settings(options: Any) -> Settings:
    """The recipe's LTM; a smoke run's is tiny."""
    steps = options.steps
    changes = (SMALL if options.preset is None else {}) | RECIPE | (SMOKE if options.smoke else {})
    named = {"data.source": options.data, "data.validation": options.validation, "data.tokenizer": options.tokenizer}
    return plain_preset(options.preset or "tiny").updated(
        changes
        | {key: value for key, value in named.items() if value is not None}
        | {
            "inference.kl_hold_steps": steps // 3,
            "inference.kl_warmup_steps": max(steps // 4, 1),
            "training.steps": steps,
            "training.eval_every": max(steps // 10, 1),
            "training.checkpoint_every": steps,
            "training.device": options.device,
        }
        | dict(setting.split("=", 1) for setting in options.set)
    )


def trainings(settings: Settings, data: Data, options: Any) -> dict[str, Settings]:
    """Every model of a seed, by name."""
    autoregressive = settings.updated(AR)
    models = {"AR, same window": autoregressive, "LTM": settings}
    if settings.training.seed < options.equal_flops:
        equal = steps_within(autoregressive, data, training_flops(settings, data))
        models[EQUAL_FLOPS] = autoregressive.updated({"training.steps": equal})
    if settings.training.seed < options.also_seeds:
        models |= {name: settings.updated(BESIDE[name]) for name in options.also}
    return models


def rows_of(name: str, settings: Settings, data: Data, options: Any) -> list[dict[str, Any]]:
    """Trains a model, or takes it as it is, and scores it once for every number of fast steps."""
    seed = settings.training.seed
    folder = options.runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    run = trained(settings, data, folder)
    indices = spread_over(len(data.validation), options.sequences)
    asked = {key: value for key, value in plain(options).items() if key in ASKED}
    asked |= {"indices": indices, "data": settings.to_dict()["data"]}

    def scores() -> dict[str, Any]:
        entropy = None
        if settings.data.source == "fables":
            entropy = generator_entropy(data.validation, indices, data.tokenizer)
        about = {"model": name, "seed": seed, "generator_entropy": entropy, **spent(run, folder)}
        if run.language_model.kind != "ltm":
            return {"rows": [about | {"eval_fast_steps": None, **scored(run, data, indices, options, fast_steps=None)}]}
        rows = []
        for steps in options.eval_fast_steps:
            # Every prefix is fitted anew, so prediction is dear: with the first number of fast steps alone.
            first = steps == options.eval_fast_steps[0]
            scores = scored(run, data, indices, options, fast_steps=steps, prequential=first)
            rows.append(about | {"eval_fast_steps": steps, **scores})
        return {"rows": rows}

    rows: list[dict[str, Any]] = kept(folder, asked, scores)["rows"]
    if settings.data.source == "fables" and run.language_model.kind == "ltm":
        how = {"texts": 200, "fast_steps": 16}
        explained = partial(plan_explained, run, data, **how)
        rows[0]["plan"] = kept(folder, how | {"data": asked["data"]}, explained, name="plan")
    for row in rows:
        shown = ", ".join(f"{key} {score['value']:.4f}" for key, score in row["scores"].items())
        print(f"{name}, seed {seed}, T_fast {row['eval_fast_steps']}: {shown}", flush=True)
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
        f"# {result['options']['title']}",
        "",
        "| model | seeds | T_fast, evaluation | reconstruction (no KL) | elbo | iwae | k̂ of iwae | "
        "prequential or likelihood | the same − AR | gap closed: elbo, iwae, prequential | steps | FLOPs |",
        f"| --- |{' --- |' * 11}",
    ]
    first = found(rows, model="AR, same window")
    entropy = _entropy(first)
    if entropy is not None:
        lines.append(f"| the generator itself | {len(first)} | – | – | – | – | – | {entropy:.3f} | – | 1 | – | – |")
    cells = dict.fromkeys((row["model"], row["eval_fast_steps"]) for row in rows)
    models = list(dict.fromkeys(name for name, _ in cells))
    for name, steps in sorted(cells, key=lambda cell: (models.index(cell[0]), -(cell[1] or 0))):
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
    if entropy is not None:
        lines += ["", "The share is 0 at the AR model of the same window and tokens, 1 at the generator's entropy."]
    told = [row for row in rows if "plan" in row]
    return lines + (_plans(told) if told else [])


def _plans(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Which variables of the plan every training put into its thoughts, as Markdown."""
    lines = [
        "",
        f"| model | seed | variables that explain more than {OWNED} of a thought's variance: share (greatest of any "
        "thought when the values are shuffled), thought |",
        "| --- | --- | --- |",
    ]
    for row in rows:
        told = sorted(row["plan"].items(), key=lambda item: -item[1]["share"])
        shown = [
            f"{name.replace('_', ' ')} {about['share']:.2f} ({about['shuffled']:.2f}), {about['thought']}"
            for name, about in told
            if about["share"] > max(OWNED, about["shuffled"])
        ]
        lines.append(f"| {row['model']} | {row['seed']} | {'; '.join(shown) or 'none'} |")
    return [*lines, "", "A thought that k variables share equally has no more than about 1 / k for each."]


def _entropy(rows: list[dict[str, Any]]) -> float | None:
    """Mean over seeds of the generator's nats per token; None where a text is none that it can have written."""
    values = [row["generator_entropy"] for row in rows]
    return None if None in values else statistics.mean(values)


def _shares(rows: list[dict[str, Any]], references: list[dict[str, Any]], names: Sequence[str]) -> str:
    if _entropy(rows) is None:
        return "–"
    return ", ".join(f"{statistics.mean(closed(rows, references, name)):+.2f}" for name in names)


def _draw(result: dict[str, Any], figure: Any) -> None:
    """Every model's bounds and probability, seed by seed, between the AR model and the entropy."""
    rows = result["rows"]
    names = list(dict.fromkeys(row["model"] for row in rows))
    figure.set_size_inches(8, 0.6 + 0.5 * len(names))
    axis = figure.subplots()
    colours = {"likelihood": "black", "prequential": "#D55E00", "elbo": "#0072B2", "iwae": "#56B4E9"}
    for name, colour in colours.items():
        points = [
            (row["scores"][name]["value"], names.index(row["model"]))
            for row in rows
            if name in row["scores"] and (row["eval_fast_steps"] is None or "prequential" in row["scores"])
        ]
        axis.scatter(*zip(*points, strict=True), s=18, color=colour, label=name, alpha=0.8)
    reference_line(_Upright(axis), found(rows, model="AR, same window"))
    entropy = _entropy(found(rows, model="AR, same window"))
    if entropy is not None and math.isfinite(entropy):
        axis.axvline(entropy, color="black", linewidth=0.8, linestyle=":", label="entropy, exact")
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
