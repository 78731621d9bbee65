"""Classes of documents: what a value means, how names are numbered, and the way from a field to a batch's labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltm_pyro.data import SequenceDataset, Tokenizer, build_data, build_evaluation_data
from ltm_pyro.data.corpora import Document, FileCorpus, HeldOut, Limited, uniform_of
from ltm_pyro.data.fables import plan_of
from ltm_pyro.data.labels import as_label, in_natural_order, renumbering
from ltm_pyro.data.sources import open_corpus, split_corpus
from ltm_pyro.errors import LTMError

ABSENT = object()


def labels(corpus: Any) -> list[str | None]:
    return [d.label for d in corpus.documents()]


def write_rows(path: Path, *values: Any) -> Path:
    """A .jsonl file of one row for each value of its field ``y``."""
    rows = [{"text": f"text {i}"} | ({} if value is ABSENT else {"y": value}) for i, value in enumerate(values)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("sport", "sport"),
        (" sport ", " sport "),
        ("01", "01"),
        (3, "3"),
        (-1, "-1"),
        (True, "true"),
        (False, "false"),
        (2.0, "2"),  # a column of integers with nulls, as some tools store it
        (float("nan"), None),
        (None, None),
        ("", None),
        (" \n", None),
        ("a\ud800", "a\ufffd"),
        ("\U0001f600", "\U0001f600"),
    ],
)
def test_a_value_is_the_name_of_a_class_or_an_unknown_one(value: Any, name: str | None) -> None:
    assert as_label(value, "a.jsonl, line 1", "y") == name


@pytest.mark.parametrize(
    ("value", "shown"), [([1], "list"), ({"a": 1}, "dict"), (b"a", "bytes"), (0.5, "0.5"), (float("inf"), "inf")]
)
def test_a_value_that_names_no_class_is_refused_with_its_place(value: Any, shown: str) -> None:
    with pytest.raises(LTMError) as caught:
        as_label(value, "a.jsonl, line 7", "y")
    assert str(caught.value).startswith(f"a.jsonl, line 7: column 'y' holds {shown}, not a class (a string, a whole")
    assert str(caught.value).endswith("choose another with `label_column`")


def test_natural_order_is_that_of_numbers_and_then_of_strings() -> None:
    assert in_natural_order(["10", "9", "-1", "9", "0"]) == ("-1", "0", "9", "10")
    assert in_natural_order(["b", "a10", "a9", "B"]) == ("B", "a10", "a9", "b")
    assert in_natural_order(["x", "10", "2"]) == ("2", "10", "x")
    assert in_natural_order(["true", "false"]) == ("false", "true")
    assert in_natural_order(["1", "01", "1_0", "²", "9" * 5000])[:2] == ("01", "1")  # what int() reads otherwise or not
    assert in_natural_order([]) == ()


@given(st.lists(st.sampled_from("abcdef")), st.lists(st.sampled_from("abcdef"), unique=True))
def test_renumbering_keeps_names_and_makes_others_unknown(met: list[str], known: list[str]) -> None:
    names = list(dict.fromkeys(met))
    numbers = np.array([*(names.index(name) for name in met), -1])
    renumbered = renumbering(names, known)[numbers]
    assert renumbered.tolist() == [*(known.index(name) if name in known else -1 for name in met), -1]


def test_json_rows_may_leave_their_class_out(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", "x", None, 3, ABSENT, True, "")
    corpus = FileCorpus(path, label_column="y")
    assert labels(corpus) == ["x", None, "3", None, "true", None]
    assert labels(FileCorpus(path)) == [None] * 6
    assert labels(Limited(corpus, 2)) == ["x", None]
    sides = [HeldOut(corpus, 0.5, side) for side in ("train", "validation")]
    by_text = {d.text: d.label for d in corpus.documents()}
    assert all(d.label == by_text[d.text] for side in sides for d in side.documents())


def test_parquet_rows_have_their_class_in_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = {
        "text": ["a", "", "b", "c"],
        "y": [1, 2, None, 0],
        "real": [1.0, 2.0, None, float("nan")],
        "list": [[1]] * 4,
    }
    pq.write_table(pa.table(table), path)
    assert labels(FileCorpus(path, label_column="y")) == ["1", None, "0"]  # the blank text is no document
    assert labels(FileCorpus(path, label_column="real")) == ["1", None, None]
    assert labels(FileCorpus(path, label_column="text")) == ["a", "b", "c"]
    with pytest.raises(LTMError, match=r"a\.parquet: no column 'z'; there is text, y, real, list: .*`label_column`"):
        labels(FileCorpus(path, label_column="z"))
    with pytest.raises(LTMError, match=r"a\.parquet, row 1: column 'list' holds list, not a class"):
        labels(FileCorpus(path, label_column="list"))


def test_text_files_have_no_classes(tmp_path: Path) -> None:
    (tmp_path / "b.txt.gz").touch()
    write_rows(tmp_path / "a.jsonl", "x")
    for path in (tmp_path, tmp_path / "b.txt.gz"):
        with pytest.raises(LTMError, match=r"b\.txt\.gz: label_column='y', but a \.txt file has no classes; give"):
            open_corpus(str(path), label_column="y")


def test_a_fables_class_is_the_value_of_a_plan_variable() -> None:
    for side in split_corpus("fables", documents=20, fraction=0.2, label_column="kind"):
        assert labels(side) == [plan_of(d.text)["kind"] for d in side.documents()]
    with pytest.raises(LTMError, match=r"label_column='knid': the fables have no plan variable .*did you mean 'kind'"):
        open_corpus("fables", label_column="knid")


def test_fingerprints_tell_label_columns_apart_and_stay_as_they_were_without(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", "x")
    for make in (
        lambda column: FileCorpus(path, label_column=column),
        lambda column: HeldOut(FileCorpus(path, label_column=column), 0.5, "train"),
        lambda column: open_corpus("fables", documents=1, label_column=column),
    ):
        assert len({make(column).fingerprint() for column in (None, "kind", "place")}) == 3
    # Caches filled before there were labels are keyed by this.
    assert FileCorpus(path).fingerprint() == "77a4f039187f1c9d71f9266370d01e58a08294b8ead7caf049b7d5f6c25ff2aa"


def test_the_share_that_keeps_its_label_has_nothing_to_do_with_the_side_of_the_split() -> None:
    texts = [f"document {i}" for i in range(10_000)]
    held = [uniform_of(text) < 0.5 for text in texts]
    kept = [uniform_of(text, "labels") < 0.5 for text in texts]
    both = sum(h and k for h, k in zip(held, kept, strict=True))
    assert 2_284 <= both <= 2_716  # Binomial(10 000, 1/4): deviation 43.3, five either side


@pytest.fixture
def news(tmp_path: Path) -> Path:
    """400 rows of five topics 9, 10, 11, true, a; every fifth has none."""
    topics = [10, 9, None, True, "a", 11]
    rows = [{"text": f"Item {i} is of the news.", "y": topics[i % 6]} for i in range(400)]
    path = tmp_path / "news.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


NAMES = ("9", "10", "11", "a", "true")


def build(news: Path, **options: Any) -> Any:
    common: dict[str, Any] = {"vocab_size": 300, "sequence_length": 64, "label_column": "y", "validation_fraction": 0.2}
    return build_data(source=str(news), **(common | options))


def named_labels(data: SequenceDataset, tokenizer: Tokenizer) -> dict[str, str | None]:
    """The name of the class that the batch gives to each text."""
    batch = data.batch(range(len(data)))
    texts = [tokenizer.decode(row[:n]) for row, n in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)]
    assert batch.labels is not None
    return {t: data.class_names[i] if i >= 0 else None for t, i in zip(texts, batch.labels.tolist(), strict=True)}


def test_every_document_comes_out_with_its_own_class(news: Path) -> None:
    data = build(news)
    assert data.train.layout == "documents"
    assert data.class_names == data.train.class_names == data.validation.class_names == NAMES
    found = named_labels(data.train, data.tokenizer) | named_labels(data.validation, data.tokenizer)
    assert found == {d.text: d.label for d in FileCorpus(news, label_column="y").documents()}
    known = sum(label is not None for label in found.values())
    assert sum(data.counts[split]["labelled"] for split in data.counts) == known
    assert data.counts["train"]["classes"] == 5


def test_without_a_label_column_there_are_no_labels(news: Path) -> None:
    data = build(news, label_column=None)
    assert data.train.layout == "packed"
    assert data.class_names == ()
    assert data.train.batch([0]).labels is None
    assert data.train.num_labelled == 0
    assert set(data.counts["train"]) == {"documents", "sequences", "tokens"}


def test_a_share_of_the_training_labels_is_kept_and_all_of_the_validation_ones(news: Path) -> None:
    whole = build(news)
    every = named_labels(whole.train, whole.tokenizer)
    kept_before: set[str] = set()
    for fraction in (0.0, 0.1, 0.5, 1.0):
        data = build(news, labelled_fraction=fraction)
        found = named_labels(data.train, data.tokenizer)
        kept = {text for text, label in found.items() if label is not None}
        assert all(found[text] == every[text] for text in kept)
        assert kept == {t for t, label in every.items() if label and uniform_of(t, "labels") < fraction}
        assert kept_before <= kept  # a larger share adds to a smaller one
        assert data.class_names == NAMES  # also of classes whose labels are all hidden
        assert data.train.num_labelled == len(kept)
        assert named_labels(data.validation, data.tokenizer) == named_labels(whole.validation, whole.tokenizer)
        kept_before = kept
    known = sum(label is not None for label in every.values())
    assert abs(build(news, labelled_fraction=0.5).train.num_labelled - known / 2) < 5 * (known / 4) ** 0.5


def test_another_share_of_the_labels_is_taken_from_the_same_shard(
    news: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(news)
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *_: pytest.fail("tokenised again"))
    assert build(news, labelled_fraction=0.3).train.num_labelled > 0
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 2


def test_every_piece_of_a_long_document_has_its_class(news: Path) -> None:
    whole, cut = build(news), build(news, sequence_length=6)
    assert len(cut.train) > len(whole.train)
    batch = cut.train.batch(range(len(cut.train)))
    origin = [cut.train.document_of(i)[0] for i in range(len(cut.train))]
    assert batch.labels is not None
    assert batch.labels.tolist() == whole.train.batch(origin).labels.tolist()


def test_a_validation_class_that_training_does_not_know_is_unknown(news: Path, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "valid.jsonl", 11, "zebra", 9, None)
    data = build(news, validation=str(other))
    assert data.validation.class_names == NAMES
    assert data.validation.batch(range(4)).labels.tolist() == [2, -1, 0, -1]
    assert data.validation.num_labelled == 2
    unlabelled = build(news, validation=str(write_rows(tmp_path / "none.jsonl", None, ABSENT)))
    assert unlabelled.validation.batch([0, 1]).labels.tolist() == [-1, -1]


def test_an_evaluation_source_is_numbered_by_the_given_names_or_by_its_own(news: Path, tmp_path: Path) -> None:
    other = str(write_rows(tmp_path / "other.jsonl", "b", 10, "a"))
    tokenizer = build(news).tokenizer
    own = build_evaluation_data(other, tokenizer, label_column="y")
    assert (own.layout, own.class_names) == ("documents", ("10", "a", "b"))
    assert own.batch([0, 1, 2]).labels.tolist() == [2, 0, 1]
    given = build_evaluation_data(other, tokenizer, label_column="y", class_names=NAMES)
    assert given.batch([0, 1, 2]).labels.tolist() == [-1, 1, 3]
    assert build_evaluation_data(other, tokenizer).batch([0]).labels is None


def test_labels_with_packed_sequences_are_refused(news: Path) -> None:
    words = r"layout=packed with label_column='y': .*use layout=documents or auto, or leave label_column out"
    with pytest.raises(LTMError, match=words):
        build(news, layout="packed")
    assert build(news, layout="documents").class_names == NAMES


def test_a_field_without_any_class_is_refused_by_name(news: Path) -> None:
    with pytest.raises(LTMError, match=r"news\.jsonl: no training document has a class in 'topic'; name the field"):
        build(news, label_column="topic")


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_share_outside_the_unit_interval_is_refused(news: Path, fraction: float) -> None:
    with pytest.raises(LTMError, match=r"labelled_fraction=.*: expected a number between 0 and 1"):
        build(news, labelled_fraction=fraction)


def test_a_documents_label_is_none_where_nothing_is_said() -> None:
    assert Document("text", "file", 1).label is None


def test_real_labelled_text_is_read_with_its_classes(shared_data: Path) -> None:
    options: dict[str, Any] = {"sequence_length": 128, "tokenizer": str(shared_data / "gpt2_tokenizer")}
    data = build_data(
        source=str(shared_data / "ag_news_train_sample.jsonl.gz"),
        validation=str(shared_data / "ag_news_valid_sample.jsonl.gz"),
        label_column="label",
        labelled_fraction=0.1,
        **options,
    )
    assert data.class_names == ("0", "1", "2", "3")
    assert (data.train.num_documents, data.validation.num_labelled) == (4_493, 500)
    assert 349 <= data.train.num_labelled <= 550  # Binomial(4 493, 0.1): deviation 20.1, five either side
    source = str(shared_data / "sst2_train.jsonl.gz")
    reviews = build_data(source=source, label_column="label", **options)
    assert reviews.class_names == ("0", "1")
    assert reviews.train.num_labelled == reviews.train.num_documents
    assert reviews.train.num_documents + reviews.validation.num_documents == 6_920
    found = named_labels(reviews.validation, data.tokenizer)
    assert set(found.items()) <= {(d.text, d.label) for d in FileCorpus(Path(source), label_column="label").documents()}
