"""What infers the thoughts in training: local VB, an encoder (VAE) with three cures for collapse, Langevin dynamics."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.plain import plain_preset
from benchmarks.priors_guides import SMALL as _SMALL
from benchmarks.reproduce.kept import kept
from benchmarks.reproduce.langevin import LangevinInference, langevin_trained
from benchmarks.reproduce.langevin_vae_report import draw, table
from benchmarks.reproduce.recipe import options_of, parser_of, read_data, trained, write
from ltm_pyro.config import Settings
from ltm_pyro.data import Data
from ltm_pyro.evaluation import Protocol, Report, evaluate, generator_entropy, information
from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastSlowSVI
from ltm_pyro.training import LoadedRun

FREE_BITS = 8.0  # nats of a sequence
# Settings that a variant changes; langevin's step size is none of them, and stands in its name.
VARIANTS: dict[str, dict[str, Any]] = {
    "vb": {},
    "vae": {"guide.name": "amortized"},
    "vae-annealed": {"guide.name": "amortized"},  # inference.kl_warmup_steps is half of the steps
    "vae-free-bits": {"guide.name": "amortized", "inference.free_bits": FREE_BITS},
    "semi-amortized": {"guide.name": "semi-amortized"},
    "langevin-0.3": {},
    "langevin-0.03": {},
    "ar": {"model.name": "ar"},
}
SMALL: dict[str, Any] = {key: value for key, value in _SMALL.items() if not key.startswith("data.label")} | {
    "data.sequence_length": 128,
    "inference.fast_steps": 8,
    "training.eval_sequences": 16,
}
SMOKE: dict[str, Any] = {
    "data.documents": 60,
    "data.vocab_size": 300,
    "decoder.hidden": 16,
    "decoder.heads": 2,
    "decoder.num_thoughts": 2,
    "decoder.thought_width": 8,
    "inference.fast_steps": 2,
    "training.batch_size": 2,
    "training.warmup_steps": 1,
    "training.eval_sequences": 2,
}
FULL_SCALE = (
    "just reproduce langevin-vae --preset paper-ltm-m --data TEXT --tokenizer openai-community/gpt2 --steps 6000 "
    "--eval-steps 16 64 --block-size 128 --sequences 256 --device cuda",
)


def main(arguments: list[str]) -> None:
    """Trains, scores and writes langevin-vae.{json,md,svg}."""
    parser = parser_of("langevin-vae", __doc__.splitlines()[0])
    parser.add_argument("--preset", help="settings to start from, as paper-ltm-m (default: a very small decoder)")
    parser.add_argument("--data", default="fables", metavar="SOURCE")
    parser.add_argument("--tokenizer", default="train", metavar="T", help="path or hub name (default: train one)")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300, help="slow steps of every model")
    parser.add_argument("--samples", type=int, default=4, help="draws of z, and chains of Langevin prediction")
    parser.add_argument("--weights", type=int, default=64, help="draws of z of iwae")
    parser.add_argument("--eval-steps", type=int, nargs="*", default=[16, 64], help="T_fast at evaluation")
    parser.add_argument("--block-size", type=int, default=32, help="tokens of a block of prequential")
    parser.add_argument("--batch-size", type=int, default=16, help="sequences scored at once")
    parser.add_argument("--sequences", type=int, default=32, help="validation sequences, spread over all of it")
    options = options_of(parser, arguments)
    if options.smoke:
        options.seeds, options.steps, options.samples, options.weights = 1, 2, 2, 2
        options.eval_steps, options.block_size, options.sequences = [1, 2], 128, 2
    base = plain_preset(options.preset or "tiny").updated({} if options.preset else SMALL)
    base = base.updated(SMOKE if options.smoke else {})
    base = base.updated(
        {
            "data.source": options.data,
            "data.tokenizer": options.tokenizer,
            "inference.init_log_var": 0.0,  # where the KL of an untrained posterior is 0
            "training.device": options.device,
            "training.steps": options.steps,
            "training.eval_every": max(options.steps // 6, 1),
            "training.checkpoint_every": max(options.steps // 3, 1),
        }
    )
    rows = [row for seed in range(options.seeds) for row in _compare(base.updated({"training.seed": seed}), options)]
    options.free_bits = FREE_BITS
    about = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
    result = {"title": "Local VB, a VAE, or Langevin dynamics", "options": about, "settings": base.to_dict()}
    write(options, result | {"full_scale": FULL_SCALE, "rows": rows}, table, draw)


def _compare(base: Settings, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every variant at one seed."""
    data, seed = read_data(base), base.training.seed
    count = min(len(data.validation), options.sequences)
    indices = [index * len(data.validation) // count for index in range(count)]
    entropy = generator_entropy(data.validation, indices, data.tokenizer) if base.data.source == "fables" else None
    asked = {name: getattr(options, name) for name in ("samples", "weights", "eval_steps", "block_size", "sequences")}
    rows = []
    for name in options.variants:
        settings = base.updated(VARIANTS[name])
        if name == "vae-annealed":
            settings = settings.updated({"inference.kl_warmup_steps": max(options.steps // 2, 1)})
        folder = options.runs / f"{name}-{seed}"
        if name.startswith("langevin"):
            run = langevin_trained(settings, data, folder, _step_size(name))
        else:
            run = trained(settings, data, folder)
        row = {"variant": name, "seed": seed, "steps": run.step, "generator_entropy": entropy}
        compute = partial(score, name, run, data, indices, options)
        rows.append(row | {"curve": _curve(folder)} | kept(folder, asked, compute))
        print(_progress(rows[-1]), flush=True)
    return rows


def _step_size(name: str) -> float:
    return float(name.removeprefix("langevin-"))


def _curve(folder: Path) -> dict[str, list[float]]:
    """Validation by the run's own inference, and its steps."""
    from ltm_pyro.training import RunDirectory

    found = [row for row in RunDirectory(folder).metrics.rows() if row["split"] == "validation"]
    name = "elbo" if "elbo" in found[0] else "likelihood"
    return {"steps": [row["step"] for row in found], "value": [row[name] for row in found]}


def score(name: str, run: LoadedRun, data: Data, indices: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """Reports of a trained model by name: ``vb-T``, by local VB whatever trained it, and by its ``own`` inference."""
    common = {"batch_size": options.batch_size, "block_size": options.block_size}
    if run.language_model.kind != "ltm":
        return {"reports": {"own": _told(run.language_model.evaluate(data.validation, indices, **common))}}
    svi, device, first = run.svi, run.device, options.eval_steps[0]
    vb = FastSlowSVI(
        svi.model,
        LocalNormal(svi.model, init_log_var=0.0),
        fast=replace(svi.fast, noise="fresh", tolerance=None),
        autocast=svi.autocast,
    )
    shared = {"data": data.validation, "indices": indices, "device": device, "batch_size": options.batch_size}
    scored = shared | {"block_size": options.block_size}
    reports = {}
    for steps in options.eval_steps:
        reports[f"vb-{steps}"] = _told(evaluate(vb, samples=options.samples, fast_steps=steps, **scored))
    at_first = reports[f"vb-{first}"]
    at_first |= _told(evaluate(vb, protocols=["iwae"], samples=options.weights, fast_steps=first, **scored))
    at_first |= _told(evaluate(vb, protocols=["prequential"], samples=options.samples, fast_steps=first, **scored))
    at_first["information"] = information(vb, samples=options.samples, fast_steps=first, **shared).to_dict()
    if name.startswith("vae"):
        reports["own"] = _told(evaluate(svi, samples=options.samples, **scored))
        reports["own"]["information"] = information(svi, samples=options.samples, **shared).to_dict()
    if name.startswith("langevin"):
        chains = LangevinInference(
            svi.model, steps=first, step_size=_step_size(name), chains=options.samples, autocast=svi.autocast
        )
        protocols: list[Protocol] = ["reconstruction", "prequential"]
        reports["own"] = _told(evaluate(chains, protocols=protocols, samples=options.samples, **scored))
    return {"reports": reports}


def _told(report: Report) -> dict[str, Any]:
    """A report's plain values, and the nats of each sequence."""
    values = report.to_dict()
    samples = {f"{name}_samples": values["samples"] for name in report.protocols}
    nats = {f"{name}_nats": [round(v, 3) for v in value.tolist()] for name, value in report.values.items()}
    plain = {key: value for key, value in values.items() if key not in ("samples", "seed") and value is not None}
    return plain | samples | nats | {"num_scored": report.num_scored.tolist()}


def _progress(row: dict[str, Any]) -> str:
    told = [
        f"{key} {name} {report[name]:.4f}"
        for key, report in row["reports"].items()
        for name in ("elbo", "kl", "reconstruction", "prequential", "likelihood")
        if name in report
    ]
    return f"{row['variant']} seed {row['seed']}: {', '.join(told)}"
