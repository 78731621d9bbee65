"""MAUVE: 1 for the same texts, near 0 for disjoint ones, a spread over the clusterings, and the authors' own number."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.generation.mauve import mauve

installed = pytest.mark.skipif("not __import__('importlib').util.find_spec('mauve')", reason="needs mauve-text")


def features(num: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, 6)) + shift


@installed
def test_equal_texts_have_one_and_disjoint_ones_next_to_nothing():
    same = mauve(features(40), features(40))
    assert same.mean == pytest.approx(1, abs=1e-6)
    assert same.std == pytest.approx(0, abs=1e-9)
    assert mauve(features(40, shift=50), features(40, seed=1)).mean < 0.05


@installed
def test_two_point_histograms_have_the_area_that_the_formula_gives():
    """Features at two points are two buckets for certain: P = (3/4, 1/4), Q = (1/4, 3/4)."""
    a, b = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    p, q = np.array([0.75, 0.25]), np.array([0.25, 0.75])
    found = mauve(np.array([a] + [b] * 3), np.array([a] * 3 + [b]), buckets=2, seeds=2)

    def kl(x: np.ndarray, y: np.ndarray) -> float:
        return float((x * np.log(x / y)).sum())

    # exp(-c KL) along the mixtures, c = 5, and the area below by trapezia.
    mixtures = [w * p + (1 - w) * q for w in np.linspace(1e-6, 1 - 1e-6, 25)]
    curve = np.array([[0, 1], *([np.exp(-5 * kl(q, r)), np.exp(-5 * kl(p, r))] for r in mixtures), [1, 0]])
    curve = curve[np.lexsort((-curve[:, 1], curve[:, 0]))]
    area = float((np.diff(curve[:, 0]) * (curve[1:, 1] + curve[:-1, 1]) / 2).sum())
    assert found.mean == pytest.approx(area, abs=1e-6)
    assert found.values[0] == pytest.approx(found.values[1], abs=1e-9)


@installed
def test_clusterings_differ_by_their_seeds_and_repeat_with_them():
    one = mauve(features(60), features(60, shift=0.5, seed=1), seeds=4)
    assert len(set(one.values)) > 1
    assert one.mean == pytest.approx(np.mean(one.values))
    assert one.std == pytest.approx(np.sqrt(np.square(np.array(one.values) - one.mean).sum() / 3))
    assert mauve(features(60), features(60, shift=0.5, seed=1), seeds=4).values == one.values
    assert mauve(features(60), features(60, shift=0.5, seed=1), seeds=1, seed=2).values == one.values[2:3]
    assert mauve(features(60), features(60), seeds=1).std is None


@installed
@pytest.mark.parametrize(("sides", "buckets"), [((4, 9), 2), ((60, 40), 4), ((26, 26), 3)])
def test_buckets_are_a_tenth_of_the_smaller_side(sides: tuple[int, int], buckets: int):
    found = mauve(features(sides[0]), features(sides[1], seed=1), seeds=1)
    assert (found.buckets, found.texts) == (buckets, sides)


@installed
def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]):
    mauve(features(20), features(20, seed=1))
    print("seen", file=sys.stderr)
    assert capfd.readouterr() == ("", "seen\n")


@pytest.mark.parametrize(
    ("generated", "reference", "options", "words"),
    [
        (features(1), features(9), {}, "2 texts or more on each side, got 1 and 9"),
        (features(9)[:, :3], features(9), {}, "one width"),
        (features(9) * np.nan, features(9), {}, "finite features"),
        (features(9), features(9), {"buckets": 19}, "at most the 18 texts, got 19"),
        (features(9), features(9), {"buckets": 1}, "2 or more"),
        (features(9), features(9), {"seeds": 0}, "seeds must be 1 or more"),
    ],
)
def test_unusable_features_are_refused(generated: np.ndarray, reference: np.ndarray, options: dict, words: str):
    with pytest.raises(LTMError, match=words):
        mauve(generated, reference, **options)


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(LTMError, match=r"MAUVE needs the package mauve: run `pip install 'ltm-pyro\[mauve\]'`"):
        mauve(features(9), features(9))
