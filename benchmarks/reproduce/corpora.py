"""LTM, autoregressive and masked diffusion on real text that you name, at equal tokens and at equal FLOPs."""

from __future__ import annotations

from typing import Any

from benchmarks.plain import plain_preset
from benchmarks.reproduce.comparison import Comparison, comparison_table, draw_comparison, options_of_scores
from benchmarks.reproduce.fables import shrink
from benchmarks.reproduce.recipe import options_of, parser_of, plain, write, write_fables

# Three layers of the smallest decoder that the GPT-2 vocabulary leaves time for, in half precision.
SMALL: dict[str, Any] = {
    "data.sequence_length": 256,
    "data.layout": "packed",
    "data.documents": None,
    "decoder.layers": 3,
    "decoder.num_thoughts": 12,
    "training.dtype": "bfloat16",
    "training.eval_sequences": 16,
}
SMOKE: dict[str, Any] = {
    "data.vocab_size": 300,
    "decoder.hidden": 16,
    "decoder.heads": 2,
    "decoder.num_thoughts": 3,
    "decoder.thought_width": 8,
    "training.batch_size": 2,
    "training.warmup_steps": 1,
    "training.eval_sequences": 2,
}


def main(arguments: list[str]) -> None:
    """Trains, scores and writes corpora.{json,md,svg}."""
    parser = parser_of("corpora", __doc__.splitlines()[0])
    parser.add_argument("--train", metavar="SOURCE", help="a file or folder of text (a smoke run writes its own)")
    parser.add_argument("--validation", metavar="SOURCE", help="text that is not in --train")
    parser.add_argument("--tokenizer", default="train", metavar="T", help="path or hub name (default: train one)")
    parser.add_argument("--title", default="Real text and three kinds of model")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100, help="slow steps of the LTM")
    options_of_scores(parser, sequences=32)
    options = options_of(parser, arguments)
    if options.smoke:
        options.train = str(write_fables(options.runs / "train.txt", 60))
        options.validation = str(write_fables(options.runs / "validation.txt", 20, split="validation"))
        shrink(options)
    if not (options.train and options.validation):
        parser.error("--train and --validation name the text to train and to score on")
    changes = SMALL | (SMOKE if options.smoke else {})
    changes |= {
        "data.source": options.train,
        "data.validation": options.validation,
        "data.tokenizer": options.tokenizer,
        "training.steps": options.steps,
        "training.eval_every": max(options.steps // 8, 1),
        "training.checkpoint_every": max(options.steps // 4, 1),
    }
    base = plain_preset("tiny").updated(changes)
    rows = Comparison(base, options).rows(options.seeds)
    result = {"title": options.title, "options": plain(options), "settings": base.to_dict(), "rows": rows}
    write(options, result, comparison_table, draw_comparison)
