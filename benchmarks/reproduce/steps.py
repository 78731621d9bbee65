"""Quality against T_fast at training and at evaluation, and which of the numbers falls with more steps."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.reproduce.recipe import options_of, parser_of
from benchmarks.reproduce.sweeps import AR, FRESH, Cell, base_settings, options_of_sweeps, scored, sweep
from benchmarks.reproduce.sweeps_report import difference, final_page, found, mean, reference_line
from ltm_pyro.data import Data
from ltm_pyro.training import LoadedRun

# The arithmetic of the authors' released code.
RELEASED: dict[str, Any] = {
    "inference.noise": "fixed",
    "inference.slow_gradient": "trajectory",
    "inference.init_log_var": -5.0,
}
NOISES = {"fresh": FRESH, "released": RELEASED}
PROTOCOLS = ("reconstruction", "kl", "elbo", "prequential")
FULL_SCALE = (
    "just reproduce steps --preset paper-ltm-m --data hf:Skylion007/openwebtext --tokenizer gpt2 --seeds 1 "
    "--train-fast-steps 16 64 --released 16 64 --eval-fast-steps 2 4 8 16 32 64 128 --sequences 256"
)


def main(arguments: list[str]) -> None:
    """Trains, scores and writes steps.{json,md,svg}."""
    parser = parser_of("steps", __doc__.splitlines()[0])
    options_of_sweeps(parser, steps=400, sequences=16)
    parser.add_argument(
        "--train-fast-steps", type=int, nargs="+", default=[2, 4, 8, 16], help="T_fast of the trainings"
    )
    parser.add_argument("--released", type=int, nargs="*", default=[16], help="the same, by the released arithmetic")
    parser.add_argument("--eval-fast-steps", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    options = options_of(parser, arguments)
    if options.smoke:
        options.train_fast_steps, options.released, options.eval_fast_steps = [1, 2], [2], [1, 3]
    base = base_settings(options)
    trainings = [("fresh", steps) for steps in options.train_fast_steps]
    trainings += [("released", steps) for steps in options.released]
    cells = [Cell({"noise": "ar"}, AR)] + [
        Cell({"noise": noise, "train_fast_steps": steps}, NOISES[noise] | {"inference.fast_steps": steps})
        for noise, steps in trainings
    ]

    def score(run: LoadedRun, data: Data, indices: list[int]) -> Iterator[dict[str, Any]]:
        for steps in options.eval_fast_steps if run.language_model.kind == "ltm" else [None]:
            yield {"eval_fast_steps": steps, **scored(run, data, indices, options, fast_steps=steps, iwae=False)}

    for rows in sweep(base, cells, options, score):
        final_page(options, base, rows, _markdown, _draw, full_scale=FULL_SCALE)


def _markdown(result: dict[str, Any]) -> list[str]:
    rows = result["rows"]
    reference = found(rows, kind="ar")
    places = dict.fromkeys(
        (row["noise"], row["train_fast_steps"], row["eval_fast_steps"]) for row in rows if row["kind"] == "ltm"
    )
    lines = [
        "# steps: fast steps at training and at evaluation",
        "",
        "`fresh` is the paper's algorithm with log σ² from 0; `released` the arithmetic of the released code: the same "
        "noise at every fast step, the slow gradient summed over them, log σ² from −5. All are scored on fresh noise, "
        "drawn after the fit; the fits themselves start, and draw, as in the run's training.",
        "",
        "| training | T_fast, training | T_fast, evaluation | reconstruction (no KL) | KL | elbo | prequential | "
        "prequential − AR |",
        f"| --- |{' --- |' * 7}",
        f"| AR, same window | – | – | – | – | – | likelihood {mean(reference, 'likelihood')} | – |",
    ]
    for noise, train, steps in places:
        cell = found(rows, noise=noise, train_fast_steps=train, eval_fast_steps=steps)
        values = " | ".join(mean(cell, name) for name in PROTOCOLS)
        lines.append(f"| {noise} | {train} | {steps} | {values} | {difference(cell, reference, 'prequential')} |")
    return [*lines, "", *_changes(rows)]


def _changes(rows: list[dict[str, Any]]) -> list[str]:
    """What more steps at evaluation change, sequence by sequence."""
    thoughtful = [row for row in rows if row["kind"] == "ltm"]
    numbers = [row["eval_fast_steps"] for row in thoughtful]
    few, many = min(numbers), max(numbers)
    lines = [
        f"What falls with more steps: the change from T_fast = {few} to {many} at evaluation, on the same sequences. "
        "The paper's validation “perplexity” falls from about 11 to 3 as T_fast goes from 16 to 64.",
        "",
        f"| training | T_fast, training | {' | '.join(PROTOCOLS)} |",
        f"| --- |{' --- |' * 5}",
    ]
    for noise, train in dict.fromkeys((row["noise"], row["train_fast_steps"]) for row in thoughtful):
        least, most = (found(rows, noise=noise, train_fast_steps=train, eval_fast_steps=steps) for steps in (few, many))
        lines.append(f"| {noise} | {train} | {' | '.join(difference(most, least, name, name) for name in PROTOCOLS)} |")
    return lines


def _draw(result: dict[str, Any], figure: Any) -> None:
    """A panel for each number: evaluation steps to the right, a line for each training."""
    rows = result["rows"]
    figure.set_size_inches(9, 6.4)
    places = dict.fromkeys((row["noise"], row["train_fast_steps"]) for row in rows if row["kind"] == "ltm")
    colours = ["#0072B2", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#E69F00", "#000000"]
    for axis, name in zip(figure.subplots(2, 2).flat, PROTOCOLS, strict=True):
        for (noise, train), colour in zip(places, colours * len(places), strict=False):
            cells = found(rows, noise=noise, train_fast_steps=train)
            steps = sorted({row["eval_fast_steps"] for row in cells})
            at_steps = [found(cells, eval_fast_steps=number) for number in steps]
            values = [statistics.mean(row["scores"][name]["value"] for row in those) for those in at_steps]
            style = {"color": colour, "linestyle": "-" if noise == "fresh" else ":", "marker": "."}
            axis.plot(steps, values, label=f"{noise}, T_fast = {train} in training", **style)
        if name != "kl":
            reference_line(axis, found(rows, kind="ar"))
        axis.set_xscale("log", base=2)
        axis.set_title({"reconstruction": "reconstruction: leaves the KL out", "kl": "KL"}.get(name, name), fontsize=9)
        axis.grid(alpha=0.3)
    for axis in figure.axes:
        axis.set_xlabel("T_fast at evaluation")
        axis.set_ylabel("nats per token")
    figure.axes[0].legend(fontsize=6)
