"""Token shards: what is written, caching by content, and kills, races and damage of the cache."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltm_pyro.data import cache, chunks
from ltm_pyro.data.corpora import FileCorpus, uniform_of
from ltm_pyro.data.shards import LABEL_RECORD, Shard, shard_of
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError

TEXTS = ("the cat", "sat on the mat", "é\0\U0001f600", "the dog")


def folders(root: Path) -> list[Path]:
    return sorted((root / "shards").iterdir())


def assert_holds(shard: Shard, texts: tuple[str, ...], tokenizer: Tokenizer) -> None:
    end = tokenizer.end_of_text
    assert shard.tokens.tolist() == [t for text in texts for t in (*tokenizer.encode(text), end)]
    for i, text in enumerate(texts):
        document = shard.tokens[shard.offsets[i] : shard.offsets[i + 1]].tolist()
        assert document[-1] == end
        assert tokenizer.decode(document) == text


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=6))
def test_shard_holds_each_document_and_its_end_of_text(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, texts: list[str]
) -> None:
    shard = shard_of(make_corpus(tuple(texts)), small, tmp_path)
    assert_holds(shard, tuple(texts), small)
    assert shard.manifest.num_documents == len(texts)
    assert shard.manifest.num_tokens == len(shard.tokens) == shard.offsets[-1]


def test_files_are_flat_little_endian_arrays_with_a_manifest(
    tmp_path: Path, make_corpus: Any, small: Tokenizer
) -> None:
    shard_of(make_corpus(TEXTS), small, tmp_path)
    (folder,) = folders(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["documents.bin", "manifest.json", "tokens.bin"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["dtype"] == "<u2"
    assert manifest["tokenizer"] == small.digest
    assert manifest["source"] == make_corpus(TEXTS).fingerprint()
    assert not {"classes", "labels_sha256"} & set(manifest)  # as before there were classes
    raw = (folder / "tokens.bin").read_bytes()
    first = small.encode(TEXTS[0])
    assert [int.from_bytes(raw[2 * i : 2 * i + 2], "little") for i in range(len(first))] == first


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path: Path, make_corpus: Any, small: Tokenizer) -> None:
    small.save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["rare"] = 70_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    large = Tokenizer.load(tmp_path)
    assert large.vocab_size == 70_001
    shard = shard_of(make_corpus(TEXTS), large, tmp_path)
    assert shard.tokens.dtype == np.dtype("<u4")
    assert_holds(shard, TEXTS, small)


@pytest.mark.parametrize("labels", [None, (None, "b", "10", "b", "9") * 4])
def test_batches_of_any_size_give_the_same_shard(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, monkeypatch: pytest.MonkeyPatch, labels: Any
) -> None:
    whole = shard_of(make_corpus(TEXTS * 5, labels=labels), small, tmp_path / "a")
    monkeypatch.setattr(chunks, "_BATCH_TEXTS", 3)
    monkeypatch.setattr(chunks, "_BATCH_CHARACTERS", 20)
    assert shard_of(make_corpus(TEXTS * 5, labels=labels), small, tmp_path / "b").manifest == whole.manifest


def test_a_labelled_shard_holds_each_documents_class_and_draw(
    tmp_path: Path, make_corpus: Any, small: Tokenizer
) -> None:
    shard = shard_of(make_corpus(TEXTS, labels=("b", "10", None, "9")), small, tmp_path)
    assert_holds(shard, TEXTS, small)
    assert shard.manifest.classes == ("9", "10", "b")
    assert shard.labels is not None
    assert shard.labels["class"].tolist() == [2, 1, -1, 0]
    known = [0, 1, 3]
    assert shard.labels["draw"][known].tolist() == [uniform_of(TEXTS[i], "labels") for i in known]
    (folder,) = folders(tmp_path)
    assert json.loads((folder / "manifest.json").read_text())["classes"] == ["9", "10", "b"]
    raw = (folder / "labels.bin").read_bytes()
    assert [int.from_bytes(raw[12 * i : 12 * i + 4], "little", signed=True) for i in range(4)] == [2, 1, -1, 0]


def test_documents_of_unknown_classes_alone_make_an_unlabelled_shard(
    tmp_path: Path, make_corpus: Any, small: Tokenizer
) -> None:
    shard = shard_of(make_corpus(TEXTS, labels=(None,) * 4), small, tmp_path)
    assert shard.labels is None
    assert shard.manifest.classes == ()
    assert sorted(p.name for p in folders(tmp_path)[0].iterdir()) == ["documents.bin", "manifest.json", "tokens.bin"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "class"])
def test_damaged_labels_are_detected_and_rebuilt(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, damage: str
) -> None:
    corpus = make_corpus(TEXTS, labels=("b", "a", None, "a"))
    whole = shard_of(corpus, small, tmp_path)
    (folder,) = folders(tmp_path)
    path, manifest = folder / "labels.bin", folder / "manifest.json"
    raw = path.read_bytes()
    assert len(raw) == 4 * LABEL_RECORD.itemsize
    if damage == "flipped":
        path.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    elif damage == "cut":
        path.write_bytes(raw[:-12])
    elif damage == "missing":
        path.unlink()
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "classes": ["a"]}))
    with pytest.raises(LTMError, match=r"not a sound token shard .*delete it and run again"):
        Shard.open(folder)
    again = shard_of(corpus, small, tmp_path)
    assert again.manifest == whole.manifest
    assert again.labels is not None
    assert again.labels["class"].tolist() == [1, 0, -1, 0]


def test_unchanged_content_is_taken_from_the_cache_wherever_it_lies(
    tmp_path: Path, small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "deep" / "b.txt"
    b.parent.mkdir()
    a.write_text("one\ntwo\n")
    b.write_text("one\ntwo\n")
    shard_of(FileCorpus(a), small, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_batch", lambda *_: pytest.fail("tokenised again"))
        shard_of(FileCorpus(a), small, tmp_path)
        shard_of(FileCorpus(b), small, tmp_path)
    assert len(folders(tmp_path)) == 1


def test_changed_content_options_or_tokenizer_are_tokenised_anew(tmp_path: Path, small: Tokenizer) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\n")
    before = path.stat()
    assert shard_of(FileCorpus(path), small, tmp_path).manifest.num_documents == 2
    assert shard_of(FileCorpus(path, unit="file"), small, tmp_path).manifest.num_documents == 1
    path.write_text("one\n \nsix\n"[:9])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size and time, other bytes
    shard = shard_of(FileCorpus(path), small, tmp_path)
    assert small.decode(shard.tokens.tolist()) != "onetwo"
    shard_of(FileCorpus(path), Tokenizer.train(["other"], 300), tmp_path)
    assert len(folders(tmp_path)) == 4
    rows = tmp_path / "a.jsonl"
    rows.write_text('{"text": "one", "y": 1, "z": "a"}\n')
    found = [shard_of(FileCorpus(rows, label_column=column), small, tmp_path) for column in (None, "y", "z")]
    assert [shard.manifest.classes for shard in found] == [(), ("1",), ("a",)]
    assert len(folders(tmp_path)) == 7


@pytest.mark.parametrize("damage", ["cut", "flipped", "grown", "missing", "manifest", "counts", "format", "empty"])
def test_a_damaged_cache_is_detected_and_rebuilt(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, damage: str
) -> None:
    shard_of(make_corpus(TEXTS), small, tmp_path)
    (folder,) = folders(tmp_path)
    tokens, manifest = folder / "tokens.bin", folder / "manifest.json"
    raw = tokens.read_bytes()
    content = json.loads(manifest.read_text())
    if damage == "cut":
        tokens.write_bytes(raw[:-2])
    elif damage == "flipped":
        tokens.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    elif damage == "grown":
        (folder / "documents.bin").write_bytes((folder / "documents.bin").read_bytes() + bytes(8))
    elif damage == "missing":
        tokens.unlink()
    elif damage == "manifest":
        manifest.write_text("{")
    elif damage == "counts":
        manifest.write_text(json.dumps({**content, "num_documents": 3}))
    elif damage == "format":
        manifest.write_text(json.dumps({**content, "format": 0}))
    else:
        manifest.write_text("[]")
    with pytest.raises(LTMError, match=r"not a sound token shard .*delete it and run again"):
        Shard.open(folder)
    assert_holds(shard_of(make_corpus(TEXTS), small, tmp_path), TEXTS, small)
    assert folders(tmp_path) == [folder]
    assert_holds(Shard.open(folder), TEXTS, small)


KILLED = """
import sys, time
from pathlib import Path
from ltm_pyro.data.corpora import FileCorpus
from ltm_pyro.data.shards import shard_of
from ltm_pyro.data.tokenizer import Tokenizer

