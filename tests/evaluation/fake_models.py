"""A language model that writes what it is told to and whose every token has a known price."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data import SequenceDataset
from ltm_pyro.evaluation import Report
from ltm_pyro.language_model import LanguageModel, Prediction


class FakeModel(LanguageModel):
    """Token t costs t / 10 nats, whatever precedes it; texts are ``texts`` over and over, cut at the most tokens."""

    kind = "fake"
    protocols = ("likelihood",)
    default_protocols = ("likelihood",)
    comparable = "likelihood"

    def __init__(self, texts: Sequence[Sequence[int]] = (), max_length: int = 64):
        self.texts = texts
        self.length = max_length
        self.calls: list[dict[str, Any]] = []

    @property
    def vocab_size(self) -> int:
        return 300

    @property
    def max_length(self) -> int:
        return self.length

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def evaluate(self, data: SequenceDataset, indices: Sequence[int], **options: Any) -> Report:
        batch = data.batch(indices)
        nats = (batch.tokens * batch.mask).sum(-1).double() / 10
        protocols = self.choose(options["protocols"])
        return Report({"likelihood": nats}, batch.num_scored, options["samples"], None, 0, protocols=protocols)

    def predict(self, batch: TokenBatch, **options: Any) -> Prediction:
        raise NotImplementedError

    def generate_batch(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[list[int]]]:
        self.calls.append(options | {"prompts": prompts})
        texts = itertools.cycle(self.texts)
        return [[list(next(texts)[: options["max_tokens"]]) for _ in range(options["num"])] for _ in prompts]
