"""Quality against the number of thoughts N_z, all else equal, beside an autoregressive model."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.reproduce.recipe import options_of, parser_of
from benchmarks.reproduce.sweeps import AR, Cell, base_settings, options_of_sweeps, scored, sweep
from benchmarks.reproduce.sweeps_report import difference, final_page, found, k_hat, mean, reference_line
from ltm_pyro.data import Data
from ltm_pyro.evaluation import information
from ltm_pyro.training import LoadedRun

PROTOCOLS = ("reconstruction", "kl", "elbo", "iwae", "prequential")
FULL_SCALE = (
    "just reproduce latents --preset paper-ltm-m --data hf:Skylion007/openwebtext --tokenizer gpt2 --seeds 1 "
    "--thoughts 6 12 24 48 96 192 --eval-fast-steps 64 --sequences 256"
)


def main(arguments: list[str]) -> None:
    """Trains, scores and writes latents.{json,md,svg}."""
    parser = parser_of("latents", __doc__.splitlines()[0])
    options_of_sweeps(parser, steps=400)
    parser.add_argument("--thoughts", type=int, nargs="+", default=[2, 4, 8, 16, 32], help="N_z, over all layers")
    parser.add_argument("--eval-fast-steps", type=int, default=16)
    options = options_of(parser, arguments)
    if options.smoke:
        options.thoughts, options.eval_fast_steps = [2, 4], 2
    base = base_settings(options)
    cells = [Cell({"thoughts": 0}, AR)]
    cells += [Cell({"thoughts": number}, {"decoder.num_thoughts": number}) for number in options.thoughts]

    def score(run: LoadedRun, data: Data, indices: list[int]) -> Iterator[dict[str, Any]]:
        row = scored(run, data, indices, options, fast_steps=options.eval_fast_steps)
        if run.language_model.kind == "ltm":
            told = information(
                run.svi,
                data.validation,
                indices,
                samples=options.samples,
                fast_steps=options.eval_fast_steps,
                fast_lr=run.fast_lr,
                batch_size=options.batch_size,
                device=run.device,
            )
            row["information"] = told.to_dict()
        yield row

    for rows in sweep(base, cells, options, score):
        final_page(options, base, rows, _markdown, _draw, full_scale=FULL_SCALE)


def _markdown(result: dict[str, Any]) -> list[str]:
    rows, settings = result["rows"], result["settings"]
    reference = found(rows, kind="ar")
    lines = [
        "# latents: how many thoughts",
        "",
        f"T_fast = {settings['inference']['fast_steps']} in training, {result['options']['eval_fast_steps']} at "
        "evaluation; fresh noise, log σ² from 0. N_z counts the thoughts of all "
        f"{settings['decoder']['layers']} layers, each {settings['decoder']['thought_width']} wide.",
        "",
        "| N_z | reconstruction (no KL) | KL | elbo | iwae | k̂ of iwae | prequential | prequential − AR | "
        "active units | I(x; z), nats a sequence | parameters |",
        f"| --- |{' --- |' * 10}",
        f"| none: AR, same window | – | – | – | – | – | likelihood {mean(reference, 'likelihood')} | – | – | – | "
        f"{reference[0]['parameters']:,} |",
    ]
    for number in dict.fromkeys(row["thoughts"] for row in rows if row["kind"] == "ltm"):
        cell = found(rows, thoughts=number)
        values = [mean(cell, name) for name in PROTOCOLS]
        values.insert(-1, k_hat(cell))
        told = [row["information"] for row in cell]
        active = ", ".join(str(one["active_units"]) for one in told)
        shared = ", ".join(f"{one['mutual_information']:.2f}" for one in told)
        lines.append(
            f"| {number} | {' | '.join(values)} | {difference(cell, reference, 'prequential')} "
            f"| {active} of {told[0]['units']} | {shared} | {cell[0]['parameters']:,} |"
        )
    limit = next(row["information"]["mutual_information_limit"] for row in rows if row["kind"] == "ltm")
    return [
        *lines,
        "",
        "Active units, those whose posterior mean varies over the sequences by more than 0.01, and the mutual "
        f"information, which cannot exceed {limit:.2f} for so few sequences, are listed seed by seed. T_fast is small "
        "enough that a mean may differ between sequences by what the noise of the fit left there.",
    ]


def _draw(result: dict[str, Any], figure: Any) -> None:
    """Bounds and probability against N_z on the left, KL on the right."""
    rows = result["rows"]
    figure.set_size_inches(9, 3.6)
    left, right = figure.subplots(1, 2)
    numbers = sorted({row["thoughts"] for row in rows if row["kind"] == "ltm"})
    colours = {"elbo": "#0072B2", "iwae": "#56B4E9", "prequential": "#D55E00", "kl": "#009E73"}
    for name, colour in colours.items():
        values = [statistics.mean(r["scores"][name]["value"] for r in found(rows, thoughts=n)) for n in numbers]
        (right if name == "kl" else left).plot(numbers, values, color=colour, marker=".", label=name)
    reference_line(left, found(rows, kind="ar"))
    left.set_ylabel("validation, nats per token")
    right.set_ylabel("KL, nats per token")
    left.legend(fontsize=7)
    for axis in (left, right):
        axis.set_xlabel("N_z")
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
