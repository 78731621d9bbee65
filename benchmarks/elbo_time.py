"""The ELBO against time: fast steps on some tokens, early stop, better starts, and what each does in training."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.measure import machine, write_result
from benchmarks.plain import plain_preset
from benchmarks.priors_guides import Run
from benchmarks.workload import GPT2_VOCABULARY
from ltm_pyro.batch import TokenBatch
from ltm_pyro.components import build_guide, build_model
from ltm_pyro.config import Settings
from ltm_pyro.data import Data, build_data
from ltm_pyro.evaluation import evaluate
from ltm_pyro.flop_counter import measured_flops
from ltm_pyro.flops import DecoderSize, infer_flops
from ltm_pyro.guides import Guide
from ltm_pyro.infer import FastConfig, FastSlowSVI, Posterior, PosteriorTable
from ltm_pyro.infer.constant import constant
from ltm_pyro.infer.fast_loop import FastLoop, Fit, Objective
from ltm_pyro.noise import SequenceGenerator

# The settings of `fables-labels`, whose thoughts are used, on shorter sequences, a smaller vocabulary and few enough
# documents that a training of a minute meets each of them several times.
SETTINGS: dict[str, Any] = {
    "data.sequence_length": 256,
    "data.vocab_size": 512,
    "data.documents": 400,
    "data.validation_fraction": 0.1,
    "decoder.layers": 1,
    "decoder.hidden": 64,
    "decoder.num_thoughts": 2,
    "decoder.thought_width": 8,
    "decoder.window": 8,
    "inference.init_log_var": -5.0,
    "inference.fast_lr": 0.5,
    "inference.fast_lr_final": 0.5,
    "training.slow_lr": 8e-3,
    "training.batch_size": 8,
    "training.device": "cpu",
}
"""What differs from the preset ``tiny``."""

SMOKE: dict[str, Any] = {"data.documents": 24, "data.validation_fraction": 0.3, "training.batch_size": 4}
SMALL_STEPS = 0.2


class Way(NamedTuple):
    """How a fast loop is made cheaper: its settings, where it starts, and what its η_fast is multiplied by."""

    fast: dict[str, Any] = {}  # noqa: RUF012 - never changed
    start: str = "prior"
    rate: float = 1.0


WAYS = {
    "plain": Way(),
    "half of the tokens": Way({"token_fraction": 0.5}),
    "a quarter of the tokens": Way({"token_fraction": 0.25}),
    "early stop, 0.003 nats": Way({"tolerance": 0.003}),
    "early stop, 0.01 nats": Way({"tolerance": 0.01}),
    "small steps": Way(rate=SMALL_STEPS),
    "second visit": Way(start="visit"),
    "second visit, small steps": Way(start="visit", rate=SMALL_STEPS),
    "second visit, small steps, half of the tokens": Way({"token_fraction": 0.5}, "visit", SMALL_STEPS),
    "encoder": Way(start="encoder"),
    "encoder, small steps": Way(start="encoder", rate=SMALL_STEPS),
    "encoder, small steps, half of the tokens": Way({"token_fraction": 0.5}, "encoder", SMALL_STEPS),
    "encoder, small steps, early stop, 0.003 nats": Way({"tolerance": 0.003}, "encoder", SMALL_STEPS),
}

TRAININGS: dict[str, dict[str, Any]] = {
    "T_fast = 4": {"inference.fast_steps": 4},
    "T_fast = 4, half of the tokens": {"inference.fast_steps": 4, "inference.token_fraction": 0.5},
    "T_fast = 16": {"inference.fast_steps": 16},
    "T_fast = 16, half of the tokens": {"inference.fast_steps": 16, "inference.token_fraction": 0.5},
    "T_fast = 16, a quarter of the tokens": {"inference.fast_steps": 16, "inference.token_fraction": 0.25},
    "T_fast = 32, early stop, 0.01 nats": {"inference.fast_steps": 32, "inference.tolerance": 0.01},
    "T_fast = 4, warm start": {"inference.fast_steps": 4, "inference.warm_start": True},
    "T_fast = 4, encoder": {"inference.fast_steps": 4, "guide.name": "semi-amortized"},
}


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/elbo-time.{json,md}."""
    parser = argparse.ArgumentParser(prog="just bench elbo-time", description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="others stay as recorded")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time of each training")
    parser.add_argument("--encoder-seconds", type=float, default=25.0, help="CPU time of the encoder's training")
    parser.add_argument("--sequences", type=int, default=32, help="validation sequences")
    parser.add_argument("--samples", type=int, default=8, help="draws of z per validation sequence")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16, 32, 64], help="T_fast at inference")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind")
    parser.add_argument("--rounds", type=int, default=1, help="slow steps of each kind under a large vocabulary")
    parser.add_argument("--preset", default="ltm-m", help="network under the large vocabulary")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it works")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results)")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.encoder_seconds, options.seconds, options.sequences, options.samples, options.seeds = 0.2, 0.2, 4, 2, 1
        options.steps, options.preset = [2, 9], "tiny"
    torch.set_num_threads(options.threads)

    folder = options.out or (Path("runs/elbo-time-smoke") if options.smoke else Path(__file__).parent / "results")
    folder.mkdir(parents=True, exist_ok=True)
    changes = dict(change.split("=", 1) for change in options.set)
    settings = plain_preset("tiny").updated(SETTINGS | (SMOKE if options.smoke else {}) | changes)
    told = {k: v for k, v in vars(options).items() if k not in ("parts", "set", "smoke", "out")}
    about = {"machine": machine(), "command": f"just bench {' '.join(sys.argv[1:])}", "options": told}
    measured = {part: {**PARTS[part](settings, options), **about} for part in options.parts}
    known = folder / "elbo-time.json"
    result = (json.loads(known.read_text())["parts"] if known.exists() else {}) | measured
    result = {part: result[part] for part in PARTS if part in result}
    path = write_result("elbo-time", {"settings": settings.to_dict(), "parts": result}, folder)
    path.with_suffix(".md").write_text(_markdown(result))
    print(f"written to {path} and .md")


