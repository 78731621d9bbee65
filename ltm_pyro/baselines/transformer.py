"""PlainTransformer: the decoder's blocks without cross-attention, causal or in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ltm_pyro.config import DecoderSettings
from ltm_pyro.decoder.attention import SelfAttention
from ltm_pyro.decoder.blocks import SwiGLU, feed_forward_width
from ltm_pyro.decoder.cache import DecoderCache, LayerCache
from ltm_pyro.decoder.tied import TiedTransformer

__all__ = ["PlainBlock", "PlainTransformer", "TransformerShape"]


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """Sizes of a `PlainTransformer`.

    Args:
        vocab_size: V.
        layers: L.
        hidden: H.
        heads: attention heads.
        feed_forward: width of SwiGLU's gate.
        window: tokens that causal self-attention sees.
        max_length: training length.
        rope_base: θ of RoPE.
    """

    vocab_size: int
    layers: int
    hidden: int
    heads: int
    feed_forward: int
    window: int
    max_length: int
    rope_base: float = 10_000.0

    @classmethod
    def matching(
        cls, decoder: DecoderSettings, vocab_size: int, max_length: int, *, same_parameters: bool = True
    ) -> TransformerShape:
        """The shape of a Latent Thought Language Model's decoder.

        Args:
            decoder: settings of that decoder.
            vocab_size: V.
            max_length: training length.
            same_parameters: give SwiGLU the weights that cross-attention would have had, which makes the parameter
                counts equal but for less than 3H / 2 in each layer; False leaves SwiGLU as wide as the decoder's.
        """
        hidden, width = decoder.hidden, decoder.thought_width or decoder.hidden
        cross_attention = 2 * hidden * hidden + 2 * width * hidden + hidden  # query, out; key, value; norm
        if decoder.thought_addresses:
            cross_attention += decoder.num_thoughts // decoder.layers * hidden
        extra = round(cross_attention / (3 * hidden)) if same_parameters else 0
        return cls(
            vocab_size=vocab_size,
            layers=decoder.layers,
            hidden=hidden,
            heads=decoder.heads,
            feed_forward=feed_forward_width(hidden) + extra,
            window=decoder.window,
            max_length=max_length,
            rope_base=decoder.rope_base,
        )


class PlainBlock(nn.Module):
    """x → + self-attention(norm x) → + SwiGLU(norm x)."""

    def __init__(self, hidden: int, heads: int, feed_forward: int, *, causal: bool):
        super().__init__()
        self.self_norm = nn.RMSNorm(hidden, eps=1e-5)
        self.self_attention = SelfAttention(hidden, heads, causal=causal)
        self.feed_forward_norm = nn.RMSNorm(hidden, eps=1e-5)
        self.feed_forward = SwiGLU(hidden, feed_forward)


class PlainTransformer(TiedTransformer):
    """Pre-norm Transformer with rotary positions, SwiGLU and tied embeddings.

    Args:
        shape: its sizes.
        causal: True gives windowed causal self-attention; False lets every token see all tokens that are not padding,
            whatever the window.
    """

    def __init__(self, shape: TransformerShape, *, causal: bool = True):
        super().__init__(
            nn.ModuleList(
                PlainBlock(shape.hidden, shape.heads, shape.feed_forward, causal=causal) for _ in range(shape.layers)
            ),
            vocab_size=shape.vocab_size,
            hidden=shape.hidden,
            heads=shape.heads,
            window=shape.window,
            max_length=shape.max_length,
            rope_base=shape.rope_base,
        )
        self.causal = causal
        self.reset_parameters()

    def forward(
        self, inputs: Int[Tensor, "batch token"], real: Bool[Tensor, "batch token"] | None = None
    ) -> Float[Tensor, "batch token hidden"]:
        """Final hidden states.

        Args:
            inputs: token ids, right-padded.
            real: True at tokens that are not padding, which alone are seen where attention is not causal; None is all.
        """
        return self.hidden(self.embedding(inputs), real)

    def hidden(
        self, embedded: Float[Tensor, "batch token hidden"], real: Bool[Tensor, "batch token"] | None = None
    ) -> Float[Tensor, "batch token hidden"]:
        """As `forward`, of inputs that are embedded already."""
        positions = torch.arange(embedded.shape[1], device=embedded.device)
        return self._run(embedded, positions, self._mask(real), None)

    def prefill(
        self,
        inputs: Int[Tensor, "batch token"],
        lengths: Int[Tensor, " batch"],
        thoughts: None = None,
        max_tokens: int | None = None,
    ) -> tuple[Float[Tensor, "batch hidden"], DecoderCache]:
        """Reads right-padded ``inputs`` of 1 … N real tokens; returns the last one's hidden state and a cache.

        For a causal Transformer alone. ``thoughts`` stands where a decoder with thoughts takes them. Of at most
        ``max_tokens`` tokens to come a cache smaller than the window may be enough; None is any number.
        """
        slots = self._slots(inputs, lengths, max_tokens)
        cache = DecoderCache(slots, [LayerCache(slots) for _ in self.blocks], [])
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        hidden = self._run(self.embedding(inputs), positions, None, cache)
        return hidden[torch.arange(len(lengths), device=inputs.device), lengths - 1], cache

    def step(self, inputs: Int[Tensor, " batch"], cache: DecoderCache) -> Float[Tensor, "batch hidden"]:
        """Reads one more token per sequence; returns its hidden state and advances ``cache`` in place."""
        rope = self._rotation(cache.slots.advance())
        x = self.embedding(inputs[:, None])
        for layer in range(len(self.blocks)):
            block = cast(PlainBlock, self.blocks[layer])
            x = x + block.self_attention.step(block.self_norm(x), rope, cache.layers[layer])
            x = x + block.feed_forward(block.feed_forward_norm(x))
        normed: Tensor = self.norm(x)
        return normed[:, 0]

    def _mask(self, real: Tensor | None) -> Tensor | None:
        if self.causal or real is None:
            return None
        # A sequence without tokens sees its padding rather than nothing, of which there is no average.
        return (real | ~real.any(-1, keepdim=True))[:, None, None, :]

    def _run(self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: DecoderCache | None) -> Tensor:
        rope = self._rotation(positions)
        for layer in range(len(self.blocks)):
            x = self._again(cache, self._layer, layer, x, positions, rope, mask, cache)
        normed: Tensor = self.norm(x)
        return normed

    def _layer(self, layer: int, x: Tensor, *where: Any) -> Tensor:
        block = cast(PlainBlock, self.blocks[layer])
        x = self._self_attend(layer, x, *where)
        return x + block.feed_forward(block.feed_forward_norm(x))  # type: ignore[no-any-return]
