"""Token chunks: joined they are the shard of a slow reference, whoever tokenises, whatever is killed on the way."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltm_pyro.data import chunking
from ltm_pyro.data.chunking import chunk_texts
from ltm_pyro.data.chunks import ChunkStore, ChunkText, Cursor
from ltm_pyro.data.corpora import Corpus, FileCorpus, uniform_of
from ltm_pyro.data.labels import LABEL_RECORD, in_natural_order
from ltm_pyro.data.prepare import Preparation, join, prepare_chunks
from ltm_pyro.data.shards import shard_of
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError

WORDS = ["the", "cat", "sat", "dog\n\nran", "", "to", "it's", "hill", "123", "été", "文。中文字", "\U0001f600"]


def texts_of(count: int, seed: int = 0) -> tuple[str, ...]:
    draw = random.Random(seed)
    return tuple(" ".join([f"d{i}", *draw.choices(WORDS, k=draw.randint(1, 60))]) for i in range(count))


def labels_of(count: int) -> tuple[str | None, ...]:
    return tuple([None, "b", "10", "a", "9"][i % 5] if i > count // 2 else None for i in range(count))


def reference(corpus: Corpus, tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files of a shard, made document by document in one go."""
    tokens: list[int] = []
    offsets, labels = [0], []
    for document in corpus.documents():
        tokens += [*tokenizer.encode(document.text), tokenizer.end_of_text]
        offsets.append(len(tokens))
        labels.append(document.label)
    files = {"tokens.bin": np.array(tokens, "<u2").tobytes(), "documents.bin": np.array(offsets, "<i8").tobytes()}
    names = in_natural_order(label for label in labels if label is not None)
    if names:
        known = [(-1, 0.0) if label is None else (names.index(label), 1.0) for label in labels]
        draws = [
            (number, draw * uniform_of(document.text, "labels"))
            for (number, draw), document in zip(known, corpus.documents(), strict=True)
        ]
        files["labels.bin"] = np.array(draws, LABEL_RECORD).tobytes()
    return files


