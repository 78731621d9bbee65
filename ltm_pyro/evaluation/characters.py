"""Bits per character: the nats of a text by its own length, which no tokenizer changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ltm_pyro.data import SequenceDataset, Tokenizer
from ltm_pyro.evaluation.protocols import Protocol, Report

__all__ = ["TEXT_PROTOCOLS", "bits_per_character", "characters"]

TEXT_PROTOCOLS: tuple[Protocol, ...] = ("elbo", "iwae", "prequential", "likelihood", "nelbo")
"""The protocols that give the text a probability or bound one; ``reconstruction`` leaves bits out."""

_SEQUENCES = 256  # read at once


def characters(data: SequenceDataset, indices: Sequence[int], tokenizer: Tokenizer) -> int | None:
    """Characters of the scored text, end-of-text tokens left out; None where the tokenizer is not byte-level.

    A character that a cut between two sequences falls into belongs to the one that has its first byte, so that the
    counts of a document's pieces add up to its length.
    """
    counts = tokenizer.characters
    if counts is None:
        return None
    total = 0
    for batch in data.batches(indices, _SEQUENCES):
        total += sum(counts[token] for token in batch.tokens[batch.mask].tolist())
    return total


def bits_per_character(report: Report, characters: int | None) -> dict[str, float | None]:
    r"""``<protocol>_bits_per_character`` of a report's `TEXT_PROTOCOLS`, and the ``characters``.

    .. math:: \frac{\sum_i v_i}{\ln 2 \cdot \text{characters}}

    The end-of-text tokens' nats are in the sum. None is what a point estimate does not have, or no character.
    """
    row: dict[str, float | None] = {}
    for name in TEXT_PROTOCOLS:
        if name in report.protocols:
            nats = float(report.values[name].sum()) if name in report.values else None
            row[f"{name}_bits_per_character"] = (
                nats / math.log(2) / characters if nats is not None and characters else None
            )
    return row | {"characters": characters}
