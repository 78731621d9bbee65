"""Texts in memory as sequences: what `ltm-pyro eval` would make of a file of them, and contexts with what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data.sequences import SequenceDataset
from ltm_pyro.data.shards import Manifest, Shard
from ltm_pyro.data.tokenizer import Tokenizer

__all__ = ["pieces_of_texts", "scored_ends", "shard_in_memory"]


def shard_in_memory(
    tokens: Sequence[int], lengths: Sequence[int] | npt.NDArray[np.int64], tokenizer: Tokenizer
) -> Shard:
    """A shard that no file holds: its tokens, and how many of them each document has."""
    ids = np.array(tokens, np.int64)
    manifest = Manifest(
        format=1,
        dtype=ids.dtype.str,
        num_tokens=len(ids),
        num_documents=len(lengths),
        end_of_text=tokenizer.end_of_text,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer.digest,
        source="",
        name="texts in memory",
        tokens_sha256="",
        documents_sha256="",
    )
    return Shard(ids, np.cumsum([0, *lengths], dtype=np.int64), manifest)


def scored_ends(sequences: Sequence[Sequence[int]], starts: Sequence[int], counts: Sequence[int]) -> TokenBatch:
    """Sequences of which the last tokens alone are scored, so many of each: what stands before them is context."""
    batch = TokenBatch.from_lists(sequences, starts)
    places = torch.arange(batch.tokens.shape[1])
    return replace(batch, scored=places >= (batch.lengths - torch.tensor(counts))[:, None])


def pieces_of_texts(
    texts: Sequence[str], tokenizer: Tokenizer, sequence_length: int, *, end_of_text: bool = True
) -> tuple[SequenceDataset, list[range]]:
    """Each text as a document of its own, cut into consecutive pieces as the layout ``documents`` cuts them.

    Args:
        texts: M of them.
        tokenizer: of the model.
        sequence_length: greatest number of tokens in a piece.
        end_of_text: whether a document's end-of-text token is part of it, as in a corpus. Without it the data set has
            that token between the documents, in pieces that are nobody's, so that a document still starts after one.

    Returns:
        The data set, and the indices of each text's pieces in it: none for a text without tokens.
    """
    documents = [[*ids, tokenizer.end_of_text] for ids in tokenizer.encode_batch(texts)]
    lengths = np.array([len(ids) for ids in documents], np.int64)
    parts = lengths if end_of_text else np.stack([lengths - 1, np.ones_like(lengths)], 1).reshape(-1)
    shard = shard_in_memory(list(chain.from_iterable(documents)), parts, tokenizer)
    counts = -(-parts // sequence_length)
    firsts = counts.cumsum() - counts
    pieces = [range(first, first + count) for first, count in zip(firsts.tolist(), counts.tolist(), strict=True)]
    return SequenceDataset(shard, "documents", sequence_length), pieces if end_of_text else pieces[::2]
