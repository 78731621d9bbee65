"""Peak bytes of a training step, counted from the sizes of networks and batches alone.

Every part of a network says what it keeps for its backward pass, once with constant weights (the fast loop) and once
with weights that are learned (the slow gradient). A step's peak is the greatest of its moments: the fast loop, the slow
gradient, the optimiser. Counted are tensors, as torch's CPU kernels save them (`ltm_pyro.memory_meter`); what a kernel
needs inside itself, the interpreter and the data set come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from ltm_pyro.decoder.blocks import feed_forward_width
from ltm_pyro.flops import DecoderSize, TransformerSize

__all__ = ["Kept", "StepMemory", "TrainingShape", "slow_step_memory", "transformer_step_memory"]

_WIDE = 4
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


@dataclass(frozen=True)
class StepMemory:
    """Peak bytes at each moment of a step.

    Args:
        fast: of the fast loop; 0 where there is none.
        slow: of the slow gradient.
        optimizer: of the optimiser's step.
    """

    fast: int
    slow: int
    optimizer: int

    @property
    def peak(self) -> int:
        """The greatest."""
        return max(self.fast, self.slow, self.optimizer)


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
        logits_at_once: entries of one chunk of logits (`ltm_pyro.decoder.token_loss`): 2²³, on a GPU 2²⁸.
    """

    batch: int
    length: int
    scored: int | None = None
    heads: int = 1
    autocast: bool = False
    checkpointing: bool = False
    accumulated: int | None = None
    other_weights: int = 0
    logits_at_once: int = 2**23

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
        return 2 if self.autocast else _WIDE

    def rows_at_once(self, vocab_size: int) -> int:
        """Tokens that share a chunk of logits."""
        return min(max(1, self.logits_at_once // vocab_size), self.rows)

    @property
    def sequences(self) -> int:
        """Of the whole step."""
        return max(self.batch, self.accumulated or 0)


def norm_kept(rows: int, width: int) -> Kept:
    """An RMS norm: its input and 1 / RMS; their product, too, where its weight is learned."""
    once = _WIDE * rows * width
    return Kept(once + _WIDE * rows, 2 * once + _WIDE * rows)


def linear_kept(rows: int, inputs: int, outputs: int, item: int) -> Kept:
    """A linear map: its input where its weight is learned. Autocast keeps a narrow copy of the weight."""
    copy = item * inputs * outputs if item < _WIDE else 0
    return Kept(copy, copy + item * rows * inputs)


def rotation_kept(positions: int, head_dim: int, item: int) -> int:
    """Cosines and sines of a rotary embedding."""
    return item * positions * head_dim


def self_attention_kept(shape: TrainingShape, hidden: int, window: int | None) -> Kept:
    """Norm, the map to queries, keys and values, attention, the map of its output.

    Attention keeps rotated queries and keys, the values, which hold the whole product that they are a part of, its own
    output, of which the map reads a copy, and one number a head. Beyond the window it keeps a mask of all pairs.
    """
    tokens, item = shape.tokens, shape.item
    attention = 6 * item * tokens * hidden + _WIDE * tokens * shape.heads
    if window is not None and shape.length > window:
        attention += item * shape.length**2
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


def queries_kept(shape: TrainingShape, hidden: int) -> Kept:
    """Cross-attention's norm and queries, rotated."""
    tokens, item = shape.tokens, shape.item
    queries = item * tokens * hidden + rotation_kept(shape.length, hidden // shape.heads, item)
    return norm_kept(tokens, hidden) + linear_kept(tokens, hidden, hidden, item) + Kept(queries, queries)


def attended_kept(shape: TrainingShape, hidden: int) -> Kept:
    """Cross-attention's output, with one number a head, and the map of it."""
    output = shape.item * shape.tokens * hidden + _WIDE * shape.tokens * shape.heads
    return linear_kept(shape.tokens, hidden, hidden, shape.item) + Kept(output, output)


def thoughts_kept(shape: TrainingShape, hidden: int, per_layer: int, width: int, *, in_place: bool = False) -> Kept:
    """Keys and values of one layer's thoughts, which are constant where the weights are learned.

    Each reads a copy, but for the wide thoughts of a single layer.
    """
    rows, item = shape.batch * per_layer, shape.item
    made = 2 * item * rows * hidden
    if shape.autocast:
        made += rotation_kept(per_layer, hidden // shape.heads, item)
    copies = linear_kept(0, width, hidden, item).fast
    return Kept(made + 2 * copies, made + (0 if in_place else 2 * item * rows * width))


def loss_kept(shape: TrainingShape, hidden: int, vocab_size: int) -> Kept:
    """The token loss: the hidden states' gradient or, where weights are learned, what makes the logits again."""
    rows = shape.rows
    states = shape.item * rows * hidden
    places = (8 + _WIDE) * rows  # which tokens are scored, and their weights in the sum
    copy = shape.item * vocab_size * hidden if shape.autocast else 0
    return Kept(states + places, states + places + 8 * rows + copy)


def logits_bytes(shape: TrainingShape, vocab_size: int) -> int:
    """A chunk of logits; under autocast the product, its wide copy and the narrow one of its gradient."""
    entries = shape.rows_at_once(vocab_size) * vocab_size
    return entries * (_WIDE + 2 * shape.item if shape.autocast else _WIDE)


def stem_kept(size: DecoderSize, shape: TrainingShape) -> Kept:
    """What does not depend on the thoughts; the fast loop keeps nothing of it for a backward pass."""
    if shape.checkpointing:  # its input, and what it gives to the first block
        return Kept(0, _residual(size, shape) + _stem_output(size, shape))
    kept = self_attention_kept(shape, size.hidden, size.window) + queries_kept(shape, size.hidden)
    return Kept(0, kept.slow + _shared_rope(size, shape))


def after_stem_kept(size: DecoderSize, shape: TrainingShape) -> Kept:
    """All layers behind the stem, and the last norm."""
    layers, width = size.layers, _feed_forward(size)
    thought_width = size.hidden if size.thought_width is None else size.thought_width
    in_place = layers == 1 and not shape.autocast
    thoughts = thoughts_kept(shape, size.hidden, size.thoughts_per_layer, thought_width, in_place=in_place) * layers
    kept = thoughts + norm_kept(shape.tokens, size.hidden)
    shared = 0 if shape.autocast else rotation_kept(size.thoughts_per_layer, size.hidden // shape.heads, _WIDE)
    if shape.checkpointing:
        shared += _residual(size, shape) * (layers - 1)
        shared += _rope(size, shape) if layers > 1 else 0
        return kept + Kept(shared, shared)
    shared += _shared_rope(size, shape) if layers > 1 else 0
    block = attended_kept(shape, size.hidden) + swiglu_kept(shape, size.hidden, width)
    before = self_attention_kept(shape, size.hidden, size.window) + queries_kept(shape, size.hidden)
    return kept + block * layers + before * (layers - 1) + Kept(shared, shared)


def slow_step_memory(size: DecoderSize, shape: TrainingShape) -> StepMemory:
    """One `FastSlowSVI.step` with a diagonal normal guide and ``slow_gradient="final"``."""
    thought_width = size.hidden if size.thought_width is None else size.thought_width
    thoughts = _WIDE * size.layers * size.thoughts_per_layer * thought_width  # of one sequence
    local = shape.batch * thoughts
    loss = loss_kept(shape, size.hidden, size.vocab_size)
    kept = stem_kept(size, shape) + after_stem_kept(size, shape) + loss + Kept(0, 8 * shape.tokens)
    again = Kept()
    if shape.checkpointing:
        again = attended_kept(shape, size.hidden) + swiglu_kept(shape, size.hidden, _feed_forward(size))
        if size.layers > 1:
            again += self_attention_kept(shape, size.hidden, size.window) + queries_kept(shape, size.hidden)
    static = _static(size, shape)
    static += 2 * thoughts * (shape.sequences - shape.batch)  # posteriors of the micro-batches before
    # Two leaves, their gradients, two moments each; what the draw and its KL keep.
    fast = static + _stem_output(size, shape) + (8 + 5) * local + kept.fast
    slow = static + (2 + 2) * local + kept.slow
    return StepMemory(
        fast + _moment(size, shape, again.fast, learned=False),
        slow + _moment(size, shape, again.slow, learned=True),
        _optimizer(size, shape) + 2 * shape.sequences * thoughts,
    )


def transformer_step_memory(size: TransformerSize, shape: TrainingShape) -> StepMemory:
    """One training step of a plain Transformer."""
    block = self_attention_kept(shape, size.hidden, size.window if size.causal else None)
    block += swiglu_kept(shape, size.hidden, _feed_forward(size))
    held = (_residual(size, shape) if shape.checkpointing else block.slow) * size.layers
    final = norm_kept(shape.tokens, size.hidden) + loss_kept(shape, size.hidden, size.vocab_size)
    kept = held + final.slow + _shared_rope(size, shape) + 8 * shape.tokens
    moment = _moment(size, shape, block.slow if shape.checkpointing else 0, learned=True)
    return StepMemory(0, _static(size, shape) + kept + moment, _optimizer(size, shape))


def decoder_weights(size: DecoderSize | TransformerSize) -> int:
    """Parameters of a network."""
    hidden, width = size.hidden, _feed_forward(size)
    block = 4 * hidden**2 + 3 * hidden * width + 2 * hidden
    if isinstance(size, DecoderSize):
        thought_width = hidden if size.thought_width is None else size.thought_width
        block += 2 * hidden**2 + 2 * thought_width * hidden + hidden
    return size.vocab_size * hidden + size.layers * block + hidden


def _feed_forward(size: DecoderSize | TransformerSize) -> int:
    return feed_forward_width(size.hidden) if size.feed_forward is None else size.feed_forward


def _residual(size: DecoderSize | TransformerSize, shape: TrainingShape) -> int:
    return _WIDE * shape.tokens * size.hidden


def _stem_output(size: DecoderSize, shape: TrainingShape) -> int:
    return _residual(size, shape) + shape.item * shape.tokens * size.hidden


def _rope(size: DecoderSize | TransformerSize, shape: TrainingShape) -> int:
    return rotation_kept(shape.length, size.hidden // shape.heads, _WIDE)


def _shared_rope(size: DecoderSize | TransformerSize, shape: TrainingShape) -> int:
    """The wide one that queries, keys and layers share, where autocast does not make a narrow copy for each."""
    return 0 if shape.autocast else _rope(size, shape)


def _static(size: DecoderSize | TransformerSize, shape: TrainingShape) -> int:
    """Weights and two moments, and the gradients that micro-batches add up."""
    weights = _WIDE * (decoder_weights(size) + shape.other_weights)
    return (4 if shape.sequences > shape.batch else 3) * weights


def _moment(size: DecoderSize | TransformerSize, shape: TrainingShape, again: int, *, learned: bool) -> int:
    """Bytes beside what is kept, at the worse of two moments: a chunk of logits, or the last block's backward pass.

    Args:
        size: of the network.
        shape: of the step.
        again: what a checkpointed block keeps when it has run again.
        learned: whether the weights are.
    """
    hidden, width = size.hidden, _feed_forward(size)
    tokens, item, rows = shape.tokens, shape.item, shape.rows
    residual, states = _residual(size, shape), item * rows * hidden
    embedding = _WIDE * size.vocab_size * hidden
    narrow = item * size.vocab_size * hidden if shape.autocast else 0  # a narrow copy of it
    logits = logits_bytes(shape, size.vocab_size)
    if learned:  # the gradients of hidden states and of the embedding, and a chunk's share of either
        chunk = item * hidden * shape.rows_at_once(size.vocab_size)
        at_loss = states + embedding + max(chunk, narrow) + logits
    else:  # hidden states, the scored ones of them and their narrow copy
        at_loss = residual + _WIDE * rows * hidden + (states if shape.autocast else 0) + narrow + logits
    # The loss and the last norm are done with; the gradients of the residual stream and of SwiGLU's three parts, one of
    # which takes the place of the product.
    done = norm_kept(tokens, hidden) + loss_kept(shape, hidden, size.vocab_size)
    gradients = residual + (3 - learned) * item * tokens * width + (item * tokens * hidden if shape.autocast else 0)
    if learned:
        gradients += embedding + _WIDE * hidden * width
    return max(at_loss, again + gradients - (done.slow if learned else done.fast))


def _optimizer(size: DecoderSize | TransformerSize, shape: TrainingShape) -> int:
    """Weights, gradients, two moments, and two temporaries of the largest weight."""
    weights = _WIDE * (decoder_weights(size) + shape.other_weights)
    largest = _WIDE * size.hidden * max(size.vocab_size, 3 * size.hidden, 2 * _feed_forward(size))
    return 4 * weights + 2 * largest
