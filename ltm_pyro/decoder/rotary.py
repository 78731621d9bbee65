"""Rotary position embeddings (RoPE) in the half-split layout.

References: Su et al. (2021), RoFormer: Enhanced Transformer with Rotary Position Embedding.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Rotation", "rotate", "rotation"]

Rotation = tuple[Tensor, Tensor]


def rotation(positions: Int[Tensor, "*shape"], head_dim: int, base: float) -> Rotation:
    r"""Cosines and sines (\*shape, head_dim / 2), float32, of the angles position · base^(-2i / head_dim)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None].to(torch.float32) * base**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "*shape head_dim"], by: Rotation) -> Float[Tensor, "*shape head_dim"]:
    r"""Rotates the pairs (x_i, x_{i + head_dim/2}); ``by`` broadcasts against (\*shape, head_dim / 2)."""
    cos, sin = (t.to(x.dtype) for t in by)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
