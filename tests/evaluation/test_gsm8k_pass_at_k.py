"""pass@k against every subset, and its standard error."""

from __future__ import annotations

import itertools
import math

import pytest

from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.gsm8k.pass_at_k import mean_and_error, pass_at_k


@pytest.mark.parametrize("draws", range(1, 8))
def test_it_is_the_share_of_subsets_that_hold_a_correct_draw(draws: int):
    for correct, k in itertools.product(range(draws + 1), range(1, draws + 1)):
        right = [n < correct for n in range(draws)]
        subsets = [any(subset) for subset in itertools.combinations(right, k)]
        assert pass_at_k(draws, correct, k) == sum(subsets) / len(subsets)


@pytest.mark.parametrize(("draws", "correct", "k"), [(5000, 3, 2000), (2000, 1999, 2), (9000, 1, 1), (3000, 1500, 9)])
def test_it_is_the_product_of_chances_to_miss_where_the_binomials_are_huge(draws: int, correct: int, k: int):
    missed = math.fsum(math.log1p(-k / i) if k < i else -math.inf for i in range(draws - correct + 1, draws + 1))
    assert pass_at_k(draws, correct, k) == pytest.approx(-math.expm1(missed), rel=1e-10)


@pytest.mark.parametrize("k", [1, 3, 1000])
def test_one_correct_draw_of_a_million_is_not_lost_in_rounding(k: int):
    assert pass_at_k(10**6, 1, k) == k / 10**6


def test_it_is_unbiased():
    # Over all outcomes of six draws that are right with probability p, the mean is 1 - (1 - p)^k.
    p, n = 0.3, 6
    for k in range(1, n + 1):
        outcomes = (math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
        assert sum(outcomes) == pytest.approx(1 - (1 - p) ** k, rel=1e-12)


@pytest.mark.parametrize("numbers", [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6), (0, 0, 1)])
def test_numbers_out_of_range_are_refused(numbers: tuple[int, int, int]):
    with pytest.raises(LTMError):
        pass_at_k(*numbers)


def test_the_error_is_that_of_a_mean_over_problems():
    mean, error = mean_and_error([0.0, 0.5, 1.0, 0.5])
    assert (mean, error) == (0.5, pytest.approx(math.sqrt(((0.25 + 0.25) / 3) / 4)))
    assert mean_and_error([0.25]) == (0.25, None)
