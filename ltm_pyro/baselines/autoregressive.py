"""Autoregressive: the causal Transformer that predicts each token from those before it, with no thoughts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ltm_pyro.baselines.base import Baseline, check_generation
from ltm_pyro.baselines.transformer import PlainTransformer, TransformerShape
from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder.decoding import Ended
from ltm_pyro.decoder.prompts import Prompts, continue_part
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.evaluation.protocols import Protocol
from ltm_pyro.infer.posterior import autocasting
from ltm_pyro.language_model import Prediction, context_lengths

__all__ = ["Autoregressive"]


class Autoregressive(Baseline):
    r"""A causal Transformer with the decoder's window of self-attention.

    .. math:: \log p(x) = \sum_n \log p(x_n \mid x_{n-W+1}, \dots, x_{n-1})

    up to what W tokens a layer let through. A window of at least the training length is full attention. Its protocol
    ``likelihood`` is exact: there is nothing to infer, and no noise.

    Args:
        shape: sizes of the network.
        autocast: type of the network's products; None for the weights' own.
    """

    kind = "ar"
    protocols: ClassVar[tuple[Protocol, ...]] = ("likelihood",)
    default_protocols: ClassVar[tuple[Protocol, ...]] = ("likelihood",)
    comparable: ClassVar[Protocol] = "likelihood"

    def __init__(self, shape: TransformerShape, *, autocast: torch.dtype | None = None):
        super().__init__(PlainTransformer(shape), autocast)

    def sequence_loss(self, batch: TokenBatch, *, seed: int = 0, samples: int = 1) -> Float[Tensor, " batch"]:
        """(B,) -log p of each sequence's scored tokens, in nats, exact; ``seed`` and ``samples`` change nothing."""
        return -self.token_log_prob(batch).sum(-1)

    def token_log_prob(self, batch: TokenBatch) -> Float[Tensor, "batch token"]:
        """(B, N) log p(x_n | x_<n) at the scored tokens and 0 elsewhere."""
        hidden, targets = self._scored(batch)
        with autocasting(batch.device, self.autocast):
            log_prob = self.network.token_log_prob(hidden, targets)
        flat = log_prob.new_zeros(batch.tokens.numel()).index_copy(0, batch.scored_index, log_prob)
        return flat.view(batch.tokens.shape)

    @torch.no_grad()
    def predict(  # noqa: D102
        self, batch: TokenBatch, *, samples: int = 1, fast_steps: int | None = None, seed: int = 0
    ) -> Prediction:
        batch = batch.unlabelled().to(self.device)
        context_lengths(batch)
        hidden, targets = self._scored(batch)
        rows = max(2**23 // self.vocab_size, 1)
        # Without autocast, as for the model with thoughts: among logits that round to one number the first token wins.
        best = [self.network.logits(part).argmax(-1) for part in hidden.split(rows)]
        right = torch.ones(batch.tokens.numel(), dtype=torch.bool, device=batch.device)
        right[batch.scored_index] = torch.cat([*best, targets[:0]]) == targets
        return Prediction(self.token_log_prob(batch).double().sum(-1), right.view(batch.tokens.shape).all(-1))

    @torch.no_grad()
    def features(
        self, batch: TokenBatch, *, fast_steps: int | None = None, seed: int = 0
    ) -> Float[Tensor, "batch width"]:
        """The last hidden state at each sequence's last token."""
        batch = batch.to(self.device)
        inputs = torch.cat([batch.start[:, None], batch.tokens], dim=1)
        with autocasting(self.device, self.autocast):
            return self.network.prefill(inputs, batch.lengths + 1, None)[0]

    def generate_batch(  # noqa: D102
        self,
        prompts: Sequence[Sequence[int]],
        *,
        start: int | Sequence[int],
        num: int = 1,
        first: int = 0,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: int | None = None,
        ended: Ended | None = None,
        fast_steps: int | None = None,
        label: int | None = None,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[list[int]]]:
        check_generation(self, prompts, num, max_tokens, label, first)
        asked = Prompts(prompts, start, num, progress, first)
        for part in asked.parts():
            with autocasting(self.device, self.autocast):
                texts = continue_part(
                    self.network,
                    part.to(self.device),
                    None,
                    max_tokens,
                    sampling=sampling,
                    stop=stop,
                    ended=ended,
                    seed=seed,
                )
            asked.keep(part, texts)
        return asked.texts()

    def _scored(self, batch: TokenBatch) -> tuple[Float[Tensor, "row hidden"], Int[Tensor, " row"]]:
        """Hidden states and targets of the scored tokens, one row each."""
        with autocasting(batch.device, self.autocast):
            hidden = self.network(batch.inputs).flatten(0, 1)
        return hidden[batch.scored_index], batch.tokens.flatten()[batch.scored_index]
