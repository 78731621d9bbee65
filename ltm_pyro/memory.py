"""Peak bytes of a training step, counted from the sizes of networks and batches alone.

A step's peak is the greatest of its moments: the fast loop, the slow gradient, the optimiser. Each is what stands there
(weights, moments, gradients), what the parts of the network keep (`ltm_pyro.memory_parts`), and what is made beside it.
Counted are tensors (`ltm_pyro.memory_meter`); what a kernel needs inside itself, the interpreter and the data set come
on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from ltm_pyro.decoder.blocks import feed_forward_width
from ltm_pyro.flops import DecoderSize, TransformerSize
from ltm_pyro.memory_parts import (
    WIDE,
    Kept,
    TrainingShape,
    attended_kept,
    logits_bytes,
    loss_kept,
    norm_kept,
    queries_kept,
    rotation_kept,
    self_attention_kept,
    swiglu_kept,
    thoughts_kept,
)

__all__ = [
    "StepMemory",
    "TrainingShape",
    "after_stem_kept",
    "decoder_weights",
    "held_weights",
    "slow_step_memory",
    "stem_kept",
    "transformer_step_memory",
]


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


def stem_kept(size: DecoderSize, shape: TrainingShape) -> Kept:
    """What does not depend on the thoughts; the fast loop keeps nothing of it for a backward pass."""
    if shape.checkpointing:  # its input, and what it gives to the first block
        return Kept(0, _residual(size, shape) + _stem_output(size, shape))
    kept = self_attention_kept(shape, size.hidden) + queries_kept(
        shape, size.hidden, rotated=not size.thought_addresses
    )
    return Kept(0, kept.slow + _shared_rope(size, shape))


def after_stem_kept(size: DecoderSize, shape: TrainingShape) -> Kept:
    """All layers behind the stem, and the last norm."""
    layers, width = size.layers, _feed_forward(size)
    rotated, each = not size.thought_addresses, _thought_width(size)
    kept = thoughts_kept(shape, size.hidden, layers, size.thoughts_per_layer, each, rotated=rotated)
    kept += norm_kept(shape.tokens, size.hidden)
    if shape.checkpointing:
        shared = _residual(size, shape) * (layers - 1) + (_rope(size, shape) if layers > 1 else 0)
        return kept + Kept(shared, shared)
    shared = _shared_rope(size, shape) if layers > 1 else 0
    block = attended_kept(shape, size.hidden, rotated=not size.thought_addresses) + swiglu_kept(
        shape, size.hidden, width
    )
    before = self_attention_kept(shape, size.hidden) + queries_kept(
        shape, size.hidden, rotated=not size.thought_addresses
    )
    return kept + block * layers + before * (layers - 1) + Kept(shared, shared)


def slow_step_memory(size: DecoderSize, shape: TrainingShape) -> StepMemory:
    """One `FastSlowSVI.step` with a diagonal normal guide and ``slow_gradient="final"``."""
    thoughts = WIDE * size.layers * size.thoughts_per_layer * _thought_width(size)  # of one sequence
    local = shape.batch * thoughts
    loss = loss_kept(shape, size.hidden, size.vocab_size)
    kept = stem_kept(size, shape) + after_stem_kept(size, shape) + loss + Kept(0, 8 * shape.tokens)
    block = attended_kept(shape, size.hidden, rotated=not size.thought_addresses) + swiglu_kept(
        shape, size.hidden, _feed_forward(size)
    )
    end = stem_kept(size, shape).slow + block.slow
    if shape.checkpointing and size.layers > 1:  # the second block is the first that has all of a block's parts
        block += self_attention_kept(shape, size.hidden) + queries_kept(
            shape, size.hidden, rotated=not size.thought_addresses
        )
        end = stem_kept(size, shape).slow + _residual(size, shape) + block.slow
    again = block if shape.checkpointing else Kept()
    static = _static(size, shape)
    static += 2 * thoughts * (shape.sequences - shape.batch)  # posteriors of the micro-batches before
    # Two leaves, their gradients, two moments each; what the draw and its KL keep.
    fast = static + held_weights(size, shape) + _stem_output(size, shape) + (8 + 5) * local + kept.fast
    slow = static + (2 + 2) * local
    return StepMemory(
        fast + _moment(size, shape, again.fast, learned=False),
        slow + max(kept.slow + _moment(size, shape, again.slow, learned=True), end + _end(size, shape)),
        _optimizer(size, shape) + 2 * shape.sequences * thoughts,
    )


def transformer_step_memory(size: TransformerSize, shape: TrainingShape) -> StepMemory:
    """One training step of a plain Transformer."""
    block = self_attention_kept(shape, size.hidden)
    block += swiglu_kept(shape, size.hidden, _feed_forward(size))
    held = (_residual(size, shape) if shape.checkpointing else block.slow) * size.layers
    final = norm_kept(shape.tokens, size.hidden) + loss_kept(shape, size.hidden, size.vocab_size)
    kept = held + final.slow + _shared_rope(size, shape) + 8 * shape.tokens
    moment = _moment(size, shape, block.slow if shape.checkpointing else 0, learned=True)
    slow = _static(size, shape) + max(kept + moment, _residual(size, shape) + block.slow + _end(size, shape))
    return StepMemory(0, slow, _optimizer(size, shape))


def decoder_weights(size: DecoderSize | TransformerSize) -> int:
    """Parameters of a network."""
    hidden, width = size.hidden, _feed_forward(size)
    block = 4 * hidden**2 + 3 * hidden * width + 2 * hidden
    if isinstance(size, DecoderSize):
        block += 2 * hidden**2 + 2 * _thought_width(size) * hidden + hidden + _addresses(size)
    return size.vocab_size * hidden + size.layers * block + hidden


def held_weights(size: DecoderSize, shape: TrainingShape) -> int:
    """Bytes of what the fast loop makes of constant weights (`ltm_pyro.decoder.linear.held`).

    All thoughts' maps to keys and values in one and, under autocast, a narrow copy of every map and of the embedding.
    """
    as_they_are = (3 * size.layers + 1) * size.hidden + size.layers * _addresses(size)
    copies = shape.item * (decoder_weights(size) - as_they_are) if shape.autocast else 0
    return copies + 2 * shape.item * size.layers * _thought_width(size) * size.hidden


def _addresses(size: DecoderSize) -> int:
    """Parameters of one layer's addresses."""
    return size.thoughts_per_layer * size.hidden if size.thought_addresses else 0


