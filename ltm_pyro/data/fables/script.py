"""The notation in which the stories are written: prose with slots, read into grammar nodes.

=====================  =====================================================================================
``{friend}``           a plan variable's word, from the lexicon; ``{Friend}`` starts with a capital
``[was|is]``           one form per value of a plan variable, here the tense
``<big|small>``        a local choice, all options equally likely
``- sentence``         a list of alternatives, all equally likely; a line without the dash goes on with the one above
``key:``               starts the alternatives for one value of a plan variable
=====================  =====================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ltm_pyro.data.fables.nodes import Case, Choice, Concat, Node, Text, Variable, concat, maybe, one_of
from ltm_pyro.errors import LTMError

__all__ = ["Maybe", "Script", "paragraph"]

_MARK = re.compile(r"[{\[<]")
_CLOSING = {"{": "}", "[": "]", "<": ">"}


@dataclass(frozen=True)
class Maybe:
    """A sentence that a paragraph contains with the given probability."""

    probability: float
    sentence: Node


class Script:
    """Reads the notation.

    Args:
        slots: what each ``{slot}`` stands for.
        forms: the plan variable that ``[a|b]`` follows, and its values in that order.
    """

    def __init__(self, slots: Mapping[str, Node], forms: tuple[str, Sequence[str]]) -> None:
        self._slots = dict(slots)
        self._variable, self._values = forms

    def extended(self, **slots: Node) -> Script:
        """The same notation with more slots."""
        return Script({**self._slots, **slots}, (self._variable, self._values))

    def prose(self, text: str) -> Node:
        """One stretch of prose with marks in it."""
        parts: list[Node] = []
        position = 0
        while mark := _MARK.search(text, position):
            parts.append(Text(text[position : mark.start()]))
            end = _closing(text, mark.start())
            parts.append(self._marked(mark.group(), text[mark.end() : end]))
            position = end + 1
        return concat([*parts, Text(text[position:])])

    def lines(self, block: str) -> Node:
        """A uniform choice among the alternatives of a list."""
        return one_of(*(self.prose(item) for item in _items(block)))

    def cases(self, variable: str, block: str) -> Case:
        """A list of alternatives for each value of a plan variable."""
        pieces = re.split(r"^\s*([\w' -]+):$", block, flags=re.MULTILINE)
        keys = [key.strip() for key in pieces[1::2]]
        return Case((variable,), {(k,): self.lines(body) for k, body in zip(keys, pieces[2::2], strict=True)})

    @staticmethod
    def when(variable: Variable, value: str, then: Node, otherwise: Node) -> Case:
        """One node for one value of a plan variable, another for all the rest."""
        return Case((variable.name,), {(v,): then if v == value else otherwise for v in variable.values})

    def _marked(self, mark: str, body: str) -> Node:
        if mark == "{":
            return self._slot(body)
        options = [self.prose(option) for option in _split(body)]
        if mark == "<":
            return one_of(*options)
        if len(options) != len(self._values):
            raise LTMError(f"[{body}] needs one form for each {self._variable} in {list(self._values)}")
        return Case((self._variable,), {(v,): o for v, o in zip(self._values, options, strict=True)})

    def _slot(self, name: str) -> Node:
        if name not in self._slots:
            lower = name[:1].lower() + name[1:]
            if lower not in self._slots:
                raise LTMError(f"no slot {{{name}}} in the lexicon: use one of {sorted(self._slots)}")
            self._slots[name] = _capital(self._slots[lower])
        return self._slots[name]


def paragraph(*sentences: Node | Maybe) -> Node:
    """Sentences with a space between them; the first must be certain."""
    parts: list[Node] = []
    for sentence in sentences:
        if isinstance(sentence, Maybe):
            parts.append(maybe(sentence.probability, concat([Text(" "), sentence.sentence])))
        else:
            parts.extend([Text(" "), sentence] if parts else [sentence])
    return concat(parts)


def _capital(node: Node) -> Node:
    """The same node with its first letter in upper case."""
    match node:
        case Text(text):
            return Text(text[:1].upper() + text[1:])
        case Concat(parts):
            return concat([_capital(parts[0]), *parts[1:]])
        case Choice(options, weights):
            return Choice(tuple(_capital(option) for option in options), weights)
        case Case(variables, branches):
            return Case(variables, {key: _capital(branch) for key, branch in branches.items()})


def _items(block: str) -> list[str]:
    """The alternatives of a list, each on one line."""
    items: list[str] = []
    for line in filter(None, map(str.strip, block.splitlines())):
        if line.startswith("- "):
            items.append(line[2:])
        elif items:
            items[-1] += " " + line
        else:
            raise LTMError(f"a list of alternatives starts with {line!r}: begin it with '- '")
    return items


def _closing(text: str, start: int) -> int:
    """Where the mark that opens at `start` closes, over any marks within it."""
    depth: list[str] = []
    for position in range(start, len(text)):
        letter = text[position]
        if letter in _CLOSING:
            depth.append(_CLOSING[letter])
        elif depth and letter == depth[-1]:
            depth.pop()
            if not depth:
                return position
    raise LTMError(f"the mark that opens at {text[start : start + 20]!r} is never closed: close it")


def _split(body: str) -> list[str]:
    """The options between the bars that are not within an inner mark."""
    options, start, position = [], 0, 0
    while position < len(body):
        if body[position] in _CLOSING:
            position = _closing(body, position)
        elif body[position] == "|":
            options.append(body[start:position])
            start = position + 1
        position += 1
    return [*options, body[start:]]
