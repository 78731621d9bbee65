"""The embedded corpus: fables by seed and index, their exact probabilities, and a split by plan."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ltm_pyro.data.fables.lexicon import IDENTITY, VARIABLES
from ltm_pyro.data.fables.story import fable_grammar
from ltm_pyro.errors import LTMError

__all__ = [
    "PLAN_VARIABLES",
    "SPLITS",
    "Fable",
    "derived",
    "entropy",
    "exact_entropy",
    "fable",
    "generate",
    "log_prob",
    "plan_of",
    "split_of",
]

# Exact shares: the hero's name is uniform over 20 values, so the sum of indices below is uniform modulo 10
# whatever the other variables are.
SPLITS: Mapping[str, float] = {"train": 0.9, "validation": 0.1}

PLAN_VARIABLES: Mapping[str, int] = {variable.name: len(variable.values) for variable in VARIABLES}

_INDEX = {v.name: {value: i for i, value in enumerate(v.values)} for v in VARIABLES if v.name in IDENTITY}


@dataclass(frozen=True)
class Fable:
    """A document of the embedded corpus.

    Args:
        text: the story: a title and six or seven paragraphs, with a blank line between them.
        plan: the value of every plan variable.
    """

    text: str
    plan: Mapping[str, str]


def fable(index: int, *, seed: int = 0, split: str = "train") -> Fable:
    """One document of the corpus, the same in every run for the same seed, split and index."""
    _check_split(split)
    if index < 0:
        raise LTMError(f"there is no fable number {index}: count from 0")
    grammar = fable_grammar()
    rng = random.Random(f"fable {seed} {split} {index}")
    plan = grammar.sample_plan(rng)
    while _split_of_plan(plan) != split:
        plan = grammar.sample_plan(rng)
    return Fable(grammar.sample(rng, plan).text, plan)


def generate(count: int, *, seed: int = 0, split: str = "train") -> Iterator[Fable]:
    """The first `count` documents of a split; those of a smaller count are a prefix of those of a larger one.

    Args:
        count: how many.
        seed: which corpus: any integer.
        split: ``"train"`` or ``"validation"``; the two share no plan.
    """
    _check_split(split)
    if count < 0:
        raise LTMError(f"cannot generate {count} fables: ask for 0 or more")
    return (fable(index, seed=seed, split=split) for index in range(count))


def log_prob(text: str, *, split: str | None = None) -> float:
    """Exact log p(text) in nats, summed over every plan and derivation; -inf for text that is no fable.

    Args:
        text: a whole document.
        split: score under the distribution of this split alone. Left out, under the whole language, which is the
            fair reference for a model that was trained on one split and is scored on the other.
    """
    if split is None:
        return fable_grammar().log_prob(text)
    _check_split(split)
    value = fable_grammar().log_prob(text)
    return value - math.log(SPLITS[split]) if value > -math.inf and split_of(text) == split else -math.inf


def derived(text: str) -> int:
    """Characters of the longest beginning of a text that some fable begins with: the place of its first fault."""
    return fable_grammar().parser.derived(text)


def plan_of(text: str) -> dict[str, str]:
    """The most probable values of the plan variables that a fable tells."""
    posterior = fable_grammar().posterior(text)
    if not posterior:
        raise LTMError(f"{text[:60]!r}… is no fable: give the whole text of a generated one, unchanged")
    return dict(max(posterior.items(), key=lambda item: item[1])[0])


def split_of(text: str) -> str:
    """The split to which a fable belongs, which its text alone decides."""
    return _split_of_plan(plan_of(text))


def entropy(*, samples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Entropy of a document in nats, estimated from exact log-probabilities of draws from the whole language.

    Args:
        samples: how many draws; at least 2.
        seed: for the draws.

    Returns:
        The estimate and its standard error.
    """
    if samples < 2:
        raise LTMError(f"{samples} samples give no standard error: ask for at least 2")
    grammar = fable_grammar()
    rng = random.Random(f"entropy {seed}")
    surprises = [-grammar.log_prob(grammar.sample(rng).text) for _ in range(samples)]
    mean = math.fsum(surprises) / samples
    variance = math.fsum((surprise - mean) ** 2 for surprise in surprises) / (samples - 1)
    return mean, math.sqrt(variance / samples)


def exact_entropy(split: str | None = None) -> float:
    r"""Entropy of a document in nats, by the chain rule over the plan and the local choices.

    The value is that of plan and derivation together. It is the entropy of the text because a fable has one
    derivation and tells its whole plan, which the tests check on samples; see `Grammar.derivation_entropy`.

    Within a split it is :math:`H + \log P(\text{split})`, since the split fixes the residue of a uniform variable and
    leaves everything else as it was. The cross-entropy of the whole language on either split is still H.
    """
    whole = fable_grammar().derivation_entropy()
    if split is None:
        return whole
    _check_split(split)
    return whole + math.log(SPLITS[split])


def _split_of_plan(plan: Mapping[str, str]) -> str:
    total = sum(_INDEX[name][plan[name]] for name in IDENTITY)
    return "validation" if total % 10 == 0 else "train"


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise LTMError(f"no split {split!r}: use {' or '.join(map(repr, SPLITS))}")
