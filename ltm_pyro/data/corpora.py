"""Corpora: lazy, repeatable streams of documents, each with a fingerprint of its content.

Here are the embedded fables, local files, and the two sides that any corpus can be split into.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from ltm_pyro.data.documents import Document, LongDocument, uniform_of
from ltm_pyro.data.files import LONGEST, TextUnit, kind_of, list_files, read_rows
from ltm_pyro.data.long_text import LongText
from ltm_pyro.data.tokenizer import well_formed
from ltm_pyro.errors import LTMError
from ltm_pyro.values import nearest

__all__ = [
    "Corpus",
    "Document",
    "FablesCorpus",
    "FileCorpus",
    "Head",
    "HeldOut",
    "Limited",
    "LongDocument",
    "Split",
    "digest_of",
    "empty_corpus",
    "file_digest",
    "labelled_digest",
    "uniform_of",
]

Split = Literal["train", "validation"]
FABLES_DOCUMENTS = {"train": 5_000, "validation": 250}


@runtime_checkable
class Corpus(Protocol):
    """A named stream of documents, the same in every pass; no document is empty or only white space."""

    @property
    def name(self) -> str:
        """What the user called it, for messages."""

    def documents(self) -> Iterator[Document]:
        """A new pass over the documents, read as they are asked for."""

    def fingerprint(self) -> str:
        """A digest of the content and of every option that changes it: what a cache may be keyed by."""


def digest_of(parts: Iterable[str]) -> str:
    """SHA-256 (hex) of a list of strings."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def labelled_digest(digest: str, label_column: str | None) -> str:
    """The fingerprint of a corpus whose classes are read from ``label_column``; without one, the digest itself."""
    return digest if label_column is None else digest_of(["labelled", label_column, digest])


@dataclass(frozen=True)
class FablesCorpus:
    """The embedded corpus: ``count`` fables of one split, drawn by its generator from ``seed``.

    Args:
        count: how many.
        seed: of the generator.
        split: which of its splits.
        name: what messages call it.
        label_column: the plan variable whose value is a fable's class; None gives no classes.

    Raises:
        LTMError: there is no such plan variable.
    """

    count: int
    seed: int = 0
    split: Split = "train"
    name: str = "fables"
    label_column: str | None = None

    def __post_init__(self) -> None:
        if self.label_column is not None:
            from ltm_pyro.data.fables import PLAN_VARIABLES

            if self.label_column not in PLAN_VARIABLES:
                raise LTMError(
                    f"label_column={self.label_column!r}: the fables have no plan variable of that name"
                    f"{nearest(self.label_column, PLAN_VARIABLES)}"
                )

    def documents(self) -> Iterator[Document]:
        """The fables in the generator's order."""
        from ltm_pyro.data.fables import generate

        for row, fable in enumerate(generate(self.count, seed=self.seed, split=self.split), 1):
            label = None if self.label_column is None else fable.plan[self.label_column]
            yield Document(fable.text, f"fables/{self.split}", row, label)

    def fingerprint(self) -> str:
        """The settings, and the generator's own files: a changed grammar is another corpus."""
        from ltm_pyro.data import fables

        files = sorted(p for p in Path(fables.__path__[0]).rglob("*") if p.is_file() and p.suffix != ".pyc")
        own = [f"{p.name} {file_digest(p)}" for p in files]
        return labelled_digest(
            digest_of(["fables", str(self.count), str(self.seed), self.split, *own]), self.label_column
        )


