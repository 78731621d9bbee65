"""The number that a worked solution ends in, and when two such numbers are the same."""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["MARK", "final_number", "marked_number"]

MARK = "####"
"""What stands before the final number of a GSM8K solution."""

# The hyphen after a digit, letter or bracket is a subtraction or a compound word, not a sign.
_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![\w).\]%])-)? (?:[$€£¥][ ]?)? (?P<inner>(?<=[$€£¥])-)?
    (?:(?P<whole>[0-9]+)[ ](?=[0-9]+/[0-9]))?
    (?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)
    (?:[eE](?P<e>[+-]?[0-9]{1,3})(?![0-9]))?
    (?:[ ]?[x×*·][ ]?10\^\{?(?P<power>[+-]?[0-9]{1,3})(?![0-9]))?
    (?:[ ]?/[ ]?(?P<below>[0-9]+(?:\.[0-9]+)?))?
    """,
    re.VERBOSE,
)
_LONGEST = 100  # digits of a number that is read: what is longer answers nothing
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
_ASCII = str.maketrans({"\u2212": "-", "\uff0d": "-", "\ufe63": "-", "\u2044": "/", "\u00a0": " "})
_GROUPING = re.compile("(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")


def marked_number(text: str) -> Fraction | None:
    """The first number on the line after the first ``####`` (*strict* extraction); None where there is none.

    The line may begin below the mark. Signs may stand apart from their number and thousands be grouped by spaces.
    """
    _, mark, rest = _plain(text).partition(MARK)
    if not mark:
        return None
    line = next(iter(_ANNOTATION.sub("", rest).strip().splitlines()), "")
    line = re.sub(r"^([^\w\s]*-) +", r"\1", line)
    line = re.sub(r"(?<=[0-9]) (?=[0-9]{3}(?![0-9/]))", "", line)
    found = _NUMBER.search(line)
    return None if found is None else _value(found)


def final_number(text: str) -> Fraction | None:
    """`marked_number` where there is one, else the last number of the text (*flexible* extraction).

    Numbers are compared by value: ``1,234`` is ``1234.00`` and ``1.234e3``, ``3/4`` is ``.75``. Currency and percent
    signs are left out, so ``50%`` is ``50``.
    """
    marked = marked_number(text)
    if marked is not None:
        return marked
    found = list(_NUMBER.finditer(_plain(text)))
    return _value(found[-1]) if found else None


def _plain(text: str) -> str:
    """No thin or hard spaces between thousands; Unicode's minus signs, fraction slash and hard spaces as ASCII."""
    return _GROUPING.sub("", text).translate(_ASCII)


def _value(found: re.Match[str]) -> Fraction | None:
    """The exact value; None for a division by zero and for a number of more digits than one would read."""
    if len(found[0]) > _LONGEST:
        return None
    value = Fraction(found["digits"].replace(",", ""))
    for exponent in (found["e"], found["power"]):
        value *= Fraction(10) ** int(exponent or 0)
    below = Fraction(found["below"] or 1)
    if not below:
        return None
    value = int(found["whole"] or 0) + value / below
    return -value if found["sign"] or found["inner"] else value
