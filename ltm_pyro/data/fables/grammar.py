"""A probabilistic grammar under a plan: sampling, exact log-probabilities, and the entropy by the chain rule."""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from ltm_pyro.data.fables.nodes import Case, Choice, Concat, Node, Text, Variable
from ltm_pyro.data.fables.parse import Parser
from ltm_pyro.errors import LTMError

__all__ = ["Derivation", "Grammar"]


@dataclass(frozen=True)
class Derivation:
    """One draw from a grammar.

    Args:
        plan: the value of every plan variable.
        text: the document.
        log_prob: log-probability of the choices made and of the plan variables used on the way. The document's own
            log-probability is at least this, and equal where nothing else derives the same text.
    """

    plan: Mapping[str, str]
    text: str
    log_prob: float


class Grammar:
    r"""Documents :math:`x` with :math:`p(x) = \sum_{\text{plan}} p(\text{plan}) \sum_d p(d \mid \text{plan})`.

    The inner sum runs over the derivations :math:`d`, that is, the outcomes of the local choices, that spell x.

    Args:
        variables: the plan, parents before children.
        root: the document.
    """

    def __init__(self, variables: Sequence[Variable], root: Node) -> None:
        self.variables = {variable.name: variable for variable in variables}
        self.root = root
        for position, variable in enumerate(variables):
            for parent in variable.parents:
                if parent not in {earlier.name for earlier in variables[:position]}:
                    raise LTMError(f"plan variable {variable.name!r} needs its parent {parent!r} before it")
        self._check(root, {})
        # Only `random()` is promised to give the same numbers in every version of Python, so draws invert it here.
        self._cumulative = [
            (variable, {given: tuple(accumulate(weights)) for given, weights in variable.distributions().items()})
            for variable in variables
        ]

    def sample_plan(self, rng: random.Random) -> dict[str, str]:
        """A value for every plan variable, from the given generator."""
        plan: dict[str, str] = {}
        for variable, cumulative in self._cumulative:
            levels = cumulative[tuple([plan[parent] for parent in variable.parents])]
            plan[variable.name] = variable.values[bisect(levels, rng.random(), hi=len(levels) - 1)]
        return plan

    def sample(self, rng: random.Random, plan: Mapping[str, str] | None = None) -> Derivation:
        """A document, for the given plan or for a fresh one, from the given generator."""
        plan = self.sample_plan(rng) if plan is None else plan
        pieces: list[str] = []
        used: set[str] = set()
        log_prob = 0.0
        agenda = [self.root]
        while agenda:
            node = agenda.pop()
            match node:
                case Text(text):
                    pieces.append(text)
                case Concat(parts):
                    agenda.extend(reversed(parts))
                case Choice(options, weights):
                    index = bisect(tuple(accumulate(weights)), rng.random(), hi=len(weights) - 1)
                    log_prob += math.log(weights[index])
                    agenda.append(options[index])
                case Case(variables, branches):
                    used.update(variables)
                    agenda.append(branches[tuple(plan[name] for name in variables)])
        return Derivation(plan, "".join(pieces), log_prob + self._log_prior(plan, used))

    def log_prob(self, text: str) -> float:
        """Exact log p(text) in nats, summed over every plan and derivation; -inf outside the language."""
        return self.parser.log_prob(text)

    def posterior(self, text: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Log joint probability of the text with each set of plan values that can have led to it."""
        return self.parser.posterior(text)

    @cached_property
    def parser(self) -> Parser:
        """The compiled grammar, made on first use."""
        return Parser(tuple(self.variables.values()), self.root)

    def derivation_entropy(self) -> float:
        """Entropy in nats of plan and derivation together, by the chain rule.

        This is the entropy of the documents where each document has one derivation and tells its whole plan, and
        an upper bound on it everywhere else.
        """
        plan_entropy = 0.0
        for variable in self.variables.values():
            for bound, p in self._assignments(variable.parents, {}):
                given = tuple(bound[parent] for parent in variable.parents)
                plan_entropy += p * _entropy(variable.probabilities(given))
        return plan_entropy + self._choice_entropy(self.root, {})

    def _choice_entropy(self, node: Node, bound: Mapping[str, str]) -> float:
        """Expected entropy of the local choices in a node, given the plan values that enclosing cases fix."""
        match node:
            case Concat(parts):
                return sum(self._choice_entropy(part, bound) for part in parts)
            case Choice(options, weights):
                inner = (w * self._choice_entropy(option, bound) for w, option in zip(weights, options, strict=True))
                return _entropy(weights) + sum(inner)
            case Case(variables, branches) if any(not isinstance(branch, Text) for branch in branches.values()):
                return sum(
                    p * self._choice_entropy(branches[tuple(inside[name] for name in variables)], inside)
                    for inside, p in self._assignments(variables, bound)
                )
        return 0.0

    def _assignments(self, names: Sequence[str], bound: Mapping[str, str]) -> Iterator[tuple[dict[str, str], float]]:
        """Every way to extend the bound values to the named variables and their ancestors, with its probability."""
        missing = self._first_unbound(names, bound)
        if missing is None:
            yield dict(bound), 1.0
            return
        weights = missing.probabilities(tuple(bound[parent] for parent in missing.parents))
        for value, weight in zip(missing.values, weights, strict=True):
            if weight > 0:
                for inside, p in self._assignments(names, {**bound, missing.name: value}):
                    yield inside, weight * p

    def _first_unbound(self, names: Sequence[str], bound: Mapping[str, str]) -> Variable | None:
        for name in names:
            if name not in bound:
                variable = self.variables[name]
                return self._first_unbound(variable.parents, bound) or variable
        return None

    def _log_prior(self, plan: Mapping[str, str], used: set[str]) -> float:
        """Log-probability of the used variables' values together with those of their ancestors."""
        needed = set(used)
        for variable in reversed(self.variables.values()):
            if variable.name in needed:
                needed.update(variable.parents)
        total = 0.0
        for name in needed:
            variable = self.variables[name]
            weights = variable.probabilities(tuple(plan[parent] for parent in variable.parents))
            total += math.log(weights[variable.values.index(plan[name])])
        return total

    def _check(self, node: Node, bound: Mapping[str, str]) -> None:
        """Every case refers to known variables and has a branch for each plan that can reach it."""
        match node:
            case Concat(parts):
                for part in parts:
                    self._check(part, bound)
            case Choice(options, _):
                for option in options:
                    self._check(option, bound)
            case Case(variables, branches):
                for i, name in enumerate(variables):
                    if name not in self.variables:
                        raise LTMError(f"a case refers to {name!r}, which is no plan variable: declare it")
                    strange = {values[i] for values in branches}.difference(self.variables[name].values)
                    if strange:
                        raise LTMError(f"{min(strange)!r} is no value of plan variable {name!r}: mend the case on it")
                for inside, _ in self._assignments(variables, bound):
                    key = tuple(inside[name] for name in variables)
                    if key not in branches:
                        raise LTMError(f"the case on {variables} has no branch for {key}: add one")
                    self._check(branches[key], inside)
            case Text():
                pass


def _entropy(weights: Sequence[float]) -> float:
    return -sum(w * math.log(w) for w in weights if w > 0)
