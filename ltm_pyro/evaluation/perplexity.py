"""Perplexity per token and per word, of the protocols that give text a probability or bound one, and of no other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ltm_pyro.data import SequenceDataset, Tokenizer
from ltm_pyro.evaluation.protocols import Report

__all__ = ["PROBABILITIES", "UPPER_BOUNDS", "count_words", "exp_or_none", "perplexities", "words"]

PROBABILITIES = ("prequential", "likelihood")
"""Protocols that give the text a probability."""
UPPER_BOUNDS = ("elbo", "iwae", "nelbo")
"""Protocols that bound that probability from below: their perplexities are upper bounds."""

_BLANKS = b" \t\n\r\x0b\x0c"
_SEQUENCES = 256  # read at once


def count_words(text: str) -> int:
    """Runs of characters other than ASCII white space."""
    return len(text.encode("utf-8", "surrogatepass").split())


def words(data: SequenceDataset, indices: Sequence[int], tokenizer: Tokenizer) -> int | None:
    """Words of the scored text (`count_words`); None where the tokenizer is not byte-level.

    A word that a cut between two sequences falls into belongs to the one that has its first byte, so that the counts of
    a document's pieces add up to its own.
    """
    pieces = tokenizer.pieces
    if pieces is None:
        return None
    # Of each token: words that begin inside it, whether one begins at its first byte after a blank, its ending in one.
    inside = np.array([max(len((b"x" + piece).split()) - 1, 0) for piece in pieces])
    begins = np.array([piece[:1] not in _BLANKS if piece else False for piece in pieces])
    ends = np.array([piece[-1:] in _BLANKS for piece in pieces])  # special tokens, being empty, end words too
    total = 0
    for batch in data.batches(indices, _SEQUENCES):
        tokens, before, mask = batch.tokens.numpy(), batch.inputs.numpy(), batch.mask.numpy()
        found = inside[tokens] + (begins[tokens] & ends[before])
        total += int(found[mask].sum())
    return total


def perplexities(report: Report, words: float | None) -> dict[str, float | None]:
    r"""``<protocol>_perplexity`` and ``<protocol>_perplexity_per_word`` of a report's protocols, and the ``words``.

    .. math:: \exp \frac{\sum_i v_i}{\text{tokens}}, \qquad \exp \frac{\sum_i v_i}{\text{words}}

    They are there for `PROBABILITIES` and, as upper bounds, for `UPPER_BOUNDS`. ``reconstruction``, which leaves the KL
    out, has none. None is what a point estimate does not have, what has no words, and what no float can hold.
    """
    row: dict[str, float | None] = {}
    tokens = int(report.num_scored.sum())
    for name in (name for name in report.protocols if name in PROBABILITIES + UPPER_BOUNDS):
        nats = float(report.values[name].sum()) if name in report.values else None
        row[f"{name}_perplexity"] = exp_or_none(nats, tokens)
        row[f"{name}_perplexity_per_word"] = exp_or_none(nats, words)
    return row | {"words": words}


def exp_or_none(nats: float | None, count: float | None) -> float | None:
    """exp(nats / count); None where either is missing, there is nothing to count, or no float holds the result."""
    if nats is None or not count:
        return None
    try:
        return math.exp(nats / count)
    except OverflowError:
        return None
