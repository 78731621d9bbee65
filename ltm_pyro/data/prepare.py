"""Tokenises a whole corpus, chunk by chunk, and joins the chunks into a shard; a kill loses no finished chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltm_pyro.data.cache import hashed_file
from ltm_pyro.data.chunking import CHUNK_CHARACTERS, chunk_texts
from ltm_pyro.data.chunks import Chunk, ChunkManifest, ChunkStore, Cursor
from ltm_pyro.data.corpora import Corpus
from ltm_pyro.data.labels import LABEL_RECORD, UNKNOWN, in_natural_order, renumbering
from ltm_pyro.data.locks import FileLock
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.data.workers import Workers, available_cores
from ltm_pyro.errors import LTMError

__all__ = ["Preparation", "Progress", "Written", "join", "prepare_chunks"]


@dataclass(frozen=True)
class Preparation:
    """How far a corpus is tokenised.

    Args:
        name: of the corpus.
        documents, characters, tokens, chunks: done so far.
        found: the characters among them that had been done before.
    """

    name: str
    documents: int = 0
    characters: int = 0
    tokens: int = 0
    chunks: int = 0
    found: int = 0

    def plus(self, chunk: ChunkManifest, found: bool) -> Preparation:
        """After another chunk."""
        return Preparation(
            self.name,
            self.documents + chunk.num_documents,
            self.characters + chunk.characters,
            self.tokens + chunk.num_tokens,
            self.chunks + 1,
            self.found + chunk.characters * found,
        )


Progress = Callable[[Preparation], object]
"""What is told of a preparation, after every chunk."""


def prepare_chunks(
    store: ChunkStore,
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    characters: int = CHUNK_CHARACTERS,
    lock: FileLock | None = None,
) -> Preparation:
    """Tokenises what is missing of a corpus.

    Args:
        store: where the chunks go.
        corpus: what to tokenise.
        tokenizer: by what.
        workers: processes that tokenise; None is one for each core, 0 none but this one.
        progress: told of every chunk.
        characters: of a chunk.
        lock: which the caller holds, so that no other process does the same.

    Raises:
        LTMError: the corpus cannot be read, or the cache cannot be written.
    """
    if lock is not None:
        store.sweep()
    state, begins = Preparation(corpus.name), Cursor()
    while state.chunks in store or (store.count() or 0) > state.chunks:
        try:
            store.check(state.chunks)
            manifest = store.manifest(state.chunks)
        except LTMError:
            store.discard(state.chunks)
            break
        state, begins = state.plus(manifest, found=True), manifest.ends
    if progress is not None:
        progress(state)
    if store.count() == state.chunks:
        return state
    texts = chunk_texts(corpus, tokenizer, number=state.chunks, begins=begins, characters=characters)
    count = available_cores() if workers is None else workers
    with Workers(store, tokenizer, count, () if lock is None else (lock.descriptor,)) as pool:
        for manifest, found in pool.write(texts):
            state = state.plus(manifest, found)
            if progress is not None:
                progress(state)
    store.write_count(state.chunks)
    return state


@dataclass(frozen=True)
class Written:
    """What `join` wrote: counts, SHA-256 of the files, the names of the classes."""

    num_tokens: int
    num_documents: int
    tokens_sha256: str
    documents_sha256: str
    classes: tuple[str, ...]
    labels_sha256: str | None


def join(store: ChunkStore, folder: Path) -> Written:
    """Writes all chunks of a store, one after another, as the files of a shard; one is in memory at a time.

    Raises:
        LTMError: a chunk is damaged.
    """
    count = store.count() or 0
    manifests = [store.manifest(number) for number in range(count)]
    position = documents_so_far = 0
    with hashed_file(folder / "tokens.bin") as tokens, hashed_file(folder / "documents.bin") as documents:
        documents.write(np.zeros(1, "<i8").tobytes())
        for chunk in map(store.read, range(count)):
            tokens.write(chunk.tokens.tobytes())
            documents.write((position + chunk.ends).astype("<i8").tobytes())
            position, documents_so_far = position + len(chunk.tokens), documents_so_far + len(chunk.ends)
    classes = in_natural_order(name for manifest in manifests for name in manifest.classes)
    labels_sha256 = None
    if classes:
        with hashed_file(folder / "labels.bin") as file:
            for chunk in map(store.read, range(count)):
                file.write(_labels(chunk, classes))
        labels_sha256 = file.digest
    return Written(position, documents_so_far, tokens.digest, documents.digest, classes, labels_sha256)


def _labels(chunk: Chunk, classes: tuple[str, ...]) -> bytes:
    """A chunk's classes under the shard's numbers."""
    if chunk.labels is None:
        return np.array([(UNKNOWN, 0.0)] * len(chunk.ends), LABEL_RECORD).tobytes()
    labels = chunk.labels.copy()
    labels["class"] = renumbering(chunk.manifest.classes, classes)[labels["class"]]
    return labels.tobytes()
