"""Latent thoughts against autoregressive and masked diffusion models: equal parameters, tokens, and FLOPs."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.reproduce.recipe import machine_line, read_data, save_svg, spread_over, trained
from ltm_pyro.config import Settings
from ltm_pyro.data import Data, Sampler
from ltm_pyro.evaluation import Report, generator_entropy
from ltm_pyro.evaluation.protocols import ratio
from ltm_pyro.language_model import ThoughtLanguageModel
from ltm_pyro.training import LoadedRun
from ltm_pyro.training.learners import build_learner

__all__ = [
    "MODELS",
    "TITLES",
    "Comparison",
    "comparison_table",
    "draw_comparison",
    "draw_curves",
    "options_of_scores",
    "title_of",
]

MODELS: dict[str, dict[str, Any]] = {
    "ltm": {},
    "ar": {"model.name": "ar"},
    "ar-full": {"model.name": "ar"},  # its window is the sequence's length
    "mdlm": {"model.name": "mdlm"},
}
TITLES = {
    "ltm": "LTM",
    "ar": "AR, same window",
    "ar-full": "AR, full attention",
    "mdlm": "MDLM",
}
COLOURS = {"ltm": "#0072B2", "ar": "#D55E00", "ar-full": "#E69F00", "mdlm": "#009E73"}


def options_of_scores(parser: argparse.ArgumentParser, *, sequences: int = 64) -> None:
    """How the models are scored."""
    parser.add_argument("--samples", type=int, default=8, help="draws of z of elbo and prequential")
    parser.add_argument("--weights", type=int, default=64, help="draws of z of iwae")
    parser.add_argument("--masks", type=int, default=32, help="masks of MDLM for each sequence")
    parser.add_argument("--eval-steps", type=int, default=16, help="T_fast at evaluation")
    parser.add_argument("--block-size", type=int, default=64, help="tokens of a block of prequential")
    parser.add_argument("--batch-size", type=int, default=16, help="sequences scored at once")
    parser.add_argument("--sequences", type=int, default=sequences, help="validation sequences, spread over all of it")


class Comparison:
    """Every model trained and scored at the same budgets.

    Args:
        base: settings of the LTM.
        options: ``runs``, ``device``, ``samples``, ``weights`` (draws of iwae), ``masks``, ``block_size``,
            ``eval_steps``, ``batch_size`` and ``sequences`` (None is all).
        budgets: what the baselines have as much of as the LTM: ``tokens``, ``flops``.
    """

    def __init__(self, base: Settings, options: argparse.Namespace, budgets: Sequence[str] = ("tokens", "flops")):
        self.base = base
        self.options = options
        self.budgets = budgets

    def settings(self, seed: int) -> Settings:
        """Of the LTM of a seed."""
        return self.base.updated({"training.seed": seed, "training.device": self.options.device})

    @staticmethod
    def of_model(settings: Settings, model: str) -> Settings:
        """The LTM's settings made those of another model."""
        full = {"decoder.window": settings.data.sequence_length} if model == "ar-full" else {}
        return settings.updated(MODELS[model] | full)

    def rows(self, seeds: int, *, scored: bool = True) -> list[dict[str, Any]]:
        """Training curves, costs and, unless they are not wanted, scores of every model, budget and seed."""
        found = []
        for seed in range(seeds):
            settings = self.settings(seed)
            data = read_data(settings)
            indices = spread_over(len(data.validation), self.options.sequences)
            entropy = None
            if settings.data.source == "fables":
                entropy = generator_entropy(data.validation, indices, data.tokenizer)
            flops = training_flops(settings, data)
            for model, budget in self._trainings():
                changed = self.of_model(settings, model)
                if budget == "flops" and model != "ltm":
                    changed = changed.updated({"training.steps": steps_within(changed, data, flops)})
                # The LTM is the measure of both budgets.
                folder = self.options.runs / f"{model}-{'tokens' if model == 'ltm' else budget}-{seed}"
                run = trained(changed, data, folder)
                row = {"model": model, "budget": budget, "seed": seed, "generator_entropy": entropy}
                row |= _spent(run, folder)
                if scored:
                    row |= _scores(run, data, indices, self.options)
                    print(_progress(row), flush=True)
                found.append(row)
        return found

    def _trainings(self) -> list[tuple[str, str]]:
        first, *others = self.budgets
        return [(m, first) for m in MODELS] + [(m, budget) for budget in others for m in MODELS if m != "ltm"]


def training_flops(settings: Settings, data: Data) -> int:
    """Of a whole run."""
    learner = _learner_without_weights(settings, data)
    sampler = Sampler(len(data.train), settings.training.batch_size, seed=settings.training.seed)
    return sum(learner.flops(data.train.batch(next(sampler))) for _ in range(settings.training.steps))


