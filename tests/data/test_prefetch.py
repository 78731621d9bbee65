"""Batches made ahead: those of the sampler, in its order, and its state is that of the last one asked for."""

from __future__ import annotations

import copy
import gc
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data.prefetch import Prefetched
from ltm_pyro.data.sampler import Sampler
from ltm_pyro.errors import LTMError


def batch_of(indices: Sequence[int]) -> TokenBatch:
    return TokenBatch.from_lists([[index] for index in indices], 0)


def rows(batch: TokenBatch) -> list[int]:
    return batch.tokens[:, 0].tolist()


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_batches_are_those_of_the_indices(depth: int) -> None:
    sampler = Sampler(10, 3, seed=1)
    batches = Prefetched(sampler, batch_of, depth)
    for _ in range(20):
        indices = next(sampler)
        assert rows(batches(indices)) == indices


def test_what_lies_ready_does_not_move_the_sampler() -> None:
    sampler, plain = Sampler(10, 3, seed=1), Sampler(10, 3, seed=1)
    batches = Prefetched(sampler, batch_of, 4)
    for _ in range(9):
        batches(next(sampler))
        next(plain)
        time.sleep(0.005)
        assert sampler.state_dict() == plain.state_dict()
        assert next(copy.deepcopy(sampler)) == next(copy.deepcopy(plain))


def test_a_sampler_set_to_another_place_gives_the_batches_from_there() -> None:
    sampler = Sampler(10, 3, seed=1)
    batches = Prefetched(sampler, batch_of, 2)
    start = sampler.state_dict()
    first = [rows(batches(next(sampler))) for _ in range(5)]
    sampler.load_state_dict(start)
    assert [rows(batches(next(sampler))) for _ in range(5)] == first


def test_the_next_batch_is_made_while_training_works() -> None:
    made: list[Sequence[int]] = []

    def slowly(indices: Sequence[int]) -> TokenBatch:
        time.sleep(0.05)
        made.append(indices)
        return batch_of(indices)

    sampler = Sampler(10, 3, seed=1)
    batches = Prefetched(sampler, slowly, 2)
    batches(next(sampler))
    time.sleep(0.5)
    began = time.perf_counter()
    batches(next(sampler))
    batches(next(sampler))
    assert time.perf_counter() - began < 0.05
    assert len(made) < 8  # no more than asked for, ready, and one that waits to be put there


def test_an_error_comes_when_its_batch_is_asked_for() -> None:
    def fails(indices: Sequence[int]) -> TokenBatch:
        if 7 in indices:
            raise LTMError("seven")
        return batch_of(indices)

    sampler = Sampler(10, 1, seed=1)
    batches = Prefetched(sampler, fails, 2)
    for indices in sampler:
        if indices == [7]:
            break
        assert rows(batches(indices)) == indices
    with pytest.raises(LTMError, match="seven"):
        batches([7])


def test_the_thread_ends_with_its_owner() -> None:
    others = set(threading.enumerate())

    def running() -> int:
        return sum(thread.name == "prefetch" for thread in set(threading.enumerate()) - others)

    sampler = Sampler(10, 3, seed=1)
    batches = Prefetched(sampler, batch_of, 2)
    batches(next(sampler))
    assert running() == 1
    del batches
    gc.collect()
    deadline = time.monotonic() + 5
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running() == 0


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    from tiny_runs import new_trainer, tiny_data, weights_of

    data = tiny_data(tmp_path)
    weights: list[dict[str, Any]] = []
    for depth in (0, 3):
        trainer = new_trainer(tmp_path / str(depth), data, {"data.prefetch": depth, "training.steps": 3})
        trainer.fit()
        weights.append(weights_of(trainer))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
