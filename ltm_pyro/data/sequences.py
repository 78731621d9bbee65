"""SequenceDataset: a shard cut into sequences of at most N tokens, packed or one document each.

Both layouts tile the shard's tokens from end to end, so that every token is scored exactly once in an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data.labels import UNKNOWN, renumbering
from ltm_pyro.data.sampler import Sampler
from ltm_pyro.data.shards import Shard
from ltm_pyro.errors import LTMError

__all__ = ["Layout", "SequenceDataset"]

Layout = Literal["packed", "documents"]


class SequenceDataset:
    """Sequences of at most ``sequence_length`` tokens over a shard.

    ``packed`` cuts the documents, joined by end-of-text tokens, into consecutive chunks (the paper); the last
    chunk is short where the length does not divide. ``documents`` makes each document with its end-of-text
    token a sequence of its own; a longer one is cut into consecutive pieces, the last of which carries the
    end-of-text token. In both, ``start`` of a sequence is the token before it, which at a document's start is
    end-of-text.

    Args:
        shard: the tokens.
        layout: ``packed`` or ``documents``.
        sequence_length: N, the greatest length.
        class_names: the names behind the numbers of ``labels``; None is the shard's own. A document whose class
            has another name is unlabelled.
        labelled_fraction: share of the documents that keep their label, chosen by a hash of their text.
        before: the token before the shard's first, where the shard begins inside a document; None is end-of-text.

    Raises:
        LTMError: the length is not positive, the layout unknown or the share outside [0, 1].
    """

    def __init__(
        self,
        shard: Shard,
        layout: Layout,
        sequence_length: int,
        *,
        class_names: Sequence[str] | None = None,
        labelled_fraction: float = 1.0,
        before: int | None = None,
    ) -> None:
        if sequence_length < 1:
            raise LTMError(f"sequence_length={sequence_length}: expected at least 1")
        if not 0.0 <= labelled_fraction <= 1.0:
            raise LTMError(f"labelled_fraction={labelled_fraction}: expected a number between 0 and 1")
        self.shard = shard
        self.layout: Layout = layout
        self.sequence_length = sequence_length
        self._before = shard.manifest.end_of_text if before is None else before
        if layout == "packed":
            starts = np.arange(0, self.num_tokens, sequence_length, dtype=np.int64)
        elif layout == "documents":
            starts = _pieces(shard.offsets, sequence_length)
        else:
            raise LTMError(f"layout={layout!r}: expected packed or documents")
        # Sequence i is tokens[bounds[i]:bounds[i + 1]].
        self._bounds: npt.NDArray[np.int64] = np.append(starts, np.int64(self.num_tokens))
        self.class_names = shard.manifest.classes if class_names is None else tuple(class_names)
        # The class of each document, then an unknown one for sequences that are not of one document.
        self._labels = np.full(self.num_documents + 1, UNKNOWN, dtype=np.int64)
        if shard.labels is not None:
            numbers = renumbering(shard.manifest.classes, self.class_names)[shard.labels["class"]]
            self._labels[:-1] = np.where(shard.labels["draw"] < labelled_fraction, numbers, UNKNOWN)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens scored in an epoch: all of the corpus, with one end-of-text token per document."""
        return self.shard.manifest.num_tokens

    @property
    def num_documents(self) -> int:
        """Documents in the corpus."""
        return self.shard.manifest.num_documents

    @property
    def num_labelled(self) -> int:
        """Documents whose class is known."""
        return int((self._labels != UNKNOWN).sum())

    @property
    def end_of_text(self) -> int:
        """The id that ends every document."""
        return self.shard.manifest.end_of_text

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(sequences,) tokens in each sequence."""
        return np.diff(self._bounds)

    def batch(self, indices: Sequence[int]) -> TokenBatch:
        """The chosen sequences, padded with end-of-text to the longest of them.

        ``labels`` are the numbers of their documents' classes in `class_names`: -1 where the class is unknown, and for
        a sequence with tokens of several documents. They are None where there are no class names.

        Raises:
            LTMError: no index, or one outside 0 … len - 1.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.ndim != 1 or not len(chosen):
            raise LTMError("a batch needs at least one sequence index, got none")
        if chosen.min() < 0 or chosen.max() >= len(self):
            wrong = chosen[(chosen < 0) | (chosen >= len(self))][0]
            raise LTMError(f"sequence index {wrong}: expected 0 … {len(self) - 1}")
        begins, ends = self._bounds[chosen], self._bounds[chosen + 1]
        lengths = ends - begins
        tokens = np.full((len(chosen), int(lengths.max())), self.end_of_text, dtype=np.int64)
        start = np.full(len(chosen), self._before, dtype=np.int64)
        for row, (begin, length) in enumerate(zip(begins.tolist(), lengths.tolist(), strict=True)):
            tokens[row, :length] = self.shard.tokens[begin : begin + length]
            if begin > 0:  # the token before a document's first is the end-of-text of the document before
                start[row] = self.shard.tokens[begin - 1]
        labels = None
        if self.class_names:
            first, last = (np.searchsorted(self.shard.offsets, at, side="right") - 1 for at in (begins, ends - 1))
            labels = torch.from_numpy(self._labels[np.where(first == last, first, -1)])
        return TokenBatch(torch.from_numpy(tokens), torch.from_numpy(lengths), torch.from_numpy(start), labels=labels)

    def sampler(self, batch_size: int, seed: int = 0) -> Sampler:
        """Endless shuffled batches of indices for `batch`."""
        return Sampler(len(self), batch_size, seed)

    def batches(self, indices: Sequence[int], size: int) -> Iterator[TokenBatch]:
        """The chosen sequences in order, ``size`` at a time; the last batch may be smaller."""
        for start in range(0, len(indices), size):
            yield self.batch(indices[start : start + size])

    def document_of(self, index: int) -> range:
        """The documents, from 0, that a sequence has tokens of; an end-of-text token is part of its own."""
        begin, end = self._bounds[index], self._bounds[index + 1]
        first, after = np.searchsorted(self.shard.offsets, [begin, end - 1], side="right")
        return range(int(first) - 1, int(after))

    def __repr__(self) -> str:
        return (
            f"SequenceDataset({len(self)} sequences, layout={self.layout}, "
            f"sequence_length={self.sequence_length}, {self.num_tokens} tokens, "
            f"{self.num_documents} documents)"
        )


def _pieces(offsets: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Where the pieces of all documents begin: every ``length`` tokens from each document's first."""
    counts = -(-np.diff(offsets) // length)
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    within = np.arange(counts.sum(), dtype=np.int64) - firsts
    starts: npt.NDArray[np.int64] = np.repeat(offsets[:-1], counts) + within * length
    return starts
