"""Floating point operations of training and evaluation, counted from the sizes of networks and batches alone.

A multiply-add counts two. Matrix products and attention are counted; elementwise work and the optimisers are not. That
is the convention of torch's counter, whose numbers these are exactly (`ltm_pyro.flop_counter`). Products that a guide
or a prior makes for itself (an encoder, a low-rank factor, a chain of thoughts) are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from ltm_pyro.decoder.blocks import feed_forward_width
from ltm_pyro.decoder.transformer import ThoughtDecoder
from ltm_pyro.decoder.window import BLOCK
from ltm_pyro.errors import LTMError
from ltm_pyro.infer.subsampling import FastStep

if TYPE_CHECKING:  # the baselines count their own steps, so they import this module
    from ltm_pyro.baselines.transformer import PlainBlock, PlainTransformer

__all__ = [
    "Cost",
    "DecoderSize",
    "TransformerSize",
    "attention_cost",
    "infer_flops",
    "linear_cost",
    "prequential_flops",
    "score_flops",
    "slow_step_flops",
    "transformer_flops",
    "transformer_step_flops",
]


@dataclass(frozen=True)
class Cost:
    """Operations of a part of a network: run forward, and its two gradients.

    Args:
        forward: of the values.
        inputs: of the gradient for what the part reads.
        weights: of the gradient for the part's own weights.
    """

    forward: int = 0
    inputs: int = 0
    weights: int = 0

    @property
    def total(self) -> int:
        """Forward and both gradients."""
        return self.forward + self.inputs + self.weights

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward + other.forward, self.inputs + other.inputs, self.weights + other.weights)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.forward * times, self.inputs * times, self.weights * times)


def linear_cost(rows: int, inputs: int, outputs: int) -> Cost:
    """A linear map of so many rows, without a bias."""
    product = 2 * rows * inputs * outputs
    return Cost(product, product, product)


def attention_cost(pairs: int, hidden: int) -> Cost:
    """Scores of pairs of query and key, and their product with the values, over all heads.

    Backward, the scores are made again, and each of the two products has two gradients.
    """
    return Cost(4 * pairs * hidden, 10 * pairs * hidden)


@dataclass(frozen=True, kw_only=True)
class _Size:
    """What a block and the vocabulary of every network here have."""

    layers: int
    hidden: int
    vocab_size: int
    feed_forward: int | None = None
    window: int | None = None
    causal: bool = True
    dense: bool = True

    def pairs(self, length: int) -> int:
        """Pairs of query and key in one self-attention of one sequence."""
        if self.dense:
            if not self.causal or self.window is None or length <= self.window:
                return length**2
            rows = [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
            return sum((end - start) * (end - max(0, start - self.window + 1)) for start, end in rows)
        seen = min(self.window or length, length)
        one_side = seen * (seen + 1) // 2 + (length - seen) * seen
        return one_side if self.causal else 2 * one_side - length

    def self_attention(self, batch: int, length: int) -> Cost:
        """8 N H² for queries, keys, values and output, 4 N² H for the attention, of each sequence."""
        maps = linear_cost(batch * length, self.hidden, 4 * self.hidden)
        return maps + attention_cost(batch * self.pairs(length), self.hidden)

    def swiglu(self, batch: int, length: int) -> Cost:
        """6 N H F of each sequence."""
        width = feed_forward_width(self.hidden) if self.feed_forward is None else self.feed_forward
        return linear_cost(batch * length, self.hidden, 3 * width)

    def vocabulary(self, scored: int) -> int:
        """One product of the scored tokens with the vocabulary, 2 · scored · H · V."""
        return 2 * scored * self.hidden * self.vocab_size


@dataclass(frozen=True, kw_only=True)
class TransformerSize(_Size):
    """Sizes of a plain Transformer with tied embeddings: L blocks of self-attention and SwiGLU.

    Args:
        layers: L.
        hidden: H.
        vocab_size: V.
        feed_forward: width F of the SwiGLU; None is the decoder's own, 2/3 · 4H rounded up to a multiple of 32.
        window: tokens that self-attention sees to one side, the token itself included; None is all.
        causal: True where no token sees those after it.
        dense: count the pairs of positions that the kernel on the CPU works on, as torch's counter does: every pair up
            to the window, and blocks of queries with the keys that any of them sees beyond it; False counts the pairs
            that causality and the window let see, all that an ideal kernel would work on.
    """

    @classmethod
    def of(cls, network: PlainTransformer, *, dense: bool = True) -> TransformerSize:
        """The sizes of a network."""
        block = cast("PlainBlock", network.blocks[0])
        return cls(
            layers=len(network.blocks),
            hidden=network.embedding.embedding_dim,
            vocab_size=network.vocab_size,
            feed_forward=block.feed_forward.down.in_features,
            window=network.window if network.causal else None,
            causal=network.causal,
            dense=dense,
        )

    def blocks(self, batch: int, length: int) -> Cost:
        """All layers, without the product with the vocabulary."""
        return (self.self_attention(batch, length) + self.swiglu(batch, length)) * self.layers


@dataclass(frozen=True, kw_only=True)
class DecoderSize(_Size):
    """Sizes of a `ThoughtDecoder`: a Transformer whose every block cross-attends to its own n thoughts, too.

    Args:
        layers: L.
        hidden: H.
        vocab_size: V.
        feed_forward: as for `TransformerSize`, and so the next three.
        window: tokens that self-attention sees.
        causal: True.
        dense: count the pairs that are worked on, or those that are seen.
        thoughts_per_layer: n.
        thought_width: width w of a thought vector; None is H.
        thought_addresses: whether thoughts have learned vectors that are added to their keys.
    """

    thoughts_per_layer: int
    thought_width: int | None = None
    thought_addresses: bool = False

    @classmethod
    def of(cls, decoder: ThoughtDecoder, *, dense: bool = True) -> DecoderSize:
        """The sizes of a decoder."""
        layers, per_layer, width = decoder.thought_shape
        return cls(
            layers=layers,
            hidden=decoder.embedding.embedding_dim,
            vocab_size=decoder.vocab_size,
            window=decoder.window,
            dense=dense,
            thoughts_per_layer=per_layer,
            thought_width=width,
            thought_addresses=decoder.thought_addresses,
        )

    def memory(self, batch: int) -> Cost:
        """Keys and values of one layer's thoughts, 4 n w H of each sequence."""
        width = self.hidden if self.thought_width is None else self.thought_width
        return linear_cost(batch * self.thoughts_per_layer, width, 2 * self.hidden)

    def stem(self, batch: int, length: int) -> Cost:
        """What does not depend on the thoughts: the first self-attention and cross-attention queries."""
        return self.self_attention(batch, length) + linear_cost(batch * length, self.hidden, self.hidden)

    def after_stem(self, batch: int, length: int) -> Cost:
        """All that does, without the product with the vocabulary. Keys and values are counted per set of thoughts."""
        tokens = batch * length
        attention = attention_cost(tokens * self.thoughts_per_layer, self.hidden)
        attended = attention + linear_cost(tokens, self.hidden, self.hidden)
        layer = self.memory(batch) + attended + self.swiglu(batch, length)
        return layer * self.layers + self.stem(batch, length) * (self.layers - 1)

    def blocks(self, batch: int, length: int) -> Cost:
        """All layers, without the product with the vocabulary."""
        return self.stem(batch, length) + self.after_stem(batch, length)


