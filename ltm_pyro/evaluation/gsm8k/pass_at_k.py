"""pass@k: the probability that at least one of k draws solves a problem, estimated from n draws without bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from ltm_pyro.errors import LTMError

__all__ = ["mean_and_error", "pass_at_k"]


def pass_at_k(draws: int, correct: int, k: int) -> float:
    r"""The unbiased estimate of pass@k from n draws of which c are correct.

    .. math:: 1 - \binom{n - c}{k} \Big/ \binom{n}{k}

    The share of the k-subsets of the draws that hold a correct one. It is computed in whole numbers, so that the one
    rounding is that of the division.

    Args:
        draws: n.
        correct: c.
        k: at most n.

    Raises:
        LTMError: not 0 ≤ c ≤ n, or not 1 ≤ k ≤ n.

    References: Chen et al. (2021), Evaluating Large Language Models Trained on Code.
    """
    if not 0 <= correct <= draws:
        raise LTMError(f"{correct} correct draws of {draws}: expected 0 to {draws}")
    if not 1 <= k <= draws:
        raise LTMError(f"pass@{k} needs {max(k, 1)} or more draws for each problem, got {draws}: raise the samples")
    subsets = math.comb(draws, k)
    return (subsets - math.comb(draws - correct, k)) / subsets


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean over problems and its standard error, s / √M; no error for a single problem."""
    if len(values) < 2:
        return fmean(values), None
    return fmean(values), stdev(values) / math.sqrt(len(values))
