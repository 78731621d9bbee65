r"""Regular expressions of a tokenizer that cannot backtrack for ever.

The engine behind ``tokenizers`` backtracks: on ``(a+)+b`` it tries every way to cut a run of a's. What is allowed is a
plain subset, which has the patterns of the GPT, Llama, Qwen and DeepSeek families: no quantifier over a group that has
a quantifier or alternatives in it, no back-reference, no recursion, at most two quantifiers without end on one path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ltm_pyro.errors import LTMError

__all__ = ["check_pattern"]

_LONGEST = 4000
_UNBOUNDED = 2  # on one path: a text of n characters then costs n² at each place at most
_WAYS = 1024  # to choose among optional parts and alternatives on one path
_MOST_REPEATS = 1000
_ESCAPE = re.compile(
    r"\\(?:[pP]\{\^?[\w ]+\}|x[0-9a-fA-F]{2}|[xu]\{[0-9a-fA-F ]+\}|u[0-9a-fA-F]{4}|[dDwWsShHbBAzZtnrfva]|[^\w])"
)
_OPENING = re.compile(r"\((?:\?(?:[ims]*(?:-[ims]+)?:|[=!>]|<[=!]))?(?!\?)")
_FLAGS = re.compile(r"\(\?[ims]*(?:-[ims]+)?\)")
_QUANTIFIER = re.compile(r"([*+?])[?+]?|\{(\d*)(,?)(\d*)\}\??")


@dataclass
class _Path:
    """What stands one after another: quantifiers without end, ways to choose, and whether anything is quantified."""

    unbounded: int = 0
    ways: int = 1
    quantified: bool = False


class _Group:
    """A group that is being read: its finished alternatives' costs, and the path of the present one."""

    def __init__(self) -> None:
        self.path, self.worst, self.branches = _Path(), _Path(), 1

    def end_branch(self) -> None:
        worst, path = self.worst, self.path
        ways, quantified = max(worst.ways, path.ways), worst.quantified or path.quantified
        self.worst = _Path(max(worst.unbounded, path.unbounded), ways, quantified)
        self.path = _Path()


def check_pattern(pattern: str) -> None:
    """Nothing, where a pattern is of the subset above.

    Raises:
        LTMError: it is not, with the reason.
    """
    if len(pattern) > _LONGEST:
        raise LTMError(f"a pattern has {len(pattern)} characters, more than {_LONGEST}")
    groups = [_Group()]
    at, atom = 0, _Path()  # the cost of what a quantifier at this place would repeat
    branches = 1  # of that
    while at < len(pattern):
        letter = pattern[at]
        if flags := _FLAGS.match(pattern, at):
            at, atom, branches = flags.end(), _Path(), 1
            continue
        if letter == "(":
            at = _end(_OPENING.match(pattern, at), pattern, at)
            groups.append(_Group())
            continue
        if letter == ")":
            if len(groups) == 1:
                raise _refusal(pattern, at, "a bracket that closes nothing")
            groups[-1].end_branch()
            closed = groups.pop()
            atom, branches = closed.worst, closed.branches
            atom.ways *= branches
            at += 1
        elif letter == "|":
            groups[-1].end_branch()
            groups[-1].branches += 1
            at += 1
            continue
        else:
            at, atom, branches = _atom(pattern, at), _Path(), 1
        at = _take(groups[-1].path, atom, branches, pattern, at)
    if len(groups) > 1:
        raise _refusal(pattern, at, "a bracket that is never closed")


def _take(path: _Path, atom: _Path, branches: int, pattern: str, at: int) -> int:
    """Adds an atom and its quantifier, if there is one, to a path; returns the place behind them."""
    unbounded, ways = atom.unbounded, atom.ways
    if found := _QUANTIFIER.match(pattern, at):
        low, high = _range(found)
        if high != 1 and (atom.quantified or branches > 1):
            raise _refusal(pattern, at, "a quantifier over a group with quantifiers or alternatives")
        if high is None:
            unbounded += 1
        elif max(low, high) > _MOST_REPEATS:
            raise _refusal(pattern, at, f"more than {_MOST_REPEATS} repeats")
        else:
            ways *= max(1, high - low + 1)
        path.quantified = True
        at = found.end()
        if _QUANTIFIER.match(pattern, at):
            raise _refusal(pattern, at, "a quantifier over a quantifier")
    path.quantified |= atom.quantified
    path.unbounded += unbounded
    path.ways *= ways
    if path.unbounded > _UNBOUNDED or path.ways > _WAYS:
        raise _refusal(pattern, at, "too many quantifiers one after another")
    return at


def _range(found: re.Match[str]) -> tuple[int, int | None]:
    """Fewest and most repeats of a quantifier; None has no end."""
    if found[1]:
        return (1 if found[1] == "+" else 0), (1 if found[1] == "?" else None)
    low = int(found[2] or 0)
    if not found[3]:
        return low, low
    return low, int(found[4]) if found[4] else None


def _atom(pattern: str, at: int) -> int:
    """The place behind a character, an escape, or a class of characters."""
    letter = pattern[at]
    if letter == "\\":
        return _end(_ESCAPE.match(pattern, at), pattern, at)
    if letter == "[":
        return _class(pattern, at)
    if letter in "*+?" or _QUANTIFIER.match(pattern, at):
        raise _refusal(pattern, at, "a quantifier over nothing")
    return at + 1


def _class(pattern: str, at: int) -> int:
    start, depth = at, 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at = _end(_ESCAPE.match(pattern, at), pattern, at)
            continue
        if pattern[at] == "[":
            depth += 1
            at += pattern.startswith("^", at + 1)
            at += pattern.startswith("]", at + 1)  # a bracket that comes first is a character
        elif pattern[at] == "]":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    raise _refusal(pattern, start, "a class that is never closed")


def _end(found: re.Match[str] | None, pattern: str, at: int) -> int:
    if found is None:
        raise _refusal(pattern, at, "a construct other than groups, classes, look-around and plain escapes")
    return found.end()


def _refusal(pattern: str, at: int, reason: str) -> LTMError:
    near = ascii(pattern[max(0, at - 10) : at + 10])
    return LTMError(f"a pattern has {reason} near {near}, which may take for ever on some text, and is refused")
