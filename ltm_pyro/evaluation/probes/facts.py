"""What a fable says: its plan by the grammar, or by the words alone where a text is outside the grammar."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from ltm_pyro.data.fables import plan_of
from ltm_pyro.data.fables.lexicon import variable
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.probes.fitted import FittedThoughts

__all__ = ["SPOKEN", "Facts", "facts_of", "mentions", "read_fable"]

Facts = Mapping[str, str]
"""What a text says, by the name of what is said: for a fable, the values of its plan variables."""

SPOKEN = (
    *("name", "kind", "friend", "friend_kind", "bond", "place", "elder", "season", "weather", "wear", "treasure"),
    *("goal", "saying", "food", "helper", "virtue"),
)
"""Plan variables whose values a fable tells in so many words, which it uses for nothing else."""


def read_fable(text: str) -> Facts | None:
    """The values of the plan variables that a fable tells; None for a text outside the grammar."""
    try:
        return plan_of(text)
    except LTMError:
        return None


def mentions(text: str) -> Facts:
    """The values of the variables of `SPOKEN` of which a text mentions just one; any text has such a reading."""
    found = {name: set(map(str.lower, pattern.findall(text))) for name, pattern, _ in _patterns()}
    return {name: values[found[name].pop()] for name, _, values in _patterns() if len(found[name]) == 1}


def facts_of(
    fitted: FittedThoughts, decode: Callable[[Sequence[int]], str], read: Callable[[str], Facts | None] = read_fable
) -> list[Facts] | None:
    """What each document says; None where one of them is not a whole text, or cannot be read."""
    batch, found = fitted.batch, []
    for row, length, start in zip(batch.tokens.tolist(), batch.lengths.tolist(), batch.start.tolist(), strict=True):
        tokens = row[:length]
        whole = start == fitted.start and tokens[-1:] == [fitted.start]
        facts = read(decode(tokens[:-1])) if whole else None
        if facts is None:
            return None
        found.append(facts)
    return found


@cache
def _patterns() -> list[tuple[str, re.Pattern[str], dict[str, str]]]:
    """Of every variable of `SPOKEN`: its name, a pattern that finds its values, and the values by their lower case."""
    found = []
    for name in SPOKEN:
        values = variable(name).values
        either = "|".join(map(re.escape, sorted(values, key=len, reverse=True)))
        found.append(
            (name, re.compile(rf"\b(?:{either})\b", re.IGNORECASE), {value.lower(): value for value in values})
        )
    return found
