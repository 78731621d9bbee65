"""Exact log-probability of a text: dynamic programming over (place in the grammar, place in the text, plan so far)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ltm_pyro.data.fables.nodes import Case, Choice, Concat, Node, Text, Variable

__all__ = ["Parser"]

# Plan so far: for each variable the index of its value, or UNBOUND while the text has not asked for it.
Bindings = tuple[int, ...]
UNBOUND = -1
END = 0


@dataclass(frozen=True, slots=True)
class _Literal:
    text: str
    next: int


@dataclass(frozen=True, slots=True)
class _Fork:
    targets: tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class _Lookup:
    variables: tuple[int, ...]
    targets: Mapping[Bindings, int]


class Parser:
    """The grammar flattened into numbered points, each of which knows where it continues.

    Points are numbered from the end of the document backwards, so that every step goes to a smaller number: taking
    the largest first meets each state after all of its predecessors, and states that agree in all three
    coordinates are merged there. A plan variable is bound at the first case that asks for it, and so one that is
    never asked for costs nothing, which is the same as summing it out.

    Args:
        variables: the plan, parents before children.
        root: the document.
    """

    def __init__(self, variables: Sequence[Variable], root: Node) -> None:
        self._variables = variables
        self._index = {variable.name: i for i, variable in enumerate(variables)}
        self._parents = [tuple(self._index[name] for name in variable.parents) for variable in variables]
        self._points: list[_Literal | _Fork | _Lookup | None] = [None]
        self._compiled: dict[tuple[Node, int], int] = {}
        self._start = self._compile(root, END)

    def log_prob(self, text: str) -> float:
        """Exact log-probability of the text in nats; -inf outside the language."""
        return _log_sum(self._run(text)[0].values())

    def derived(self, text: str) -> int:
        """Characters of the longest beginning of the text that some derivation begins with, too."""
        return self._run(text)[1]

    def posterior(self, text: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Log joint probability of the text with each set of plan values bound on the way; empty outside."""
        return {
            tuple(
                (variable.name, variable.values[value])
                for variable, value in zip(self._variables, bindings, strict=True)
                if value != UNBOUND
            ): mass
            for bindings, mass in self._run(text)[0].items()
        }

    def _compile(self, node: Node, after: int) -> int:
        """The point at which a node starts, given the one that follows it."""
        key = (node, after)
        if key not in self._compiled:
            self._compiled[key] = self._add(node, after)
        return self._compiled[key]

    def _add(self, node: Node, after: int) -> int:
        """Appends the points of a node, those that it leads to first."""
        match node:
            case Text(""):
                return after
            case Text(text):
                self._points.append(_Literal(text, after))
            case Concat(parts):
                for part in reversed(parts):
                    after = self._compile(part, after)
                return after
            case Choice(options, weights):
                pairs = zip(weights, options, strict=True)
                self._points.append(
                    _Fork(tuple((math.log(w), self._compile(option, after)) for w, option in pairs if w > 0))
                )
            case Case(names, branches):
                where = tuple(self._index[name] for name in names)
                targets: dict[Bindings, int] = {}
                for values, branch in branches.items():
                    key = tuple(self._variables[i].values.index(v) for i, v in zip(where, values, strict=True))
                    targets[key] = self._compile(branch, after)
                self._points.append(_Lookup(where, targets))
        return len(self._points) - 1

    def _run(self, text: str) -> tuple[dict[Bindings, float], int]:
        """Log mass of the complete derivations of the text, by the plan values that they bind; how far any came."""
        furthest = 0
        points = self._points
        pending: dict[int, dict[tuple[int, Bindings], float]] = {}
        queue: list[int] = []
        moves = [(self._start, 0, (UNBOUND,) * len(self._variables), 0.0)]
        while True:
            for point, position, bindings, mass in moves:
                # Literals are stepped over on the spot: most states die here, before they are stored.
                step = points[point]
                while isinstance(step, _Literal) and text.startswith(step.text, position):
                    position += len(step.text)
                    point = step.next
                    step = points[point]
                furthest = max(furthest, position)
                if isinstance(step, _Literal):
                    if position + len(step.text) > furthest:
                        furthest = max(furthest, position + _shared(step.text, text[position:]))
                    continue
                if point not in pending:
                    pending[point] = {}
                    heapq.heappush(queue, -point)
                states, key = pending[point], (position, bindings)
                states[key] = _log_add(states[key], mass) if key in states else mass
            if not queue or queue[0] == -END:
                break
            moves = []
            point = -heapq.heappop(queue)
            step = points[point]
            for (position, bindings), mass in pending.pop(point).items():
                if isinstance(step, _Fork):
                    moves += [(target, position, bindings, mass + weight) for weight, target in step.targets]
                elif isinstance(step, _Lookup):
                    where = step.variables
                    values = tuple([bindings[i] for i in where])
                    if UNBOUND not in values:
                        moves.append((step.targets[values], position, bindings, mass))
                        continue
                    for bound, extra in self._bind(where, bindings):
                        moves.append((step.targets[tuple([bound[i] for i in where])], position, bound, mass + extra))
        finished = pending.get(END, {})
        return {bindings: mass for (position, bindings), mass in finished.items() if position == len(text)}, furthest

    def _bind(self, wanted: Sequence[int], bindings: Bindings) -> Iterator[tuple[Bindings, float]]:
        """Every extension of the plan so far to the wanted variables and their ancestors, with its log-probability."""
        for i in wanted:
            if bindings[i] == UNBOUND:
                break
        else:
            yield bindings, 0.0
            return
        variable, parents = self._variables[i], self._parents[i]
        if any(bindings[parent] == UNBOUND for parent in parents):
            for bound, extra in self._bind(parents, bindings):
                for inside, more in self._bind(wanted, bound):
                    yield inside, extra + more
            return
        given = tuple(self._variables[parent].values[bindings[parent]] for parent in parents)
        for value, weight in enumerate(variable.probabilities(given)):
            if weight > 0:
                for inside, more in self._bind(wanted, (*bindings[:i], value, *bindings[i + 1 :])):
                    yield inside, math.log(weight) + more


def _shared(a: str, b: str) -> int:
    """Characters that two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _log_add(a: float, b: float) -> float:
    high, low = (a, b) if a > b else (b, a)
    return high + math.log1p(math.exp(low - high))


def _log_sum(masses: Iterable[float]) -> float:
    values = list(masses)
    if not values:
        return -math.inf
    high = max(values)
    return high + math.log(sum(math.exp(value - high) for value in values))
