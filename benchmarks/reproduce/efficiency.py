"""How fast LTM, autoregressive and masked diffusion models learn, by tokens or by floating point operations."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.reproduce.comparison import MODELS, TITLES, Comparison, draw_curves, title_of
from benchmarks.reproduce.fables import base_settings, shrink
from benchmarks.reproduce.recipe import machine_line, options_of, parser_of, plain, read_data, write
from ltm_pyro.flop_counter import measured_flops
from ltm_pyro.training.learners import build_learner

Budget = Literal["tokens", "flops"]
UNITS = {"tokens": "tokens", "flops": "FLOPs"}


def run(budget: Budget, arguments: list[str], about: str) -> None:
    """Trains what the fables' comparison has not trained yet, and writes the curves of one budget.

    Args:
        budget: what is equal for all models at the end of training, and the curves' axis.
        arguments: of the command line.
        about: the recipe, in a line.
    """
    parser = parser_of(budget, about, runs="fables")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150, help="slow steps of the LTM")
    parser.add_argument("--sequences", type=int, default=64, help="validation texts of the generator's entropy")
    options = options_of(parser, arguments)
    shrink(options)
    base = base_settings(options)
    comparison = Comparison(base, options, budgets=(budget,))
    result = {
        "title": f"Quality by {UNITS[budget]}",
        "budget": budget,
        "options": plain(options),
        "settings": base.to_dict(),
        "rows": comparison.rows(options.seeds, scored=False),
        "flops_of_a_step": _checked_flops(comparison),
    }
    write(options, result, _table, lambda whole, path: draw_curves(whole, path, (budget,)))


def _checked_flops(comparison: Comparison) -> dict[str, dict[str, int]]:
    """Operations of one training step of each model, by the formula and by torch's counter."""
    settings = comparison.settings(0)
    data = read_data(settings)
    batch = data.train.batch(range(settings.training.batch_size))
    found = {}
    for model in MODELS:
        changed = comparison.of_model(settings, model)
        learner = build_learner(changed, data.tokenizer.vocab_size, (), torch.device("cpu"), Path("unused"))
        counted = measured_flops(lambda learner=learner: learner.step(batch, at=0, seed=0))  # type: ignore[misc]
        found[model] = {"formula": learner.flops(batch), "counter": counted}
    return found


def _table(result: dict[str, Any]) -> str:
    rows, budget = result["rows"], result["budget"]
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"# {result['title']}",
        "",
        f"Fables; {len(seeds)} seed(s). At the end of training every model has had the same {UNITS[budget]}. "
        "Each curve is that of one training, its learning rate falling to the end, so that only its last point is what "
        "so much training gives.",
        "",
        f"| model | {UNITS[budget]} | share of training | validation, nats per token | protocol |",
        "| --- | --- | --- | --- | --- |",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        curves = [row["curve"] for row in rows if row["model"] == model]
        for place in _places(len(curves[0]["value"])):
            values = [curve["value"][place] for curve in curves]
            spent = statistics.mean(curve[f"training_{budget}"][place] for curve in curves)
            share = spent / statistics.mean(curve[f"training_{budget}"][-1] for curve in curves)
            spread = f" ({min(values):.3f} … {max(values):.3f})" if len(values) > 1 else ""
            lines.append(
                f"| {title_of(model, budget)} | {spent:.3g} | {share:.0%} | {statistics.mean(values):.3f}{spread} "
                f"| {curves[0]['protocol']} |"
            )
    lines += [
        "",
        "Validation on a fixed choice of sequences, as in training: `elbo` (an upper bound on −log p(x), one draw, "
        "T_fast of the training), `likelihood` (exact), `nelbo` (an upper bound, few masks a sequence, hence noisy). "
        "The mean over seeds, and the least and the greatest. What all validation text says at the end, by every "
        "protocol, is in [fables.md](fables.md).",
        "",
        "Operations of one step on the same batch:",
        "",
        "| model | formula | torch's counter | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for model, counts in result["flops_of_a_step"].items():
        ratio = counts["formula"] / counts["counter"]
        lines.append(f"| {TITLES[model]} | {counts['formula']:,} | {counts['counter']:,} | {ratio:.4f} |")
    lines += ["", "MDLM's masks are random, so its formula takes their mean number.", "", machine_line(result), ""]
    return "\n".join(lines)


def _places(count: int) -> list[int]:
    """At most five points of a curve, the first and the last among them."""
    wanted = min(count, 5)
    return sorted({round(i * (count - 1) / max(wanted - 1, 1)) for i in range(wanted)})