def steps_within(settings: Settings, data: Data, flops: int) -> int:
    """The most steps of a run that take no more than so many operations."""
    learner = _learner_without_weights(settings, data)
    sampler = Sampler(len(data.train), settings.training.batch_size, seed=settings.training.seed)
    steps = 0
    while (flops := flops - learner.flops(data.train.batch(next(sampler)))) >= 0:
        steps += 1
    return max(steps, 1)


def comparison_table(result: dict[str, Any]) -> str:
    """Nats per token of every model and protocol, by seed and over seeds, as Markdown."""
    rows, options = result["rows"], result["options"]
    seeds = sorted({row["seed"] for row in rows})
    head = [f"seed {seed}" for seed in seeds]
    lines = [
        f"| model, training | protocol | {' | '.join(head)} | mean over seeds | steps | tokens | FLOPs |",
        f"| --- | --- |{' --- |' * (len(seeds) + 4)}",
    ]
    if rows[0]["generator_entropy"] is not None:
        entropies = [next(r["generator_entropy"] for r in rows if r["seed"] == seed) for seed in seeds]
        cells = " | ".join(f"{value:.4f}" for value in entropies)
        lines.append(f"| the generator itself | exact −log p(x) | {cells} | {_mean(entropies)} | | | |")
    for model, budget in dict.fromkeys((row["model"], row["budget"]) for row in rows):
        found = sorted((r for r in rows if (r["model"], r["budget"]) == (model, budget)), key=lambda r: r["seed"])
        for name in found[0]["scores"]:
            values = [row["scores"][name] for row in found]
            cells = " | ".join(_cell(v["value"], v["se"]) for v in values)
            lines.append(
                f"| {title_of(model, budget)} | {name} | {cells} | {_mean([v['value'] for v in values])} "
                f"| {found[0]['steps']} | {found[0]['training_tokens']:,} | {found[0]['training_flops']:.2e} |"
            )
    notes = [
        "",
        "Nats per token of validation text ± standard error over sequences; the last columns are of seed 0. "
        "`reconstruction` leaves the KL out: it is no bound and no perplexity. `elbo`, `iwae` and `nelbo` are upper "
        "bounds on −log p(x), `likelihood` is exact, `prequential` is a probability: it is what compares with "
        "`likelihood`. `nelbo` is given each text's length, for which `nelbo + length` pays log N_max nats a sequence; "
        "in packed sequences it tells nothing.",
        "",
        f"LTM: T_fast = {options['eval_steps']}, S = {options['samples']} (`elbo`, `reconstruction`, `prequential` in "
        f"blocks of {options['block_size']}), {options['weights']} draws (`iwae`). MDLM: {options['masks']} masks a "
        "sequence.",
        "",
        "Difference to AR (same window, equal tokens) on the same sequences, nats per token ± its standard error:",
        "",
        f"| model, training | protocol | {' | '.join(head)} | mean over seeds |",
        f"| --- | --- |{' --- |' * (len(seeds) + 1)}",
    ]
    for model, budget in dict.fromkeys((row["model"], row["budget"]) for row in rows):
        found = sorted((r for r in rows if (r["model"], r["budget"]) == (model, budget)), key=lambda r: r["seed"])
        if (model, budget) == ("ar", "tokens"):
            continue
        for name in found[0]["scores"]:
            if name not in ("reconstruction", "kl"):
                values = [_difference(row, rows, name) for row in found]
                cells = " | ".join(f"{value:+.4f} ± {error:.4f}" for value, error in values)
                notes.append(f"| {title_of(model, budget)} | {name} | {cells} | {_mean([v for v, _ in values], '+')} |")
    return "\n".join([f"# {result['title']}", "", *lines, *notes, "", machine_line(result), ""])


def draw_comparison(result: dict[str, Any], path: Path) -> None:
    """Validation curves against tokens and against FLOPs."""
    draw_curves(result, path, ("tokens", "flops"))


