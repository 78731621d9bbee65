"""Language models whose every probability is known, so that what is computed from them can be computed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data import SequenceDataset
from ltm_pyro.evaluation import Report
from ltm_pyro.language_model import LanguageModel, Prediction


class UnigramModel(LanguageModel):
    """Every token is drawn by itself: ``probabilities`` (V,); without them, all are equally probable.

    Its ``elbo`` lies half a nat per sequence above its ``prequential``, its ``reconstruction`` a whole one below.
    """

    kind = "unigram"
    protocols: ClassVar[Any] = ("elbo", "reconstruction", "prequential")
    default_protocols: ClassVar[Any] = ("elbo", "reconstruction")
    comparable: ClassVar[Any] = "prequential"

    def __init__(self, vocab_size: int, probabilities: torch.Tensor | None = None, max_length: int = 16):
        uniform = torch.full((vocab_size,), 1 / vocab_size, dtype=torch.float64)
        self.probabilities = uniform if probabilities is None else probabilities.double()
        self.length = max_length
        self.asked: list[dict[str, Any]] = []
        self.batches: list[TokenBatch] = []

    @property
    def vocab_size(self) -> int:
        return len(self.probabilities)

    @property
    def max_length(self) -> int:
        return self.length

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def evaluate(
        self, data: SequenceDataset, indices: Sequence[int], *, protocols: Any = None, **options: Any
    ) -> Report:
        self.asked.append({"protocols": protocols, "indices": list(indices), **options})
        nats, counts = [], []
        for batch in data.batches(indices, options["batch_size"]):
            nats.append((self._nats(batch.tokens) * batch.mask).sum(-1))
            counts.append(batch.num_scored)
        values = {"prequential": torch.cat(nats)}
        values |= {"elbo": values["prequential"] + 0.5, "reconstruction": values["prequential"] - 1}
        chosen = self.choose(protocols)
        known = {name: values[name] for name in chosen}
        if "elbo" in chosen or "reconstruction" in chosen:
            known["kl"] = values["elbo"] - values["reconstruction"]
        return Report(known, torch.cat(counts), options["samples"], 0, options["seed"], protocols=chosen, block_size=4)

    def predict(
        self, batch: TokenBatch, *, samples: int = 1, fast_steps: int | None = None, seed: int = 0
    ) -> Prediction:
        self.batches.append(batch)
        right = (batch.tokens == self.probabilities.argmax()) | ~batch.mask
        return Prediction(-(self._nats(batch.tokens) * batch.mask).sum(-1), right.all(-1))

    def generate_batch(self, prompts: Any, **options: Any) -> list[list[list[int]]]:
        raise NotImplementedError

    def _nats(self, tokens: torch.Tensor) -> torch.Tensor:
        return -self.probabilities.log()[tokens]


class Parrot(UnigramModel):
    """Expects the token that came last to come again, with probability 1/2; the rest is shared by all others."""

    kind = "parrot"

    def predict(
        self, batch: TokenBatch, *, samples: int = 1, fast_steps: int | None = None, seed: int = 0
    ) -> Prediction:
        self.batches.append(batch)
        again = batch.tokens == batch.inputs
        nats = torch.where(again, math.log(2), math.log(2 * (self.vocab_size - 1))).double()
        return Prediction(-(nats * batch.mask).sum(-1), (again | ~batch.mask).all(-1))
