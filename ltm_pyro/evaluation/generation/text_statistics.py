"""Statistics of a set of texts by their n-grams: diversity, repetition, self-BLEU.

A text is a sequence of units: words, or token ids. No statistic says by itself that texts are good: each is compared
with its value on real texts of the same number and greatest length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import chain

import numpy as np

from ltm_pyro.data.files import optional_import
from ltm_pyro.errors import LTMError

__all__ = ["clipped", "distinct", "entropy", "repeated_tokens", "repetition", "self_bleu", "unique", "words"]

Units = Sequence[Hashable]

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, and every other character that is no white space by itself."""
    return _WORD.findall(text)


def clipped(texts: Sequence[Units], total: int) -> list[Units]:
    """The first texts, the last of them cut, that have ``total`` units in all; all of them where they have fewer."""
    kept: list[Units] = []
    for text in texts:
        kept.append(text[:total])
        total -= len(kept[-1])
        if total <= 0:
            break
    return kept


def distinct(texts: Sequence[Units], n: int) -> float | None:
    """Distinct-n: different n-grams of all texts by their number, None where there is none.

    It falls with the number of units, so that only sets of the same size compare (`clipped`).

    References: Li et al. (2016), A Diversity-Promoting Objective Function for Neural Conversation Models.
    """
    grams = list(chain.from_iterable(_grams(text, n) for text in texts))
    return len(set(grams)) / len(grams) if grams else None


def repetition(texts: Sequence[Units], n: int) -> float | None:
    r"""Seq-rep-n: the share of a text's n-grams that it has had before, averaged over the texts that have any.

    .. math:: 1 - \frac{|\text{unique } n\text{-grams}(x)|}{|n\text{-grams}(x)|}

    References: Welleck et al. (2020), Neural Text Generation with Unlikelihood Training, section 6.1.
    """
    shares = [1 - len(set(grams)) / len(grams) for text in texts if (grams := _grams(text, n))]
    return float(np.mean(shares)) if shares else None


def repeated_tokens(texts: Sequence[Units], window: int = 128) -> float | None:
    """The share of all units that are among the ``window`` units before them in their text.

    It is Welleck et al.'s rep/ℓ with the text's own units for the model's most probable ones.
    """
    hits = [x in text[max(i - window, 0) : i] for text in texts for i, x in enumerate(text)]
    return float(np.mean(hits)) if hits else None


def entropy(texts: Sequence[Units]) -> float | None:
    """Entropy in nats of the units' frequencies within a text, averaged over the texts that have any.

    A text that says one thing over and over has a small one, however probable a second model finds it.
    """
    values = []
    for text in texts:
        if len(text):
            p = np.array(list(Counter(text).values())) / len(text)
            values.append(-float(p @ np.log(p)))
    return float(np.mean(values)) if values else None


def unique(texts: Sequence[Units]) -> float | None:
    """Different texts by the number of texts."""
    return len({tuple(text) for text in texts}) / len(texts) if texts else None


def self_bleu(texts: Sequence[Units], *, n: int = 4, most: int = 100) -> float | None:
    """BLEU-n of each text with all others as its references, averaged, in 0 … 1: high where the texts are alike.

    Precisions without a match are smoothed to 0.1 matches. Texts of fewer than n units are left out.

    Args:
        texts: of which the first ``most`` are taken: the work grows with the square of their number.
        n: the longest n-gram; precisions of 1 … n have equal weights.
        most: most texts.

    Raises:
        LTMError: the package sacrebleu is not there.

    References: Zhu et al. (2018), Texygen; Post (2018), A Call for Clarity in Reporting BLEU Scores (the package).
    """
    bleu = optional_import("sacrebleu", "self-BLEU", "bleu").metrics.BLEU
    # Units become words of the package's own kind, free of white space: their numbers.
    numbers: dict[Hashable, str] = {}
    lines = [
        " ".join(numbers.setdefault(x, str(len(numbers))) for x in text) for text in texts[:most] if len(text) >= n
    ]
    if len(lines) < 2:
        return None
    # Smoothing as in Texygen. Of one sentence the corpus score is the sentence's own.
    metric = bleu(tokenize="none", smooth_method="floor", smooth_value=0.1, max_ngram_order=n, force=True)
    scores = [
        metric.corpus_score([line], [[x] for x in lines[:i] + lines[i + 1 :]]).score for i, line in enumerate(lines)
    ]
    return float(np.mean(scores)) / 100


def _grams(text: Units, n: int) -> list[tuple[Hashable, ...]]:
    if n < 1:
        raise LTMError(f"n-grams need an n of 1 or more, got {n}")
    return list(zip(*(text[i:] for i in range(n)), strict=False))
