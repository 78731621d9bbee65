"""Documents, also those that may be longer than memory, and numbers made from their text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ltm_pyro.data.long_text import LongText

__all__ = ["Document", "LongDocument", "uniform_of"]


@dataclass(frozen=True)
class Document:
    """One text and where it came from: ``file`` (or generator, or hub split), and ``row`` in it, from 1.

    ``label`` is the name of its class, None where that is unknown.
    """

    text: str
    file: str
    row: int
    label: str | None = None

    def blocks(self) -> Iterator[str]:
        """The text in blocks that fit into memory."""
        yield self.text

    def draw(self, purpose: str = "") -> float:
        """`uniform_of` the text."""
        return uniform_of(self.text, purpose)


class LongDocument(Document):
    """A document that may be longer than memory; ``text`` reads it whole."""

    def __init__(self, long: LongText, file: str, row: int, label: str | None = None) -> None:
        for name, value in {"_long": long, "file": file, "row": row, "label": label}.items():
            object.__setattr__(self, name, value)

    @property
    def text(self) -> str:
        """The whole text."""
        return str(self._text)

    @property
    def characters(self) -> int:
        """How long the text is."""
        return self._text.characters

    @property
    def _text(self) -> LongText:
        long: LongText = self.__dict__["_long"]
        return long

    def blocks(self) -> Iterator[str]:
        """The text in blocks that fit into memory."""
        return self._text.blocks()

    def draw(self, purpose: str = "") -> float:
        """`uniform_of` the text."""
        return _uniform(self._text.raw_blocks(), purpose)


def uniform_of(text: str, purpose: str = "") -> float:
    """A number in [0, 1) made from the text; those of two purposes have nothing to do with each other."""
    return _uniform([text.encode("utf-8")], purpose)


def _uniform(blocks: Iterable[bytes], purpose: str) -> float:
    total = hashlib.blake2b(digest_size=8, person=purpose.encode("ascii"))
    for block in blocks:
        total.update(block)
    return int.from_bytes(total.digest(), "little") / 2.0**64
