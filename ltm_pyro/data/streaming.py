"""Training on a corpus that is not tokenised as a whole: window after window of its chunks, each shuffled.

The order of the sequences is a function of (seed, epoch) and of the corpus alone, and a sampler's batches are the same
on every rank, so that a run may go on with another number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data.cache import default_cache_dir
from ltm_pyro.data.chunks import Chunk, ChunkStore
from ltm_pyro.data.corpora import Corpus, digest_of
from ltm_pyro.data.prepare import Progress
from ltm_pyro.data.sequences import Layout, SequenceDataset
from ltm_pyro.data.shards import Manifest, Shard
from ltm_pyro.data.stream_sampler import INDEX_BITS, StreamSampler
from ltm_pyro.data.supply import ChunkSupply
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError

__all__ = ["StreamingDataset", "stream_store"]

_FORMAT = 1


def stream_store(corpus: Corpus, tokenizer: Tokenizer, cache_dir: Path | None = None) -> ChunkStore:
    """Where the chunks of a stream lie: a folder named by the corpus's fingerprint and the tokenizer's digest."""
    root = default_cache_dir() if cache_dir is None else cache_dir
    key = digest_of(["stream", str(_FORMAT), corpus.fingerprint(), tokenizer.digest])[:32]
    return ChunkStore(root / "chunks" / key)


class StreamingDataset:
    """Sequences of a corpus whose chunks are tokenised while it is trained on.

    Window w holds the next chunks of the corpus: one, then two, four … until there are ``window_chunks`` of them, so
    that training starts soon. Its tokens are cut into sequences as those of a shard are (`SequenceDataset`), in no
    sequence with those of another window.

    Args:
        supply: gives the chunks.
        tokenizer: of the chunks.
        layout: ``packed`` or ``documents``.
        sequence_length: N, the greatest length.
        window_chunks: chunks that are shuffled together.
        spool: whether chunks are removed once they were used, so that the disk holds a few windows alone.
    """

    class_names: tuple[str, ...] = ()
    """A stream has no classes: they are known only when it has been read."""

    def __init__(
        self,
        supply: ChunkSupply,
        tokenizer: Tokenizer,
        layout: Layout,
        sequence_length: int,
        *,
        window_chunks: int = 16,
        spool: bool = False,
    ) -> None:
        self.layout: Layout = layout
        self.sequence_length = sequence_length
        self.window_chunks = window_chunks
        self._supply, self._tokenizer, self._spool = supply, tokenizer, spool
        self._windows: dict[int, tuple[SequenceDataset, str]] = {}
        self._lock = RLock()  # batches may be made in another thread than the one that samples

    def chunks_of(self, window: int) -> range:
        """The chunks of a window."""
        doublings = (self.window_chunks - 1).bit_length()
        begins = (1 << min(window, doublings)) - 1 + max(0, window - doublings) * self.window_chunks
        return range(begins, begins + min(1 << min(window, doublings), self.window_chunks))

    def window(self, number: int) -> SequenceDataset | None:
        """The sequences of a window, which is waited for; None behind the last.

        Raises:
            LTMError: the corpus cannot be read.
        """
        loaded = self._load(number)
        return None if loaded is None else loaded[0]

    def digest(self, number: int) -> str:
        """What stands for the tokens of a window."""
        loaded = self._load(number)
        return "" if loaded is None else loaded[1]

    def batch(self, indices: Sequence[int]) -> TokenBatch:
        """The sequences of a sampler's indices, padded with end-of-text to the longest of them.

        Raises:
            LTMError: no index, or one that is none of this stream's.
        """
        if not len(indices):
            raise LTMError("a batch needs at least one sequence index, got none")
        parts, rows = [], []
        for number in dict.fromkeys(index >> INDEX_BITS for index in indices):
            window = self.window(number)
            if window is None:
                raise LTMError(f"sequence index {number << INDEX_BITS}: the stream has no window {number}")
            chosen = [row for row, index in enumerate(indices) if index >> INDEX_BITS == number]
            parts.append(window.batch([indices[row] & ((1 << INDEX_BITS) - 1) for row in chosen]))
            rows += chosen
        if len(parts) == 1:
            return parts[0]
        width = max(part.tokens.shape[1] for part in parts)
        order = torch.from_numpy(np.argsort(rows))
        pad = self._tokenizer.end_of_text
        padded = [torch.nn.functional.pad(p.tokens, (0, width - p.tokens.shape[1]), value=pad) for p in parts]
        return TokenBatch(
            torch.cat(padded)[order],
            torch.cat([part.lengths for part in parts])[order],
            torch.cat([part.start for part in parts])[order],
        )

    def sampler(self, batch_size: int, seed: int = 0) -> StreamSampler:
        """Endless batches of indices for `batch`."""
        return StreamSampler(self, batch_size, seed)

    @property
    def source(self) -> str:
        """The corpus's name."""
        return self._supply.corpus.name

    @property
    def counts(self) -> dict[str, int]:
        """Documents and tokens, once the stream's end was met; before, the chunks that are there."""
        store = self._supply.store
        count = store.count()
        if count is None:
            return {"chunks so far": sum(1 for _ in store.folder.glob("[0-9]" * 8))}
        manifests = [store.manifest(number) for number in range(count)]
        return {
            "documents": sum(manifest.num_documents for manifest in manifests),
            "tokens": sum(manifest.num_tokens for manifest in manifests),
        }

    def prepare(self, workers: int | None = None, progress: Progress | None = None) -> dict[str, Any]:
        """Tokenises the whole stream (`prepare_chunks`); returns its counts, the digest of its chunks, their folder."""
        done = self._supply.prepare(workers, progress)
        store = self._supply.store
        return {
            "documents": done.documents,
            "tokens": done.tokens,
            "characters": done.characters,
            "chunks": done.chunks,
            "chunks_sha256": digest_of(store.manifest(number).tokens_sha256 for number in range(done.chunks)),
            "folder": str(store.folder),
        }

    def close(self) -> None:
        """Ends what works in the background."""
        self._supply.close()

    def _load(self, number: int) -> tuple[SequenceDataset, str] | None:
        with self._lock:
            if number not in self._windows:
                chunks = self.chunks_of(number)
                # The window after this one is made ready meanwhile, and the token before this one may be asked for.
                self._supply.want(max(0, chunks[0] - 1), self.chunks_of(number + 1)[-1])
                parts = [chunk for n in chunks if (chunk := self._supply.get(n)) is not None]
                if not parts:
                    return None
                if self._spool and number > 1:  # another rank may be one window behind
                    for old in range(self.chunks_of(number - 1)[0] - 1):
                        self._supply.store.drop(old)
                self._windows[number] = self._joined(parts), digest_of(c.manifest.tokens_sha256 for c in parts)
                for old in [n for n in self._windows if not number - 1 <= n <= number]:
                    del self._windows[old]
            return self._windows[number]

    def _joined(self, chunks: list[Chunk]) -> SequenceDataset:
        tokens = np.concatenate([chunk.tokens for chunk in chunks])
        starts = np.cumsum([0, *(len(chunk.tokens) for chunk in chunks)])
        ends = np.concatenate([start + chunk.ends for start, chunk in zip(starts, chunks, strict=False)])
        if not len(ends) or ends[-1] != len(tokens):  # the last document goes on in the next window
            ends = np.append(ends, len(tokens))
        manifest = Manifest(
            format=_FORMAT,
            dtype=tokens.dtype.str,
            num_tokens=len(tokens),
            num_documents=len(ends),
            end_of_text=self._tokenizer.end_of_text,
            vocab_size=self._tokenizer.vocab_size,
            tokenizer=self._tokenizer.digest,
            source="stream",
            name="stream",
            tokens_sha256="",
            documents_sha256="",
        )
        before = self._token_before(chunks[0])
        shard = Shard(tokens, np.concatenate([[0], ends]).astype(np.int64), manifest)
        return SequenceDataset(shard, self.layout, self.sequence_length, before=before)

    def _token_before(self, chunk: Chunk) -> int | None:
        """The token before a chunk that begins inside a document; None for end-of-text."""
        if not chunk.manifest.begins.part:
            return None
        previous = self._supply.get(chunk.manifest.number - 1)
        return None if previous is None else int(previous.tokens[-1])
