"""Cached decoding of many rows at once, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ltm_pyro.decoder.cache import DecoderCache
from ltm_pyro.decoder.linear import held
from ltm_pyro.decoder.sampling import Sampling, TokenDraws

__all__ = ["CachedNetwork", "Continuation", "Ended", "decode", "token_lists"]

Ended = Callable[[Sequence[int]], bool]
"""Whether a text whose tokens so far are these has had its end."""

_EVERY = 16  # tokens between two looks at what an `Ended` says, and of the host at a device's rows
_WORTH = 0.75  # rows are dropped once so few of them are left


@dataclass(frozen=True)
class Continuation:
    """Decoded tokens (B, M), right-padded with 0, and how many of each row are real; a stop token is not counted."""

    tokens: Int[Tensor, "batch drawn"]
    lengths: Int[Tensor, " batch"]


@runtime_checkable
class CachedNetwork(Protocol):
    """A causal network that reads a prompt at once and then token by token (`ThoughtDecoder`, `PlainTransformer`)."""

    def prefill(
        self, inputs: Tensor, lengths: Tensor, thoughts: Any, max_tokens: int | None = None
    ) -> tuple[Tensor, DecoderCache]:
        """The hidden state of each prompt's last token, and a cache with room for ``max_tokens`` more."""

    def step(self, inputs: Tensor, cache: DecoderCache) -> Tensor:
        """The hidden state of one more token of each sequence."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the next token."""

    def modules(self) -> Iterator[nn.Module]:
        """All its parts."""


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
    ended: Ended | None = None,
    uniforms: Float[Tensor, "batch drawn"] | None = None,
) -> Continuation:
    """Continues each row by up to ``max_tokens`` tokens drawn from p(x_n | z, x_<n).

    Rows that have ended are dropped from the batch, once it pays. A row's tokens depend on no other row, up to
    rounding.

    Args:
        decoder: the network.
        thoughts: (B, L, n, width), one set per row; None for a network that has none.
        inputs: (B, P) what has been read so far, right-padded, the start token first.
        lengths: (B,) real tokens of ``inputs``, at least 1.
        max_tokens: M.
        sampling: default the model's own distribution.
        stop: a row ends where it draws this token; None decodes all M.
        ended: told the tokens of each row after every 16, which end it where this says so; None decodes on.
        uniforms: (B, M) numbers in [0, 1) that settle the draws; None takes them, where the temperature is not 0,
            from torch's global stream.
    """
    dtype = torch.get_autocast_dtype(inputs.device.type) if torch.is_autocast_enabled(inputs.device.type) else None
    with held(decoder, dtype):
        return _decode(decoder, thoughts, inputs, lengths, max_tokens, sampling or Sampling(), stop, ended, uniforms)


def _decode(
    decoder: CachedNetwork,
    thoughts: Tensor | None,
    inputs: Tensor,
    lengths: Tensor,
    max_tokens: int,
    sampling: Sampling,
    stop: int | None,
    ended: Ended | None,
    uniforms: Tensor | None,
) -> Continuation:
    rows, device = inputs.shape[0], inputs.device
    draws = TokenDraws(sampling)
    if uniforms is None and sampling.temperature == 0:
        uniforms = torch.zeros((), dtype=torch.float64, device=device).expand(rows, max_tokens)
    elif uniforms is None:
        uniforms = torch.rand(rows, max_tokens, dtype=torch.float64, device=device)
    tokens = torch.zeros(rows, max_tokens, dtype=torch.int64, device=device)
    produced = torch.zeros(rows, dtype=torch.int64, device=device)
    left = torch.arange(rows, device=device)  # the rows still in the batch, of which some may have ended
    active = torch.ones(rows, dtype=torch.bool, device=device)
    hidden, cache = decoder.prefill(inputs, lengths, thoughts, max_tokens)
    look = 1 if device.type == "cpu" else _EVERY
    for n in range(max_tokens):
        token = draws(decoder.logits(hidden), uniforms[left, n])
        if stop is not None:
            active &= token != stop
        tokens[left, n] = torch.where(active, token, 0)
        produced[left] += active
        if n + 1 == max_tokens:
            break
        if ended is not None and (n + 1) % _EVERY == 0:
            active &= ~_ended(ended, tokens[left, : n + 1], active)
        if (stop is not None or ended is not None) and (n + 1) % look == 0:
            alive = active.nonzero()[:, 0]
            if not len(alive):
                break
            if len(alive) <= _WORTH * len(left):
                cache.keep(alive)
                left, token, active = left[alive], token[alive], active[alive]
        hidden = decoder.step(token, cache)
    return Continuation(tokens, produced)


def _ended(ended: Ended, tokens: Tensor, active: Tensor) -> Tensor:
    """(rows,) what ``ended`` says of the rows that go on."""
    told = zip(tokens.tolist(), active.tolist(), strict=True)
    return torch.tensor([goes_on and ended(row) for row, goes_on in told], device=tokens.device)


def token_lists(drawn: Continuation) -> list[list[int]]:
    """The real tokens of each row."""
    rows = zip(drawn.tokens.tolist(), drawn.lengths.tolist(), strict=True)
    return [tokens[:length] for tokens, length in rows]