def transformer_flops(size: TransformerSize, batch: int, length: int, scored: int) -> int:
    """One evaluation of a plain Transformer: forward, and the log-probabilities of the scored tokens."""
    return size.blocks(batch, length).forward + size.vocabulary(scored)


def transformer_step_flops(size: TransformerSize, batch: int, length: int, scored: int) -> int:
    """One training step of a plain Transformer on B padded sequences of N tokens.

    The token loss makes its logits again in the backward pass: four products with the vocabulary, not three.
    """
    return size.blocks(batch, length).total + 4 * size.vocabulary(scored)


def infer_flops(
    size: DecoderSize, batch: int, length: int, scored: int, *, fast_steps: int | Sequence[FastStep]
) -> int:
    """One fast loop (`FastSlowSVI.infer`).

    The stem once; then, each step, forward after it, the gradient for the thoughts, and two products with the
    vocabulary: the logits, and the hidden states' gradient, which the token loss takes while they are at hand.

    Args:
        size: of the decoder.
        batch: B.
        length: N, padding included: the blocks run on it.
        scored: tokens of the batch that enter the likelihood; padding meets no vocabulary.
        fast_steps: T_fast; or, where the steps run on fewer and fewer sequences or on some of the tokens, what each of
            them ran on (`Posterior.fast_steps`, `planned_steps`).
    """
    sequences, tokens = _ran_on(batch, scored, fast_steps)
    after = size.after_stem(sequences, length)
    return size.stem(batch, length).forward + after.forward + after.inputs + 2 * size.vocabulary(tokens)


