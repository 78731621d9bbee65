"""Corpora: identities, limits, fingerprints, and the split that keeps identical texts on one side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltm_pyro.data import corpora
from ltm_pyro.data.corpora import FileCorpus, HeldOut, Limited
from ltm_pyro.data.sources import open_corpus, split_corpus
from ltm_pyro.errors import LTMError


def texts(corpus: Any) -> list[str]:
    return [d.text for d in corpus.documents()]


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=3), max_size=30), st.floats(0.01, 0.99), st.randoms())
def test_held_out_and_training_documents_partition_the_corpus(
    make_corpus: Any, items: list[str], fraction: float, random: Any
) -> None:
    items = [t for t in items if t.isprintable()]
    corpus = make_corpus(tuple(items))
    train, held = (texts(HeldOut(corpus, fraction, side)) for side in ("train", "validation"))
    assert sorted(train + held) == sorted(items)
    assert not set(train) & set(held)
    shuffled = random.sample(items, len(items))
    assert set(texts(HeldOut(make_corpus(tuple(shuffled)), fraction, "validation"))) == set(held)


def test_the_held_out_share_is_the_fraction(make_corpus: Any) -> None:
    corpus = make_corpus(tuple(f"document {i}" for i in range(10_000)))
    held = texts(HeldOut(corpus, 0.05, "validation"))
    assert 391 <= len(held) <= 609  # Binomial(10 000, 0.05): deviation 21.8, five either side


def test_a_larger_fraction_keeps_what_a_smaller_one_held_out(make_corpus: Any) -> None:
    corpus = make_corpus(tuple(map(str, range(1000))))
    small, large = (set(texts(HeldOut(corpus, f, "validation"))) for f in (0.05, 0.2))
    assert small < large


def test_the_side_of_a_document_never_changes_between_versions(make_corpus: Any) -> None:
    corpus = make_corpus(tuple("abcdefghij"))
    assert texts(HeldOut(corpus, 0.3, "validation")) == ["a", "c", "h", "i", "j"]


def test_limited_reads_no_further_than_its_last_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\nnot json\n')
    assert texts(Limited(FileCorpus(path), 2)) == ["a", "b"]
    assert texts(open_corpus(str(path), documents=1)) == ["a"]


def test_fingerprints_tell_contents_and_options_apart(tmp_path: Path) -> None:
    for name, content in (("a.txt", "x\n"), ("b.txt", "y\n"), ("c.jsonl", '{"text": "x"}\n'), ("d/a.txt", "x\n")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    a = FileCorpus(tmp_path / "a.txt")
    different = [
        a,
        FileCorpus(tmp_path / "b.txt"),
        FileCorpus(tmp_path / "c.jsonl"),
        FileCorpus(tmp_path / "c.jsonl", column="other"),
        FileCorpus(tmp_path / "a.txt", unit="line"),
        FileCorpus(tmp_path),
        Limited(a, 1),
        Limited(a, 2),
        HeldOut(a, 0.1, "train"),
        HeldOut(a, 0.2, "train"),
        HeldOut(a, 0.1, "validation"),
        *(open_corpus("fables", documents=n, seed=s, split=split) for n in (1, 2) for s in (0, 1) for split in SPLITS),
    ]
    assert len({c.fingerprint() for c in different}) == len(different)
    assert FileCorpus(tmp_path / "d" / "a.txt").fingerprint() == a.fingerprint()


SPLITS: tuple[Any, ...] = ("train", "validation")


def test_local_source_is_split_by_hash_or_given_a_validation_source(tmp_path: Path) -> None:
    train, held = tmp_path / "train.txt", tmp_path / "valid.txt"
    train.write_text("\n\n".join(map(str, range(300))))
    held.write_text("x\n\ny")
    one, two = split_corpus(str(train), fraction=0.2)
    assert len(texts(one)) + len(texts(two)) == 300
    assert not set(texts(one)) & set(texts(two))
    one, two = split_corpus(str(train), str(held), documents=10)
    assert texts(one) == [str(i) for i in range(10)]
    assert texts(two) == ["x", "y"]


@pytest.mark.parametrize("documents", [None, 5])
def test_validating_on_the_training_source_is_refused(tmp_path: Path, documents: int | None) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    with pytest.raises(LTMError, match=r"a\.txt: validation and training are the same documents; leave .* out"):
        split_corpus(str(path), str(path), documents=documents)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fraction_outside_the_unit_interval_is_refused(tmp_path: Path, fraction: float) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(LTMError, match=r"validation_fraction=.*: expected a number between 0 and 1, such as"):
        split_corpus(str(tmp_path / "a.txt"), fraction=fraction)


@pytest.mark.parametrize("source", ["fables", "somewhere.txt"])
def test_document_count_below_one_is_refused(source: str) -> None:
    with pytest.raises(LTMError, match="documents=0: expected at least 1, or nothing for all"):
        open_corpus(source, documents=0)


def test_fables_are_the_generators_own_splits() -> None:
    from ltm_pyro.data.fables import generate

    train, held = split_corpus("fables", documents=60, fraction=0.1, seed=3)
    assert texts(train) == [f.text for f in generate(60, seed=3, split="train")]
    assert texts(held) == [f.text for f in generate(6, seed=3, split="validation")]
    first = next(train.documents())
    assert (first.file, first.row) == ("fables/train", 1)
    assert texts(open_corpus("fables", documents=2, seed=3)) == texts(train)[:2]


def test_both_sides_of_a_split_read_the_files_for_one_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("x\ny\n")
    read: list[Path] = []
    digest = corpora.file_digest
    monkeypatch.setattr(corpora, "file_digest", lambda path: read.append(path) or digest(path))
    for side in split_corpus(str(tmp_path / "a.txt")):
        side.fingerprint()
    assert read == [tmp_path / "a.txt"]
