"""Sampler: exactly once per epoch, a function of (seed, epoch), resume on the very next batch."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltm_pyro.data.sampler import Sampler
from ltm_pyro.errors import LTMError

counts = st.integers(1, 40)


def stream(sampler: Sampler, batches: int) -> list[int]:
    return list(chain.from_iterable(islice(sampler, batches)))


@settings(deadline=None)
@given(counts, counts, st.integers(0, 2**40))
def test_every_sequence_is_seen_once_per_epoch(sequences: int, batch_size: int, seed: int) -> None:
    seen = stream(Sampler(sequences, batch_size, seed), -(-2 * sequences // batch_size))
    for epoch in (seen[:sequences], seen[sequences : 2 * sequences]):
        assert Counter(epoch) == Counter(range(sequences))


@settings(deadline=None, max_examples=50)
@given(counts, counts, st.integers(0, 60), st.integers(0, 2**40))
def test_a_resumed_sampler_goes_on_with_the_next_batch(sequences: int, size: int, before: int, seed: int) -> None:
    sampler = Sampler(sequences, size, seed)
    stream(sampler, before)
    state = json.loads(json.dumps(sampler.state_dict()))
    again = Sampler(sequences, size, seed)
    next(again)  # what the new one did before must not matter
    again.load_state_dict(state)
    assert again.progress == sampler.progress == pytest.approx(before * size / sequences)
    for _ in range(5):
        assert next(again) == next(sampler)


@settings(deadline=None, max_examples=30)
@given(counts, counts)
def test_the_order_does_not_depend_on_the_batch_size(one: int, other: int) -> None:
    assert stream(Sampler(17, one, 3), 5 * other) == stream(Sampler(17, other, 3), 5 * one)


def test_every_batch_is_full_and_the_epochs_differ() -> None:
    sampler = Sampler(10, 4, seed=1)
    batches = list(islice(sampler, 5))
    assert [len(b) for b in batches] == [4] * 5
    flat = list(chain.from_iterable(batches))
    assert flat[:10] != flat[10:]
    assert sampler.progress == 2.0


def test_seeds_give_different_orders_and_orders_are_near_uniform() -> None:
    firsts = Counter(next(Sampler(5, 1, seed))[0] for seed in range(1000))
    # Each is Binomial(1000, 1/5): mean 200, deviation 12.6; five deviations either side.
    assert all(137 <= firsts[i] <= 263 for i in range(5))


def test_the_shuffle_never_changes_between_versions() -> None:
    assert next(Sampler(10, 10, seed=7)) == [8, 4, 3, 6, 2, 1, 0, 5, 9, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 0), "num_sequences=0: expected at least 1"),
        ((1, 0, 0), "batch_size=0: expected at least 1"),
        ((1, 1, -1), "seed=-1: expected at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(LTMError, match=message):
        Sampler(*arguments)


@pytest.mark.parametrize(("other", "name"), [(Sampler(9, 2, 1), "num_sequences"), (Sampler(8, 2, 2), "seed")])
def test_state_of_other_data_or_another_seed_is_refused(other: Sampler, name: str) -> None:
    with pytest.raises(LTMError, match=f"saved with {name}=.*resume with the data and seed"):
        Sampler(8, 2, 1).load_state_dict(other.state_dict())


@pytest.mark.parametrize("change", [{"epoch": -1}, {"position": -1}, {"position": 9}, {"position": None}])
def test_damaged_state_is_refused(change: dict[str, object]) -> None:
    sampler = Sampler(8, 2, 1)
    with pytest.raises(LTMError, match="sampler's state"):
        sampler.load_state_dict({**sampler.state_dict(), **change})  # type: ignore[dict-item]
