"""What each part of a network keeps for its backward pass, in bytes, as torch's CPU kernels save it.

Once with constant weights, as in the fast loop, and once with weights that are learned, as for the slow gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "WIDE",
    "Kept",
    "TrainingShape",
    "attended_kept",
    "linear_kept",
    "logits_bytes",
    "loss_kept",
    "norm_kept",
    "queries_kept",
    "rotation_kept",
    "self_attention_kept",
    "swiglu_kept",
    "thoughts_kept",
]

WIDE = 4
"""Bytes of an entry of weights, gradients, moments and the residual stream, under autocast, too."""


@dataclass(frozen=True)
class Kept:
    """Bytes that a part of a network keeps for its backward pass.

    Args:
        fast: with constant weights.
        slow: with weights that are learned.
    """

    fast: int = 0
    slow: int = 0

    def __add__(self, other: Kept) -> Kept:
        return Kept(self.fast + other.fast, self.slow + other.slow)

    def __mul__(self, times: int) -> Kept:
        return Kept(self.fast * times, self.slow * times)


@dataclass(frozen=True, kw_only=True)
class TrainingShape:
    """What a step's memory depends on besides the network.

    Args:
        batch: B, sequences at once.
        length: N, padding included.
        scored: tokens that enter the likelihood; None is all B · N.
        heads: attention heads.
        autocast: the products run in bfloat16.
        checkpointing: blocks keep their inputs alone and run again in the backward pass.
        accumulated: sequences of the whole step, where it takes more than one micro-batch; None is B.
        other_weights: weights of prior and guide.
        logits_at_once: entries of one chunk of logits (`ltm_pyro.decoder.token_loss`): 2²², on a GPU 2²⁸.
        logits_again: the same where the embedding's gradient is made of them: 2²⁴, on a GPU 2²⁸.
    """

    batch: int
    length: int
    scored: int | None = None
    heads: int = 1
    autocast: bool = False
    checkpointing: bool = False
    accumulated: int | None = None
    other_weights: int = 0
    logits_at_once: int = 2**22
    logits_again: int = 2**24

    @property
    def tokens(self) -> int:
        """B · N."""
        return self.batch * self.length

    @property
    def rows(self) -> int:
        """Tokens that meet the vocabulary."""
        return self.tokens if self.scored is None else self.scored

    @property
    def item(self) -> int:
        """Bytes of an entry of what a product makes."""
        return 2 if self.autocast else WIDE

    def rows_at_once(self, vocab_size: int, *, again: bool = False) -> int:
        """Tokens that share a chunk of logits; ``again`` where the embedding's gradient is made of them."""
        entries = self.logits_again if again else self.logits_at_once
        return min(max(1, entries // vocab_size), self.rows)

    @property
    def sequences(self) -> int:
        """Of the whole step."""
        return max(self.batch, self.accumulated or 0)


def norm_kept(rows: int, width: int) -> Kept:
    """An RMS norm: its input and 1 / RMS; their product, too, where its weight is learned."""
    once = WIDE * rows * width
    return Kept(once + WIDE * rows, 2 * once + WIDE * rows)


def linear_kept(rows: int, inputs: int, outputs: int, item: int) -> Kept:
    """A linear map: where its weight is learned, its input, and under autocast a narrow copy of the weight."""
    copy = item * inputs * outputs if item < WIDE else 0
    return Kept(0, copy + item * rows * inputs)


def rotation_kept(positions: int, head_dim: int, item: int) -> int:
    """Cosines and sines of a rotary embedding."""
    return item * positions * head_dim


def self_attention_kept(shape: TrainingShape, hidden: int) -> Kept:
    """Norm, the map to queries, keys and values, attention, the map of its output.

    Attention keeps rotated queries and keys, the values, which hold the whole product that they are a part of, its own
    output, of which the map reads a copy, and one number a head.
    """
    tokens, item = shape.tokens, shape.item
    attention = 6 * item * tokens * hidden + WIDE * tokens * shape.heads
    if shape.autocast:  # a narrow copy for queries, and one for keys
        attention += 2 * rotation_kept(shape.length, hidden // shape.heads, item)
    maps = linear_kept(tokens, hidden, 3 * hidden, item) + linear_kept(tokens, hidden, hidden, item)
    return norm_kept(tokens, hidden) + maps + Kept(attention, attention)


def swiglu_kept(shape: TrainingShape, hidden: int, width: int) -> Kept:
    """Norm, gate and up, silu(gate), and their product where the map that reads it is learned."""
    rows, item = shape.tokens, shape.item
    between = 3 * item * rows * width
    maps = linear_kept(rows, hidden, 2 * width, item) + linear_kept(rows, width, hidden, item)
    return norm_kept(rows, hidden) + maps + Kept(between, between)


def queries_kept(shape: TrainingShape, hidden: int, *, rotated: bool = True) -> Kept:
    """Cross-attention's norm and queries, rotated or as they are."""
    tokens, item = shape.tokens, shape.item
    queries = item * tokens * hidden
    if rotated:
        queries += rotation_kept(shape.length, hidden // shape.heads, item)
    return norm_kept(tokens, hidden) + linear_kept(tokens, hidden, hidden, item) + Kept(queries, queries)


def attended_kept(shape: TrainingShape, hidden: int, *, rotated: bool = True) -> Kept:
    """Cross-attention's output, with one number a head, and the map of it.

    The output lies in memory as the queries do: behind rotated ones the map reads a copy of it.
    """
    output = shape.item * shape.tokens * hidden
    numbers = WIDE * shape.tokens * shape.heads
    kept = Kept(output + numbers, (output if rotated else 0) + numbers)
    return linear_kept(shape.tokens, hidden, hidden, shape.item) + kept


def thoughts_kept(
    shape: TrainingShape, hidden: int, layers: int, per_layer: int, width: int, *, rotated: bool = True
) -> Kept:
    """Keys and values of all layers' thoughts, which are constant where the weights are learned.

    The values hold the product that they are a part of; keys are rotated, or have their addresses added. The product
    reads a copy of the thoughts, but for the wide ones of a single layer.
    """
    rows, item = shape.batch * per_layer, shape.item
    made = 3 * item * layers * rows * hidden
    if rotated:
        made += rotation_kept(per_layer, hidden // shape.heads, item)
    copy = 0 if layers == 1 and not shape.autocast else item * layers * rows * width
    return Kept(made, made + copy)


def loss_kept(shape: TrainingShape, hidden: int, vocab_size: int) -> Kept:
    """The token loss: the hidden states' gradient or, where weights are learned, what makes the logits again."""
    rows = shape.rows
    states = shape.item * rows * hidden
    places = (8 + WIDE) * rows  # which tokens are scored, and their weights in the sum
    copy = shape.item * vocab_size * hidden if shape.autocast else 0
    return Kept(states + places, states + places + 8 * rows + copy)


def logits_bytes(shape: TrainingShape, vocab_size: int, *, again: bool = False) -> int:
    """A chunk of logits and of their softmax; under autocast the narrow product that they are widened from, too."""
    entries = shape.rows_at_once(vocab_size, again=again) * vocab_size
    return entries * (2 * WIDE + shape.item if shape.autocast else 2 * WIDE)
