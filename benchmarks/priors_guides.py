"""Every prior under every guide: seconds per step against the paper's pair, and the ELBO after equal time."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from typing import Any

import pyro
import torch
from torch import nn

from benchmarks.measure import compare, machine, write_result
from benchmarks.plain import plain_preset
from benchmarks.workload import options_of, plain
from ltm_pyro.batch import TokenBatch
from ltm_pyro.components import build_guide, build_model, check_components
from ltm_pyro.config import Settings
from ltm_pyro.data import Data, Sampler, build_data
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import evaluate
from ltm_pyro.guides import GUIDES
from ltm_pyro.infer import FastSlowSVI
from ltm_pyro.priors import PRIORS
from ltm_pyro.training import build_optimizer
from ltm_pyro.training.run import fast_config

FORMS: dict[str, dict[str, Any]] = {name: {"prior.name": name} for name in PRIORS}
FORMS["mixture, enumerated"] = {"prior.name": "mixture", "prior.enumerated": True}
FORMS["supervised"] |= {"prior.classes": 4}  # the tones of the fables
PAPER = ("gaussian", "local-normal")

# The tiny preset made smaller still, so that a short budget holds a few hundred steps.
SMALL: dict[str, Any] = {
    "data.sequence_length": 256,
    "data.vocab_size": 512,
    "data.documents": 1000,
    "data.label_column": "tone",
    "data.labelled_fraction": 0.5,
    "decoder.hidden": 64,
    "decoder.num_thoughts": 4,
    "decoder.thought_width": 16,
    "decoder.window": 32,
    "training.batch_size": 4,
}


SMOKE: dict[str, Any] = {
    "seconds": 0.1,
    "pairs": 1,
    "sequences": 2,
    "samples": 1,
    "priors": ["gaussian"],
    "guides": ["local-normal"],
}


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/priors-guides.{json,md}."""
    parser = argparse.ArgumentParser(prog="just bench priors-guides", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="training time of each pair")
    parser.add_argument("--pairs", type=int, default=7, help="steps timed against the paper's pair, in turn")
    parser.add_argument("--sequences", type=int, default=32, help="validation sequences")
    parser.add_argument("--samples", type=int, default=4, help="draws of z per validation sequence")
    parser.add_argument("--slow-lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--priors", nargs="*", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--guides", nargs="*", default=list(GUIDES), choices=list(GUIDES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default="priors-guides", help="name of the files under benchmarks/results/")
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works; writes to runs/bench/")
    options = options_of(parser, arguments, SMOKE)

    small = SMALL | ({"data.documents": 40} if options.smoke else {})
    training = {"training.slow_lr": options.slow_lr, "training.device": options.device}
    base = plain_preset("tiny").updated(small | training)
    data = build_data(**asdict(base.data))
    rows = []
    for form in options.priors:
        for guide in options.guides:
            settings = base.updated(FORMS[form] | {"guide.name": guide})
            try:
                check_components(settings)
            except LTMError as refusal:
                rows.append({"prior": form, "guide": guide, "refused": str(refusal)})
                continue
            rows.append({"prior": form, "guide": guide} | measure(settings, base, data, options))
            print(_line(rows[-1]), flush=True)
    result = {"options": plain(options), "settings": base.to_dict(), "pairs": rows}
    path = write_result(options.out, result, options.folder)
    path.with_suffix(".md").write_text(_markdown(result))
    print(f"written to {path} and .md")


@dataclass
class Run:
    """A pair that is ready to take steps, on batches of its own order."""

    svi: FastSlowSVI
    data: Data
    sampler: Sampler
    device: str
    taken: int = 0

    @classmethod
    def of(cls, settings: Settings, data: Data, seed: int = 0) -> Run:
        """Weights and batches from the same seed for every pair."""
        torch.manual_seed(seed)
        training = settings.training
        model = build_model(settings, data.tokenizer.vocab_size).to(training.device)
        guide = build_guide(settings, model).to(training.device)
        slow = build_optimizer(nn.ModuleDict({"model": model, "guide": guide}), training)
        svi = FastSlowSVI(model, guide, fast=fast_config(settings), slow=slow, clip_norm=training.clip_norm)
        return cls(svi, data, Sampler(len(data.train), training.batch_size, seed), training.device)

    def batch(self) -> TokenBatch:
        """The next batch."""
        return self.data.train.batch(next(self.sampler)).to(self.device)

    def step(self, batch: TokenBatch) -> None:
        """One slow step; ten of warm-up, then a constant rate, since nobody knows how many will follow."""
        assert self.svi.slow is not None
        for group in self.svi.slow.param_groups:
            group["lr"] = group.setdefault("full_lr", group["lr"]) * min((self.taken + 1) / 10, 1.0)
        pyro.set_rng_seed(self.taken)
        self.svi.step(batch, seed=self.taken)
        self.taken += 1


def measure(settings: Settings, base: Settings, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step beside the paper's pair, and validation terms after a time that is the same for all."""
    paper = Run.of(base.updated({"prior.name": PAPER[0], "guide.name": PAPER[1]}), data)
    run = Run.of(settings, data)
    batch = run.batch()  # the same for both
    steps = {"pair": lambda: run.step(batch), "paper": lambda: paper.step(batch)}
    timed = compare(steps, rounds=options.pairs, reference="paper").summary()["functions"]["pair"]

    run = Run.of(settings, data)
    spent = 0.0
    # On a CPU the process's own time, which other work on the machine does not use up.
    clock = time.perf_counter if options.device.startswith("cuda") else time.process_time
    while spent < options.seconds:
        began = clock()
        run.step(run.batch())
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        spent += clock() - began
    report = evaluate(
        run.svi,
        data.validation,
        range(min(options.sequences, len(data.validation))),
        samples=options.samples,
        device=options.device,
    )
    return {
        "seconds_per_step": timed["seconds"],
        "ratio": timed["ratio"],
        "steps": run.taken,
        "validation": report.to_dict(),
    }


def _line(row: dict[str, Any]) -> str:
    seconds, ratio = row["seconds_per_step"]["median"], row["ratio"]["median"]
    return (
        f"{row['prior']:20} {row['guide']:15} {seconds:.3f} s/step  x{ratio:.2f}  {row['steps']} steps  {_bound(row)}"
    )


def _bound(row: dict[str, Any]) -> str:
    terms = row["validation"]
    if terms["elbo"] is None:
        return f"no bound ({terms['reconstruction']:.3f})"
    return f"{terms['elbo']:.3f} ± {terms['elbo_se']:.3f} (KL {terms['kl']:.3f})"


def _markdown(result: dict[str, Any]) -> str:
    options = result["options"]
    priors, guides = (options[key] for key in ("priors", "guides"))
    rows = {(row["prior"], row["guide"]): row for row in result["pairs"]}

    def table(cell: Any) -> list[str]:
        lines = [f"| prior | {' | '.join(guides)} |", f"| --- |{' --- |' * len(guides)}"]
        for prior in priors:
            cells = (rows[prior, guide] for guide in guides)
            lines.append(f"| {prior} | {' | '.join('refused' if 'refused' in c else cell(c) for c in cells)} |")
        return lines

    return "\n".join(
        [
            "# priors-guides",
            "",
            f"Fables, {options['seconds']:g} s of training for each pair on {options['threads']} thread(s), from the "
            "same seed; settings in the JSON file.",
            "",
            "Seconds per slow step, and in brackets the ratio to the paper's pair (gaussian, local-normal), stepped in "
            f"turn with it {options['pairs']} times; medians:",
            "",
            *table(lambda c: f"{c['seconds_per_step']['median']:.3f} ({c['ratio']['median']:.2f}×)"),
            "",
            "Negative ELBO on validation text after that time, nats per token ± standard error over sequences, and its "
            "KL; a point estimate has no bound, and its reconstruction, which leaves log p(z) out, stands in brackets:",
            "",
            *table(_bound),
            "",
            "Slow steps taken in that time:",
            "",
            *table(lambda c: str(c["steps"])),
            "",
            "Machine: " + ", ".join(f"{key} {value}" for key, value in machine().items()) + ".",
            "",
        ]
    )
