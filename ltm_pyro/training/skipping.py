"""Slow steps that are left out because the loss or its gradient is not finite, and the texts that they met."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ltm_pyro.data import SequenceDataset, Tokenizer
from ltm_pyro.data.stream_sampler import INDEX_BITS
from ltm_pyro.data.streaming import StreamingDataset
from ltm_pyro.errors import LTMError

__all__ = ["SkippedSteps", "describe_sequences"]

_NAMED = 3  # sequences that a message names, before it counts the others
_SHOWN = 60  # characters of each one's text


class SkippedSteps:
    """Counts them, all and in a row.

    Args:
        most: consecutive ones that are borne.
    """

    def __init__(self, most: int):
        self.most = most
        self.total = 0
        self.in_a_row = 0

    def taken(self) -> None:
        """A step was taken."""
        self.in_a_row = 0

    def skipped(self) -> bool:
        """One was left out; returns whether that was one too many."""
        self.total += 1
        self.in_a_row += 1
        return self.in_a_row > self.most

    def state_dict(self) -> dict[str, int]:
        """Plain numbers for a checkpoint."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on counting from there; a checkpoint of an older version counted none."""
        self.total, self.in_a_row = state.get("total", 0), state.get("in_a_row", 0)


def describe_sequences(
    data: SequenceDataset | StreamingDataset,
    tokenizer: Tokenizer,
    indices: Sequence[int],
    losses: Float[Tensor, " batch"] | None,
    diverged: int = 0,
) -> str:
    """Which sequences of a batch gave a loss that is not finite: their numbers, documents and how their texts begin.

    Where the losses are all finite and only the gradient is not, any sequence of the batch may be it; so it is where
    the fast loop diverged for all.

    Args:
        data: that the batch is from.
        tokenizer: reads the texts.
        indices: of the batch's sequences in ``data``.
        losses: (B,) of the sequences; None where they are not known apart.
        diverged: how many sequences' fast loops led nowhere.
    """
    finite = [True] * len(indices) if losses is None else losses.isfinite().tolist()
    bad = [index for index, good in zip(indices, finite, strict=True) if not good]
    if bad:
        found = "the loss is not finite for"
    elif diverged == len(indices):
        found = "the fast loop diverged for every sequence:"
    else:
        found = "the losses are finite, their gradient is not, of one or more of"
    chosen = bad or list(indices)
    parts = [_identity(data, tokenizer, index) for index in chosen[:_NAMED]]
    if len(chosen) > _NAMED:
        parts.append(f"{len(chosen) - _NAMED} more")
    name = data.source if isinstance(data, StreamingDataset) else data.shard.manifest.name
    return f"{found} {'; '.join(parts)}, in {name}"


def _identity(data: SequenceDataset | StreamingDataset, tokenizer: Tokenizer, index: int) -> str:
    within = ""
    if isinstance(data, StreamingDataset):
        number, index = index >> INDEX_BITS, index & ((1 << INDEX_BITS) - 1)
        window = data.window(number)
        assert window is not None
        data, within = window, f" of window {number}"
    documents = data.document_of(index)
    which = f"document {documents[0]}" if len(documents) == 1 else f"documents {documents[0]} to {documents[-1]}"
    batch = data.batch([index])
    tokens = batch.tokens[0, : int(batch.lengths[0])].tolist()
    try:
        text = f"which begins {' '.join(tokenizer.decode(tokens).split())[:_SHOWN]!r}"
    except LTMError as error:
        text = str(error)
    return f"sequence {index}{within} ({which}, {text})"
