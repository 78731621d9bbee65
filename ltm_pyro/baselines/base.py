"""Baseline: a language model without thoughts, trained by plain gradient descent on a loss of each sequence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ltm_pyro.baselines.transformer import PlainTransformer
from ltm_pyro.batch import TokenBatch
from ltm_pyro.data.sequences import SequenceDataset
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.protocols import Report
from ltm_pyro.flops import TransformerSize, transformer_step_flops
from ltm_pyro.generate import check_prompts
from ltm_pyro.language_model import LanguageModel

__all__ = ["Baseline", "check_generation"]


class Baseline(nn.Module, LanguageModel):
    """A language model whose weights are its only parameters.

    Its `LanguageModel.comparable` protocol is its only one: `sequence_loss`, per token, on noise of its own.

    Args:
        network: the Transformer.
        autocast: type of the network's products (bfloat16, say); None for the weights' own.
    """

    def __init__(self, network: PlainTransformer, autocast: torch.dtype | None = None):
        super().__init__()
        self.network = network
        self.autocast = autocast

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.network.vocab_size

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that the model was trained on."""
        return self.network.max_length

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.embedding.weight.device

    @abstractmethod
    def sequence_loss(self, batch: TokenBatch, *, seed: int = 0, samples: int = 1) -> Float[Tensor, " batch"]:
        """(B,) nats of each sequence's scored tokens: -log p, or an unbiased estimate of an upper bound on it.

        Args:
            batch: the sequences.
            seed: of the noise, where there is any; a sequence's noise is its own, whatever its batch.
            samples: draws that the estimate is the mean of.
        """

    def step_flops(self, batch: TokenBatch) -> int:
        """Floating point operations of one training step on a batch, by `ltm_pyro.flops`, from its sizes alone."""
        size = TransformerSize.of(self.network)
        return transformer_step_flops(size, len(batch), batch.tokens.shape[1], int(batch.num_scored.sum()))

    @torch.no_grad()
    def evaluate(  # noqa: D102
        self,
        data: SequenceDataset,
        indices: Sequence[int],
        *,
        protocols: Sequence[str] | None = None,
        samples: int = 1,
        block_size: int = 32,
        fast_steps: int | None = None,
        batch_size: int = 8,
        seed: int = 0,
    ) -> Report:
        chosen = self.choose(protocols)
        if samples < 1:
            raise LTMError(f"samples must be 1 or more, got {samples}")
        if not indices:
            raise LTMError("there are no sequences to evaluate: choose another source or split")
        parts = []
        for batch in data.batches(indices, batch_size):
            losses = self.sequence_loss(batch.unlabelled().to(self.device), seed=seed, samples=samples)
            parts.append((losses.double().cpu(), batch.num_scored))
        values, counts = (torch.cat(column) for column in zip(*parts, strict=True))
        return Report({self.comparable: values}, counts, samples, None, seed, protocols=chosen)


def check_generation(
    model: Baseline,
    prompts: Sequence[Sequence[int]],
    num: int,
    max_tokens: int,
    label: int | None,
    first: int = 0,
) -> None:
    """Nothing, where a baseline can draw such texts.

    Raises:
        LTMError: a prompt is too long, a number is below 1, or there is a label.
    """
    if label is not None:
        raise LTMError(f"a model of kind {model.kind} has no classes: leave the label out")
    check_prompts(prompts, num, max_tokens, model.max_length, first)