def inference(settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    """Every way and T_fast on the same validation sequences, under one trained decoder; batch by batch in turn."""
    data = build_data(**asdict(settings.data))
    run = _trained(settings, data, options.seconds)
    guides = {"prior": run.svi.guide, "encoder": _taught_encoder(run, settings, options.encoder_seconds)}
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    indices = range(min(options.sequences, len(data.validation)))
    with tempfile.TemporaryDirectory() as folder:
        for number, batch in enumerate(data.validation.batches(indices, 8)):
            for steps in options.steps:
                table = PosteriorTable(Path(folder) / f"{number}-{steps}")
                table.store(batch.keys, _fit(run.svi, guides["prior"], batch, Way(), steps, 0, None)[0].local)
                for name, way in WAYS.items():
                    guide = guides["encoder" if way.start == "encoder" else "prior"]
                    starts = table if way.start == "visit" else None
                    row = _measured(run.svi, guide, batch, way, steps, starts, options.samples)
                    found.setdefault((name, steps), []).append(row)
    rows: list[dict[str, Any]]
    rows = [{"way": name, "fast_steps": steps, **_joined(parts)} for (name, steps), parts in found.items()]
    for row in rows:
        plain = next(r for r in rows if r["way"] == "plain" and r["fast_steps"] == row["fast_steps"])
        gain = torch.tensor(row["per_token"]) - torch.tensor(plain["per_token"])
        row["above_plain"], row["above_plain_se"] = float(gain.mean()), float(gain.std() / len(gain) ** 0.5)
    for row in rows:
        row["per_token"] = [round(value, 5) for value in row["per_token"]]
    return {"slow_steps": run.taken, "rows": rows}


def training(settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    """Validation ELBO after equal CPU time, by one inference for all: plain, T_fast = 16."""
    data = build_data(**asdict(settings.data))
    rows = []
    indices = range(min(2 * options.sequences, len(data.validation)))
    for seed in range(options.seeds):
        for name, changes in TRAININGS.items():
            run = _trained(settings.updated(changes), data, options.seconds, seed)
            judge = FastSlowSVI(run.svi.model, build_guide(settings, run.svi.model), fast=FastConfig(steps=16, lr=0.5))
            report = evaluate(judge, data.validation, indices, samples=options.samples).to_dict()
            scored = {key: report[key] for key in ("elbo", "elbo_se", "kl")}
            rows.append({"training": name, "seed": seed, "slow_steps": run.taken, **scored})
            print(rows[-1], flush=True)
    return {"rows": rows}


def vocabulary(settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a slow step of a network whose vocabulary product is large."""
    width = 64 if options.smoke else 512
    shape = plain_preset(options.preset).updated({"data.sequence_length": width})
    entries = 2048 if options.smoke else GPT2_VOCABULARY
    torch.manual_seed(0)
    model = build_model(shape, entries)
    slow = torch.optim.AdamW(model.parameters(), lr=1e-6)
    tokens = torch.randint(entries, (2, width))
    batch = TokenBatch(tokens, torch.full((2,), width), torch.zeros(2, dtype=torch.int64))
    times: dict[float, list[float]] = {1.0: [], 0.5: [], 0.25: []}
    for _ in range(options.rounds):
        for fraction, seconds in times.items():
            fast = FastConfig(steps=shape.inference.fast_steps, token_fraction=fraction)
            svi = FastSlowSVI(model, build_guide(shape, model), fast=fast, slow=slow)
            began = time.perf_counter()
            svi.step(batch, seed=0)
            seconds.append(time.perf_counter() - began)
            print(f"fraction {fraction}: {seconds[-1]:.1f} s", flush=True)
    about = {"preset": options.preset, "vocabulary": entries, "batch": 2, "tokens": width}
    rows = [{"token_fraction": fraction, "seconds": seconds} for fraction, seconds in times.items()]
    return {**about, "fast_steps": shape.inference.fast_steps, "rows": rows}


PARTS: dict[str, Callable[[Settings, argparse.Namespace], dict[str, Any]]] = {
    "inference": inference,
    "training": training,
    "vocabulary": vocabulary,
}


def _trained(settings: Settings, data: Data, seconds: float, seed: int = 0) -> Run:
    """A run that has trained for so much of the process's own time."""
    run = Run.of(settings, data, seed)
    with tempfile.TemporaryDirectory() as folder:
        if settings.inference.warm_start:
            run.svi.starts = PosteriorTable(folder)
        began = time.process_time()
        while time.process_time() - began < seconds:
            run.step(run.batch())
        run.svi.starts = None
    return run


def _taught_encoder(run: Run, settings: Settings, seconds: float) -> Guide:
    """A semi-amortised guide's encoder that has learned where fast loops end under the run's decoder, which stays."""
    model = run.svi.model
    guide = build_guide(settings.updated({"guide.name": "semi-amortized"}), model)
    slow = torch.optim.AdamW(guide.parameters(), lr=2e-3)
    svi = FastSlowSVI(model, guide, fast=replace(run.svi.fast, steps=16), slow=slow)
    teacher = Run(svi, run.data, run.sampler, run.device)
    with constant(model):
        began = time.process_time()
        while time.process_time() - began < seconds:
            teacher.step(teacher.batch())
    return guide.eval()


def _fit(
    svi: FastSlowSVI, guide: Guide, batch: TokenBatch, way: Way, steps: int, seed: int, starts: PosteriorTable | None
) -> tuple[Fit, float]:
    """A fast loop, and the process's own seconds that it took."""
    fast = replace(svi.fast, **way.fast)
    loop = FastLoop(svi.model, guide, fast, svi.elbo)
    began = time.process_time()
    with constant(svi.model, guide):
        generator = SequenceGenerator(batch.keys, seed)
        fit = loop.fit(batch, generator, steps, way.rate * fast.lr, Objective(starts=starts))
    return fit, time.process_time() - began


def _measured(
    svi: FastSlowSVI,
    guide: Guide,
    batch: TokenBatch,
    way: Way,
    steps: int,
    starts: PosteriorTable | None,
    samples: int,
) -> dict[str, Any]:
    """One fast loop: its time, its operations, and each sequence's terms on noise drawn afterwards."""
    fit, seconds = _fit(svi, guide, batch, way, steps, 1, starts)
    terms = Posterior(svi.model, guide, batch, fit.local, 1, len(fit.steps)).elbo_terms(samples)
    flops = infer_flops(DecoderSize.of(svi.model.decoder), *_sizes(batch), fast_steps=fit.steps)
    if way.start == "encoder":
        flops += measured_flops(partial(guide.init_local, batch))
    return {
        "seconds": seconds,
        "flops": flops,
        "sequence_steps": sum(step.sequences for step in fit.steps),
        "negative_elbo": (-terms.elbo).tolist(),
        "kl": terms.kl.tolist(),
        "tokens": batch.num_scored.tolist(),
    }


def _sizes(batch: TokenBatch) -> tuple[int, int, int]:
    return len(batch), batch.tokens.shape[1], len(batch.scored_index)


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    tokens = torch.tensor([n for part in parts for n in part["tokens"]])
    nats = {key: torch.tensor([v for part in parts for v in part[key]]) for key in ("negative_elbo", "kl")}
    total = float(tokens.sum())
    return {
        "negative_elbo": float(nats["negative_elbo"].sum()) / total,
        "kl": float(nats["kl"].sum()) / total,
        "milliseconds": 1000 * sum(part["seconds"] for part in parts) / len(tokens),
        "mflop_per_token": sum(part["flops"] for part in parts) / total / 1e6,
        "steps_taken": sum(part["sequence_steps"] for part in parts) / len(tokens),
        # In nats per token of all: the mean over sequences is the number above.
        "per_token": (nats["negative_elbo"] * len(tokens) / total).tolist(),
    }


def _markdown(parts: dict[str, Any]) -> str:
    lines = ["# elbo-time", ""]
    if "inference" in parts:
        lines += _inference_table(parts["inference"])
    if "training" in parts:
        lines += _training_table(parts["training"])
    if "vocabulary" in parts:
        lines += _vocabulary_table(parts["vocabulary"])
    for name, part in parts.items():
        about = ", ".join(f"{key} {value}" for key, value in part["machine"].items())
        lines.append(f"`{name}`: `{part['command']}`. Machine: {about}.\n")
    return "\n".join(lines)


def _inference_table(part: dict[str, Any]) -> list[str]:
    options, rows = part["options"], {(r["way"], r["fast_steps"]): r for r in part["rows"]}
    steps = options["steps"]

    def table(cell: Callable[[dict[str, Any]], str]) -> list[str]:
        lines = [f"| T_fast | {' | '.join(map(str, steps))} |", "| --- |" + " --- |" * len(steps)]
        return lines + [f"| {way} | {' | '.join(cell(rows[way, t]) for t in steps)} |" for way in WAYS] + [""]

    return [
        "## Inference",
        "",
        f"One decoder ({options['seconds']:g} CPU seconds of training, {part['slow_steps']} slow steps, fables; then "
        f"{options['encoder_seconds']:g} for an encoder, the decoder constant), "
        f"{options['sequences']} validation sequences. `small steps` are η_fast times {SMALL_STEPS:g}; what the first "
        "of two visits cost is not counted, nor the encoder's training. Negative ELBO in nats per token, "
        f"{options['samples']} draws of z made after the fit; in brackets its difference from plain at the same T_fast "
        "± standard error over sequences:",
        "",
        *table(lambda r: f"{r['negative_elbo']:.4f} ({r['above_plain']:+.4f} ± {r['above_plain_se']:.4f})"),
        "CPU milliseconds per sequence, ways in turn, batch by batch; in brackets fast steps per sequence:",
        "",
        *table(lambda r: f"{r['milliseconds']:.0f} ({r['steps_taken']:.1f})"),
        "MFLOP per token, by formula (the encoder's by torch's counter):",
        "",
        *table(lambda r: f"{r['mflop_per_token']:.2f}"),
        "KL, nats per token:",
        "",
        *table(lambda r: f"{r['kl']:.3f}"),
    ]


def _training_table(part: dict[str, Any]) -> list[str]:
    options, rows = part["options"], part["rows"]
    lines = [
        "## Training",
        "",
        f"{options['seconds']:g} CPU seconds each, seeds 0 to {options['seeds'] - 1}. Negative ELBO of validation text "
        "in nats per token ± standard error over sequences, by one inference for all (plain, T_fast = 16):",
        "",
        "| training | slow steps | negative ELBO, each seed | KL |",
        "| --- | --- | --- | --- |",
    ]
    for name in TRAININGS:
        own = [row for row in rows if row["training"] == name]
        cells = [
            ", ".join(str(row["slow_steps"]) for row in own),
            ", ".join(f"{row['elbo']:.3f} ± {row['elbo_se']:.3f}" for row in own),
            ", ".join(f"{row['kl']:.3f}" for row in own),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _vocabulary_table(part: dict[str, Any]) -> list[str]:
    whole = median(part["rows"][0]["seconds"])
    lines = [
        "## A large vocabulary",
        "",
        f"One slow step of `{part['preset']}`: V = {part['vocabulary']}, B = {part['batch']}, N = {part['tokens']}, "
        f"T_fast = {part['fast_steps']}, the last fast step on all tokens:",
        "",
        "| share of the tokens | seconds | of all tokens |",
        "| --- | --- | --- |",
    ]
    for row in part["rows"]:
        seconds = median(row["seconds"])
        lines.append(f"| {row['token_fraction']:g} | {seconds:.1f} | {seconds / whole:.2f} |")
    return [*lines, ""]
