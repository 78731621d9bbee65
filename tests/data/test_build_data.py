"""build_data: from a source string to two data sets, and what an unusable source is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ltm_pyro.data import Data, Tokenizer, build_data, build_evaluation_data, train_tokenizer
from ltm_pyro.data.corpora import FileCorpus
from ltm_pyro.data.streaming import StreamingDataset
from ltm_pyro.errors import LTMError


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text("\n\n".join(f"Once there were {i} cats on the mat." for i in range(400)))
    return path


def words(data: Any, tokenizer: Tokenizer, indices: list[int] | None = None) -> str:
    batch = data.batch(range(len(data)) if indices is None else indices)
    return tokenizer.decode(batch.tokens[batch.mask].tolist())


def test_a_local_file_becomes_two_disjoint_data_sets(story: Path) -> None:
    data = build_data(source=str(story), sequence_length=32, vocab_size=300, validation_fraction=0.2)
    assert (data.train.layout, data.validation.layout) == ("packed", "packed")
    assert data.counts["train"]["documents"] + data.counts["validation"]["documents"] == 400
    assert data.counts["train"]["tokens"] == data.train.num_tokens
    assert data.counts["train"]["sequences"] == len(data.train)
    assert data.tokenizer.vocab_size <= 300
    text = words(data.train, data.tokenizer) + words(data.validation, data.tokenizer)
    assert all(text.count(f" {i} cats") == 1 for i in range(400))


def test_the_second_call_takes_everything_from_the_cache(
    story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"source": str(story), "vocab_size": 300, "cache_dir": tmp_path / "own"}
    first = build_data(**options)
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *_: pytest.fail("tokenised again"))
    monkeypatch.setattr(Tokenizer, "train", lambda *_: pytest.fail("trained again"))
    second = build_data(**options)
    assert second.train.shard.manifest == first.train.shard.manifest
    assert second.tokenizer.digest == first.tokenizer.digest
    assert not (tmp_path / "cache").exists()


def test_the_tokenizer_is_trained_on_the_training_split_alone(story: Path, tmp_path: Path) -> None:
    other = tmp_path / "valid.txt"
    other.write_text("\n\n".join(["zyzzyva zyzzyva"] * 300))
    data = build_data(source=str(story), validation=str(other), vocab_size=400, sequence_length=16)
    assert len(data.tokenizer.encode("zyzzyva")) == 7
    assert len(data.tokenizer.encode("Once")) == 1


def stream_of(data: Data, documents: int) -> list[str]:
    assert isinstance(data.training, StreamingDataset)
    sampler, found = data.training.sampler(1), list[str]()
    for _ in range(documents):
        found.append(words(data.training, data.tokenizer, next(sampler)))
    data.training.close()
    return found


@pytest.mark.parametrize("source", ["{}", "hf:{}"])
def test_a_stream_is_read_once_an_epoch_beside_what_was_held_out(tmp_path: Path, source: str) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    texts = [f"Once there were {i} cats." for i in range(300)]
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings: dict[str, Any] = {"vocab_size": 300, "sequence_length": 64, "layout": "documents"}
    data = build_data(source=source.format(folder), streaming=True, workers=0, **settings)
    held = words(data.validation, data.tokenizer)
    count = data.validation.num_documents
    assert 0 < count < 60
    assert sorted([*stream_of(data, 300 - count), *held.replace("cats.", "cats.\n").splitlines()]) == sorted(texts)
    assert data.counts["train"]["documents"] == 300 - count
    again = build_data(source=source.format(folder), streaming=False, **settings)
    assert again.train.num_documents == 300 - count
    with pytest.raises(LTMError, match=r"the training text is a stream.*data.streaming=false"):
        data.train  # noqa: B018


def test_classes_are_known_before_training_so_their_stream_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}", "y": i % 3}) + "\n" for i in range(100)))
    data = build_data(source=str(path), streaming=True, label_column="y", vocab_size=300, sequence_length=32)
    assert data.class_names == ("0", "1", "2")
    assert data.train.num_labelled == data.train.num_documents


def test_a_damaged_cached_tokenizer_is_trained_again(story: Path, tmp_path: Path) -> None:
    first = train_tokenizer(FileCorpus(story), 300, tmp_path)
    (saved,) = tmp_path.glob("tokenizers/*/tokenizer.json")
    sound = saved.read_text()
    for damaged in (sound[: len(sound) // 2], sound.replace('"use_regex":true', '"use_regex":false')):
        assert damaged != sound
        saved.write_text(damaged)
        assert train_tokenizer(FileCorpus(story), 300, tmp_path).digest == first.digest
        assert saved.read_text() == sound


def test_a_loaded_tokenizer_is_used_as_it_is(story: Path, small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path / "tokenizer.json")
    data = build_data(source=str(story), tokenizer=str(tmp_path), vocab_size=5)
    assert data.tokenizer.digest == small.digest


def test_fables_are_one_document_a_sequence_by_default() -> None:
    data = build_data(documents=40, vocab_size=300, sequence_length=4096)
    assert data.train.layout == data.validation.layout == "documents"
    assert (data.counts["train"]["documents"], data.counts["validation"]["documents"]) == (40, 2)
    assert data.train.batch([0]).tokens[0, -1] == data.tokenizer.end_of_text
    packed = build_data(documents=40, vocab_size=300, sequence_length=4096, layout="packed")
    assert packed.train.layout == "packed"
    assert packed.train.num_tokens == data.train.num_tokens


def test_another_source_is_evaluated_with_the_runs_tokenizer(story: Path, small: Tokenizer) -> None:
    data = build_evaluation_data(str(story), small, sequence_length=8)
    assert data.layout == "packed"
    assert data.num_documents == 400
    assert words(data, small).startswith("Once there were 0 cats on the mat.Once")
    fables = build_evaluation_data("fables", small, documents=3)
    assert (fables.layout, fables.num_documents) == ("documents", 3)
    assert build_evaluation_data(str(story), small, layout="documents", documents=7).num_documents == 7


def test_one_document_leaves_a_split_empty_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("just one document")
    with pytest.raises(LTMError) as caught:
        build_data(source=str(path), vocab_size=300)
    message = str(caught.value)
    assert f"{path}: the validation split is empty" in message
    assert "validation_fraction=0.05" in message
    assert "name a validation source" in message
    assert "text_unit" in message
    with pytest.raises(LTMError, match="the train split is empty"):
        build_data(source=str(path), vocab_size=300, validation_fraction=0.999999)


@pytest.mark.parametrize("side", ["source", "validation"])
def test_a_source_without_text_is_refused_by_name(story: Path, tmp_path: Path, side: str) -> None:
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    sources = {"source": str(story), side: str(blank)}
    with pytest.raises(LTMError, match=r"blank\.txt: no documents .*give a source that has text"):
        build_data(**sources, vocab_size=300)  # type: ignore[arg-type]


def test_a_corpus_smaller_than_one_sequence_is_refused_with_the_numbers(story: Path) -> None:
    options: dict[str, Any] = {"source": str(story), "vocab_size": 300, "sequence_length": 100_000}
    with pytest.raises(LTMError, match=r"story\.txt: the training split has \d+ tokens, fewer than one .*100000; give"):
        build_data(**options)
    assert build_data(**options, layout="documents").train.layout == "documents"


def test_unknown_layout_is_refused(story: Path, small: Tokenizer) -> None:
    with pytest.raises(LTMError, match="layout='pakced': expected auto, packed or documents"):
        build_evaluation_data(str(story), small, layout="pakced")


def test_unknown_text_unit_is_refused(story: Path) -> None:
    with pytest.raises(LTMError, match="text_unit='word': expected auto, file, block or line"):
        build_data(source=str(story), text_unit="word")


def test_real_text_is_split_and_counted(shared_data: Path, tmp_path: Path) -> None:
    data = build_data(
        source=str(shared_data / "ptb_valid.txt.gz"),
        validation=str(shared_data / "tinystories_valid.jsonl.gz"),
        tokenizer=str(shared_data / "gpt2_tokenizer"),
        sequence_length=128,
    )
    assert data.counts["train"]["documents"] == 3_370
    assert data.counts["validation"] == {"documents": 250, "sequences": 380, "tokens": 48_268 + 250}
