"""SequenceDataset: both layouts score every token exactly once, against a plain reference in lists."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltm_pyro.data.sequences import Layout, SequenceDataset
from ltm_pyro.data.shards import LABEL_RECORD, Manifest, Shard
from ltm_pyro.errors import LTMError

END = 99
documents_of_tokens = st.lists(st.lists(st.integers(0, 98), max_size=12), min_size=1, max_size=8)


def make(
    documents: list[list[int]],
    layout: Layout,
    length: int,
    labels: list[tuple[int, float]] | None = None,
    **options: Any,
) -> SequenceDataset:
    flat = [token for document in documents for token in (*document, END)]
    offsets = np.cumsum([0, *(len(d) + 1 for d in documents)]).astype(np.int64)
    manifest = Manifest(
        format=1,
        dtype="<u2",
        num_tokens=len(flat),
        num_documents=len(documents),
        end_of_text=END,
        vocab_size=100,
        tokenizer="",
        source="",
        name="test",
        tokens_sha256="",
        documents_sha256="",
        classes=() if labels is None else ("a", "b", "c"),
    )
    records = None if labels is None else np.array(labels, LABEL_RECORD)
    return SequenceDataset(Shard(np.array(flat, "<u2"), offsets, manifest, records), layout, length, **options)


def reference(documents: list[list[int]], layout: str, length: int) -> list[tuple[int, list[int], set[int]]]:
    """(start, tokens, documents) of every sequence, by the definitions in words."""
    streams = [[(token, i) for token in (*d, END)] for i, d in enumerate(documents)]
    if layout == "packed":
        streams = [list(chain.from_iterable(streams))]
    out = []
    for stream in streams:
        for begin in range(0, len(stream), length):
            piece = stream[begin : begin + length]
            start = stream[begin - 1][0] if begin else END
            out.append((start, [t for t, _ in piece], {i for _, i in piece}))
    return out


@settings(deadline=None)
@given(documents_of_tokens, st.sampled_from(["packed", "documents"]), st.integers(1, 9), st.randoms())
def test_batches_match_the_definition_and_pad_to_their_longest(
    documents: list[list[int]], layout: Layout, length: int, random: Any
) -> None:
    data = make(documents, layout, length)
    expected = reference(documents, layout, length)
    assert len(data) == len(expected)
    indices = [random.randrange(len(data)) for _ in range(4)]
    batch = data.batch(indices)
    assert batch.tokens.dtype == batch.lengths.dtype == batch.start.dtype == torch.int64
    assert batch.tokens.shape[1] == max(len(expected[i][1]) for i in indices)
    for row, i in enumerate(indices):
        start, tokens, origin = expected[i]
        n = int(batch.lengths[row])
        assert batch.tokens[row, :n].tolist() == tokens
        assert batch.tokens[row, n:].eq(END).all()
        assert batch.start[row] == start
        assert set(data.document_of(i)) == origin


@settings(deadline=None)
@given(documents_of_tokens, st.sampled_from(["packed", "documents"]), st.integers(1, 9))
def test_every_token_is_scored_exactly_once_per_epoch(documents: list[list[int]], layout: Layout, length: int) -> None:
    data = make(documents, layout, length)
    batch = data.batch(range(len(data)))
    scored = batch.tokens[batch.mask].tolist()
    assert scored == [token for document in documents for token in (*document, END)]
    assert data.num_tokens == len(scored) == int(batch.num_scored.sum())
    assert data.lengths.tolist() == batch.lengths.tolist()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(-1, 2), st.floats(0, 0.99)), min_size=1, max_size=8),
    st.sampled_from(["packed", "documents"]),
    st.integers(1, 9),
    st.sampled_from([None, ["c", "x", "a"], []]),
    st.sampled_from([0.0, 0.4, 1.0]),
)
def test_a_sequence_has_the_label_of_its_one_document(
    parts: list[tuple[int, int, float]], layout: Layout, length: int, names: list[str] | None, fraction: float
) -> None:
    documents = [[i] * size for i, (size, _, _) in enumerate(parts)]
    labels = [(number, draw) for _, number, draw in parts]
    data = make(documents, layout, length, labels, class_names=names, labelled_fraction=fraction)
    assert data.class_names == (("a", "b", "c") if names is None else tuple(names))
    batch = data.batch(range(len(data)))
    if names == []:
        assert batch.labels is None
        return
    known = []
    for number, draw in labels:
        name = "abc"[number] if number >= 0 and draw < fraction else None
        known.append(data.class_names.index(name) if name in data.class_names else -1)
    expected = [known[min(o)] if len(o) == 1 else -1 for _, _, o in reference(documents, layout, length)]
    assert batch.labels is not None
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == expected
    assert data.num_labelled == sum(number >= 0 for number in known)


def test_the_inputs_of_consecutive_sequences_continue_each_other() -> None:
    data = make([[1, 2, 3, 4, 5], [6]], "packed", 3)
    batch = data.batch([0, 1, 2])
    assert batch.inputs.tolist()[0] == [END, 1, 2]
    assert batch.inputs.tolist()[1] == [3, 4, 5]
    assert batch.lengths.tolist() == [3, 3, 2]  # the short tail is kept
    assert batch.tokens.tolist()[2][:2] == [6, END]


def test_pieces_of_a_long_document_start_from_the_token_before_and_the_last_ends_the_text() -> None:
    data = make([[1, 2, 3, 4], [5]], "documents", 3)
    batch = data.batch([0, 1, 2])
    assert batch.tokens.tolist() == [[1, 2, 3], [4, END, END], [5, END, END]]
    assert batch.lengths.tolist() == [3, 2, 2]
    assert batch.start.tolist() == [END, 3, END]
    assert [list(data.document_of(i)) for i in range(3)] == [[0], [0], [1]]


def test_a_document_that_fills_its_sequence_exactly_is_one_sequence() -> None:
    assert len(make([[1, 2]], "documents", 3)) == 1
    assert len(make([[1, 2, 3]], "documents", 3)) == 2  # its end-of-text token is the second


def test_a_batch_outlives_its_data(tmp_path: Path) -> None:
    data = make([[1, 2, 3]], "packed", 4)
    batch = data.batch([0])
    batch.tokens.zero_()
    assert data.batch([0]).tokens.tolist() == [[1, 2, 3, END]]


@pytest.mark.parametrize("indices", [[2], [0, -1]])
def test_index_out_of_range_is_refused(indices: list[int]) -> None:
    with pytest.raises(LTMError, match=rf"sequence index {indices[-1]}: expected 0 … 1"):
        make([[1], [2]], "documents", 4).batch(indices)


def test_empty_batch_bad_length_and_bad_layout_are_refused() -> None:
    with pytest.raises(LTMError, match="at least one sequence index"):
        make([[1]], "packed", 4).batch([])
    with pytest.raises(LTMError, match="sequence_length=0: expected at least 1"):
        make([[1]], "packed", 0)
    with pytest.raises(LTMError, match="labelled_fraction=2: expected a number between 0 and 1"):
        make([[1]], "packed", 4, labelled_fraction=2)


def test_repr_says_what_it_holds() -> None:
    assert repr(make([[1], [2]], "packed", 3)) == (
        "SequenceDataset(2 sequences, layout=packed, sequence_length=3, 4 tokens, 2 documents)"
    )
