"""MAUVE: how close two sets of texts are as distributions over clusters of a model's features."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ltm_pyro.data.files import optional_import
from ltm_pyro.errors import LTMError

__all__ = ["Mauve", "mauve"]


@dataclass(frozen=True)
class Mauve:
    """MAUVE under several clusterings of the same features.

    Args:
        values: one score in 0 … 1 for each seed of the clustering.
        buckets: clusters, the bins of the two histograms.
        texts: texts of each side, generated and reference.
    """

    values: tuple[float, ...]
    buckets: int
    texts: tuple[int, int]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds, None for a single one; what other texts would change is not in it."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


def mauve(
    generated: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    *,
    buckets: int | None = None,
    seeds: int = 5,
    seed: int = 0,
) -> Mauve:
    """MAUVE of two sets of features (texts, width) by the package mauve-text, at its own settings.

    It depends on the numbers of texts and buckets and on the features: only scores of the same ones compare.

    Args:
        generated: features of the model's texts.
        reference: features of real texts.
        buckets: clusters; None is a tenth of the smaller set, at least 2.
        seeds: clusterings, of which each has a seed of its own.
        seed: of the first.

    Raises:
        LTMError: the package is not there, there are fewer than two texts on a side, features of different widths or
            not finite, or more buckets than texts.

    References: Pillutla et al. (2021), MAUVE: Measuring the Gap Between Neural Text and Human Text using Divergence
    Frontiers; Pillutla et al. (2023), MAUVE Scores for Generative Models: Theory and Practice.
    """
    texts = (len(generated), len(reference))
    if min(texts) < 2:
        raise LTMError(f"MAUVE needs 2 texts or more on each side, got {texts[0]} and {texts[1]}: raise the number")
    if generated.shape[1:] != reference.shape[1:] or generated.ndim != 2:
        raise LTMError(f"MAUVE needs features of one width, got shapes {generated.shape} and {reference.shape}")
    if not (np.isfinite(generated).all() and np.isfinite(reference).all()):
        raise LTMError("MAUVE needs finite features: the model that they come from gives NaN or infinity")
    buckets = max(2, round(min(texts) / 10)) if buckets is None else buckets
    if not 2 <= buckets <= sum(texts):
        raise LTMError(f"MAUVE's buckets must be 2 or more and at most the {sum(texts)} texts, got {buckets}")
    if seeds < 1:
        raise LTMError(f"MAUVE's seeds must be 1 or more, got {seeds}")
    compute = optional_import("mauve", "MAUVE", "mauve").compute_mauve
    with _quiet():
        found = [
            compute(p_features=reference, q_features=generated, num_buckets=buckets, seed=seed + i).mauve
            for i in range(seeds)
        ]
    return Mauve(tuple(float(value) for value in found), buckets, texts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, nothing is written to standard error: the clustering library writes there, past Python, at every call.

    It warns of fewer than 39 texts a bucket, which the package's own default of a tenth never reaches.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
