"""Peak memory of a slow step: what `ltm_pyro.memory` counts from sizes, against what is measured.

On the CPU the bytes of all tensors alive at once (`ltm_pyro.memory_meter`), on a GPU the peak of torch's allocator.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import write_result
from benchmarks.plain import plain_preset
from benchmarks.workload import GPT2_VOCABULARY
from ltm_pyro.batch import TokenBatch
from ltm_pyro.config import Settings
from ltm_pyro.flops import DecoderSize
from ltm_pyro.memory import StepMemory, TrainingShape, slow_step_memory
from ltm_pyro.memory_meter import measured_peak
from ltm_pyro.training.learners import ThoughtLearner


@dataclass(frozen=True, kw_only=True)
class Case:
    """One step: a preset's network on B full sequences of N tokens."""

    preset: str
    batch: int = 8
    tokens: int = 256
    vocabulary: int = 8192
    fast_steps: int = 2
    dtype: str = "float32"
    checkpointing: bool = False

    def settings(self, device: str) -> Settings:
        """Those of a run that takes such steps."""
        return plain_preset(self.preset).updated(
            {
                "data.sequence_length": self.tokens,
                "inference.fast_steps": self.fast_steps,
                "decoder.checkpointing": self.checkpointing,
                "training.batch_size": self.batch,
                "training.dtype": self.dtype,
                "training.device": device,
            }
        )


CHANGES: list[dict[str, Any]] = [
    {},
    {"batch": 2, "tokens": 1024},
    {"batch": 4, "vocabulary": GPT2_VOCABULARY},
    {"batch": 4, "fast_steps": 4},
    {"dtype": "bfloat16"},
    {"checkpointing": True},
    {"dtype": "bfloat16", "checkpointing": True},
]
CASES = [
    Case(preset="tiny", vocabulary=2048, tokens=512, batch=batch, dtype=dtype, checkpointing=checkpointing)
    for batch in (1, 16)
    for dtype in ("float32", "bfloat16")
    for checkpointing in (False, True)
] + [Case(preset=name, **change) for name in ("ltm-s", "ltm-m") for change in CHANGES]
SMOKE = [
    Case(preset="tiny", vocabulary=300, tokens=32, batch=2, dtype=dtype, checkpointing=checkpointing)
    for dtype in ("float32", "bfloat16")
    for checkpointing in (False, True)
]


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/memory.json and memory.md."""
    parser = argparse.ArgumentParser(prog="just bench memory", description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="*", default=["tiny", "ltm-s", "ltm-m"], choices=["tiny", "ltm-s", "ltm-m"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="steps of milliseconds; writes under runs/")
    parser.add_argument("--out", default="memory", help="name of the files under benchmarks/results/")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = []
    for case in SMOKE if options.smoke else [case for case in CASES if case.preset in options.presets]:
        rows.append(asdict(case) | measure(case, options.device))
        print(_line(rows[-1]), flush=True)
    folder = Path("runs") if options.smoke else None
    path = write_result(options.out, {"device": options.device, "cases": rows}, folder)
    path.with_suffix(".md").write_text(_markdown(rows))
    print(f"written to {path} and .md")


def measure(case: Case, device: str) -> dict[str, Any]:
    """Bytes counted, at each moment of the step, and the measured peak."""
    settings = case.settings(device)
    torch.manual_seed(0)
    learner = ThoughtLearner(settings, case.vocabulary, torch.device(device), Path())
    weights = list(learner.modules.parameters())
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    learner.optimizer.step()  # from now on there are moments
    moments = [value for state in learner.optimizer.state.values() for value in state.values()]
    tokens = torch.randint(case.vocabulary, (case.batch, case.tokens))
    lengths, start = torch.full((case.batch,), case.tokens), torch.zeros(case.batch, dtype=torch.int64)
    batch = TokenBatch(tokens, lengths, start).to(device)
    learner.optimizer.zero_grad()
    counted = count(case, settings, DecoderSize.of(learner.model.decoder), device)
    measured = measured_peak(lambda: learner.step(batch, at=0, seed=0), [*weights, *moments])
    return {
        "counted": asdict(counted),
        "counted_peak": counted.peak,
        "measured_peak": measured,
        "ratio": counted.peak / measured,
    }


def count(case: Case, settings: Settings, size: DecoderSize, device: str) -> StepMemory:
    """What the formula says of a case."""
    shape = TrainingShape(
        batch=case.batch,
        length=case.tokens,
        heads=settings.decoder.heads,
        autocast=case.dtype == "bfloat16",
        checkpointing=case.checkpointing,
        **({"logits_at_once": 2**28, "logits_again": 2**28} if device.startswith("cuda") else {}),
    )
    return slow_step_memory(size, shape)


_COLUMNS = ("preset", "batch", "tokens", "vocabulary", "fast_steps", "dtype", "checkpointing")


def _line(row: dict[str, Any]) -> str:
    about = " ".join(f"{row[name]!s:>8}" for name in _COLUMNS)
    return f"{about}  counted {row['counted_peak'] / 1e6:8.1f}  measured {row['measured_peak'] / 1e6:8.1f} MB"


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| preset | B | N | V | T_fast | dtype | checkpointing | counted, MB | measured, MB | counted / measured |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        about = " | ".join(str(row[name]) for name in _COLUMNS[:-1]) + f" | {'yes' if row['checkpointing'] else 'no'}"
        bytes_ = f"{row['counted_peak'] / 1e6:.1f} | {row['measured_peak'] / 1e6:.1f} | {row['ratio']:.3f}"
        lines.append(f"| {about} | {bytes_} |")
    return "\n".join(lines) + "\n"
