"""Which layer's thoughts hold the text: by the paper's algorithm, and in the regime of its released code."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.plain import plain_preset
from benchmarks.priors_guides import SMALL as _SMALL
from benchmarks.reproduce.kept import kept
from benchmarks.reproduce.probe_report import draw, table
from benchmarks.reproduce.recipe import options_of, parser_of, read_data, trained, write
from ltm_pyro.data import Data
from ltm_pyro.evaluation import evaluate
from ltm_pyro.evaluation.probes import fit_thoughts, interpolate, probe_layers, swap_thoughts
from ltm_pyro.training import LoadedRun

REGIMES: dict[str, dict[str, Any]] = {
    "paper": {"inference.noise": "fresh", "inference.slow_gradient": "final", "inference.init_log_var": 0.0},
    "released": {"inference.noise": "fixed", "inference.slow_gradient": "trajectory", "inference.init_log_var": -5.0},
}
# Four layers, and more room in the thoughts than a text of 128 tokens fills.
SMALL: dict[str, Any] = {key: value for key, value in _SMALL.items() if not key.startswith("data.label")} | {
    "data.sequence_length": 128,
    "decoder.layers": 4,
    "decoder.num_thoughts": 16,
    "decoder.thought_width": 32,
    "inference.fast_steps": 16,
    "training.eval_sequences": 16,
}
SMOKE: dict[str, Any] = {
    "data.documents": 60,
    "data.vocab_size": 300,
    "decoder.layers": 2,
    "decoder.hidden": 16,
    "decoder.heads": 2,
    "decoder.num_thoughts": 2,
    "decoder.thought_width": 8,
    "inference.fast_steps": 2,
    "training.batch_size": 2,
    "training.warmup_steps": 1,
    "training.eval_sequences": 2,
}
FULL_SCALE = [
    f"just reproduce probe --preset {name} --data TEXT --tokenizer openai-community/gpt2 --steps 6000 --device cuda"
    for name in ("paper-ltm-m", "paper-ltm-l")
]


def main(arguments: list[str]) -> None:
    """Trains, probes and writes probe.{json,md,svg}."""
    parser = parser_of("probe", __doc__.splitlines()[0])
    parser.add_argument("--preset", help="settings to start from, as paper-ltm-m (default: a very small decoder)")
    parser.add_argument("--data", default="fables", metavar="SOURCE")
    parser.add_argument("--tokenizer", default="train", metavar="T", help="path or hub name (default: train one)")
    parser.add_argument("--regimes", nargs="*", default=list(REGIMES), choices=list(REGIMES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200, help="slow steps")
    parser.add_argument("--samples", type=int, default=2, help="draws of z of each sequence")
    parser.add_argument("--points", type=int, default=5, help="of an interpolation")
    parser.add_argument("--batch-size", type=int, default=16, help="sequences scored at once")
    parser.add_argument("--sequences", type=int, default=16, help="validation sequences, spread over all of it")
    options = options_of(parser, arguments)
    if options.smoke:
        options.seeds, options.steps, options.samples, options.points, options.sequences = 1, 2, 1, 3, 2
    base = plain_preset(options.preset or "tiny").updated({} if options.preset else SMALL)
    base = base.updated(SMOKE if options.smoke else {})
    base = base.updated(
        {
            "data.source": options.data,
            "data.tokenizer": options.tokenizer,
            "training.device": options.device,
            "training.steps": options.steps,
            "training.eval_every": max(options.steps // 2, 1),
            "training.checkpoint_every": max(options.steps // 2, 1),
        }
    )
    asked = {name: getattr(options, name) for name in ("samples", "points", "sequences")}
    rows = []
    for seed in range(options.seeds):
        seeded = base.updated({"training.seed": seed})
        data = read_data(seeded)
        for regime in options.regimes:
            folder = options.runs / f"{regime}-{seed}"
            run = trained(seeded.updated(REGIMES[regime]), data, folder)
            compute = partial(probes, run, data, options)
            rows.append({"regime": regime, "seed": seed, "steps": run.step} | kept(folder, asked, compute))
            print(_progress(rows[-1]), flush=True)
    about = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
    result = {"title": "Which layer's thoughts hold the text", "options": about, "settings": base.to_dict()}
    write(options, result | {"regimes": REGIMES, "full_scale": FULL_SCALE, "rows": rows}, table, draw)


def probes(run: LoadedRun, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Layers, swap and interpolation of validation sequences, and the ELBO and prequential of the same ones."""
    count = min(len(data.validation), options.sequences)
    indices = [index * len(data.validation) // count for index in range(count)]
    shared: dict[str, Any] = {
        "samples": options.samples,
        "fast_lr": run.fast_lr,
        "batch_size": options.batch_size,
        "device": run.device,
    }
    report = evaluate(run.svi, data.validation, indices, protocols=["elbo", "reconstruction", "prequential"], **shared)
    fitted = fit_thoughts(run.svi, data.validation, indices, **shared)
    paths = {name: interpolate(fitted, path=name, steps=options.points).to_dict() for name in ("linear", "spherical")}
    swap = swap_thoughts(fitted).to_dict()
    del swap["nats"]  # M² numbers
    return {
        "evaluation": report.to_dict(),
        "layers": probe_layers(fitted).to_dict(),
        "swap": swap,
        "interpolation": paths,
    }


def _progress(row: dict[str, Any]) -> str:
    curve = ", ".join(f"{values['nats']:.3f}" for values in row["layers"]["first"])
    return f"{row['regime']} seed {row['seed']}: reconstruction from 0 … L layers {curve}; gap {row['swap']['gap']:.3f}"