@dataclass(frozen=True)
class FileCorpus:
    """A local file, or the readable files of a folder in sorted order (`ltm_pyro.data.files`).

    Args:
        path: the file or folder.
        column: the field of .jsonl and .parquet that holds the text.
        unit: what a document is in a .txt file; ``auto`` is the whole file where ``path`` is a folder, and
            for a single file its blank-line blocks (its lines, where it has no blank line).
        label_column: the field of .jsonl and .parquet that holds the class; None gives no classes.
        longest: bytes of the longest line of .jsonl.
        hashed: whether `fingerprint` reads all bytes; without, it trusts names, sizes and dates.

    Raises:
        LTMError: nothing is there, or nothing that can be read as text, or classes are to be read from a .txt file.
    """

    path: Path
    column: str = "text"
    unit: TextUnit = "auto"
    label_column: str | None = None
    longest: int = LONGEST
    hashed: bool = True

    def __post_init__(self) -> None:
        for path in list_files(self.path):
            if self.label_column is not None and ".txt" in (kind_of(path) or ()):
                raise LTMError(
                    f"{path}: label_column={self.label_column!r}, but a .txt file has no classes; give .jsonl or "
                    ".parquet, or leave label_column out"
                )

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def documents(self) -> Iterator[Document]:
        """The documents of each file in turn; empty ones are skipped, lone surrogates replaced by U+FFFD."""
        unit: TextUnit = "file" if self.unit == "auto" and self.path.is_dir() else self.unit
        for path in list_files(self.path):
            for row, text, label in read_rows(
                path, column=self.column, unit=unit, label_column=self.label_column, longest=self.longest
            ):
                if isinstance(text, LongText):
                    if not text.is_blank:
                        yield LongDocument(text, str(path), row, label)
                elif text and not text.isspace():
                    yield Document(well_formed(text), str(path), row, label)

    def fingerprint(self) -> str:
        """The bytes of the files in order (or, not ``hashed``, what the disk says of them), wherever they lie."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        parts = ["files", self.column, self.unit, str(self.path.is_dir())]
        for path in list_files(self.path):
            parts += [str(kind_of(path)), file_digest(path) if self.hashed else self._stamp(path)]
        return labelled_digest(digest_of(parts), self.label_column)

    def _stamp(self, path: Path) -> str:
        name = path.relative_to(self.path) if path != self.path else path.name
        return f"{name} {path.stat().st_size} {path.stat().st_mtime_ns}"


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                total.update(chunk)
    except OSError as error:
        raise LTMError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    return total.hexdigest()


@dataclass(frozen=True)
class Limited:
    """The first ``count`` documents of a corpus."""

    corpus: Corpus
    count: int

    @property
    def name(self) -> str:
        """The corpus's own."""
        return self.corpus.name

    def documents(self) -> Iterator[Document]:
        """Stops reading once the last is out."""
        return islice(self.corpus.documents(), self.count)

    def fingerprint(self) -> str:
        """The corpus and the count."""
        return digest_of(["limited", str(self.count), self.corpus.fingerprint()])


@dataclass(frozen=True)
class Head:
    """The first documents of a corpus, until they have so many characters: what of a stream is read beforehand."""

    corpus: Corpus
    characters: int

    @property
    def name(self) -> str:
        """The corpus's own."""
        return self.corpus.name

    def documents(self) -> Iterator[Document]:
        """Stops reading once the last is out."""
        left = self.characters
        for document in self.corpus.documents():
            yield document
            left -= sum(map(len, document.blocks()))
            if left <= 0:
                return

    def fingerprint(self) -> str:
        """The corpus and the number."""
        return digest_of(["head", str(self.characters), self.corpus.fingerprint()])


@dataclass(frozen=True)
class HeldOut:
    """One side of a corpus: a document is held out if the hash of its text falls below ``fraction``.

    The side depends on the text alone, so that identical texts never stand on both sides, and the order of
    the files or the seed of a run changes nothing.
    """

    corpus: Corpus
    fraction: float
    split: Split

    @property
    def name(self) -> str:
        """The corpus's own."""
        return self.corpus.name

    def documents(self) -> Iterator[Document]:
        """This side's documents, in the corpus's order."""
        wanted = self.split == "validation"
        return (d for d in self.corpus.documents() if (d.draw() < self.fraction) == wanted)

    def fingerprint(self) -> str:
        """The corpus, the fraction and the side."""
        return digest_of(["held-out", repr(self.fraction), self.split, self.corpus.fingerprint()])


def empty_corpus(corpus: Corpus) -> LTMError:
    """The error for a corpus without documents: why there are none, and the mend."""
    if isinstance(corpus, HeldOut) and next(corpus.corpus.documents(), None) is not None:
        return LTMError(
            f"{corpus.name}: the {corpus.split} split is empty: no document fell into it at "
            f"validation_fraction={corpus.fraction}; name a validation source, change the fraction, or, for "
            ".txt files, make more and smaller documents with text_unit=block or line"
        )
    return LTMError(f"{corpus.name}: no documents (every text is empty or blank); give a source that has text")
