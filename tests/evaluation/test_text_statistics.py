"""Statistics of texts: values computed by hand, and self-BLEU by its definition."""

from __future__ import annotations

import math

import pytest

from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.generation import text_statistics as statistics

TEXTS = [["a", "b", "a", "b", "a"], ["a", "c"]]


def test_words_are_runs_of_letters_and_single_marks():
    assert statistics.words("The fox's den: 3 naïve_cubs, né?") == [
        "The",
        "fox",
        "'",
        "s",
        "den",
        ":",
        "3",
        "naïve_cubs",
        ",",
        "né",
        "?",
    ]
    assert statistics.words(" \n") == []


def test_distinct_counts_ngrams_of_all_texts_and_none_across_two():
    # 7 words: a, b, c. Bigrams ab ba ab ba | ac: 3 kinds of 5. Trigrams aba bab aba: 2 of 3.
    assert [statistics.distinct(TEXTS, n) for n in (1, 2, 3)] == pytest.approx([3 / 7, 3 / 5, 2 / 3])
    assert statistics.distinct(TEXTS, 6) is None


def test_repetition_is_averaged_over_the_texts_that_have_such_ngrams():
    assert statistics.repetition(TEXTS, 1) == pytest.approx((3 / 5 + 0) / 2)
    assert statistics.repetition(TEXTS, 2) == pytest.approx((2 / 4 + 0) / 2)
    assert statistics.repetition(TEXTS, 3) == pytest.approx(1 / 3)
    assert statistics.repetition([[7] * 10], 4) == pytest.approx(6 / 7)
    assert statistics.repetition([[]], 1) is None


def test_repeated_tokens_look_back_within_their_window_and_text():
    assert statistics.repeated_tokens(TEXTS) == pytest.approx(3 / 7)
    assert statistics.repeated_tokens(TEXTS, window=1) == 0
    assert statistics.repeated_tokens([list("abca")], window=2) == 0
    assert statistics.repeated_tokens([list("abca")], window=3) == pytest.approx(1 / 4)


def test_entropy_is_that_of_a_text_by_itself():
    one = -(3 / 5 * math.log(3 / 5) + 2 / 5 * math.log(2 / 5))
    assert statistics.entropy(TEXTS) == pytest.approx((one + math.log(2)) / 2)
    assert statistics.entropy([[1, 1, 1], []]) == 0
    assert statistics.entropy([[]]) is None


def test_clipped_takes_units_from_the_front():
    assert statistics.clipped(TEXTS, 6) == [["a", "b", "a", "b", "a"], ["a"]]
    assert statistics.clipped(TEXTS, 5) == [TEXTS[0]]
    assert statistics.clipped(TEXTS, 2) == [["a", "b"]]
    assert statistics.clipped(TEXTS, 99) == TEXTS


def test_unique_texts_by_their_number():
    assert statistics.unique([[1, 2], [1, 2], [], []]) == 0.5
    assert statistics.unique([]) is None


def test_ngrams_of_no_length_are_refused():
    with pytest.raises(LTMError, match="1 or more, got 0"):
        statistics.distinct(TEXTS, 0)


class TestSelfBleu:
    @pytest.fixture(autouse=True)
    def _package(self):
        pytest.importorskip("sacrebleu", reason="self-BLEU needs the package sacrebleu")

    def test_of_equal_texts_is_one_and_of_one_text_is_nothing(self):
        text = ["a", "b", "c", "d", "e"]
        assert statistics.self_bleu([text, text, text]) == pytest.approx(1)
        assert statistics.self_bleu([text]) is None
        assert statistics.self_bleu([text, ["a", "b", "c"]]) is None  # too short for a 4-gram

    def test_is_that_computed_by_hand(self):
        # Bigrams at most. "a b c" against "a b d": 2 of 3 words, 1 of 2 pairs, no penalty; and the same back.
        assert statistics.self_bleu([list("abc"), list("abd")], n=2) == pytest.approx(math.sqrt(2 / 3 * 1 / 2))
        # Against "abcabc" the brevity penalty of 3 to 6; back, 3 of 6 words and 2 of 5 pairs.
        there, back = math.exp(1 - 6 / 3), math.sqrt(3 / 6 * 2 / 5)
        assert statistics.self_bleu([list("abc"), list("abcabc")], n=2) == pytest.approx((there + back) / 2)

    def test_takes_token_ids_as_it_takes_words(self):
        assert statistics.self_bleu([[1, 2, 3], [1, 2, 4]], n=2) == pytest.approx(
            statistics.self_bleu([["x y", "", "z"], ["x y", "", "?"]], n=2)
        )

    def test_takes_no_more_texts_than_it_is_told(self):
        same, other = list("abcd"), list("efgh")
        assert statistics.self_bleu([same, same, other], most=2) == pytest.approx(1)
        assert statistics.self_bleu([same, same, other]) < 0.9

    def test_is_that_of_the_definition(self):
        texts = [[(i * i + j * (i + 1)) % 7 for j in range(5 + i % 4)] for i in range(12)]
        scores = [bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
        assert statistics.self_bleu(texts) == pytest.approx(sum(scores) / len(scores))
        assert 0.01 < sum(scores) / len(scores) < 0.99


def bleu(text: list[int], references: list[list[int]]) -> float:
    """BLEU-4 of Papineni et al. (2002), a precision without matches being that of 0.1 of them."""
    log = 0.0
    for n in (1, 2, 3, 4):
        grams, *others = ([tuple(x[i : i + n]) for i in range(len(x) - n + 1)] for x in (text, *references))
        matches = sum(min(grams.count(g), max(other.count(g) for other in others)) for g in set(grams))
        log += math.log((matches or 0.1) / len(grams)) / 4
    nearest = min((abs(len(x) - len(text)), len(x)) for x in references)[1]
    return math.exp(log + min(0.0, 1 - nearest / len(text)))


def test_without_its_package_self_bleu_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(LTMError, match=r"self-BLEU needs the package sacrebleu: run `pip install 'ltm-pyro\[bleu\]'`"):
        statistics.self_bleu(TEXTS)
