"""Streams: every document once an epoch at any number of ranks, exact resume, one process that tokenises."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from ltm_pyro.data import chunking
from ltm_pyro.data.chunks import ChunkStore
from ltm_pyro.data.locks import FileLock
from ltm_pyro.data.stream_sampler import StreamSampler
from ltm_pyro.data.streaming import StreamingDataset
from ltm_pyro.data.supply import ChunkSupply
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError

DOCUMENTS = 90
TEXTS = tuple(f"document {i} " + " ".join(["the cat sat"] * (i % 7)) for i in range(DOCUMENTS))
opened: list[StreamingDataset] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    for data in opened:
        data.close()
    opened.clear()


def stream(folder: Path, corpus: Any, tokenizer: Tokenizer, layout: str = "documents", **how: Any) -> StreamingDataset:
    supply = {"characters": 300, "workers": 0, "timeout": 60.0} | {
        name: how.pop(name) for name in ("workers", "timeout", "rank") if name in how
    }
    data = StreamingDataset(
        ChunkSupply(ChunkStore(folder), corpus, tokenizer, **supply),  # type: ignore[arg-type]
        tokenizer,
        layout,  # type: ignore[arg-type]
        how.pop("sequence_length", 64),
        window_chunks=how.pop("window_chunks", 4),
        **how,
    )
    opened.append(data)
    return data


def seen(data: StreamingDataset, indices: list[int], tokenizer: Tokenizer) -> list[str]:
    batch = data.batch(indices)
    return [tokenizer.decode(row[:n]) for row, n in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_document_is_seen_once_an_epoch_by_one_of_the_ranks(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, world: int
) -> None:
    ranks = [stream(tmp_path, make_corpus(TEXTS), small, rank=rank) for rank in range(world)]
    samplers = [data.sampler(world * 3, seed=1) for data in ranks]
    found: list[str] = []
    while samplers[0].epoch < 2:
        batches = [next(sampler) for sampler in samplers]
        assert all(batch == batches[0] for batch in batches)
        for rank, data in enumerate(ranks):
            found += seen(data, batches[0][3 * rank : 3 * rank + 3], small)
    for epoch in (found[:DOCUMENTS], found[DOCUMENTS : 2 * DOCUMENTS]):
        assert Counter(epoch) == Counter(TEXTS)


@pytest.mark.parametrize("worlds", [(1, 2), (4, 3), (2, 1, 3)])
def test_a_resume_at_another_number_of_ranks_goes_on_with_the_next_document(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, worlds: tuple[int, ...]
) -> None:
    state: dict[str, Any] | None = None
    found: list[str] = []
    for part, world in enumerate(worlds):
        ranks = [stream(tmp_path / str(part), make_corpus(TEXTS), small, rank=0) for _ in range(world)]
        samplers = [data.sampler(2 * world, seed=3) for data in ranks]
        for sampler in samplers:
            if state is not None:
                sampler.load_state_dict(json.loads(json.dumps(state)))
        while len(found) < 2 * DOCUMENTS * (part + 1) // len(worlds):
            batches = [next(sampler) for sampler in samplers]
            for rank, data in enumerate(ranks):
                found += seen(data, batches[rank][2 * rank : 2 * rank + 2], small)
        state = samplers[-1].state_dict()
    for epoch in (found[:DOCUMENTS], found[DOCUMENTS : 2 * DOCUMENTS]):
        assert Counter(epoch) == Counter(TEXTS)


@pytest.mark.parametrize("layout", ["documents", "packed"])
def test_every_token_is_scored_once_an_epoch_with_the_token_before_it(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setattr(chunking, "_PART_CHARACTERS", 40)
    texts = (*TEXTS[:9], " ".join(TEXTS), *TEXTS[9:20])  # one that spans many windows
    data = stream(tmp_path, make_corpus(texts), small, layout, sequence_length=7, window_chunks=2)
    end = small.end_of_text
    whole = [token for text in texts for token in (*small.encode(text), end)]
    rebuilt: list[int] = []
    number = 0
    while (window := data.window(number)) is not None:
        batch = window.batch(range(len(window)))
        for row, length, start in zip(batch.tokens.tolist(), batch.lengths.tolist(), batch.start.tolist(), strict=True):
            assert start == (rebuilt[-1] if rebuilt else end)
            rebuilt += row[:length]
        number += 1
    assert number > 5
    assert rebuilt == whole


def test_the_order_is_a_function_of_seed_and_epoch_alone(tmp_path: Path, make_corpus: Any, small: Tokenizer) -> None:
    def order(folder: str, batch_size: int, seed: int, count: int, **how: Any) -> list[int]:
        sampler = stream(tmp_path / folder, make_corpus(TEXTS), small, **how).sampler(batch_size, seed)
        return [index for batch in islice(sampler, -(-count // batch_size)) for index in batch][:count]

    first = order("a", 1, 5, 2 * DOCUMENTS)
    assert order("b", 7, 5, 2 * DOCUMENTS, workers=1) == first
    assert order("c", 7, 5, 2 * DOCUMENTS, spool=True) == first
    assert order("a", 1, 6, 2 * DOCUMENTS) != first
    assert sorted(first[:DOCUMENTS]) == sorted(first[DOCUMENTS:])
    assert first[:DOCUMENTS] != first[DOCUMENTS:]
    assert first[:DOCUMENTS] != sorted(first[:DOCUMENTS])


def test_a_resumed_sampler_goes_on_with_the_next_batch(tmp_path: Path, make_corpus: Any, small: Tokenizer) -> None:
    data = stream(tmp_path / "a", make_corpus(TEXTS), small)
    sampler, state = data.sampler(4, 1), []
    for _ in range(60):
        state.append(json.loads(json.dumps(sampler.state_dict())))
        next(sampler)
    assert sampler.epoch == 2
    for steps in (0, 1, 17, 22, 23, 40, 59):
        again = stream(tmp_path / "b", make_corpus(TEXTS), small).sampler(4, 1)
        again.load_state_dict(state[steps])
        expected = data.sampler(4, 1)
        expected.load_state_dict(state[steps])
        assert [next(again) for _ in range(5)] == [next(expected) for _ in range(5)]
        assert again.progress == expected.progress


def test_only_a_bounded_part_of_the_source_is_read_before_training_starts(
    tmp_path: Path, make_corpus: Any, small: Tokenizer
) -> None:
    read: list[str] = []

    class Counted:
        name = "counted"

        def documents(self) -> Iterator[Any]:
            for document in make_corpus(TEXTS * 40).documents():
                read.append(document.text)
                yield document

        def fingerprint(self) -> str:
            return "counted"

    data = stream(tmp_path, Counted(), small)
    next(data.sampler(4))
    time.sleep(0.3)
    assert len(read) < 60  # three chunks, of about ten documents each, and one that was begun


def test_used_chunks_are_removed_where_disk_is_to_be_saved(tmp_path: Path, make_corpus: Any, small: Tokenizer) -> None:
    data = stream(tmp_path, make_corpus(TEXTS * 3), small, spool=True, window_chunks=2)
    sampler = data.sampler(3)
    most, found = 0, Counter[str]()
    while sampler.epoch < 2:
        found.update(seen(data, next(sampler), small))
        most = max(most, sum(1 for _ in tmp_path.glob("[0-9]*/tokens.bin")))
    assert min(found.values()) == 6
    assert (data._supply.store.count() or 0) > 20
    assert most <= 12


def test_a_batch_across_windows_is_that_of_its_sequences(tmp_path: Path, make_corpus: Any, small: Tokenizer) -> None:
    data = stream(tmp_path, make_corpus(TEXTS), small)
    indices = list(islice((i for batch in data.sampler(1, 2) for i in batch), 60))
    mixed = random.Random(0).sample(indices, 20)
    batch = data.batch(mixed)
    for row, index in enumerate(mixed):
        alone = data.batch([index])
        length = int(batch.lengths[row])
        assert torch.equal(batch.tokens[row, :length], alone.tokens[0, : int(alone.lengths[0])])
        assert (batch.tokens[row, length:] == small.end_of_text).all()
        assert batch.start[row] == alone.start[0]


def test_state_of_another_stream_or_seed_is_refused(tmp_path: Path, make_corpus: Any, small: Tokenizer) -> None:
    sampler = stream(tmp_path / "a", make_corpus(TEXTS), small).sampler(4, 1)
    next(sampler)
    state = sampler.state_dict()
    other = stream(tmp_path / "b", make_corpus(tuple(reversed(TEXTS))), small)
    with pytest.raises(LTMError, match=r"window 0 is not the one .* the source has changed"):
        other.sampler(4, 1).load_state_dict(state)
    with pytest.raises(LTMError, match=r"saved with seed=1, here it is 2.*resume with the data and seed"):
        other.sampler(4, 2).load_state_dict(state)
    with pytest.raises(LTMError, match=r"state is damaged.*earlier checkpoint"):
        other.sampler(4, 1).load_state_dict({**state, "window": None})
    with pytest.raises(LTMError, match="batch_size=0"):
        StreamSampler(other, 0)
    with pytest.raises(LTMError, match="at least one sequence"):
        other.batch([])


def test_an_error_of_the_source_reaches_the_training(tmp_path: Path, small: Tokenizer) -> None:
    from ltm_pyro.data.corpora import FileCorpus

    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "bad\n")
    data = stream(tmp_path / "chunks", FileCorpus(path), small)
    with pytest.raises(LTMError, match="line 91: not valid JSON"):
        for _ in data.sampler(4):
            pass


def test_waiting_for_a_process_that_does_not_go_on_ends_with_the_mend(
    tmp_path: Path, make_corpus: Any, small: Tokenizer
) -> None:
    tmp_path.joinpath("chunks").mkdir()
    with FileLock(tmp_path / "chunks" / "lock"):
        data = stream(tmp_path / "chunks", make_corpus(TEXTS), small, timeout=0.3)
        with pytest.raises(
            LTMError, match=r"token chunk 0 has not appeared, and for 0 seconds nothing was read.*cache_dir"
        ):
            next(data.sampler(4))


def test_reading_that_takes_long_is_no_standstill(
    tmp_path: Path, make_corpus: Any, small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        name = "slow"

        def documents(self) -> Iterator[Any]:
            for document in make_corpus(TEXTS[:12]).documents():
                time.sleep(0.05)
                yield document

        def fingerprint(self) -> str:
            return "slow"

    monkeypatch.setattr("ltm_pyro.data.supply._SIGN_SECONDS", 0.0)
    data = stream(tmp_path, Slow(), small, timeout=0.4)
    next(data.sampler(4))


RANK = """
import sys
from pathlib import Path
from ltm_pyro.data import chunking, supply
from ltm_pyro.data.chunks import ChunkStore
from ltm_pyro.data.corpora import FileCorpus
from ltm_pyro.data.streaming import StreamingDataset
from ltm_pyro.data.tokenizer import Tokenizer