def slow_step_flops(
    size: DecoderSize,
    batch: int,
    length: int,
    scored: int,
    *,
    fast_steps: int | Sequence[FastStep],
    slow_gradient: Literal["final", "trajectory"] = "final",
) -> int:
    """One `FastSlowSVI.step` whose guide has no weights: the fast loop, then the gradient for the weights.

    The fitted thoughts are constants of the last backward pass, so their own gradient is left out of it. The slow
    gradient of a ``trajectory`` is taken at every fast step, the stem in it: forward and both gradients all the way.
    """
    whole, thoughts = size.blocks(batch, length), size.memory(batch).inputs * size.layers
    full_step = whole.total + 4 * size.vocabulary(scored)
    if slow_gradient == "trajectory":
        sequences, tokens = _ran_on(batch, scored, fast_steps)
        return size.blocks(sequences, length).total + 4 * size.vocabulary(tokens) + full_step - thoughts
    return infer_flops(size, batch, length, scored, fast_steps=fast_steps) + full_step - thoughts


def _ran_on(batch: int, scored: int, fast_steps: int | Sequence[FastStep]) -> tuple[int, int]:
    """Sequences and scored tokens of all the steps together: no part of the network costs more in company."""
    if isinstance(fast_steps, int):
        return batch * fast_steps, scored * fast_steps
    return sum(step.sequences for step in fast_steps), sum(step.tokens for step in fast_steps)


def score_flops(
    size: DecoderSize,
    batch: int,
    length: int,
    scored: int,
    *,
    fast_steps: int | Sequence[FastStep],
    samples: int = 1,
) -> int:
    """One fit and S draws of it scored: the protocols ``elbo`` and ``reconstruction`` together, and ``iwae``."""
    fit = infer_flops(size, batch, length, scored, fast_steps=fast_steps)
    return fit + _score(size, batch, length, scored, samples)


def prequential_flops(
    size: DecoderSize, lengths: Sequence[int], *, fast_steps: int, samples: int = 1, block_size: int = 32
) -> int:
    """The protocol ``prequential`` on one batch: a fit to every prefix, S draws of it for the block that follows.

    Args:
        size: of the decoder.
        lengths: tokens of each sequence, all of them scored.
        fast_steps: T_fast.
        samples: S.
        block_size: tokens of a block.

    Raises:
        LTMError: ``block_size`` is below 1.
    """
    if block_size < 1:
        raise LTMError(f"block_size must be 1 or more, got {block_size}")
    total, longest = 0, max(lengths, default=0)
    for start in range(0, longest, block_size):
        reached = [length for length in lengths if length > start]
        end = min(start + block_size, longest)
        if start:
            total += infer_flops(size, len(reached), start, len(reached) * start, fast_steps=fast_steps)
        scored = sum(min(length, end) - start for length in reached)
        total += _score(size, len(reached), end, scored, samples)
    return total


def _score(size: DecoderSize, batch: int, length: int, scored: int, samples: int) -> int:
    """S sets of thoughts per sequence, forward; the stem once."""
    after = size.after_stem(batch, length).forward + size.vocabulary(scored)
    return size.stem(batch, length).forward + samples * after