def draw_curves(result: dict[str, Any], path: Path, budgets: Sequence[str]) -> None:
    """Validation curves of every seed against each budget; the generator's entropy, where it is known, below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(budgets), 3.6), layout="constrained")
    axes = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    for axis, budget in zip(axes, budgets, strict=True):
        for model, colour in COLOURS.items():
            found = [r for r in result["rows"] if r["model"] == model and (model == "ltm" or r["budget"] == budget)]
            for number, curve in enumerate(row["curve"] for row in found):
                label = f"{TITLES[model]} ({curve['protocol']})" if number == 0 else None
                x = curve[f"training_{budget}"]
                axis.plot(x, curve["value"], color=colour, alpha=0.8, linewidth=1.2, label=label)
        if result["rows"][0]["generator_entropy"] is not None:
            level = statistics.mean({r["seed"]: r["generator_entropy"] for r in result["rows"]}.values())
            axis.axhline(level, color="black", linewidth=0.8, linestyle=":", label="generator (exact)")
        axis.set_xlabel("training tokens" if budget == "tokens" else "training FLOPs (multiply-add = 2)")
        axis.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation, nats per token")
    axes[0].legend(fontsize=7)
    save_svg(figure, path)


def _learner_without_weights(settings: Settings, data: Data) -> Any:
    with torch.device("meta"):
        return build_learner(settings, data.tokenizer.vocab_size, (), torch.device("meta"), Path("unused"))


def _spent(run: LoadedRun, folder: Path) -> dict[str, Any]:
    from ltm_pyro.training import RunDirectory

    validations = [row for row in RunDirectory(folder).metrics.rows() if row["split"] == "validation"]
    name = run.language_model.default_protocols[0]
    model = run.language_model
    modules: list[Any] = [model.svi.model, model.svi.guide] if isinstance(model, ThoughtLanguageModel) else [model]
    return {
        "steps": run.step,
        "parameters": sum(p.numel() for m in modules for p in m.parameters()),
        "training_tokens": validations[-1]["training_tokens"],
        "training_flops": validations[-1]["training_flops"],
        "curve": {
            "protocol": name,
            "value": [row[name] for row in validations],
            "training_tokens": [row["training_tokens"] for row in validations],
            "training_flops": [row["training_flops"] for row in validations],
        },
    }


def _scores(run: LoadedRun, data: Data, indices: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """Every protocol's value and standard error, and the nats of each sequence."""
    model = run.language_model

    def report(*protocols: Any, samples: int) -> Report:
        return model.evaluate(
            data.validation,
            indices,
            protocols=protocols,
            samples=samples,
            block_size=options.block_size,
            fast_steps=options.eval_steps,
            batch_size=options.batch_size,
        )

    if model.kind == "ltm":
        reports = [
            report("elbo", "reconstruction", samples=options.samples),
            report("iwae", samples=options.weights),
            report("prequential", samples=options.samples),
        ]
    else:
        reports = [report(model.comparable, samples=1 if model.exact else options.masks)]
    values = {name: r.values[name] for r in reports for name in r.values}
    counts = reports[0].num_scored
    scores = {name: dict(zip(("value", "se"), r.mean(name), strict=True)) for r in reports for name in r.values}
    if model.kind == "mdlm" and data.validation.layout == "documents":  # where sequences end is told by no other layout
        values["nelbo + length"] = values["nelbo"] + math.log(model.max_length)
        scores["nelbo + length"] = {
            "value": float(values["nelbo + length"].sum() / counts.sum()),
            "se": scores["nelbo"]["se"],
        }
    extra = {key: value for r in reports for key, value in r.to_dict().items() if key.startswith("k_hat")}
    return {
        "scores": scores,
        **extra,
        "num_scored": counts.tolist(),
        "nats": {name: [round(v, 4) for v in value.tolist()] for name, value in values.items()},
    }


def _difference(row: dict[str, Any], rows: list[dict[str, Any]], name: str) -> tuple[float, float]:
    """Of a model to the autoregressive one of the same seed, sequence by sequence (ratio estimator)."""
    other = next(r for r in rows if (r["model"], r["budget"], r["seed"]) == ("ar", "tokens", row["seed"]))
    counts = torch.tensor(row["num_scored"])
    nats = torch.tensor(row["nats"][name], dtype=torch.float64) - torch.tensor(other["nats"]["likelihood"])
    return ratio(nats, counts)


def title_of(model: str, budget: str) -> str:
    """A model and what its training was equal in."""
    return TITLES[model] if model == "ltm" else f"{TITLES[model]}, equal {'tokens' if budget == 'tokens' else 'FLOPs'}"


def _progress(row: dict[str, Any]) -> str:
    scores = ", ".join(f"{name} {_cell(s['value'], s['se'])}" for name, s in row["scores"].items())
    return f"{row['model']} {row['budget']} seed {row['seed']}: {row['steps']} steps, {scores}"


def _cell(value: float, error: float) -> str:
    return f"{value:.4f} ± {error:.4f}"


def _mean(values: list[float], sign: str = "") -> str:
    """The mean, and the standard error of it over seeds where there are several."""
    spread = f" ± {statistics.stdev(values) / math.sqrt(len(values)):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.4f}{spread}"