root = Path(sys.argv[1])
supply._TAKE_OVER_SECONDS = 0.5
write = ChunkStore.write
def told(self, chunk, tokenizer):
    print(f"made {chunk.number}\\n", end="", flush=True)
    return write(self, chunk, tokenizer)
ChunkStore.write = told
tokenizer = Tokenizer.load(root / "tokenizer.json")
corpus, store = FileCorpus(root / "a.txt"), ChunkStore(root / "chunks")
chunks = supply.ChunkSupply(store, corpus, tokenizer, workers=0, characters=300)
data = StreamingDataset(chunks, tokenizer, "documents", 64, window_chunks=2)
sampler = data.sampler(4)
while sampler.epoch < 1:
    data.batch(next(sampler))
data.close()
"""


def rank_process(root: Path, rank: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RANK, str(root)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LOCAL_RANK": str(rank)},
    )


@pytest.mark.slow
def test_of_several_processes_each_chunk_is_made_by_one_and_another_takes_over_from_the_dead(
    tmp_path: Path, small: Tokenizer
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS * 20))
    small.save(tmp_path / "tokenizer.json")
    first = rank_process(tmp_path, 0)
    assert first.stdout is not None
    made = first.stdout.readline().split()[1:]
    second = rank_process(tmp_path, 1)
    while len(made) < 3 and (line := first.stdout.readline()):
        made += line.split()[1:]
    first.send_signal(signal.SIGKILL)
    made += [line.split()[1] for line in first.stdout.read().splitlines() if line.startswith("made")]
    first.wait()
    rest = [line.split()[1] for line in second.communicate(timeout=60)[0].splitlines() if line.startswith("made")]
    assert second.returncode == 0
    count = ChunkStore(tmp_path / "chunks").count()
    assert count is not None
    assert rest
    # One chunk may have been under way in the process that was killed.
    assert set(map(int, made + rest)) == set(range(count))
    assert len(made + rest) <= count + 1
