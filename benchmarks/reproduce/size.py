"""Quality against the decoder's size: a Latent Thought and an autoregressive model with as many parameters each."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.plain import PLAIN
from benchmarks.reproduce.recipe import options_of, parser_of
from benchmarks.reproduce.sweeps import AR, FRESH, Cell, base_settings, options_of_sweeps, scored, sweep
from benchmarks.reproduce.sweeps_report import difference, final_page, found, k_hat, mean
from ltm_pyro.data import Data
from ltm_pyro.presets import PRESETS
from ltm_pyro.training import LoadedRun

# The paper's depths are 3, 6 and 12.
SMALL_SIZES: dict[str, dict[str, Any]] = {
    "S": {"decoder.layers": 1},
    "M": {"decoder.layers": 2},
    "L": {"decoder.layers": 4},
}
FULL_SCALE = (
    "just reproduce size --sizes paper-ltm-s paper-ltm-m paper-ltm-l --data hf:Skylion007/openwebtext "
    "--tokenizer gpt2 --seeds 1 --eval-fast-steps 64 --sequences 256"
)
PROTOCOLS = ("reconstruction", "kl", "elbo", "iwae")


def main(arguments: list[str]) -> None:
    """Trains, scores and writes size.{json,md,svg}."""
    parser = parser_of("size", __doc__.splitlines()[0])
    options_of_sweeps(parser, steps=400)
    parser.add_argument("--sizes", nargs="+", metavar="PRESET", help="presets to compare (default: 1, 2, 4 layers)")
    parser.add_argument("--eval-fast-steps", type=int, default=16)
    options = options_of(parser, arguments)
    sizes = SMALL_SIZES
    if options.sizes:
        options.preset = options.preset or options.sizes[0]
        sizes = {name: PRESETS[name] | FRESH | PLAIN for name in options.sizes}
    if options.smoke:
        options.eval_fast_steps = 2
    base = base_settings(options)
    cells = [
        Cell({"size": size, "model": model}, changes | ({"model.name": "ltm"} if model == "ltm" else AR))
        for size, changes in sizes.items()
        for model in ("ltm", "ar")
    ]

    def score(run: LoadedRun, data: Data, indices: list[int]) -> Iterator[dict[str, Any]]:
        decoder = run.settings.decoder
        about = {"layers": decoder.layers, "hidden": decoder.hidden, "num_thoughts": decoder.num_thoughts}
        yield about | scored(run, data, indices, options, fast_steps=options.eval_fast_steps)

    for rows in sweep(base, cells, options, score):
        final_page(options, base, rows, _markdown, _draw, full_scale=FULL_SCALE)


def _markdown(result: dict[str, Any]) -> list[str]:
    rows = result["rows"]
    lines = [
        "# size: deeper decoders, with thoughts and without",
        "",
        "Both models of a size have as many parameters, the same window and the same training tokens; the LTM spends "
        f"its fast steps on top. T_fast = {result['options']['eval_fast_steps']} at evaluation, fresh noise, log σ² "
        "from 0.",
        "",
        "| size | layers | model | parameters | training FLOPs per token | reconstruction (no KL) | KL | elbo | iwae | "
        "k̂ of iwae | prequential, or AR's likelihood | difference to AR |",
        f"| --- |{' --- |' * 11}",
    ]
    for size in dict.fromkeys(row["size"] for row in rows):
        ltm, ar = (found(rows, size=size, model=model) for model in ("ltm", "ar"))
        for cell in (ltm, ar):
            thoughtful = cell is ltm
            values = [mean(cell, name) if thoughtful else "–" for name in PROTOCOLS]
            values.append(k_hat(cell) if thoughtful else "–")
            values.append(mean(cell, "prequential" if thoughtful else "likelihood"))
            values.append(difference(ltm, ar, "prequential") if thoughtful else "–")
            lines.append(
                f"| {size} | {cell[0]['layers']} | {'LTM' if thoughtful else 'AR'} | {cell[0]['parameters']:,} | "
                f"{_flops_per_token(cell[0]):.2e} | {' | '.join(values)} |"
            )
    return lines


def _draw(result: dict[str, Any], figure: Any) -> None:
    """The same values against parameters and against the FLOPs that training took for each token."""
    rows = result["rows"]
    figure.set_size_inches(9, 3.6)
    axes = figure.subplots(1, 2, sharey=True)
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    lines = [("ltm", "prequential", "#D55E00"), ("ltm", "elbo", "#0072B2"), ("ar", "likelihood", "black")]
    for model, name, colour in lines:
        cells = [found(rows, size=size, model=model) for size in sizes]
        values = [statistics.mean(row["scores"][name]["value"] for row in cell) for cell in cells]
        style = {"color": colour, "linestyle": "--" if model == "ar" else "-", "marker": "."}
        label = "AR, same window (likelihood)" if model == "ar" else f"LTM ({name})"
        axes[0].plot([cell[0]["parameters"] for cell in cells], values, label=label, **style)
        axes[1].plot([_flops_per_token(cell[0]) for cell in cells], values, label=label, **style)
    for axis, unit in zip(axes, ("parameters", "training FLOPs per token"), strict=True):
        axis.set_xlabel(unit)
        axis.set_xscale("log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation, nats per token")
    axes[0].legend(fontsize=7)


def _flops_per_token(row: dict[str, Any]) -> float:
    return float(row["training_flops"] / row["training_tokens"])