def prepared(store: ChunkStore, corpus: Corpus, tokenizer: Tokenizer, **how: Any) -> dict[str, bytes]:
    """The files of a shard, by way of chunks."""
    prepare_chunks(store, corpus, tokenizer, **{"workers": 0, "characters": 1000, **how})
    folder = store.folder.parent / f"{store.folder.name}-joined"
    folder.mkdir()
    join(store, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_joined_chunks_are_the_shard_of_a_slow_reference(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, workers: int, labelled: bool
) -> None:
    texts = texts_of(100)
    corpus = make_corpus(texts, labels=labels_of(100) if labelled else None)
    store = ChunkStore(tmp_path / "chunks")
    assert prepared(store, corpus, small, workers=workers) == reference(corpus, small)
    assert (store.count() or 0) > 10
    shard = shard_of(corpus, small, tmp_path)
    assert shard.tokens.tobytes() == reference(corpus, small)["tokens.bin"]


def test_a_document_that_spans_chunks_has_the_tokens_of_the_whole(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "_PART_CHARACTERS", 50)
    corpus = make_corpus((*texts_of(3), " ".join(texts_of(60, seed=1)), *texts_of(3, seed=2)))
    store = ChunkStore(tmp_path / "chunks")
    assert prepared(store, corpus, small, characters=300) == reference(corpus, small)
    manifests = [store.manifest(number) for number in range(store.count() or 0)]
    assert sum(manifest.begins.part > 0 for manifest in manifests) > 10
    assert sum(manifest.num_documents for manifest in manifests) == 7
    assert all(a.ends == b.begins for a, b in pairwise(manifests))


def test_chunks_from_any_place_are_those_from_the_start(
    make_corpus: Any, small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "_PART_CHARACTERS", 50)
    corpus = make_corpus(texts_of(20), labels=labels_of(20))
    whole = list(chunk_texts(corpus, small, characters=200))
    assert len(whole) > 8
    for chunk in whole:
        again = chunk_texts(corpus, small, number=chunk.number, begins=chunk.begins, characters=200)
        assert list(again) == whole[chunk.number :]
    assert ChunkText.from_json(whole[3].to_json()) == whole[3]
    assert "".join(text for chunk in whole for text in chunk.texts) == "".join(texts_of(20))


def test_progress_tells_what_is_done_and_what_was_found(tmp_path: Path, make_corpus: Any, small: Tokenizer) -> None:
    corpus, store = make_corpus(texts_of(50)), ChunkStore(tmp_path / "chunks")
    told: list[Preparation] = []
    done = prepare_chunks(store, corpus, small, workers=0, characters=1000, progress=told.append)
    assert [state.chunks for state in told] == [*range(done.chunks + 1)]
    assert (done.documents, done.characters, done.found) == (50, sum(map(len, texts_of(50))), 0)
    assert done.tokens == len(reference(corpus, small)["tokens.bin"]) // 2
    again = prepare_chunks(store, corpus, small, workers=0, characters=1000)
    assert again == Preparation(done.name, done.documents, done.characters, done.tokens, done.chunks, done.characters)


@pytest.mark.parametrize("damage", ["missing", "flipped", "manifest"])
def test_a_damaged_chunk_is_made_again_and_no_other(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, store = make_corpus(texts_of(50)), ChunkStore(tmp_path / "chunks")
    prepare_chunks(store, corpus, small, workers=0, characters=1000)
    path = store.path(2) / "tokens.bin"
    if damage == "missing":
        store.discard(2)
    elif damage == "flipped":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    else:
        (store.path(2) / "manifest.json").write_text("{")
    made: list[int] = []
    write = ChunkStore.write
    monkeypatch.setattr(ChunkStore, "write", lambda self, chunk, t: made.append(chunk.number) or write(self, chunk, t))
    assert prepared(store, corpus, small) == reference(corpus, small)
    assert made == [2]


def test_a_worker_that_is_killed_ends_the_preparation_with_the_mend(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltm_pyro.data.workers.sys.executable", "/bin/false")
    with pytest.raises(LTMError, match=r"a tokenizing process ended with exit code 1 at chunk \d.*lower data.workers"):
        prepare_chunks(ChunkStore(tmp_path / "chunks"), make_corpus(texts_of(50)), small, workers=1, characters=1000)


PREPARING = """
import sys
from pathlib import Path
from ltm_pyro.data.chunks import ChunkStore
from ltm_pyro.data.corpora import FileCorpus
from ltm_pyro.data.locks import FileLock
from ltm_pyro.data.prepare import prepare_chunks
from ltm_pyro.data.tokenizer import Tokenizer

root = Path(sys.argv[1])
with FileLock(root / "lock") as lock:
    prepare_chunks(
        ChunkStore(root / "chunks"), FileCorpus(root / "a.txt"), Tokenizer.load(root / "tokenizer.json"),
        workers=int(sys.argv[2]), characters=2000, lock=lock, progress=lambda done: print(done.chunks, flush=True),
    )
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_kills_at_random_moments_lose_no_finished_chunk_and_change_no_byte(
    tmp_path: Path, small: Tokenizer, workers: int
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(t.replace("\n", " ") for t in texts_of(3000)), encoding="utf-8")
    small.save(tmp_path / "tokenizer.json")
    corpus, store = FileCorpus(tmp_path / "a.txt"), ChunkStore(tmp_path / "chunks")
    draw, kills = random.Random(workers), 0
    found: list[int] = []
    for _ in range(40):
        command = [sys.executable, "-c", PREPARING, str(tmp_path), str(workers)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            found.append(int(process.stdout.readline()))
            if kills < 3:
                kills += 1
                time.sleep(draw.uniform(0.05, 0.2))
                process.send_signal(signal.SIGKILL)
                process.wait()
            else:
                process.stdout.read()
                break
    assert found == sorted(found)
    made = {path: path.stat().st_mtime_ns for path in store.folder.glob("*/tokens.bin")}
    assert prepared(store, corpus, small, characters=2000) == reference(corpus, small)
    assert made == {path: path.stat().st_mtime_ns for path in store.folder.glob("*/tokens.bin")}
    assert not list(store.folder.glob(".*.tmp"))


def test_manifest_of_a_chunk_tells_where_it_lies_in_the_corpus(
    tmp_path: Path, make_corpus: Any, small: Tokenizer
) -> None:
    store = ChunkStore(tmp_path / "chunks")
    prepare_chunks(store, make_corpus(texts_of(50)), small, workers=0, characters=1000)
    content = json.loads((store.path(1) / "manifest.json").read_text())
    first, second = store.manifest(0), store.manifest(1)
    assert content["begins"] == {"document": first.num_documents, "part": 0}
    assert second.ends == Cursor(first.num_documents + second.num_documents)
    store.drop(1)
    assert 1 not in store
    assert store.manifest(1) == second
    with pytest.raises(LTMError, match=r"not a sound token chunk|cannot be read"):
        store.read(1)


def test_an_empty_corpus_has_no_chunks(tmp_path: Path, make_corpus: Any, small: Tokenizer) -> None:
    store = ChunkStore(tmp_path / "chunks")
    assert prepare_chunks(store, make_corpus(()), small).chunks == 0
    assert store.count() == 0


def test_few_texts_are_read_ahead_of_the_workers(tmp_path: Path, make_corpus: Any, small: Tokenizer) -> None:
    read = 0

    class Counted:
        name = "counted"

        def documents(self) -> Iterator[Any]:
            nonlocal read
            for document in make_corpus(texts_of(200)).documents():
                read += 1
                yield document

        def fingerprint(self) -> str:
            return "counted"

    ahead: list[int] = []

    def told(state: Preparation) -> None:
        ahead.append(read - state.documents)

    prepare_chunks(ChunkStore(tmp_path / "chunks"), Counted(), small, workers=1, characters=500, progress=told)
    per_chunk = 200 / len(ahead)
    assert max(ahead) < 8 * per_chunk
