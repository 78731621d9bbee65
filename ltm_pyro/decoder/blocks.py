"""One decoder layer: self-attention, cross-attention to the layer's thoughts, SwiGLU; pre-norm, no biases."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ltm_pyro.decoder.attention import CrossAttention, SelfAttention
from ltm_pyro.decoder.linear import Linear

__all__ = ["Block", "SwiGLU", "feed_forward_width"]


def feed_forward_width(hidden: int) -> int:
    """2/3 · 4H rounded up to a multiple of 32."""
    return -(-(8 * hidden) // (3 * 32)) * 32


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)).

    Args:
        hidden: width H of the residual stream.
        width: of the gate; None is `feed_forward_width`.

    References: Shazeer (2020), GLU Variants Improve Transformer.
    """

    def __init__(self, hidden: int, width: int | None = None):
        super().__init__()
        width = feed_forward_width(hidden) if width is None else width
        self.gate_up = Linear(hidden, 2 * width)
        self.down = Linear(width, hidden)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Token by token."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class Block(nn.Module):
    """x → + self-attention(norm x) → + cross-attention(norm x, z_l) → + SwiGLU(norm x)."""

    def __init__(self, hidden: int, heads: int, thought_width: int, addresses: int | None = None):
        super().__init__()
        self.self_norm = nn.RMSNorm(hidden, eps=1e-5)
        self.self_attention = SelfAttention(hidden, heads)
        self.cross_norm = nn.RMSNorm(hidden, eps=1e-5)
        self.cross_attention = CrossAttention(hidden, heads, thought_width, addresses)
        self.feed_forward_norm = nn.RMSNorm(hidden, eps=1e-5)
        self.feed_forward = SwiGLU(hidden)
