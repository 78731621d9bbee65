"""Causal attention within a window of tokens, at a cost that grows with N · W and not with N²."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["BLOCK", "window_mask", "windowed_attention"]

BLOCK = 64
"""Queries that the CPU attends from at once: they meet the keys of their own block and of the window before it."""


def windowed_attention(
    q: Float[Tensor, "batch head token head_dim"],
    k: Float[Tensor, "batch head token head_dim"],
    v: Float[Tensor, "batch head token head_dim"],
    window: int | None,
) -> Float[Tensor, "batch head token head_dim"]:
    """Token i attends to tokens i - window < j <= i; None is no window.

    A band of blocks on the CPU; FlexAttention, compiled, on CUDA; a dense mask for what these do not take.
    """
    num_tokens = q.shape[2]
    if window is None or num_tokens <= window:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if q.device.type == "cpu" and _cpu_kernel():
        banded: Tensor = _Banded.apply(q, k, v, window)  # type: ignore[no-untyped-call]
        return banded
    if q.is_cuda and flex_takes(q):
        return _flex_attention(q, k, v, window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=window_mask(num_tokens, window, q.device))


def window_mask(num_tokens: int, window: int, device: torch.device | str | None = None) -> Bool[Tensor, "query key"]:
    """(N, N) True where query i sees key j: i - window < j <= i."""
    index = torch.arange(num_tokens, device=device)
    distance = index[:, None] - index[None, :]
    return (distance >= 0) & (distance < window)


class _Banded(torch.autograd.Function):
    """Block by block of queries, by the kernel that is behind `scaled_dot_product_attention` on the CPU.

    Through autograd every block would add gradients as large as the whole sequence for the few keys that it sees.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        ctx.window = window
        q, k, v = _rows_dense(q), _rows_dense(k), _rows_dense(v)
        blocks = [
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, rows], k[:, :, keys], v[:, :, keys], attn_mask=mask
            )
            for rows, keys, mask in _blocks(q, window)
        ]
        out = torch.cat([block[0] for block in blocks], dim=2)
        ctx.save_for_backward(q, k, v, out, *(block[1] for block in blocks))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, *normalisers = ctx.saved_tensors
        grad = _rows_dense(grad)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (rows, keys, mask), normaliser in zip(_blocks(q, ctx.window), normalisers, strict=True):
            gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[:, :, rows],
                q[:, :, rows],
                k[:, :, keys],
                v[:, :, keys],
                out[:, :, rows],
                normaliser,
                0.0,
                False,
                attn_mask=mask,
            )
            d_q[:, :, rows] = gradients[0]
            d_k[:, :, keys] += gradients[1]
            d_v[:, :, keys] += gradients[2]
        return d_q, d_k, d_v, None


def _rows_dense(x: Tensor) -> Tensor:
    # The kernel takes any layout as long as the entries of a head lie side by side, and does not check that.
    return x if x.stride(-1) == 1 else x.contiguous()


def _blocks(q: Tensor, window: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows of queries, the keys that any of them sees, and what is added to the scores: -∞ outside a row's window."""
    num_tokens = q.shape[2]
    for start in range(0, num_tokens, BLOCK):
        end, first = min(start + BLOCK, num_tokens), max(0, start - window + 1)
        yield slice(start, end), slice(first, end), _band(end - start, end - first, start - first, window, q.dtype)


@lru_cache(maxsize=256)
def _band(rows: int, keys: int, offset: int, window: int, dtype: torch.dtype) -> Tensor:
    distance = offset + torch.arange(rows)[:, None] - torch.arange(keys)
    return torch.zeros(rows, keys, dtype=dtype).masked_fill_((distance < 0) | (distance >= window), -torch.inf)


@cache
def _cpu_kernel() -> bool:
    return hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def flex_takes(q: Tensor) -> bool:
    """Whether FlexAttention's kernels can run on such queries."""
    head_dim = q.shape[-1]
    # They work on tiles of at least 16 entries, in powers of two, and not in float64.
    return q.dtype != torch.float64 and head_dim >= 16 and head_dim & (head_dim - 1) == 0


def _flex_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    out: Tensor = _compiled_flex()(q, k, v, block_mask=_block_mask(q.shape[2], window, q.device))
    return out


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@lru_cache(maxsize=64)
def _block_mask(num_tokens: int, window: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(
        lambda batch, head, query, key: (query >= key) & (query - key < window),  # create_block_mask counts arguments
        None,
        None,
        num_tokens,
        num_tokens,
        device=str(device),
    )
