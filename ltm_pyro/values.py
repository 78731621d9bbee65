"""Single values of settings: read from text, held against their ranges, and named in errors."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin

from ltm_pyro.errors import LTMError

__all__ = ["above", "at_least", "at_most", "nearest", "plain", "read_value", "shown", "within"]


def shown(value: Any) -> str:
    """A value as an error message shows it: cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


_SHOWN = 200


def nearest(word: str, known: Iterable[str]) -> str:
    """How an error message goes on: the known word that was meant, if one is close, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {close[0]!r}?" if close else f": known are {', '.join(known)}"


def read_value(address: str, value: Any, kind: Any) -> Any:
    """``value`` as the type ``kind`` of a setting: str, int, float, bool, Literal, or one of these or None."""
    if get_origin(kind) in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        kind = next(k for k in get_args(kind) if k is not type(None))
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise LTMError(f"{address} must be one of {', '.join(map(str, get_args(kind)))}, got {shown(value)}")
    if kind is str:
        return str(value)
    found = plain(value)
    if kind is float and isinstance(found, int) and not isinstance(found, bool):
        try:
            found = float(found)
        except OverflowError as error:
            raise LTMError(f"{address} must be a number, got one that is too large") from error
    if kind is int and isinstance(found, float) and found.is_integer():
        found = int(found)
    if type(found) is not kind:
        raise LTMError(f"{address} must be {_KINDS[kind]}, got {shown(value)}")
    return found


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}


def plain(value: Any) -> Any:
    """A string as the number or truth value that it spells, if any; anything else as it is."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value.replace("_", ""))
        except ValueError:
            continue
    return value


def at_least(address: str, value: float, low: float) -> None:
    """Raises LTMError, naming the setting, where ``value`` is below ``low`` or not a number."""
    if not value >= low:
        raise LTMError(f"{address} must be {low} or more, got {shown(value)}")


def at_most(address: str, value: float, high: float) -> None:
    """Raises LTMError, naming the setting, where ``value`` is above ``high`` or not a number."""
    if not value <= high:
        raise LTMError(f"{address} must be {high} or less, got {shown(value)}")


def above(address: str, value: float, low: float) -> None:
    """Raises LTMError, naming the setting, where ``value`` is not above ``low``."""
    if not value > low:
        raise LTMError(f"{address} must be above {low}, got {shown(value)}")


def within(address: str, value: float, low: float, high: float) -> None:
    """Raises LTMError, naming the setting, where ``value`` is outside ``low`` … ``high``."""
    if not low <= value <= high:
        raise LTMError(f"{address} must lie in {low} … {high}, got {shown(value)}")
