"""LTM, autoregressive and masked diffusion on the fables, whose exact entropy is known."""

from __future__ import annotations

from typing import Any

from benchmarks.reproduce.comparison import compare_models, comparison_table, draw_comparison
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
    parser.add_argument("--samples", type=int, default=16, help="draws of z of elbo and prequential")
    parser.add_argument("--weights", type=int, default=100, help="draws of z of iwae")
    parser.add_argument("--masks", type=int, default=32, help="masks of MDLM for each sequence")
    parser.add_argument("--eval-steps", type=int, default=16, help="T_fast at evaluation")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16, help="sequences scored at once")
    parser.add_argument("--sequences", type=int, help="validation sequences (default: all)")
    options = options_of(parser, arguments)
    base = preset("tiny").updated({"training.eval_every": max(options.steps // 8, 1)})
    if options.smoke:
        base = base.updated(SMOKE)
        options.seeds, options.steps, options.samples, options.weights, options.masks = 1, 2, 1, 2, 1
        options.eval_steps, options.block_size, options.sequences = 1, 128, 2
    base = base.updated({"training.steps": options.steps, "training.checkpoint_every": max(options.steps // 4, 1)})
    rows = compare_models(base, options.seeds, options)
    about = {key: str(v) if not isinstance(v, int | None) else v for key, v in vars(options).items()}
    result = {"title": "Fables: true entropy and three kinds of model", "options": about, "settings": base.to_dict()}
    write(options, result | {"rows": rows}, comparison_table, draw_comparison)
