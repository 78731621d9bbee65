"""Windowed causal self-attention over tokens, and cross-attention from tokens to one layer's thoughts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ltm_pyro.decoder.cache import LayerCache
from ltm_pyro.decoder.linear import Linear
from ltm_pyro.decoder.rotary import Rotation, rotate
from ltm_pyro.decoder.window import windowed_attention

__all__ = ["CrossAttention", "SelfAttention"]


class SelfAttention(nn.Module):
    """Multi-head self-attention: causal over a window of tokens, or in both directions.

    Args:
        hidden: width H of the residual stream.
        heads: number of heads; head_dim = H / heads.
        causal: whether a token sees itself and the tokens before it alone.
    """

    def __init__(self, hidden: int, heads: int, *, causal: bool = True):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = Linear(hidden, 3 * hidden)
        self.out = Linear(hidden, hidden)

    def forward(
        self,
        x: Float[Tensor, "batch token hidden"],
        rope: Rotation,
        *,
        window: int | None = None,
        mask: Bool[Tensor, "*rows query key"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch token hidden"]:
        """Attends over the whole sequence.

        Args:
            x: normed residual stream.
            rope: rotation of every position.
            window: tokens that a causal attention sees, the token itself included; None is all before it.
            mask: True at the keys that attention in both directions sees; None is all.
            cache: filled with keys and values where it is given.
        """
        q, k, v = self._project(x, rope)
        if cache is not None:
            cache.fill(k, v)
        if self.causal:
            return self._merge(windowed_attention(q, k, v, window))
        return self._merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def step(
        self, x: Float[Tensor, "batch 1 hidden"], rope: Rotation, cache: LayerCache
    ) -> Float[Tensor, "batch 1 hidden"]:
        """Attends from one new token per sequence to what ``cache`` keeps of the window, the token included."""
        qkv = self.qkv(x)[:, 0].unflatten(-1, (3, self.heads, -1))
        q, k = rotate(qkv[:, :2], rope).unbind(1)
        keys, values = cache.append(k, qkv[:, 2])
        y = _attend_once(q[:, :, None], keys, values, cache.slots.bias(q.dtype))
        out: Tensor = self.out(y.reshape(x.shape))
        return out

    def _project(self, x: Tensor, rope: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return rotate(q, rope), rotate(k, rope), v

    def _merge(self, y: Tensor) -> Tensor:
        out: Tensor = self.out(rearrange(y, "b h n d -> b n (h d)"))
        return out


def _attend_once(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention from one query per head; ``bias`` is added to the scores."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # The fused kernel is made for many queries: three times as slow as two products here.
        scores = (q * q.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        weights: Tensor = (scores.float() + bias).softmax(-1).to(q.dtype)
        return weights @ values
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)


class CrossAttention(nn.Module):
    """Attention from every token to its layer's thoughts; keys and values read thoughts of any width.

    Args:
        hidden: width H of the residual stream.
        heads: number of heads.
        thought_width: width of a thought vector, projected to H by the key and value maps.
        addresses: number of thoughts, each of which gets a learned vector that is added to its key, whatever it says;
            None is none.
    """

    def __init__(self, hidden: int, heads: int, thought_width: int, addresses: int | None = None):
        super().__init__()
        self.heads = heads
        self.address = None if addresses is None else nn.Parameter(torch.empty(addresses, hidden))
        self.query = Linear(hidden, hidden)
        self.key = Linear(thought_width, hidden)
        self.value = Linear(thought_width, hidden)
        self.out = Linear(hidden, hidden)

    def queries(
        self, x: Float[Tensor, "batch token hidden"], rope: Rotation
    ) -> Float[Tensor, "batch head token head_dim"]:
        """Queries, rotated by token position unless thoughts have addresses; thoughts of this layer do not enter."""
        queries = rearrange(self.query(x), "b n (h d) -> b h n d", h=self.heads)
        return queries if self.address is not None else rotate(queries, rope)

    def attend(
        self, queries: Float[Tensor, "batch head token head_dim"], memory: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "batch token hidden"]:
        """Every token sees every thought of its layer."""
        y = F.scaled_dot_product_attention(queries, *memory)
        out: Tensor = self.out(rearrange(y, "b h n d -> b n (h d)"))
        return out
