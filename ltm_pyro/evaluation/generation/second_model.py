"""SecondModel: what scores texts of another model and turns them into features; a run's answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data import SequenceDataset, Tokenizer
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.protocols import Protocol, Report
from ltm_pyro.evaluation.texts import shard_in_memory

if TYPE_CHECKING:
    from ltm_pyro.language_model import LanguageModel

__all__ = ["RunModel", "SecondModel", "nothing_to_score"]


class SecondModel(ABC):
    """A model that reads texts as text, with a tokenizer of its own.

    Attributes: ``name`` is where it came from; ``protocol`` is what `score` gives; ``exact`` says whether that is a
    probability rather than a bound on one; ``max_length`` is how many tokens of a prompt and its text it reads.
    """

    name: str
    protocol: Protocol
    exact: bool
    max_length: int
    origin: ClassVar[str] = "model"

    @abstractmethod
    def score(self, texts: Sequence[str], prompts: Sequence[str], ended: Sequence[bool]) -> Report:
        """Nats of every text given its prompt, by ``protocol``; what lies beyond ``max_length`` is left out.

        Args:
            texts: M texts.
            prompts: M prompts, read and not scored; empty where there is none.
            ended: where a text ends by itself its end-of-text token is scored, too.

        Raises:
            LTMError: nothing is left to score.
        """

    @abstractmethod
    def features(self, texts: Sequence[str]) -> npt.NDArray[Any]:
        """(M, width) features of texts: the last hidden state at their last token.

        Raises:
            LTMError: the model has none.
        """

    def to_dict(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"model": self.name, "kind": self.origin, "max_length": self.max_length}


def nothing_to_score(model: SecondModel) -> LTMError:
    """What `SecondModel.score` raises where no token of a text is left."""
    return LTMError(
        f"{model.name} reads {model.max_length} tokens at most, which leaves none of the texts' to score: "
        "shorten the prompts, or take texts that are not all empty"
    )


class RunModel(SecondModel):
    """A run's model: scores by its `LanguageModel.comparable` protocol.

    Args:
        model: the run's.
        tokenizer: the run's.
        name: for reports.
        samples: S, draws per text where the protocol needs any.
        block_size: tokens of a block of ``prequential``.
        fast_steps: T_fast of a model with thoughts; None takes the configured number.
        batch_size: texts at once; changes speed alone.
        seed: of the noise.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        name: str,
        *,
        samples: int = 8,
        block_size: int = 32,
        fast_steps: int | None = None,
        batch_size: int = 8,
        seed: int = 0,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.protocol = model.comparable
        self.exact = model.exact
        self.max_length = model.max_length
        self.samples = samples
        self.block_size = block_size
        self.fast_steps = fast_steps
        self.batch_size = batch_size
        self.seed = seed

    def score(  # noqa: D102
        self, texts: Sequence[str], prompts: Sequence[str], ended: Sequence[bool]
    ) -> Report:
        encoded, contexts = self.tokenizer.encode_batch(texts), self.tokenizer.encode_batch(prompts)
        data = _GivenTexts(encoded, contexts, ended, self.tokenizer, self.max_length)
        if not data.num_scored:
            raise nothing_to_score(self)
        return self.model.evaluate(
            data,
            range(len(data)),
            protocols=[self.protocol],
            samples=self.samples,
            block_size=self.block_size,
            fast_steps=self.fast_steps,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def features(self, texts: Sequence[str]) -> npt.NDArray[Any]:  # noqa: D102
        parts = []
        encoded = [ids[: self.max_length] for ids in self.tokenizer.encode_batch(texts)]
        for at in range(0, len(encoded), self.batch_size):
            batch = TokenBatch.from_lists(encoded[at : at + self.batch_size], self.tokenizer.end_of_text)
            parts.append(self.model.features(batch, fast_steps=self.fast_steps, seed=self.seed).float().cpu().numpy())
        return np.concatenate(parts)

    def to_dict(self) -> dict[str, Any]:  # noqa: D102
        return super().to_dict() | {"kind": self.model.kind}


class _GivenTexts(SequenceDataset):
    """Texts as sequences of their own: prompt, text, end of text; scored are the text and an end that is its own."""

    def __init__(
        self,
        texts: Sequence[Sequence[int]],
        prompts: Sequence[Sequence[int]],
        ended: Sequence[bool],
        tokenizer: Tokenizer,
        max_length: int,
    ):
        end = tokenizer.end_of_text
        # The last place is the end-of-text token's, which every document of a shard has.
        whole = [[*prompt, *text][: max_length - 1] for prompt, text in zip(prompts, texts, strict=True)]
        uncut = [len(p) + len(t) < max_length for p, t in zip(prompts, texts, strict=True)]
        self._first = torch.tensor([len(prompt) for prompt in prompts])
        self._after = torch.tensor([len(row) + (e and u) for row, e, u in zip(whole, ended, uncut, strict=True)])
        shard = shard_in_memory([t for row in whole for t in (*row, end)], [len(row) + 1 for row in whole], tokenizer)
        super().__init__(shard, "documents", max_length)

    @property
    def num_scored(self) -> int:
        """Scored tokens of all texts."""
        return int((self._after - self._first).clamp(min=0).sum())

    def batch(self, indices: Sequence[int]) -> TokenBatch:
        batch = super().batch(indices)
        chosen = torch.as_tensor(list(indices))
        at = torch.arange(batch.tokens.shape[1])
        return replace(batch, scored=(at >= self._first[chosen, None]) & (at < self._after[chosen, None]))
