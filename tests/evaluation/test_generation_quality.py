"""A model's texts and the real ones beside them: which they are, and that both sides are measured alike."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_models import FakeModel

from ltm_pyro.data import Data, SequenceDataset, Tokenizer
from ltm_pyro.decoder import Sampling
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.generation import (
    WrittenTexts,
    compare_features,
    compare_scores,
    compare_statistics,
    write_texts,
)
from ltm_pyro.evaluation.generation.second_model import RunModel


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["plain words"], 270)


def documents(data: Data) -> list[list[int]]:
    """The training documents, without their end-of-text tokens."""
    shard = data.train.shard
    return [shard.tokens[a : b - 1].tolist() for a, b in zip(shard.offsets[:-1], shard.offsets[1:], strict=True)]


def written(tokenizer: Tokenizer, generated: list[str], reference: list[str], **changes: object) -> WrittenTexts:
    sides = {
        "generated": [tokenizer.encode(text) for text in generated],
        "reference": [tokenizer.encode(text) for text in reference],
        "prompts": [[] for _ in generated],
        "control": [],
        "max_tokens": 99,
    }
    return WrittenTexts(**(sides | changes), tokenizer=tokenizer)


@pytest.mark.parametrize("layout", ["packed", "documents"])
def test_real_texts_are_the_beginnings_of_documents_however_sequences_are_cut(data: Data, layout: str):
    model = FakeModel([[5], [6, 7]])
    split = SequenceDataset(data.train.shard, layout, 4)
    texts = write_texts(model, data.tokenizer, split, num=12, max_tokens=10, seed=3)
    assert texts.prompts == [[]] * 12
    assert texts.generated == [[5], [6, 7]] * 6
    beginnings = [document[:10] for document in documents(data)]
    assert len(texts.reference) == len(texts.control) == 12
    assert all(text in beginnings for text in texts.reference + texts.control)
    again = write_texts(FakeModel([[5], [6, 7]]), data.tokenizer, split, num=12, max_tokens=10, seed=3)
    assert again == texts
    assert write_texts(model, data.tokenizer, split, num=12, max_tokens=10, seed=4).reference != texts.reference


def test_all_texts_from_the_prior_are_asked_for_at_once(data: Data):
    # More texts than documents would be refused: the fables' validation is not needed for that.
    model = FakeModel([[1]])
    split = SequenceDataset(data.train.shard, "documents", 4)
    many = SequenceDataset(_repeated(data, 5), "documents", 4)
    assert len(many) > len(split)
    write_texts(model, data.tokenizer, many, num=130, max_tokens=3, sampling=Sampling(temperature=0), fast_steps=7)
    (call,) = model.calls
    assert call["start"] == call["stop"] == data.tokenizer.end_of_text
    assert (call["prompts"], call["num"], call["max_tokens"], call["fast_steps"]) == ([[]], 130, 3, 7)
    assert call["sampling"] == Sampling(temperature=0)


def _repeated(data: Data, times: int):
    from dataclasses import replace

    shard = data.train.shard
    count = shard.manifest.num_tokens
    offsets = np.concatenate([[0], *(shard.offsets[1:] + count * i for i in range(times))])
    manifest = replace(shard.manifest, num_tokens=count * times, num_documents=shard.manifest.num_documents * times)
    return type(shard)(np.tile(np.asarray(shard.tokens), times), offsets, manifest)


def test_prompts_and_their_real_continuations_are_of_one_document(data: Data):
    model = FakeModel([[9, 9]])
    texts = write_texts(model, data.tokenizer, data.train, num=5, max_tokens=6, prompt_tokens=4)
    whole = [document[:10] for document in documents(data)]
    for prompt, reference in zip(texts.prompts, texts.reference, strict=True):
        assert len(prompt) == 4
        assert prompt + reference in whole
    (call,) = model.calls
    assert (call["prompts"], call["num"]) == (texts.prompts, 1)


def test_documents_no_longer_than_the_prompt_are_left_out(data: Data):
    lengths = sorted(len(document) for document in documents(data))
    longest = lengths[-3]  # at least two are longer, if none tie
    longer = sum(length > longest for length in lengths)
    texts = write_texts(FakeModel([[1]]), data.tokenizer, data.train, num=longer, max_tokens=5, prompt_tokens=longest)
    assert all(texts.reference)
    with pytest.raises(LTMError, match=f"only {longer} of the {len(lengths)} documents are longer than {longest}"):
        write_texts(FakeModel([[1]]), data.tokenizer, data.train, num=longer + 1, max_tokens=5, prompt_tokens=longest)


@pytest.mark.parametrize(("name", "value"), [("num", 0), ("max_tokens", 0), ("prompt_tokens", -1)])
def test_numbers_out_of_range_are_named(data: Data, name: str, value: int):
    with pytest.raises(LTMError, match=f"{name} must be"):
        write_texts(FakeModel([[1]]), data.tokenizer, data.train, **({"num": 2} | {name: value}))


def test_a_model_that_cannot_write_as_much_is_not_asked_to(data: Data):
    model = FakeModel([[5]], max_length=20)
    write_texts(model, data.tokenizer, data.train, num=2, max_tokens=30)
    model.open_ended = False
    write_texts(model, data.tokenizer, data.train, num=2, max_tokens=17, prompt_tokens=3)
    with pytest.raises(LTMError, match="20 tokens at most, got a prompt of 3 and texts of 18: ask for fewer"):
        write_texts(model, data.tokenizer, data.train, num=2, max_tokens=18, prompt_tokens=3)


def test_equal_texts_have_equal_statistics(tokenizer: Tokenizer):
    texts = ["the cat sat on the mat.", "a dog", ""]
    report = compare_statistics(written(tokenizer, texts, texts))
    assert report["generated"] == report["reference"]
    assert json.loads(json.dumps(report)) == report


def test_statistics_are_those_of_the_words_or_of_the_tokens(tokenizer: Tokenizer):
    texts = written(tokenizer, ["a b, a b"], ["a b c d e f g"])
    report = compare_statistics(texts)
    assert report["unit"] == "words"
    assert report["distinct_units"] == 5  # a b , a b
    assert report["generated"]["distinct_1"] == pytest.approx(3 / 5)
    assert report["reference"]["distinct_1"] == 1  # of its first 5 words
    assert report["generated"]["distinct_2"] == pytest.approx(3 / 4)  # ab b, ,a ab
    assert report["generated"]["repeated_units"] == pytest.approx(2 / 5)
    assert report["generated"]["tokens_per_text"] == 8  # bytes: the tokenizer has no merge of these
    tokens = compare_statistics(texts, unit="tokens")
    assert (tokens["unit"], tokens["distinct_units"]) == ("tokens", 8)
    assert tokens["generated"]["distinct_1"] == pytest.approx(4 / 8)  # a, space, b, comma


def test_a_text_ends_by_itself_where_it_is_shorter_than_the_most(tokenizer: Tokenizer):
    texts = written(tokenizer, ["abc", "ab", "ab"], ["abc", "abc", "abc"], max_tokens=3)
    report = compare_statistics(texts)
    assert (report["generated"]["ended"], report["reference"]["ended"]) == (pytest.approx(2 / 3), 0)
    assert report["generated"]["unique_texts"] == pytest.approx(2 / 3)


def test_scores_are_the_second_models_of_each_side(tokenizer: Tokenizer):
    texts = written(tokenizer, ["abc", "ab"], ["ccc", "c"], max_tokens=3, prompts=[tokenizer.encode("zz")] * 2)
    report = compare_scores(texts, RunModel(FakeModel(), tokenizer, "other", samples=3))
    a, b, c = tokenizer.encode("abc")
    # Prompts are not scored; the end of a text that was not cut is, and costs nothing: it is token 0.
    assert report["generated"]["scored_tokens"] == 3 + 2 + 1
    assert report["generated"]["nats_per_token"] == pytest.approx((a + b + c + a + b) / 10 / 6)
    assert report["reference"]["nats_per_token"] == pytest.approx(4 * c / 10 / 5)
    assert report["generated"]["generative_perplexity"] == pytest.approx(np.exp(report["generated"]["nats_per_token"]))
    assert report["second_model"] == {
        "model": "other",
        "kind": "fake",
        "max_length": 64,
        "protocol": "likelihood",
        "exact": True,
        "samples": 3,
        "fast_steps": None,
        "block_size": None,
        "seed": 0,
    }


class Lengths(RunModel):
    """Features: a text's length, and one."""

    def features(self, texts):
        return np.array([[float(len(text)), 1.0] for text in texts])


def test_mauve_stands_beside_that_of_other_real_texts(tokenizer: Tokenizer):
    pytest.importorskip("mauve", reason="needs mauve-text")
    short, long = ["a", "aa"] * 10, ["a" * (30 + i) for i in range(20)]
    model = Lengths(FakeModel(), tokenizer, "lengths")
    texts = written(tokenizer, short, long, control=[tokenizer.encode(text) for text in long])
    report = compare_features(texts, model, seeds=2)
    assert report["generated"]["mauve"] < 0.1
    assert report["reference"]["mauve"] == pytest.approx(1)
    assert report["mauve"] == {
        "features": {"model": "lengths", "kind": "fake", "max_length": 64},
        "texts": 20,
        "buckets": 2,
        "seeds": 2,
        "max_tokens": 99,
    }
    few = written(tokenizer, short, long, control=[[7]] * 19)
    assert compare_features(few, model, seeds=2)["reference"] == {"mauve": None, "mauve_std": None}


def test_rows_hold_the_texts_side_by_side(tokenizer: Tokenizer):
    texts = written(tokenizer, ["né"], ["ü"], prompts=[tokenizer.encode("p q")])
    assert texts.rows() == [{"prompt": "p q", "generated": "né", "reference": "ü"}]
