"""Token shards: a corpus tokenised once into flat memory-mapped files, cached by content.

A shard is a folder: ``tokens.bin`` (little-endian uint16 or uint32; every document followed by its
end-of-text token), ``documents.bin`` (little-endian int64: where each document begins, and the end),
``manifest.json`` and, where a document has a class, ``labels.bin`` (`LABEL_RECORD` for every document).
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ltm_pyro.data.cache import cached_folder, default_cache_dir, hashed_file
from ltm_pyro.data.chunks import ChunkStore, token_type
from ltm_pyro.data.corpora import Corpus, digest_of, empty_corpus, file_digest
from ltm_pyro.data.labels import LABEL_RECORD
from ltm_pyro.data.locks import FileLock
from ltm_pyro.data.prepare import Progress, join, prepare_chunks
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError

__all__ = ["LABEL_RECORD", "Manifest", "Shard", "shard_of", "tokenize_corpus"]

_FORMAT = 1


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
        folder: where it lies; None for one in memory.
    """

    tokens: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    manifest: Manifest
    labels: npt.NDArray[Any] | None = None
    folder: Path | None = None

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
            if len(tokens) and (largest := int(tokens.max())) >= manifest.vocab_size:
                raise ValueError(f"tokens.bin has the id {largest}, the vocabulary ends at {manifest.vocab_size - 1}")
            labels = np.fromfile(folder / "labels.bin", dtype=LABEL_RECORD) if manifest.classes else None
            if labels is not None and (
                len(labels) != manifest.num_documents or labels["class"].max() >= len(manifest.classes)
            ):
                raise ValueError("labels.bin is not that of the manifest's documents and classes")
        except (OSError, ValueError, TypeError, LTMError) as error:
            raise LTMError(f"{folder}: not a sound token shard ({error}); delete it and run again") from error
        return cls(tokens, offsets, manifest, labels, folder)


def shard_of(
    corpus: Corpus,
    tokenizer: Tokenizer,
    cache_dir: Path | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Shard:
    """The corpus as a shard: from the cache if the same content lies there unharmed, else tokenised anew.

    The key is the corpus's fingerprint, the tokenizer's digest and the format. What a killed process has tokenised is
    not tokenised again (`prepare_chunks`, whose the other arguments are).

    Raises:
        LTMError: the corpus has no documents, cannot be read, or the cache folder cannot be written.
    """
    key = digest_of([str(_FORMAT), corpus.fingerprint(), tokenizer.digest])[:32]
    root = default_cache_dir() if cache_dir is None else cache_dir
    shard, chunks = root / "shards" / key, root / "chunks" / key
    if shard.exists():
        with suppress(LTMError):  # damaged: made again below
            return Shard.open(shard)
    with FileLock(
        root / "chunks" / f"{key}.lock"
    ) as lock:  # of several processes one works, and the others wait for it

        def build(folder: Path) -> None:
            tokenize_corpus(
                corpus, tokenizer, folder, ChunkStore(chunks), workers=workers, progress=progress, lock=lock
            )

        opened = cached_folder(shard, build, Shard.open)
        shutil.rmtree(chunks, ignore_errors=True)
        return opened


def tokenize_corpus(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: Path,
    store: ChunkStore,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    lock: FileLock | None = None,
) -> Manifest:
    """Writes a corpus as a shard into an existing folder, by way of token chunks (`prepare_chunks`).

    Raises:
        LTMError: the corpus has no documents, or cannot be read.
    """
    prepare_chunks(store, corpus, tokenizer, workers=workers, progress=progress, lock=lock)
    written = join(store, folder)
    if written.num_documents == 0:
        raise empty_corpus(corpus)
    manifest = Manifest(
        format=_FORMAT,
        dtype=token_type(tokenizer).str,
        end_of_text=tokenizer.end_of_text,
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer.digest,
        source=corpus.fingerprint(),
        name=corpus.name,
        **asdict(written),
    )
    content = {key: value for key, value in asdict(manifest).items() if value is not None and value != ()}
    with hashed_file(folder / "manifest.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    return manifest
