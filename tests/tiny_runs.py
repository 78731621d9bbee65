"""Runs of a few steps of a few thousand weights, that the tests of training, evaluation and the command line share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from ltm_pyro.config import Settings
from ltm_pyro.data import Data, build_data
from ltm_pyro.training import RunDirectory, Trainer

TEXT = "the cat sat on a mat and saw one dog run to red hill while a blue bird sang its old song"
WORDS = TEXT.split()

TINY: dict[str, Any] = {
    "data.sequence_length": 32,
    "data.vocab_size": 300,
    "data.validation_fraction": 0.2,
    "decoder.layers": 1,
    "decoder.hidden": 16,
    "decoder.heads": 2,
    "decoder.num_thoughts": 2,
    "decoder.thought_width": 8,
    "decoder.window": 8,
    "inference.fast_steps": 2,
    "inference.init_log_var": 0.0,
    "training.steps": 6,
    "training.batch_size": 4,
    "training.slow_lr": 1e-2,
    "training.warmup_steps": 2,
    "training.eval_every": 3,
    "training.eval_sequences": 4,
    "training.checkpoint_every": 2,
    "training.device": "cpu",
}
"""One layer, sixteen wide, two thoughts, six steps."""


def tiny_settings(changes: dict[str, Any] | None = None) -> Settings:
    """`TINY` with some settings changed."""
    return Settings().updated(TINY | (changes or {}))


def write_corpus(path: Path, *, documents: int = 40, seed: int = 0) -> Path:
    """A text file of documents of 8 to 30 words between blank lines."""
    draw = random.Random(seed)
    texts = [" ".join(draw.choice(WORDS) for _ in range(draw.randint(8, 30))) for _ in range(documents)]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


def tiny_data(folder: Path, **changes: Any) -> Data:
    """The corpus of `write_corpus` as `TINY` lays it out, cached under ``folder``."""
    arguments = {"sequence_length": 32, "vocab_size": 300, "validation_fraction": 0.2} | changes
    return build_data(source=str(write_corpus(folder / "corpus.txt")), cache_dir=folder / "cache", **arguments)


def new_trainer(path: Path, data: Data, changes: dict[str, Any] | None = None, **arguments: Any) -> Trainer:
    """A trainer of a new run at ``path``."""
    settings = tiny_settings(changes)
    run = RunDirectory.create(path, settings, data.tokenizer, data.class_names)
    return Trainer(settings, data, run, **arguments)


def reopened(path: Path, data: Data, changes: dict[str, Any] | None = None) -> Trainer:
    """A trainer that goes on with the run at ``path``, as another process would."""
    run = RunDirectory.open(path)
    trainer = Trainer(run.settings.updated(changes or {}), data, run)
    trainer.resume()
    return trainer


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics without the speed, the one entry that two equal runs may differ in."""
    return [{key: value for key, value in row.items() if key != "tokens_per_s"} for row in rows]


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of the model's and guide's weights by name."""
    state = {**trainer.learner.model.state_dict(), **trainer.learner.guide.state_dict(prefix="guide.")}
    return {name: value.clone() for name, value in state.items()}


def assert_same_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Same names, and every tensor the same bit for bit."""
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different, f"these differ: {different}"