class Slow(FileCorpus):
    def documents(self):
        for document in super().documents():
            yield document
            print("started", flush=True)
            time.sleep(60)

import ltm_pyro.data.chunking as chunking
chunking._CHUNK_TEXTS = 1
shard_of(Slow(Path(sys.argv[1])), Tokenizer.load(sys.argv[2]), Path(sys.argv[3]))
"""


def test_a_kill_while_tokenising_leaves_no_half_shard(tmp_path: Path, small: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    small.save(tmp_path / "tokenizer.json")
    arguments = [str(tmp_path / "a.txt"), str(tmp_path / "tokenizer.json"), str(tmp_path / "cache")]
    with subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        process.send_signal(signal.SIGKILL)
    (left,) = folders(tmp_path / "cache")
    assert left.name.startswith(".")
    shard = shard_of(FileCorpus(tmp_path / "a.txt"), small, tmp_path / "cache")
    assert_holds(shard, ("one", "two"), small)
    old = time.time() - 2 * 24 * 3600
    os.utime(left, (old, old))
    shard_of(FileCorpus(tmp_path / "a.txt", unit="file"), small, tmp_path / "cache")
    assert not left.exists()  # a day old: cleared away


def test_an_error_or_interrupt_while_tokenising_leaves_nothing(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\nbad\n')
    with pytest.raises(LTMError, match="line 2"):
        shard_of(FileCorpus(tmp_path / "a.jsonl"), small, tmp_path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokenizer, "encode_batch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shard_of(make_corpus(TEXTS), small, tmp_path)
    assert folders(tmp_path) == []


def race(root: str, tokenizer: str, barrier: Any, results: Any) -> None:
    corpus = FileCorpus(Path(root) / "a.txt")
    loaded = Tokenizer.load(tokenizer)
    barrier.wait()
    results.put(shard_of(corpus, loaded, Path(root) / "cache").tokens.tolist())


@pytest.mark.slow
def test_processes_that_race_read_the_same_shard(tmp_path: Path, small: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("the cat sat\n" * 5000)
    small.save(tmp_path / "tokenizer.json")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [
        context.Process(target=race, args=(str(tmp_path), str(tmp_path / "tokenizer.json"), barrier, results))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len(folders(tmp_path / "cache")) == 1


@pytest.mark.parametrize("damaged_first", [False, True])
def test_builders_that_race_in_one_process_all_get_the_result(tmp_path: Path, damaged_first: bool) -> None:
    folder = tmp_path / "key"
    if damaged_first:
        folder.mkdir()
        (folder / "wrong").touch()
    barrier = threading.Barrier(6)
    results: list[str] = []

    def build(target: Path) -> None:
        barrier.wait(timeout=20)  # all have found nothing sound before any of them writes
        (target / "value").write_text("right")

    def load(target: Path) -> str:
        try:
            return (target / "value").read_text()
        except FileNotFoundError as error:
            raise LTMError("damaged") from error

    threads = [
        threading.Thread(target=lambda: results.append(cache.cached_folder(folder, build, load))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["right"] * 6
    assert list(tmp_path.iterdir()) == [folder]


def test_a_corpus_without_documents_is_refused_by_name(tmp_path: Path, small: Tokenizer) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(LTMError, match=r"empty\.txt: no documents .*give a source that has text"):
        shard_of(FileCorpus(tmp_path / "empty.txt"), small, tmp_path)


def test_a_cache_that_cannot_be_written_names_it_and_the_mend(
    tmp_path: Path, make_corpus: Any, small: Tokenizer
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LTMError, match=r"file/chunks: the cache cannot be written .*cache_dir or \$LTM_PYRO_CACHE"):
        shard_of(make_corpus(TEXTS), small, tmp_path / "file")


def test_the_cache_lies_where_the_environment_says(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTM_PYRO_CACHE", str(tmp_path / "elsewhere"))
    shard_of(make_corpus(TEXTS), small)
    assert len(folders(tmp_path / "elsewhere")) == 1
    monkeypatch.delenv("LTM_PYRO_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.default_cache_dir() == tmp_path / ".cache" / "ltm-pyro"


@pytest.mark.slow
def test_gpt2_token_count_of_tinystories_is_the_known_one(shared_data: Path, gpt2: Tokenizer, tmp_path: Path) -> None:
    manifest = shard_of(FileCorpus(shared_data / "tinystories_train.jsonl.gz"), gpt2, tmp_path).manifest
    assert manifest.num_documents == 2_864
    assert manifest.num_tokens - manifest.num_documents == 570_317
