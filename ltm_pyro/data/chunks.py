"""Token chunks: a corpus in document order, cut every 4 million characters, each cut tokenised by itself.

A chunk is a folder that appears whole, by a rename: ``tokens.bin`` and ``documents.bin`` as in a shard (here: where
each document that ends in the chunk ends), ``labels.bin`` where there are classes, and ``manifest.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ltm_pyro.data.cache import hashed_file, unwritable
from ltm_pyro.data.corpora import file_digest
from ltm_pyro.data.labels import LABEL_RECORD, UNKNOWN
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError

__all__ = ["Chunk", "ChunkManifest", "ChunkStore", "ChunkText", "Cursor", "token_type"]

_FORMAT = 1
_BATCH_TEXTS = 1024
_BATCH_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Cursor:
    """A place in a corpus: so many documents lie before it whole, and so many parts of the next."""

    document: int = 0
    part: int = 0


@dataclass(frozen=True)
class ChunkText:
    """What a chunk is made from.

    Args:
        number: of the chunk, from 0.
        begins, ends: where in the corpus.
        texts: documents, or parts of one.
        whole: for each text, whether a document ends with it.
        labels: for each document that ends here, the name of its class.
        draws: for each document that ends here, a number made from its text.
    """

    number: int
    begins: Cursor
    ends: Cursor
    texts: list[str]
    whole: list[bool]
    labels: list[str | None]
    draws: list[float]

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str | bytes) -> ChunkText:
        """The inverse of `to_json`."""
        content = json.loads(line)
        return cls(**content | {name: Cursor(**content[name]) for name in ("begins", "ends")})


@dataclass(frozen=True)
class ChunkManifest:
    """What ``manifest.json`` says of a chunk: counts, where in the corpus it lies, SHA-256 of its files.

    ``num_documents`` are those that end in it; ``classes`` the names behind the numbers in ``labels.bin``, in the order
    in which they were met.
    """

    format: int
    number: int
    begins: Cursor
    ends: Cursor
    dtype: str
    num_tokens: int
    num_documents: int
    characters: int
    tokens_sha256: str
    documents_sha256: str
    classes: tuple[str, ...] = ()
    labels_sha256: str | None = None


@dataclass(frozen=True, eq=False)
class Chunk:
    """A chunk in memory.

    Args:
        tokens: of its documents, each followed by end-of-text.
        ends: (documents,) where each document that ends in the chunk ends in ``tokens``.
        manifest: counts and identities.
        labels: (documents,) of `LABEL_RECORD`; None where no document has a class.
    """

    tokens: npt.NDArray[Any]
    ends: npt.NDArray[np.int64]
    manifest: ChunkManifest
    labels: npt.NDArray[Any] | None = None


class ChunkStore:
    """The chunks of one corpus under one tokenizer, in a folder that processes share.

    Args:
        folder: where they lie; it is made.

    Raises:
        LTMError: it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error

    def path(self, number: int) -> Path:
        """The folder of a chunk."""
        return self.folder / f"{number:08d}"

    def __contains__(self, number: int) -> bool:
        return self.path(number).exists()

    def count(self) -> int | None:
        """How many chunks the corpus has; None before its end was met."""
        try:
            return int(json.loads((self.folder / "end.json").read_text(encoding="utf-8"))["chunks"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_count(self, chunks: int) -> None:
        """Says how many chunks the corpus has."""
        _write_whole(self.folder / "end.json", json.dumps({"chunks": chunks}))

    def write(self, chunk: ChunkText, tokenizer: Tokenizer) -> ChunkManifest:
        """Tokenises a chunk; one that another process has written meanwhile stays.

        Raises:
            LTMError: the folder cannot be written.
        """
        temporary = self.folder / f".{chunk.number:08d}.{uuid.uuid4().hex}.tmp"
        try:
            temporary.mkdir()
            manifest = _encode(chunk, tokenizer, temporary)
            temporary.rename(self.path(chunk.number))
            return manifest
        except OSError as error:
            if chunk.number in self:
                return self.manifest(chunk.number)
            raise unwritable(self.folder, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def manifest(self, number: int) -> ChunkManifest:
        """The manifest of a chunk, which stays when the chunk is dropped.

        Raises:
            LTMError: there is none, or it is damaged.
        """
        for path in (self.path(number) / "manifest.json", self.folder / f"{number:08d}.json"):
            with suppress(FileNotFoundError):
                return _manifest(path)
        raise LTMError(f"{self.path(number)}: there is no such token chunk; prepare the data again")

    def read(self, number: int) -> Chunk:
        """A chunk, checked against its manifest.

        Raises:
            LTMError: it is missing or damaged.
        """
        folder, manifest = self.path(number), self.manifest(number)
        try:
            self.check(number)
            tokens = np.fromfile(folder / "tokens.bin", dtype=manifest.dtype)
            ends = np.fromfile(folder / "documents.bin", dtype="<i8").astype(np.int64, copy=False)
            labels = np.fromfile(folder / "labels.bin", dtype=LABEL_RECORD) if manifest.classes else None
        except OSError as error:
            raise _damaged(folder, error) from error
        return Chunk(tokens, ends, manifest, labels)

    def check(self, number: int) -> None:
        """Nothing, where a chunk's files are those of its manifest.

        Raises:
            LTMError: they are not.
        """
        folder, manifest = self.path(number), self.manifest(number)
        for name, expected in (
            ("tokens", manifest.tokens_sha256),
            ("documents", manifest.documents_sha256),
            ("labels", manifest.labels_sha256),
        ):
            if expected is not None and file_digest(folder / f"{name}.bin") != expected:
                raise _damaged(folder, f"{name}.bin has changed since it was written")

    def drop(self, number: int) -> None:
        """Removes a chunk's tokens, to save space; its manifest stays."""
        if number in self:
            with suppress(OSError, LTMError):
                manifest = self.manifest(number)
                _write_whole(self.folder / f"{number:08d}.json", json.dumps(asdict(manifest)))
                shutil.rmtree(self.path(number))

    def sweep(self) -> None:
        """Removes what killed processes have left; for the holder of the lock alone."""
        for left in self.folder.glob(".*.tmp"):
            shutil.rmtree(left, ignore_errors=True)

    def discard(self, number: int) -> None:
        """Removes a chunk that is damaged."""
        shutil.rmtree(self.path(number), ignore_errors=True)


def token_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest type that holds every id."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def _encode(chunk: ChunkText, tokenizer: Tokenizer, folder: Path) -> ChunkManifest:
    dtype, end = token_type(tokenizer), [tokenizer.end_of_text]
    names: dict[str, int] = {}
    position, ends = 0, []
    with hashed_file(folder / "tokens.bin") as tokens:
        for texts, whole in _batches(chunk.texts, chunk.whole):
            encoded = tokenizer.encode_batch(texts)
            tokens.write(
                b"".join(np.array(ids + end * w, dtype).tobytes() for ids, w in zip(encoded, whole, strict=True))
            )
            for ids, is_whole in zip(encoded, whole, strict=True):
                position += len(ids) + is_whole
                if is_whole:
                    ends.append(position)
    with hashed_file(folder / "documents.bin") as documents:
        documents.write(np.array(ends, "<i8").tobytes())
    labels = [
        (UNKNOWN, 0.0) if label is None else (names.setdefault(label, len(names)), draw)
        for label, draw in zip(chunk.labels, chunk.draws, strict=True)
    ]
    labels_sha256 = None
    if names:
        with hashed_file(folder / "labels.bin") as file:
            file.write(np.array(labels, LABEL_RECORD).tobytes())
        labels_sha256 = file.digest
    manifest = ChunkManifest(
        format=_FORMAT,
        number=chunk.number,
        begins=chunk.begins,
        ends=chunk.ends,
        dtype=dtype.str,
        num_tokens=position,
        num_documents=len(ends),
        characters=sum(map(len, chunk.texts)),
        tokens_sha256=tokens.digest,
        documents_sha256=documents.digest,
        classes=tuple(names),
        labels_sha256=labels_sha256,
    )
    with hashed_file(folder / "manifest.json") as file:
        file.write((json.dumps(asdict(manifest), indent=2) + "\n").encode())
    return manifest


def _batches(texts: Sequence[str], whole: Sequence[bool]) -> Iterator[tuple[list[str], list[bool]]]:
    """Few enough at a time that what the tokenizer makes of them stays small."""
    first, characters = 0, 0
    for last, text in enumerate(texts, 1):
        characters += len(text)
        if last - first == _BATCH_TEXTS or characters >= _BATCH_CHARACTERS or last == len(texts):
            yield list(texts[first:last]), list(whole[first:last])
            first, characters = last, 0


def _manifest(path: Path) -> ChunkManifest:
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
        content |= {name: Cursor(**content[name]) for name in ("begins", "ends")}
        manifest = ChunkManifest(**content | {"classes": tuple(content["classes"])})
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path.parent, error) from error
    if manifest.format != _FORMAT:
        raise _damaged(path.parent, f"format {manifest.format}, expected {_FORMAT}")
    return manifest


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _damaged(folder: Path, why: object) -> LTMError:
    return LTMError(f"{folder}: not a sound token chunk ({why}); delete it and run again")
