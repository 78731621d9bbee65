"""ThoughtDecoder: the causal Transformer p(x | z) whose layer l cross-attends to its own thoughts z_l."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ltm_pyro.decoder.blocks import Block
from ltm_pyro.decoder.cache import DecoderCache, LayerCache
from ltm_pyro.decoder.rotary import rotate, rotation
from ltm_pyro.decoder.tied import TiedTransformer

__all__ = ["Stem", "ThoughtDecoder"]


class Stem(NamedTuple):
    """The decoder's work up to the first cross-attention: all that does not depend on the thoughts.

    ``residual`` (B, N, H) is the residual stream, ``queries`` (B, heads, N, head_dim) are layer 1's cross-attention
    queries.
    """

    residual: Tensor
    queries: Tensor

    def expand(self, particles: int) -> Stem:
        """The same stem for ``particles`` sets of thoughts per sequence: leading dimension particles · B."""
        if particles == 1:
            return self
        repeats = [particles] + [1] * (self.residual.dim() - 1)
        return Stem(self.residual.repeat(*repeats), self.queries.repeat(*repeats, 1))


class ThoughtDecoder(TiedTransformer):
    r"""Pre-norm decoder with windowed self-attention, cross-attention to thoughts, SwiGLU, and tied embeddings.

    .. math:: p_\beta(x \mid z) = \prod_n p_\beta(x_n \mid z, x_{<n})

    Rotary positions: tokens by their index; thought k of a layer stands at token position
    :math:`k \lfloor \text{max\_length} / N_z \rfloor`. Positions at and beyond ``max_length`` query the thoughts from
    position ``max_length - 1``, the last distance that training has seen. With ``thought_addresses``, cross-attention
    has no positions: a thought is found by what it says and by a learned vector of its own, so that a kind of token can
    always ask the same thought.

    Args:
        vocab_size: V.
        layers: L.
        hidden: H, a multiple of ``2 * heads``.
        heads: attention heads.
        thoughts_per_layer: n; N_z = L · n.
        thought_width: width of a thought vector; None means H.
        window: tokens that self-attention sees, the token itself included.
        max_length: training length, which places the thoughts among the tokens.
        rope_base: θ of RoPE.
        thought_addresses: add a learned vector to the key of every thought, in place of rotary positions.
        thought_gain: standard deviation of what one thought z ~ N(0, I) adds to the residual stream at first; 0 starts
            as the autoregressive decoder does, None draws these maps as all others.

    References: Kong et al. (2025), Scalable Language Models with Posterior Inference of Latent Thought Vectors.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        layers: int,
        hidden: int,
        heads: int,
        thoughts_per_layer: int,
        thought_width: int | None = None,
        window: int = 256,
        max_length: int = 1024,
        rope_base: float = 10_000.0,
        thought_addresses: bool = False,
        thought_gain: float | None = None,
    ):
        addresses = thoughts_per_layer if thought_addresses else None
        width = hidden if thought_width is None else thought_width
        super().__init__(
            nn.ModuleList(Block(hidden, heads, width, addresses) for _ in range(layers)),
            vocab_size=vocab_size,
            hidden=hidden,
            heads=heads,
            window=window,
            max_length=max_length,
            rope_base=rope_base,
        )
        self.thought_shape = (layers, thoughts_per_layer, width)
        self.thought_addresses = thought_addresses
        self.reset_parameters()
        for layer in range(layers):
            attention = self._block(layer).cross_attention
            if attention.address is not None:
                nn.init.normal_(attention.address)
            if thought_gain is not None:
                nn.init.normal_(attention.value.weight, std=width**-0.5)
                nn.init.normal_(attention.out.weight, std=thought_gain * hidden**-0.5)

    held_memory: Tensor | None = None
    """`_memory_weight` in another type, between `hold` and `release`."""

    def hold(self, dtype: torch.dtype | None) -> None:  # noqa: D102
        super().hold(dtype)
        self.held_memory = self._memory_weight().detach().to(dtype)

    def release(self) -> None:  # noqa: D102
        super().release()
        self.held_memory = None

    def stem(self, inputs: Int[Tensor, "batch token"]) -> Stem:
        """Embedding, the first layer's self-attention, and its cross-attention queries."""
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        return self._stem(inputs, positions, None)

    def forward(
        self, stem: Stem, thoughts: Float[Tensor, "batch layer slot width"]
    ) -> Float[Tensor, "batch token hidden"]:
        """Final hidden states of whole sequences, given their `stem` and thoughts."""
        positions = torch.arange(stem.residual.shape[1], device=stem.residual.device)
        return self._run(stem, self._memory(thoughts), positions, None)

    def prefill(
        self,
        inputs: Int[Tensor, "batch token"],
        lengths: Int[Tensor, " batch"],
        thoughts: Float[Tensor, "batch layer slot width"],
        max_tokens: int | None = None,
    ) -> tuple[Float[Tensor, "batch hidden"], DecoderCache]:
        """Reads right-padded ``inputs`` of 1 … N real tokens; returns the last one's hidden state and a cache.

        Of at most ``max_tokens`` tokens to come a cache smaller than the window may be enough; None is any number.
        """
        slots = self._slots(inputs, lengths, max_tokens)
        cache = DecoderCache(slots, [LayerCache(slots) for _ in self.blocks], self._memory(thoughts))
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        hidden = self._run(self._stem(inputs, positions, cache), cache.memory, positions, cache)
        return hidden[torch.arange(len(lengths), device=inputs.device), lengths - 1], cache

    def step(self, inputs: Int[Tensor, " batch"], cache: DecoderCache) -> Float[Tensor, "batch hidden"]:
        """Reads one more token per sequence; returns its hidden state and advances ``cache`` in place."""
        positions = cache.slots.advance()
        rope, query_rope = self._rotation(positions), self._rotation(positions.clamp(max=self.max_length - 1))
        x = self.embedding(inputs[:, None])
        for layer in range(len(self.blocks)):
            block = self._block(layer)
            x = x + block.self_attention.step(block.self_norm(x), rope, cache.layers[layer])
            queries = block.cross_attention.queries(block.cross_norm(x), query_rope)
            x = self._with_thoughts(layer, x, queries, cache.memory[layer])
        normed: Tensor = self.norm(x)
        return normed[:, 0]

    def _memory(self, thoughts: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys, rotated or with addresses, and values of every layer's thoughts: constant while the thoughts are."""
        per_layer = self.thought_shape[1]
        weight = self._memory_weight() if self.held_memory is None else self.held_memory
        # This order gives the weight a gradient that lies as it does.
        both = torch.bmm(weight, rearrange(thoughts.to(weight.dtype), "b l n w -> l w (b n)"))
        both = rearrange(both, "l (two h d) (b n) -> two l b h n d", two=2, d=self.head_dim, n=per_layer)
        keys, values = both.contiguous()
        return list(zip(self._placed(keys), values, strict=True))

    def _placed(self, keys: Float[Tensor, "layer batch head slot head_dim"]) -> Tensor:
        """Keys with their addresses, or rotated by the places of their thoughts among the tokens."""
        layers, per_layer, _ = self.thought_shape
        if self.thought_addresses:
            addresses = torch.stack([cast(Tensor, self._block(i).cross_attention.address) for i in range(layers)])
            return keys + rearrange(addresses.to(keys.dtype), "l n (h d) -> l 1 h n d", d=self.head_dim)
        spacing = self.max_length // (layers * per_layer)
        rope = rotation(torch.arange(per_layer, device=keys.device) * spacing, self.head_dim, self.rope_base)
        return rotate(keys, rope)

    def _memory_weight(self) -> Float[Tensor, "layer key_value width"]:
        """The maps to keys and values of all layers, so that their products are one."""
        maps = [self._block(i).cross_attention for i in range(len(self.blocks))]
        return torch.stack([torch.cat([attention.key.weight, attention.value.weight]) for attention in maps])

    def _queries(self, layer: int, x: Tensor, positions: Tensor) -> Tensor:
        block = self._block(layer)
        rope = self._rotation(positions.clamp(max=self.max_length - 1))
        return block.cross_attention.queries(block.cross_norm(x), rope)

    def _block(self, layer: int) -> Block:
        return cast(Block, self.blocks[layer])

    def _stem(self, inputs: Tensor, positions: Tensor, cache: DecoderCache | None) -> Stem:
        embedded, rope = self.embedding(inputs), self._rotation(positions)
        return Stem(*self._again(cache, self._before_thoughts, 0, embedded, positions, rope, None, cache))

    def _run(
        self, stem: Stem, memory: list[tuple[Tensor, Tensor]], positions: Tensor, cache: DecoderCache | None
    ) -> Tensor:
        rope = self._rotation(positions)
        x = self._again(cache, self._with_thoughts, 0, *stem, memory[0])
        for layer in range(1, len(self.blocks)):
            x = self._again(cache, self._layer, layer, x, memory[layer], positions, rope, None, cache)
        normed: Tensor = self.norm(x)
        return normed

    def _layer(self, layer: int, x: Tensor, memory: tuple[Tensor, Tensor], *where: Any) -> Tensor:
        return self._with_thoughts(layer, *self._before_thoughts(layer, x, *where), memory)

    def _before_thoughts(self, layer: int, x: Tensor, positions: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
        """The residual stream behind self-attention, and cross-attention's queries."""
        x = self._self_attend(layer, x, positions, *how)
        return x, self._queries(layer, x, positions)

    def _with_thoughts(self, layer: int, x: Tensor, queries: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        block = self._block(layer)
        x = x + block.cross_attention.attend(queries, memory)
        return x + block.feed_forward(block.feed_forward_norm(x))  # type: ignore[no-any-return]
