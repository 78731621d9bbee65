"""Token shards: a corpus tokenised once into flat memory-mapped files, cached by content.

A shard is a folder: ``tokens.bin`` (little-endian uint16 or uint32; every document followed by its
end-of-text token), ``documents.bin`` (little-endian int64: where each document begins, and the end),
``manifest.json`` and, where a document has a class, ``labels.bin`` (`LABEL_RECORD` for every document).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ltm_pyro.data.cache import cached_folder, default_cache_dir, hashed_file
from ltm_pyro.data.corpora import Corpus, Document, digest_of, empty_corpus, file_digest, uniform_of
from ltm_pyro.data.labels import UNKNOWN, in_natural_order, renumbering
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError

__all__ = ["LABEL_RECORD", "Manifest", "Shard", "shard_of", "tokenize_corpus"]

_FORMAT = 1
_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 1_000_000

LABEL_RECORD = np.dtype([("class", "<i4"), ("draw", "<f8")])
"""A document's class, -1 where it is unknown, and a number in [0, 1) made from its text: a share of the classes is kept
by it, so that another share needs no other shard."""


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says of a shard; the digests are SHA-256 of the files.

    ``classes`` are the names of the documents' classes; without classes, they and their digest are left out.
    """

    format: int
    dtype: str
    num_tokens: int
    num_documents: int
    end_of_text: int
    vocab_size: int
    tokenizer: str
    source: str
    name: str
    tokens_sha256: str
    documents_sha256: str
    classes: tuple[str, ...] = ()
    labels_sha256: str | None = None


@dataclass(frozen=True, eq=False)
class Shard:
    """A tokenised corpus, memory-mapped.

    Args:
        tokens: all documents one after another, each followed by its end-of-text token.
        offsets: (documents + 1,) where each document begins in ``tokens``; the last entry is their number.
        manifest: counts and identities.
        labels: (documents,) of `LABEL_RECORD`; None where no document has a class.
    """

    tokens: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    manifest: Manifest
    labels: npt.NDArray[Any] | None = None

    @classmethod
    def open(cls, folder: Path) -> Shard:
        """Maps a shard and checks its sizes and digests.

        Raises:
            LTMError: a file is missing or is not what the manifest says.
        """
        try:
            content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            if "classes" in content:
                content["classes"] = tuple(content["classes"])
            manifest = Manifest(**content)
            if manifest.format != _FORMAT:
                raise ValueError(f"format {manifest.format}, expected {_FORMAT}")
            for name, expected in (
                ("tokens", manifest.tokens_sha256),
                ("documents", manifest.documents_sha256),
                ("labels", manifest.labels_sha256),
            ):
                if expected is not None and file_digest(folder / f"{name}.bin") != expected:
                    raise ValueError(f"{name}.bin has changed since it was written")
            if manifest.dtype not in ("<u2", "<u4"):
                raise ValueError(f"its tokens are of type {manifest.dtype}")
            tokens = np.memmap(folder / "tokens.bin", dtype=manifest.dtype, mode="r")
            offsets = np.fromfile(folder / "documents.bin", dtype="<i8").astype(np.int64, copy=False)
            if (len(tokens), len(offsets)) != (manifest.num_tokens, manifest.num_documents + 1):
                raise ValueError("the counts in manifest.json are not those of the files")
            if offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) < 1).any():
                raise ValueError("its documents are not one after another")
            if int(tokens.max()) >= manifest.vocab_size:
                raise ValueError("a token is not in the vocabulary")
            labels = np.fromfile(folder / "labels.bin", dtype=LABEL_RECORD) if manifest.classes else None
            if labels is not None and (
                len(labels) != manifest.num_documents or labels["class"].max() >= len(manifest.classes)
            ):
                raise ValueError("labels.bin is not that of the manifest's documents and classes")
            if len(tokens) and (largest := int(tokens.max())) >= manifest.vocab_size:
                raise ValueError(f"tokens.bin has the id {largest}, the vocabulary ends at {manifest.vocab_size - 1}")
        except (OSError, ValueError, TypeError, LTMError) as error:
            raise LTMError(f"{folder}: not a sound token shard ({error}); delete it and run again") from error
        return cls(tokens, offsets, manifest, labels)


def shard_of(corpus: Corpus, tokenizer: Tokenizer, cache_dir: Path | None = None) -> Shard:
    """The corpus as a shard: from the cache if the same content lies there unharmed, else tokenised anew.

    The key is the corpus's fingerprint, the tokenizer's digest and the format.

    Raises:
        LTMError: the corpus has no documents, cannot be read, or the cache folder cannot be written.
    """
    key = digest_of([str(_FORMAT), corpus.fingerprint(), tokenizer.digest])[:32]
    root = default_cache_dir() if cache_dir is None else cache_dir
    return cached_folder(root / "shards" / key, partial(tokenize_corpus, corpus, tokenizer), Shard.open)


def tokenize_corpus(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> Manifest:
    """Writes a corpus as a shard into an existing folder, holding one batch of texts in memory at a time.

    Raises:
        LTMError: the corpus has no documents, or cannot be read.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    end, count, position = [tokenizer.end_of_text], 0, 0
    names: dict[str, int] = {}  # the classes in the order in which they were met
    labels: list[npt.NDArray[Any]] = []
    with hashed_file(folder / "tokens.bin") as tokens, hashed_file(folder / "documents.bin") as documents:
        documents.write(np.zeros(1, "<i8").tobytes())
        for batch in _batches(corpus):
            encoded = [np.array(ids + end, dtype) for ids in tokenizer.encode_batch([d.text for d in batch])]
            tokens.write(b"".join(ids.tobytes() for ids in encoded))
            ends = position + np.cumsum([len(ids) for ids in encoded])
            documents.write(ends.astype("<i8").tobytes())
            count, position = count + len(encoded), int(ends[-1])
            labels.append(np.array([_label_record(d, names) for d in batch], LABEL_RECORD))
    if count == 0:
        raise empty_corpus(corpus)
    classes = in_natural_order(names)
    manifest = Manifest(
        format=_FORMAT,
        dtype=dtype.str,
        num_tokens=position,
        num_documents=count,
        end_of_text=tokenizer.end_of_text,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer.digest,
        source=corpus.fingerprint(),
        name=corpus.name,
        tokens_sha256=tokens.digest,
        documents_sha256=documents.digest,
        classes=classes,
        labels_sha256=_write_labels(folder, np.concatenate(labels), renumbering(list(names), classes))
        if names
        else None,
    )
    content = {key: value for key, value in asdict(manifest).items() if value is not None and value != ()}
    with hashed_file(folder / "manifest.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    return manifest


def _label_record(document: Document, names: dict[str, int]) -> tuple[int, float]:
    """A document's `LABEL_RECORD`; a class that is new in ``names`` is added there."""
    if document.label is None:
        return UNKNOWN, 0.0
    return names.setdefault(document.label, len(names)), uniform_of(document.text, "labels")


def _write_labels(folder: Path, labels: npt.NDArray[Any], new_numbers: npt.NDArray[np.int64]) -> str:
    """Writes the documents' classes under their new numbers; returns the digest."""
    labels["class"] = new_numbers[labels["class"]]
    with hashed_file(folder / "labels.bin") as file:
        file.write(labels.tobytes())
    return file.digest


def _batches(corpus: Corpus) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in corpus.documents():
        batch.append(document)
        characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
