"""Cached decoding: temperature, top-k and nucleus sampling, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ltm_pyro.decoder.cache import DecoderCache
from ltm_pyro.errors import LTMError

__all__ = ["CachedNetwork", "Continuation", "Sampling", "decode", "token_lists"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep the k most probable tokens; None keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches this; None keeps all.

    Raises:
        LTMError: a value out of range.

    References: Holtzman et al. (2020), The Curious Case of Neural Text Degeneration (nucleus sampling).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise LTMError(f"temperature must be 0 or more, got {self.temperature}: 0 is greedy, 1 is the model's own")
        if self.top_k is not None and self.top_k < 1:
            raise LTMError(f"top-k must be 1 or more, got {self.top_k}: leave it out to keep every token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise LTMError(f"top-p must be above 0 and at most 1, got {self.top_p}: leave it out to keep every token")

    def probabilities(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        """The distribution that the next token is drawn from."""
        if self.temperature == 0:
            best = logits.argmax(-1, keepdim=True)
            return torch.zeros_like(logits).scatter(-1, best, 1.0)
        # The largest first becomes 0, which no temperature can make overflow.
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        probabilities = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            ranked, order = probabilities.sort(dim=-1, descending=True)
            before = ranked.cumsum(-1) - ranked
            ranked = ranked.masked_fill(before >= self.top_p, 0.0)
            probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return probabilities


@dataclass(frozen=True)
class Continuation:
    """Decoded tokens (B, M), right-padded with 0, and how many of each row are real; a stop token is not counted."""

    tokens: Int[Tensor, "batch token"]
    lengths: Int[Tensor, " batch"]


@runtime_checkable
class CachedNetwork(Protocol):
    """A causal network that reads a prompt at once and then token by token (`ThoughtDecoder`, `PlainTransformer`)."""

    def prefill(self, inputs: Tensor, lengths: Tensor, thoughts: Any) -> tuple[Tensor, DecoderCache]:
        """The hidden state of each prompt's last token, and a cache."""

    def step(self, inputs: Tensor, cache: DecoderCache) -> Tensor:
        """The hidden state of one more token of each sequence."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the next token."""


@torch.no_grad()
def decode(
    decoder: CachedNetwork,
    thoughts: Float[Tensor, "batch layer slot width"] | None,
    inputs: Int[Tensor, "batch token"],
    lengths: Int[Tensor, " batch"],
    max_tokens: int,
    *,
    sampling: Sampling | None = None,
    stop: int | None = None,
    generator: torch.Generator | None = None,
) -> Continuation:
    """Continues each row by up to ``max_tokens`` tokens drawn from p(x_n | z, x_<n).

    Args:
        decoder: the network.
        thoughts: (B, L, n, width), one set per row; None for a network that has none.
        inputs: (B, P) what has been read so far, right-padded, the start token first.
        lengths: (B,) real tokens of ``inputs``, at least 1.
        max_tokens: M.
        sampling: default the model's own distribution.
        stop: a row ends where it draws this token; None decodes all M.
        generator: source of the draws; None is torch's global one.
    """
    sampling = sampling or Sampling()
    rows = inputs.shape[0]
    tokens = torch.zeros(rows, max_tokens, dtype=torch.int64, device=inputs.device)
    produced = torch.zeros(rows, dtype=torch.int64, device=inputs.device)
    active = torch.ones(rows, dtype=torch.bool, device=inputs.device)
    hidden, cache = decoder.prefill(inputs, lengths, thoughts)
    for n in range(max_tokens):
        probabilities = sampling.probabilities(decoder.logits(hidden).float())
        token = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        if stop is not None:
            active = active & (token != stop)
            if not active.any():
                break
        tokens[:, n] = torch.where(active, token, 0)
        produced += active
        if n + 1 < max_tokens:
            hidden = decoder.step(token, cache)
    return Continuation(tokens, produced)


def token_lists(drawn: Continuation) -> list[list[int]]:
    """The real tokens of each row."""
    rows = zip(drawn.tokens.tolist(), drawn.lengths.tolist(), strict=True)
    return [tokens[:length] for tokens, length in rows]
