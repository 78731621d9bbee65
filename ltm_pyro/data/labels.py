"""Classes of documents: values read as names, and names numbered in their natural order."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ltm_pyro.errors import LTMError

__all__ = ["LABEL_RECORD", "UNKNOWN", "as_label", "in_natural_order", "renumbering"]

UNKNOWN = -1
"""The number of a class that is not known."""

LABEL_RECORD = np.dtype([("class", "<i4"), ("draw", "<f8")])
"""A document's class, -1 where it is unknown, and a number in [0, 1) made from its text: a share of the classes is kept
by it, so that another share needs no other shard."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,100}")


def as_label(value: object, where: str, column: str) -> str | None:
    """The name of a class: a string as it is, ``true`` or ``false``, or a whole number's digits.

    None stands for an unknown class: a null, a blank string, or NaN. A whole number may be stored as a float, which is
    what some tools make of a column of integers that has nulls.

    Raises:
        LTMError: the value is something else.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        name = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # lone surrogates to U+FFFD
        return name if name and not name.isspace() else None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    shown = value if isinstance(value, float) else type(value).__name__
    raise LTMError(
        f"{where}: column {column!r} holds {shown}, not a class (a string, a whole number, or true or false); "
        "choose another with `label_column`"
    )


def in_natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names once each: whole numbers first, by value, then the others as strings."""
    return tuple(sorted(set(names), key=lambda name: (0, int(name), name) if _NUMBER.fullmatch(name) else (1, 0, name)))


def renumbering(names: Sequence[str], known: Sequence[str]) -> npt.NDArray[np.int64]:
    """(len(names) + 1,) the number in ``known`` of each name, `UNKNOWN` where it has none.

    The last entry is `UNKNOWN` too, so that the array, indexed by a class's old number, keeps unknown ones unknown.
    """
    numbers = {name: number for number, name in enumerate(known)}
    return np.array([*(numbers.get(name, UNKNOWN) for name in names), UNKNOWN], dtype=np.int64)
