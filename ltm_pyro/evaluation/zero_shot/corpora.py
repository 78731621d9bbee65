"""Text for the zero-shot suite: files of a folder or streams of the hub, as detokenised documents and counted words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ltm_pyro.data import Layout, SequenceDataset, Tokenizer, shard_of
from ltm_pyro.data.corpora import Document, digest_of, file_digest
from ltm_pyro.data.files import TextUnit, column_names, kind_of, read_rows
from ltm_pyro.data.hub import HubCorpus
from ltm_pyro.data.tokenizer import well_formed
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.perplexity import count_words
from ltm_pyro.evaluation.zero_shot.catalogue import CORPORA, CorpusSpec

__all__ = ["FileRows", "SuiteCorpus", "find_files", "from_hub"]

_FORMAT = "1"  # of documents and detokenizers: another one makes the cache's shards anew
_HEADING = re.compile(r"= (?!= ).*(?<! =) =")
_TRAINING = re.compile(r"(?<![a-z])train|train(?![a-z])")
_TEST = re.compile(r"(?<![a-z])test")
_VALIDATION = re.compile(r"(?<![a-z])(?:valid|val(?![a-z])|dev(?![a-z]))")


@dataclass(frozen=True)
class FileRows:
    """Rows of one local file: lines of .txt, records of .jsonl and .parquet.

    Args:
        path: the file.
        columns: fields that may hold the text; the first that the file has is read.
        unit: what a row of a .txt file is.
    """

    path: Path
    columns: tuple[str, ...]
    unit: TextUnit

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def rows(self) -> Iterator[tuple[int, str, str | None]]:
        """(row, text, None) of every row, empty ones too."""
        there = column_names(self.path)
        column = next((name for name in self.columns if name in there), self.columns[0])
        rows = read_rows(self.path, column=column, unit=self.unit)
        return ((row, str(text), label) for row, text, label in rows)

    def fingerprint(self) -> str:
        """The file's bytes and how they are read."""
        return digest_of(["rows", *self.columns, self.unit, str(kind_of(self.path)), file_digest(self.path)])


@dataclass(frozen=True)
class SuiteCorpus:
    """A corpus of the suite with its text at hand: the documents that are scored, detokenised.

    Args:
        spec: which corpus.
        source: its rows.
    """

    spec: CorpusSpec
    source: FileRows | HubCorpus

    @property
    def name(self) -> str:
        """Where the text comes from."""
        return self.source.name

    def documents(self) -> Iterator[Document]:
        """Detokenised documents; empty ones are skipped, lone surrogates replaced by U+FFFD."""
        for first, rows in self._groups():
            text = self.spec.detokenize("\n".join(rows))
            if text and not text.isspace():
                yield Document(well_formed(text), self.name, first)

    def fingerprint(self) -> str:
        """The source's content and what is made of it."""
        return digest_of(["zero-shot", _FORMAT, self.spec.name, self.source.fingerprint()])

    @cached_property
    def words(self) -> int:
        """Words in the corpus's own tokenisation (`count_words`), with a mark per row where the literature has one.

        The rows of a document that is skipped are none of it.
        """
        marks = int(self.spec.line_marks)
        kept = (rows for _, rows in self._groups() if any(row and not row.isspace() for row in rows))
        return sum(count_words(row) + marks for rows in kept for row in rows)

    def sequences(
        self, tokenizer: Tokenizer, length: int, *, layout: Layout = "packed", cache_dir: Path | None = None
    ) -> SequenceDataset:
        """The corpus as sequences of at most ``length`` tokens, tokenised once and cached.

        Args:
            tokenizer: the model's.
            length: N, the model's greatest (`LanguageModel.max_length`).
            layout: ``packed`` cuts the documents, joined by end-of-text tokens, into consecutive sequences;
                ``documents`` begins one with each document.
            cache_dir: of token shards; None is the user's.

        Raises:
            LTMError: the text cannot be had, or there is none.
        """
        return SequenceDataset(shard_of(self, tokenizer, cache_dir), layout, length)

    def _groups(self) -> Iterator[tuple[int, list[str]]]:
        """(number of its first row, rows) of every document."""
        group: list[str] = []
        first, before = 1, ""
        for number, row, _ in self.source.rows():
            text = row.removesuffix("\n")  # the hub's rows of WikiText end in one
            if group and (self.spec.document == "row" or (self._begins(text, before) and any(map(str.strip, group)))):
                yield first, group
                group, first = [], number
            group.append(text)
            before = text
        if group:
            yield first, group

    def _begins(self, row: str, before: str) -> bool:
        """Whether a row is the heading of a new article."""
        if self.spec.document != "article":
            return False
        return not before.strip() and _HEADING.fullmatch(row.strip()) is not None


def find_files(folder: Path, column: str | None = None) -> dict[str, SuiteCorpus]:
    """The suite's corpora in a folder by name: a corpus is the file whose name begins with its own.

    Case, ``-`` and ``_`` in names make no difference, and a name with ``train`` in it is passed over. Of several files
    the one that is called by the corpus's name alone is taken, else the one with ``test`` in its name, else with
    ``valid``, ``val`` or ``dev``, else the one that is left.

    Args:
        folder: what to look into, not below it.
        column: the field of .jsonl and .parquet that holds the text; None is each corpus's own.

    Raises:
        LTMError: there is no such folder, no corpus in it, or there are two files of equal rank for one.
    """
    if not folder.is_dir():
        raise LTMError(f"{folder}: no such folder; give one with files such as ptb.txt, wikitext.txt or lambada.jsonl")
    files = sorted(path for path in folder.iterdir() if path.is_file() and kind_of(path))
    found = {}
    for spec in CORPORA.values():
        ranked = [(_rank(path, spec.name), path) for path in files]
        best = min((rank for rank, _ in ranked if rank is not None), default=None)
        chosen = [path for rank, path in ranked if rank is not None and rank == best]
        if len(chosen) > 1:
            raise LTMError(
                f"{folder}: {chosen[0].name} and {chosen[1].name} could both be the {spec.title} to score; move one "
                f"away, or call the right one {spec.name}{''.join(kind_of(chosen[0]) or ())}"
            )
        if chosen:
            columns = spec.columns if column is None else (column,)
            found[spec.name] = SuiteCorpus(spec, FileRows(chosen[0], columns, spec.unit))
    if not found:
        raise LTMError(
            f"{folder}: none of the suite's corpora is here; a file's name must begin with {', '.join(CORPORA)}, "
            "such as ptb.txt or lambada_test.jsonl.gz"
        )
    return found


def from_hub() -> dict[str, SuiteCorpus]:
    """All of the suite's corpora, read from the hub as streams."""
    return {
        spec.name: SuiteCorpus(
            spec,
            HubCorpus(spec.hub, streaming=True, exact_split=spec.split, data_dir=spec.data_dir, revision=spec.revision),
        )
        for spec in CORPORA.values()
    }


def _rank(path: Path, corpus: str) -> int | None:
    """How well a file serves as a corpus, 0 best; None where it is none or one to train on."""
    stem = path.name.lower().partition(".")[0]
    whole = re.sub(r"\.(txt|jsonl|parquet)(\.\w+)?$", "", path.name.lower())
    if not re.sub("[-_]", "", stem).startswith(corpus.replace("_", "")) or _TRAINING.search(whole):
        return None
    if re.sub("[-_]", "", whole) == corpus.replace("_", ""):
        return 0
    return 1 if _TEST.search(whole) else 2 if _VALIDATION.search(whole) else 3
