"""What a grammar is made of: plan variables, drawn once per document, and four kinds of node that spell it out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ltm_pyro.errors import LTMError

__all__ = ["Case", "Choice", "Concat", "Node", "Text", "Variable", "concat", "maybe", "one_of"]


@dataclass(frozen=True, eq=False)
class Text:
    """A literal string."""

    text: str


@dataclass(frozen=True, eq=False)
class Concat:
    """Parts, one after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Choice:
    """A local choice, drawn afresh on each visit and forgotten at once.

    Args:
        options: what may be written here.
        weights: one probability per option, summing to one.
    """

    options: tuple[Node, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_distribution(self.weights, len(self.options), "a choice")


@dataclass(frozen=True, eq=False)
class Case:
    """What the plan says here: a function of the values of one or more plan variables.

    Args:
        variables: names of plan variables.
        branches: a node for each combination of their values that can occur.
    """

    variables: tuple[str, ...]
    branches: Mapping[tuple[str, ...], Node]


Node = Text | Concat | Choice | Case


@dataclass(frozen=True, eq=False)
class Variable:
    """A categorical plan variable, possibly given earlier ones.

    Args:
        name: how `Case` nodes refer to it.
        values: its possible values.
        table: probabilities of the values for each combination of the parents' values; the key is ``()``
            where there are no parents. Left out, the variable is uniform.
        parents: names of earlier variables.
    """

    name: str
    values: tuple[str, ...]
    table: Mapping[tuple[str, ...], tuple[float, ...]] | None = None
    parents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.values)) != len(self.values) or not self.values:
            raise LTMError(f"plan variable {self.name!r} has no values, or one of them twice: list each once")
        if self.table is None and self.parents:
            raise LTMError(f"plan variable {self.name!r} has parents but no table: give it one")
        for row in (self.table or {}).values():
            _check_distribution(row, len(self.values), f"plan variable {self.name!r}")

    def distributions(self) -> Mapping[tuple[str, ...], tuple[float, ...]]:
        """The table, written out where the variable is uniform."""
        if self.table is None:
            return {(): (1 / len(self.values),) * len(self.values)}
        return self.table

    def probabilities(self, given: tuple[str, ...] = ()) -> tuple[float, ...]:
        """The distribution of the variable, given its parents' values in their order."""
        return self.distributions()[given]


def one_of(*options: Node) -> Node:
    """A uniform choice; a single option stands for itself."""
    return options[0] if len(options) == 1 else Choice(options, (1 / len(options),) * len(options))


def maybe(probability: float, node: Node) -> Node:
    """The node with the given probability, and otherwise nothing."""
    return Choice((node, Text("")), (probability, 1 - probability))


def concat(parts: Iterable[Node]) -> Node:
    """The parts in order, with neighbouring literals joined, so that a parser has less to step over."""
    joined: list[Node] = []
    for part in parts:
        for piece in part.parts if isinstance(part, Concat) else (part,):
            if isinstance(piece, Text) and joined and isinstance(joined[-1], Text):
                joined[-1] = Text(joined[-1].text + piece.text)
            else:
                joined.append(piece)
    return joined[0] if len(joined) == 1 else Concat(tuple(joined))


def _check_distribution(weights: Sequence[float], size: int, owner: str) -> None:
    if len(weights) != size or any(w < 0 for w in weights) or not math.isclose(sum(weights), 1, abs_tol=1e-9):
        raise LTMError(f"the weights {tuple(weights)} of {owner} must be {size} probabilities that sum to 1")
