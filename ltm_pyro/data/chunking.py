"""Cuts a corpus into the texts of its chunks, from its start or from where a chunk begins."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ltm_pyro.data.chunks import ChunkText, Cursor
from ltm_pyro.data.corpora import Corpus, Document, LongDocument
from ltm_pyro.data.cutting import cut
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError

__all__ = ["CHUNK_CHARACTERS", "chunk_texts"]

CHUNK_CHARACTERS = 4_000_000
"""A chunk ends with the document, or part of one, that reaches so many characters …"""
_CHUNK_TEXTS = 1 << 16  # … or is this one in number
_PART_CHARACTERS = 250_000
_LONGEST_WHOLE = 1 << 26


def chunk_texts(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    number: int = 0,
    begins: Cursor | None = None,
    characters: int = CHUNK_CHARACTERS,
) -> Iterator[ChunkText]:
    """The chunks of a corpus in order; where they are cut depends on its documents alone.

    Args:
        corpus: what to cut.
        tokenizer: says whether long documents may be cut.
        number: of the first chunk to give.
        begins: where in the corpus that chunk begins; None is its start.
        characters: of a chunk.

    Raises:
        LTMError: the corpus cannot be read, or a document is too long for the memory and cannot be cut.
    """
    start = begins or Cursor()
    chunk = _Growing(number, start)
    for index, document in enumerate(islice(corpus.documents(), start.document, None), start.document):
        first = start.part if index == start.document else 0
        for place, part, last in _numbered(islice(_parts(document, tokenizer), first, None), first + 1):
            chunk.add(part, document if last else None)
            if chunk.characters >= characters or len(chunk.texts) == _CHUNK_TEXTS:
                ends = Cursor(index + 1) if last else Cursor(index, place)
                yield chunk.finish(ends)
                chunk = _Growing(chunk.number + 1, ends)
        start = Cursor(index + 1)
    if chunk.texts:
        yield chunk.finish(start)


class _Growing:
    def __init__(self, number: int, begins: Cursor) -> None:
        self.number, self.begins = number, begins
        self.characters = 0
        self.texts: list[str] = []
        self._whole: list[bool] = []
        self._labels: list[str | None] = []
        self._draws: list[float] = []

    def add(self, text: str, ended: Document | None) -> None:
        """A text, and the document if it ends with it."""
        self.texts.append(text)
        self.characters += len(text)
        self._whole.append(ended is not None)
        if ended is not None:
            self._labels.append(ended.label)
            self._draws.append(0.0 if ended.label is None else ended.draw("labels"))

    def finish(self, ends: Cursor) -> ChunkText:
        return ChunkText(self.number, self.begins, ends, self.texts, self._whole, self._labels, self._draws)


def _numbered(parts: Iterator[str], place: int) -> Iterator[tuple[int, str, bool]]:
    """(number, text, whether it is the last) of every part, the first having the number ``place``."""
    part = next(parts, None)
    while part is not None:
        following = next(parts, None)
        yield place, part, following is None
        part, place = following, place + 1


def _parts(document: Document, tokenizer: Tokenizer) -> Iterator[str]:
    if tokenizer.cuts_texts:
        return cut(document.blocks(), _PART_CHARACTERS)
    if isinstance(document, LongDocument) and document.characters > _LONGEST_WHOLE:
        raise LTMError(
            f"{document.file}, line {document.row}: the document has {document.characters:,} characters, and this "
            "tokenizer does not tell where a text may be cut; break the document up (text_unit=block or line), or take "
            "a byte-level tokenizer such as GPT-2's"
        )
    return iter([document.text])
