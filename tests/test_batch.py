"""Token batches: masks, shifts, slices, and keys that identify a sequence wherever it stands."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import ragged_batch

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError


def batch_of(*sequences: list[int], start: int | list[int] = 9, pad: int = 0) -> TokenBatch:
    return TokenBatch.from_lists(sequences, start, pad=pad)


def test_lists_are_padded_on_the_right():
    batch = batch_of([1, 2, 3], [], [4], start=[7, 8, 9], pad=5)
    assert batch.tokens.tolist() == [[1, 2, 3], [5, 5, 5], [4, 5, 5]]
    assert batch.lengths.tolist() == [3, 0, 1]
    assert batch.start.tolist() == [7, 8, 9]
    assert len(batch) == 3


def test_only_empty_sequences_still_have_one_column():
    batch = batch_of([], [])
    assert batch.tokens.shape == (2, 1)
    assert batch.num_scored.tolist() == [0, 0]
    assert batch.scored_index.tolist() == []


def test_no_sequences_are_refused():
    with pytest.raises(LTMError, match="at least one sequence"):
        TokenBatch.from_lists([], 0)


def test_start_tokens_of_another_number_than_the_sequences_are_refused():
    with pytest.raises(LTMError, match="2 sequences needs one start token for each, got 3"):
        TokenBatch.from_lists([[1], [2]], [0, 0, 0])


def test_inputs_are_the_start_token_and_the_tokens_shifted_by_one():
    batch = batch_of([1, 2, 3], [4], start=[7, 8])
    assert batch.inputs.tolist() == [[7, 1, 2], [8, 4, 0]]


def test_scored_tokens_are_real_and_marked():
    batch = batch_of([1, 2, 3], [4], [])
    assert batch.mask.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    scored = torch.tensor([[False, True, True], [True, True, True], [True, True, True]])
    chosen = TokenBatch(batch.tokens, batch.lengths, batch.start, scored)
    assert chosen.mask.tolist() == [[False, True, True], [True, False, False], [False] * 3]
    assert chosen.real.tolist() == batch.mask.tolist()
    assert chosen.num_scored.tolist() == [2, 1, 0]
    assert chosen.scored_index.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(1, 3), [1, 2]),
        ([2, 0], [2, 0]),
        (torch.tensor([1]), [1]),
        (torch.tensor([True, False, True]), [0, 2]),
    ],
)
def test_a_slice_keeps_every_part_of_its_sequences(index, rows):
    whole = batch_of([1, 2, 3], [4, 5], [6], start=[7, 8, 9])
    whole = TokenBatch(whole.tokens, whole.lengths, whole.start, torch.rand(3, 3) < 0.5, torch.tensor([2, -1, 0]))
    part = whole[index]
    for name in ("tokens", "lengths", "start", "scored", "labels", "mask", "keys"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name
    bare = batch_of([1], [2])[index if isinstance(index, slice) else [0]]
    assert bare.scored is None
    assert bare.labels is None


def test_keys_depend_on_neither_place_nor_padding_nor_scoring_nor_labels():
    alone = batch_of([3, 1, 4])
    among = batch_of([2], [2, 7, 1, 8, 2, 8], [3, 1, 4], pad=6)
    scored = TokenBatch(alone.tokens, alone.lengths, alone.start, torch.zeros(1, 3, dtype=torch.bool))
    labelled = TokenBatch(alone.tokens, alone.lengths, alone.start, labels=torch.tensor([5]))
    assert alone.keys[0] == among.keys[2] == scored.keys[0] == labelled.keys[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([3, 1, 4], [1, 3, 4]),
        ([3, 1, 4], [3, 1]),
        ([3, 1], [3, 1, 0]),
        ([], [0]),
        ([0], [0, 0]),
        ([0, 1], [1, 0]),
    ],
)
def test_keys_differ_where_tokens_their_order_or_their_number_differ(one, other):
    keys = batch_of(one, other).keys
    assert keys[0] != keys[1]


def test_keys_differ_where_the_start_token_differs():
    keys = batch_of([3, 1], [3, 1], [3, 1], start=[9, 8, 3]).keys
    assert len(set(keys.tolist())) == 3


def test_keys_of_many_short_sequences_are_all_different():
    sequences = [[a, b, c] for a in range(12) for b in range(12) for c in range(12)]
    assert len(set(batch_of(*sequences).keys.tolist())) == 12**3


def test_a_prefix_is_the_batch_of_the_first_tokens_alone():
    batch = batch_of([1, 2, 3], [4], start=[7, 8])
    scored = torch.tensor([[False, True, True], [True, True, True]])
    batch = TokenBatch(batch.tokens, batch.lengths, batch.start, scored, torch.tensor([1, -1]))
    assert batch.keys.shape == batch.num_scored.shape  # computed, and not handed on
    prefix = batch.prefix(2)
    assert prefix.tokens.tolist() == [[1, 2], [4, 0]]
    assert prefix.lengths.tolist() == [2, 1]
    assert prefix.mask.tolist() == [[False, True], [True, False]]
    assert torch.equal(prefix.keys, batch_of([1, 2], [4], start=[7, 8]).keys)
    assert torch.equal(prefix.labels, batch.labels)
    assert batch.prefix(0).tokens.shape == (2, 0)
    assert torch.equal(batch.prefix(9).tokens, batch.tokens)


def test_moving_a_batch_keeps_it():
    batch = batch_of([1, 2], [3])
    scored = torch.tensor([[True, False], [True, True]])
    batch = TokenBatch(batch.tokens, batch.lengths, batch.start, scored, torch.tensor([1, -1]))
    moved = batch.to("cpu")
    assert torch.equal(moved.labels, batch.labels)
    assert torch.equal(moved.mask, batch.mask)
    assert torch.equal(moved.inputs, batch.inputs)
    assert moved.device == batch.device == torch.device("cpu")


def test_an_unlabelled_batch_is_the_same_batch_without_labels():
    batch = batch_of([1, 2], [3], start=[7, 8])
    scored = torch.tensor([[True, False], [True, True]])
    labelled = TokenBatch(batch.tokens, batch.lengths, batch.start, scored, torch.tensor([1, -1]))
    mask, keys = labelled.mask, labelled.keys
    plain = labelled.unlabelled()
    assert plain.labels is None
    assert labelled.labels.tolist() == [1, -1]
    assert plain.mask is mask  # what was computed is not computed again …
    assert plain.keys is keys
    for name in ("tokens", "lengths", "start", "scored", "inputs", "real", "scored_index", "num_scored"):
        assert torch.equal(getattr(plain, name), getattr(labelled, name)), name
    assert (
        "num_scored" not in TokenBatch(batch.tokens, batch.lengths, batch.start).unlabelled().__dict__
    )  # … nor at once
    assert plain.unlabelled().labels is None
    assert plain.to("cpu").labels is None


def test_rounding_up_adds_padding_and_nothing_else():
    batch = ragged_batch(5, 0, 3)
    batch = replace(batch, scored=torch.rand(batch.tokens.shape) < 0.5)
    wide = batch.rounded_up(4)
    assert wide.tokens.shape == (3, 8)
    assert (wide.keys == batch.keys).all()
    assert (wide.num_scored == batch.num_scored).all()
    assert (wide.tokens[:, :5] == batch.tokens).all()
    assert wide.rounded_up(8) is wide
