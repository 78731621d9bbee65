"""Documents of .txt files, whole files, blocks or lines, read in pieces of a MiB however long a line is."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ltm_pyro.data.long_text import LongText, TextBuilder
from ltm_pyro.data.zstd import ZstdReader
from ltm_pyro.errors import LTMError

__all__ = ["TextUnit", "decoded", "open_stream", "text_rows"]

TextUnit = Literal["auto", "file", "block", "line"]

_PEEK = 1 << 20


def open_stream(path: Path, compression: str) -> io.BufferedIOBase:
    """The file's bytes, decompressed."""
    if compression == ".gz":
        return gzip.open(path, "rb")
    if compression == ".bz2":
        return bz2.open(path, "rb")
    if compression == ".xz":
        return lzma.open(path, "rb")
    if compression == ".zst":
        return io.BufferedReader(ZstdReader(path), 1 << 17)
    return path.open("rb")


def decoded(raw: bytes, path: Path, number: int, offset: int) -> str:
    """The text of some bytes that stand at ``offset``, a byte-order mark at the file's start dropped."""
    body = raw.removeprefix(codecs.BOM_UTF8) if offset == 0 else raw
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + len(raw) - len(body) + error.start
        utf16 = offset == 0 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        guess = "utf-16" if utf16 else "latin1"
        raise LTMError(
            f"{path}, line {number}, byte {at}: not UTF-8 (byte 0x{body[error.start]:02x}); "
            f"convert it, for example with `iconv -f {guess} -t utf-8`"
        ) from error


def text_rows(path: Path, compression: str, unit: TextUnit) -> Iterator[tuple[int, str | LongText]]:
    """(line, text) of every document; what one is, ``unit`` says (`ltm_pyro.data.files.read_rows`)."""
    if unit == "auto":
        unit = _guess_unit(path, compression)
    text = TextBuilder()
    if unit == "block":
        yield from _blocks(path, compression)
    elif unit == "file":
        for _, piece in _pieces(path, compression):
            text.add(piece)
        yield 1, text.finish()
    else:
        for number, part, ends in _text_lines(path, compression):
            text.add(part)
            if ends:
                yield number, text.finish()


def _pieces(path: Path, compression: str) -> Iterator[tuple[int, str]]:
    r"""(number of the line, some of its text) of a UTF-8 file; only ``\n`` ends a line here, and a long one is cut."""
    offset, number, held = 0, 1, b""
    with open_stream(path, compression) as stream:
        while raw := held + stream.readline(_PEEK):
            ready = len(raw)
            if len(raw) - len(held) == _PEEK and not raw.endswith(b"\n"):
                ready = _whole_characters(raw)
            held = raw[ready:]
            yield number, _unix(decoded(raw[:ready], path, number, offset))
            offset += ready
            number += raw.endswith(b"\n")


def _whole_characters(raw: bytes) -> int:
    r"""How many of the bytes end with a whole character that is no ``\r``, which the next byte may belong to."""
    for back in range(1, min(4, len(raw)) + 1):
        byte = raw[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(raw) - back if length > back else len(raw)
        if byte < 0x80:
            break
    return len(raw) - raw.endswith(b"\r")


def _text_lines(path: Path, compression: str) -> Iterator[tuple[int, str, bool]]:
    """(number, text, whether the line ends with it) of all lines, a long one in several parts."""
    number, is_open = 1, False
    for number, piece in _pieces(path, compression):
        *ended, rest = piece.split("\n")
        for text in ended:
            yield number, text, True
        if rest:
            yield number, rest, False
        is_open = bool(rest) or (is_open and not ended)
    if is_open:
        yield number, "", True


def _blocks(path: Path, compression: str) -> Iterator[tuple[int, str | LongText]]:
    block, first = TextBuilder(), 1
    blank: list[str] | None = []  # white space that the line begins with; None once it has something else
    for number, part, ends in _text_lines(path, compression):
        if blank is not None and not part.strip():
            blank.append(part)
            if ends and block:
                yield first, block.finish()
        else:
            if blank is not None:
                first = first if block else number
                block.add(("\n" if block else "") + "".join(blank))
            block.add(part)
            blank = None
        if ends:
            blank = []
    if block:
        yield first, block.finish()


def _guess_unit(path: Path, compression: str) -> TextUnit:
    seen, text, blank = 0, False, True
    for _, part, ends in _text_lines(path, compression):
        blank = blank and not part.strip()
        seen += len(part) + ends
        if ends and blank and text:
            return "block"
        text = text or not blank
        blank = blank or ends
        if seen > _PEEK:
            break
    return "line"


def _unix(line: str) -> str:
    return line.replace("\r\n", "\n").replace("\r", "\n") if "\r" in line else line
