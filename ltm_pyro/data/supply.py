"""The chunks of a corpus that is tokenised while it is trained on, a bounded number ahead of what is asked for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ltm_pyro.data.chunking import CHUNK_CHARACTERS, chunk_texts
from ltm_pyro.data.chunks import Chunk, ChunkStore, ChunkText, Cursor
from ltm_pyro.data.corpora import Corpus, Document
from ltm_pyro.data.locks import FileLock
from ltm_pyro.data.prepare import Preparation, Progress, prepare_chunks
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.data.workers import Workers, available_cores
from ltm_pyro.errors import LTMError

__all__ = ["ChunkSupply"]

_POLL_SECONDS = 0.05
_SIGN_SECONDS = 1.0
_TAKE_OVER_SECONDS = 5.0


class ChunkSupply:
    """Gives chunks by number; what is missing is tokenised by a thread of this process or by another process.

    Of the processes that share the store, such as the ranks of a training, one at a time tokenises: normally local rank
    0, and another where that does not serve. So no document is tokenised twice, whatever the number of ranks.

    Args:
        store: where chunks lie.
        corpus: what they are made from.
        tokenizer: by what.
        workers: processes that tokenise; None is one for every four cores, 0 tokenises in the thread.
        timeout: seconds in which nothing was read or tokenised, after which waiting is given up.
        characters: of a chunk.
        rank: of this process on its machine; None is ``$LOCAL_RANK``, else 0.
    """

    def __init__(
        self,
        store: ChunkStore,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        workers: int | None = None,
        timeout: float = 600.0,
        characters: int = CHUNK_CHARACTERS,
        rank: int | None = None,
    ) -> None:
        self.store = store
        self.corpus, self._tokenizer, self._characters = corpus, tokenizer, characters
        self._lock = store.folder / "lock"
        self._workers = max(1, available_cores() // 4) if workers is None else workers
        self._timeout = timeout
        self._is_first = (int(os.environ.get("LOCAL_RANK", "0")) if rank is None else rank) == 0
        self._first = self._last = 0  # the chunks that are wanted, both included
        self._may_work = self._is_first
        self._texts: Iterator[ChunkText] | None = None
        self._next = 0  # the number of the chunk that `_texts` gives next
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def want(self, first: int, last: int) -> None:
        """Has the chunks from ``first`` to ``last`` tokenised in the background."""
        with self._changed:
            self._first, self._last = first, last
            self._changed.notify_all()
        if self._thread is None or not self._thread.is_alive():
            self._error, self._closed, self._texts = None, False, None
            self._thread = threading.Thread(target=self._produce, name="chunk-supply", daemon=True)
            self._thread.start()

    def get(self, number: int) -> Chunk | None:
        """A chunk that is wanted, once it is there; None behind the corpus's last.

        Raises:
            LTMError: the corpus cannot be read, or no chunk appeared for too long.
        """
        began, seen = time.monotonic(), self._sign_of_life()
        while number not in self.store:
            count = self.store.count()
            if count is not None and number >= count:
                return None
            if self._error is not None:
                raise self._error
            if (sign := self._sign_of_life()) != seen:
                began, seen = time.monotonic(), sign
            waited = time.monotonic() - began
            if waited > self._timeout:
                raise LTMError(
                    f"{self.store.folder}: token chunk {number} has not appeared, and for {self._timeout:.0f} seconds "
                    "nothing was read for it: the process that holds the lock there does not go on; see that its "
                    "source can be read, end that process, or give this run a data.cache_dir of its own"
                )
            self._may_work = self._is_first or waited > _TAKE_OVER_SECONDS
            with self._changed:
                self._changed.wait(_POLL_SECONDS)
        try:
            return self.store.read(number)
        except LTMError:
            self.store.discard(number)  # damaged: made again
            return self.get(number)

    def prepare(self, workers: int | None = None, progress: Progress | None = None) -> Preparation:
        """Tokenises the whole corpus, when no other process does."""
        with FileLock(self._lock) as lock:
            return prepare_chunks(
                self.store,
                self.corpus,
                self._tokenizer,
                workers=workers,
                progress=progress,
                characters=self._characters,
                lock=lock,
            )

    def close(self) -> None:
        """Ends the thread and its processes; what is under way is given up."""
        self._closed = True
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _produce(self) -> None:
        """Tokenises what is wanted and missing, whenever there is something, until `close`."""
        lock = FileLock(self._lock)
        try:
            with Workers(self.store, self._tokenizer, self._workers, (lock.descriptor,)) as pool:
                while not self._closed:
                    if self._missing() is not None and self._may_work and lock.acquire(wait=False):
                        self._work(pool)
                        lock.release()
                    with self._changed:
                        self._changed.notify_all()
                        self._changed.wait(4 * _POLL_SECONDS)
        except BaseException as error:
            self._error = error
        finally:
            lock.close()

    def _work(self, pool: Workers) -> None:
        """Tokenises the wanted chunks that are missing, now that no other process does."""
        self.store.sweep()
        missing = self._missing()
        if missing is None:
            return
        if self._texts is None or self._next > missing:
            self._texts = self._texts_from(missing)
        for _ in pool.write(self._wanted(self._texts)):
            with self._changed:
                self._changed.notify_all()
        if self._ended:
            self.store.write_count(self._next)

    def _wanted(self, texts: Iterator[ChunkText]) -> Iterator[ChunkText]:
        while self._next <= self._last and not self._closed:
            text = next(texts, None)
            if text is None:
                self._texts, self._ended = None, True
                return
            self._next = text.number + 1
            if text.number >= self._first:
                yield text

    def _texts_from(self, number: int) -> Iterator[ChunkText]:
        """The chunks from a number on, or from the start where it is not known where that one begins."""
        begins = Cursor()
        if number:
            try:
                begins = self.store.manifest(number - 1).ends
            except LTMError:
                number = 0
        self._next, self._ended = number, False
        return chunk_texts(
            _Heard(self.corpus, self._lock), self._tokenizer, number=number, begins=begins, characters=self._characters
        )

    def _sign_of_life(self) -> tuple[int, int]:
        """Changes while some process reads or tokenises for the store."""
        there = sum(1 for number in range(self._first, self._last + 1) if number in self.store)
        return there, self._lock.stat().st_mtime_ns if self._lock.exists() else 0

    def _missing(self) -> int | None:
        """The first chunk that is wanted and not there."""
        count, last = self.store.count(), self._last
        last = last if count is None else min(last, count - 1)
        return next((number for number in range(self._first, last + 1) if number not in self.store), None)


class _Heard:
    """A corpus that leaves a sign of life, the date of a file, while it is read: long reading is no standstill."""

    def __init__(self, corpus: Corpus, path: Path) -> None:
        self.name, self._corpus, self._path = corpus.name, corpus, path

    def documents(self) -> Iterator[Document]:
        told = 0.0
        for document in self._corpus.documents():
            if time.monotonic() - told > _SIGN_SECONDS:
                told = time.monotonic()
                os.utime(self._path)
            yield document

    def fingerprint(self) -> str:
        return self._corpus.fingerprint()