def _thought_width(size: DecoderSize) -> int:
    return size.hidden if size.thought_width is None else size.thought_width


def _feed_forward(size: DecoderSize | TransformerSize) -> int:
    return feed_forward_width(size.hidden) if size.feed_forward is None else size.feed_forward


def _residual(size: DecoderSize | TransformerSize, shape: TrainingShape) -> int:
    return WIDE * shape.tokens * size.hidden


def _stem_output(size: DecoderSize, shape: TrainingShape) -> int:
    return _residual(size, shape) + shape.item * shape.tokens * size.hidden


def _rope(size: DecoderSize | TransformerSize, shape: TrainingShape) -> int:
    return rotation_kept(shape.length, size.hidden // shape.heads, WIDE)


def _shared_rope(size: DecoderSize | TransformerSize, shape: TrainingShape) -> int:
    """The wide one that queries, keys and layers share, where autocast does not make a narrow copy for each."""
    return 0 if shape.autocast else _rope(size, shape)


def _static(size: DecoderSize | TransformerSize, shape: TrainingShape) -> int:
    """Weights and two moments, and the gradients that micro-batches add up."""
    weights = WIDE * (decoder_weights(size) + shape.other_weights)
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
    embedding = WIDE * size.vocab_size * hidden
    at_loss = _backward_of_loss(size, shape) if learned else _forward_of_loss(size, shape)
    # The loss and the last norm are done with; the gradients of the residual stream and of SwiGLU's three parts, one of
    # which takes the place of the product.
    done = norm_kept(shape.tokens, hidden) + loss_kept(shape, hidden, size.vocab_size)
    gradients = _swiglu_gradients(size, shape, tensors=2 if learned else 3)
    if learned:
        gradients += embedding + WIDE * hidden * width
    return max(at_loss, again + gradients - (done.slow if learned else done.fast))


def _forward_of_loss(size: DecoderSize | TransformerSize, shape: TrainingShape) -> int:
    """Hidden states, the scored ones and their narrow copy, and a chunk of logits, whose gradient is taken at once.

    A narrow copy of the probabilities meets the embedding when the logits are gone.
    """
    at_once, vocab = shape.rows_at_once(size.vocab_size), size.vocab_size
    chunk = shape.item * at_once * size.hidden  # of the hidden states' gradient
    narrow = shape.item * at_once * vocab if shape.autocast else 0
    before = chunk if at_once < shape.rows else 0  # that of the chunk before
    states = shape.rows * size.hidden * (WIDE + (shape.item if shape.autocast else 0))
    logits = logits_bytes(shape, vocab)
    return _residual(size, shape) + states + max(before + logits, WIDE * at_once * vocab + narrow + 2 * chunk)


def _backward_of_loss(size: DecoderSize | TransformerSize, shape: TrainingShape) -> int:
    """The gradients of hidden states and of the embedding, with a chunk of logits or its share of the latter."""
    at_once, vocab = shape.rows_at_once(size.vocab_size, again=True), size.vocab_size
    narrow = shape.item * at_once * vocab if shape.autocast else 0
    before = narrow if at_once < shape.rows else 0  # that of the chunk before
    gradients = shape.item * shape.rows * size.hidden + WIDE * vocab * size.hidden
    share = shape.item * size.hidden * max(at_once, vocab)
    logits = logits_bytes(shape, vocab, again=True)
    return gradients + max(before + logits, WIDE * at_once * vocab + narrow + share)


def _end(size: DecoderSize | TransformerSize, shape: TrainingShape) -> int:
    """Bytes beside what the first blocks keep when the backward pass reaches them: the gradients of all later ones."""
    embedding, blocks = size.vocab_size * size.hidden, decoder_weights(size) - size.vocab_size * size.hidden
    later = max(size.layers - (2 if shape.checkpointing else 1), 0)
    learned = embedding + (0 if shape.sequences > shape.batch else blocks * later // size.layers)
    return WIDE * learned + _swiglu_gradients(size, shape, tensors=2)


def _swiglu_gradients(size: DecoderSize | TransformerSize, shape: TrainingShape, *, tensors: int) -> int:
    """Those of the residual stream and of parts of a SwiGLU, in its backward pass."""
    narrow = shape.item * shape.tokens * size.hidden if shape.autocast else 0
    return _residual(size, shape) + narrow + tensors * shape.item * shape.tokens * _feed_forward(size)


def _optimizer(size: DecoderSize | TransformerSize, shape: TrainingShape) -> int:
    """Weights, gradients, two moments, and two temporaries of the largest weight."""
    weights = WIDE * (decoder_weights(size) + shape.other_weights)
    largest = WIDE * size.hidden * max(size.vocab_size, 3 * size.hidden, 2 * _feed_forward(size))
    return 4 * weights + 2 * largest
