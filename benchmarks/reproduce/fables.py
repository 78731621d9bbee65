"""LTM, autoregressive and masked diffusion on the fables, whose exact entropy is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.reproduce.comparison import compare_models, comparison_table, draw_comparison, options_of_scores
from benchmarks.reproduce.recipe import options_of, parser_of, write
from ltm_pyro.presets import preset

SMOKE: dict[str, Any] = {
    "data.documents": 60,
    "data.vocab_size": 300,
    "decoder.hidden": 16,
    "decoder.heads": 2,
    "decoder.num_thoughts": 2,
    "decoder.thought_width": 8,
    "training.batch_size": 2,
    "training.warmup_steps": 1,
    "training.eval_sequences": 2,
}


def main(arguments: list[str]) -> None:
    """Trains, scores and writes fables.{json,md,svg}."""
    parser = parser_of("fables", __doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="slow steps of the LTM")
    options_of_scores(parser)
    options = options_of(parser, arguments)
    base = preset("tiny").updated({"training.eval_every": max(options.steps // 8, 1)})
    if options.smoke:
        base = base.updated(SMOKE)
        options.seeds, options.steps, options.samples, options.weights, options.masks = 1, 2, 1, 2, 1
        options.eval_steps, options.block_size, options.sequences = 1, 128, 2
    base = base.updated({"training.steps": options.steps, "training.checkpoint_every": max(options.steps // 4, 1)})
    rows = compare_models(base, options.seeds, options)
    about = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    result = {"title": "Fables: true entropy and three kinds of model", "options": about, "settings": base.to_dict()}
    write(options, result | {"rows": rows}, comparison_table, draw_comparison)
