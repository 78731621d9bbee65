"""LTM, autoregressive and masked diffusion on the fables, whose exact entropy is known."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.plain import plain_preset
from benchmarks.reproduce.comparison import Comparison, comparison_table, draw_comparison, options_of_scores
from benchmarks.reproduce.recipe import options_of, parser_of, plain, write
from ltm_pyro.config import Settings

SMOKE: dict[str, Any] = {
    "data.documents": 60,
    "data.vocab_size": 1000,
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
    parser.add_argument("--steps", type=int, default=150, help="slow steps of the LTM")
    options_of_scores(parser)
    options = options_of(parser, arguments)
    shrink(options)
    base = base_settings(options)
    rows = Comparison(base, options).rows(options.seeds)
    title = "Fables: true entropy and three kinds of model"
    result = {"title": title, "options": plain(options), "settings": base.to_dict(), "rows": rows}
    write(options, result, comparison_table, draw_comparison)


def base_settings(options: argparse.Namespace) -> Settings:
    """The LTM on fables."""
    changes = SMOKE if options.smoke else {}
    changes = changes | {
        "training.steps": options.steps,
        "training.eval_every": max(options.steps // 8, 1),
        "training.checkpoint_every": max(options.steps // 4, 1),
    }
    return plain_preset("tiny").updated(changes)


def shrink(options: argparse.Namespace) -> None:
    """Makes the options of a smoke run the least there are."""
    if options.smoke:
        options.seeds, options.steps, options.samples, options.weights, options.masks = 1, 2, 1, 2, 1
        options.eval_steps, options.block_size, options.sequences = 1, 128, 2
