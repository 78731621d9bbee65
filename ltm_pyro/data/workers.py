"""Tokenises chunks in several processes at a time."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import TracebackType

from ltm_pyro.data.chunks import ChunkManifest, ChunkStore, ChunkText
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError

__all__ = ["Workers", "available_cores"]


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that tokenise chunks into a store; started when there is more than one chunk to do.

    Args:
        store: where chunks go.
        tokenizer: what makes tokens of them.
        count: how many processes; 0 tokenises in this one.
        keep_open: file descriptors that the processes hold, too, such as that of a lock.
    """

    def __init__(self, store: ChunkStore, tokenizer: Tokenizer, count: int, keep_open: tuple[int, ...] = ()) -> None:
        self._store, self._tokenizer, self._count, self._keep_open = store, tokenizer, count, keep_open
        self._tasks: queue.SimpleQueue[tuple[ChunkText, Future[tuple[ChunkManifest, bool]]] | None] = (
            queue.SimpleQueue()
        )
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Ends the processes, at once where there was an error."""
        for process in self._processes:
            self._tasks.put(None)
            if kind is not None:
                process.kill()
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
            process.wait()
        self._processes = []

    def write(self, chunks: Iterable[ChunkText]) -> Iterator[tuple[ChunkManifest, bool]]:
        """Tokenises the chunks; few more are read than there are processes.

        Yields:
            In the chunks' order, the manifest, and whether the chunk lay in the store already.

        Raises:
            LTMError: a chunk cannot be read or written, or a process was killed.
        """
        rest = iter(chunks)
        first = list(islice(rest, 2))
        if not self._count or (len(first) < 2 and not self._processes):
            for chunk in chain(first, rest):
                yield self._write(chunk, self._here)
            return
        self._start()
        under_way: deque[Future[tuple[ChunkManifest, bool]]] = deque()
        for chunk in chain(first, rest):
            under_way.append(Future())
            self._tasks.put((chunk, under_way[-1]))
            if len(under_way) > self._count + 1:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _start(self) -> None:
        """A process, and a thread that talks to it, for each of the workers."""
        if self._processes:
            return
        folder = str(self._store.folder)
        self._tokenizer.save(f"{folder}/tokenizer.json")
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
        for _ in range(self._count):
            process = subprocess.Popen(
                [sys.executable, "-m", "ltm_pyro.data.worker", f"{folder}/tokenizer.json", folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"},
                pass_fds=self._keep_open,
            )
            self._processes.append(process)
            threading.Thread(target=self._serve, args=(process,), name="tokenizing", daemon=True).start()

    def _serve(self, process: subprocess.Popen[bytes]) -> None:
        while (task := self._tasks.get()) is not None:
            chunk, future = task
            try:
                future.set_result(self._write(chunk, partial(self._elsewhere, process)))
            except BaseException as error:
                future.set_exception(error)

    def _write(self, chunk: ChunkText, write: Callable[[ChunkText], ChunkManifest]) -> tuple[ChunkManifest, bool]:
        if chunk.number in self._store:
            try:
                self._store.check(chunk.number)
                return self._store.manifest(chunk.number), True
            except LTMError:
                self._store.discard(chunk.number)
        return write(chunk), False

    def _here(self, chunk: ChunkText) -> ChunkManifest:
        return self._store.write(chunk, self._tokenizer)

    def _elsewhere(self, process: subprocess.Popen[bytes], chunk: ChunkText) -> ChunkManifest:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(chunk.to_json().encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError):  # ValueError: its input was closed meanwhile
            answer = b""
        if not answer:
            raise LTMError(
                f"a tokenizing process ended with exit code {process.wait()} at chunk {chunk.number}; if memory ran "
                "out, lower data.workers (0: none), then run again: the chunks that are done stay"
            )
        error = json.loads(answer)["error"]
        if error is not None:
            raise LTMError(error)
        return self._store.manifest(chunk.number)
