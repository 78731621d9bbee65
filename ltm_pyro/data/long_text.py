"""Texts that may be longer than memory: beyond 16 million characters, they lie in a temporary file."""

from __future__ import annotations

import codecs
import os
import tempfile
from collections.abc import Iterator

__all__ = ["LongText", "TextBuilder"]

_IN_MEMORY = 1 << 24
_BLOCK = 1 << 20


class LongText:
    """A text in a temporary file (in ``$TMPDIR``), which goes when the object does; ``str()`` reads it whole."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="ltm-pyro-")  # noqa: SIM115 - closed with the object
        self.characters = 0
        self.is_blank = True

    def add(self, text: str) -> None:
        """Appends some text."""
        self._file.write(text.encode("utf-8"))
        self.characters += len(text)
        self.is_blank = self.is_blank and not text.strip()

    def raw_blocks(self) -> Iterator[bytes]:
        """The text's UTF-8 bytes, a MiB at a time; passes do not disturb each other."""
        self._file.flush()
        at = 0
        while block := os.pread(self._file.fileno(), _BLOCK, at):
            yield block
            at += len(block)

    def blocks(self) -> Iterator[str]:
        """The text, about a MiB at a time."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        return (decoder.decode(block) for block in self.raw_blocks())

    def __str__(self) -> str:
        return "".join(self.blocks())


class TextBuilder:
    """Puts a text together from parts; `finish` gives a string, or a `LongText` where it is long."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._characters = 0
        self._long: LongText | None = None

    def __bool__(self) -> bool:
        return self._characters > 0

    def add(self, text: str) -> None:
        """Appends some text."""
        self._characters += len(text)
        if self._long is None and self._characters > _IN_MEMORY:
            self._long = LongText()
            for part in self._parts:
                self._long.add(part)
            self._parts = []
        if self._long is None:
            self._parts.append(text)
        else:
            self._long.add(text)

    def finish(self) -> str | LongText:
        """The text; the builder begins another."""
        text = "".join(self._parts) if self._long is None else self._long
        self._parts, self._characters, self._long = [], 0, None
        return text
