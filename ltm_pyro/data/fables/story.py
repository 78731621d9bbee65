"""The grammar of the fables: a title and six or seven paragraphs under one plan."""

from __future__ import annotations

from functools import cache

from ltm_pyro.data.fables.grammar import Grammar
from ltm_pyro.data.fables.lexicon import VARIABLES
from ltm_pyro.data.fables.nodes import Text, concat

__all__ = ["fable_grammar"]


@cache
def fable_grammar() -> Grammar:
    """The grammar, read from the scenes on first use, so that importing the package costs nothing."""
    from ltm_pyro.data.fables.ending import HOMECOMING, MORAL, TREASURE
    from ltm_pyro.data.fables.journey import OBSTACLE, STRANGER
    from ltm_pyro.data.fables.opening import HEROES, TITLE, TROUBLE

    gap = Text("\n\n")
    # The obstacle brings its own gap, since a story may do without one.
    scenes = (TITLE, gap, HEROES, gap, TROUBLE, gap, OBSTACLE, STRANGER, gap, TREASURE, gap, HOMECOMING, gap, MORAL)
    return Grammar(VARIABLES, concat(scenes))
