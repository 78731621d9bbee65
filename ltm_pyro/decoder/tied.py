"""TiedTransformer: what every network of this library shares - embedding, self-attention, vocabulary product."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ltm_pyro.decoder.attention import SelfAttention
from ltm_pyro.decoder.cache import DecoderCache, Slots
from ltm_pyro.decoder.linear import product
from ltm_pyro.decoder.rotary import Rotation, rotation
from ltm_pyro.decoder.token_loss import target_log_prob

__all__ = ["TiedTransformer", "one_per_sequence"]

T = TypeVar("T")


class TiedTransformer(nn.Module):
    """Pre-norm blocks with rotary positions under one embedding for input and output.

    Attributes: with ``checkpointing``, a block keeps its inputs alone for the backward pass and runs again there.

    Args:
        blocks: the layers; each has ``self_norm`` and ``self_attention``.
        vocab_size: V.
        hidden: H.
        heads: attention heads.
        window: tokens that self-attention sees, the token itself included.
        max_length: training length.
        rope_base: θ of RoPE.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        *,
        vocab_size: int,
        hidden: int,
        heads: int,
        window: int,
        max_length: int,
        rope_base: float,
    ):
        super().__init__()
        self.vocab_size = vocab_size
        self.window = window
        self.max_length = max_length
        self.rope_base = rope_base
        self.checkpointing = False
        self.head_dim = hidden // heads
        self.embedding = nn.Embedding(vocab_size, hidden)
        self.blocks = blocks
        self.norm = nn.RMSNorm(hidden, eps=1e-5)

    held_embedding: Tensor | None = None
    """The output embedding in another type, between `hold` and `release`."""

    def hold(self, dtype: torch.dtype | None) -> None:
        """Keeps the output embedding as a constant in ``dtype``, None being its own (see `linear.held`)."""
        self.held_embedding = self.embedding.weight.detach().to(dtype)

    def release(self) -> None:
        """Ends `hold`."""
        self.held_embedding = None

    def reset_parameters(self) -> None:
        """N(0, 0.02²) everywhere, divided by √(2L) on the maps that write into the residual stream."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.ones_(parameter)
                continue
            writes_residual = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            scale = 1 / math.sqrt(2 * len(self.blocks)) if writes_residual else 1.0
            nn.init.normal_(parameter, std=0.02 * scale)

    def token_log_prob(
        self, hidden: Float[Tensor, "row hidden"], targets: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """Log p(target | hidden) row by row; logits are never all held."""
        weight = self.embedding.weight if self.held_embedding is None else self.held_embedding
        return target_log_prob(hidden, weight, targets)

    def logits(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocab"]:
        """Unnormalised log-probabilities of the next token under the tied embedding."""
        if self.held_embedding is not None:
            return product(hidden.to(self.held_embedding.dtype), self.held_embedding)
        return product(hidden, self.embedding.weight.to(hidden.dtype))

    def _slots(self, inputs: Tensor, lengths: Tensor, max_tokens: int | None) -> Slots:
        """Slots for what has been read and ``max_tokens`` more, or of the window where that is less."""
        most = self.window if max_tokens is None else min(self.window, inputs.shape[1] + max_tokens)
        return Slots(lengths, most)

    def _rotation(self, positions: Tensor) -> Rotation:
        cos, sin = rotation(positions, self.head_dim, self.rope_base)
        return (cos[:, None], sin[:, None]) if one_per_sequence(positions) else (cos, sin)

    def _again(self, cache: DecoderCache | None, part: Callable[..., T], *inputs: object) -> T:
        """What ``part`` makes of its inputs; with `checkpointing`, nothing between them is kept."""
        if self.checkpointing and cache is None and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return part(*inputs)

    def _self_attend(
        self, layer: int, x: Tensor, positions: Tensor, rope: Rotation, mask: Tensor | None, cache: DecoderCache | None
    ) -> Tensor:
        block = self.blocks[layer]
        attention: SelfAttention = block.self_attention  # type: ignore[assignment]
        y: Tensor = block.self_norm(x)  # type: ignore[operator]
        layer_cache = None if cache is None else cache.layers[layer]
        return x + attention(y, rope, window=self.window, mask=mask, cache=layer_cache)  # type: ignore[no-any-return]


def one_per_sequence(positions: Tensor) -> bool:
    """Whether each sequence decodes one token at a position (B, 1) of its own, rather than all share (N,)."""
    return positions.dim() == 2
