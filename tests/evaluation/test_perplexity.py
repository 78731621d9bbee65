"""Perplexity per token and per word by hand; words counted wherever a sequence is cut."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_settings

from ltm_pyro.data import SequenceDataset, Tokenizer
from ltm_pyro.evaluation import PROTOCOLS, Report, perplexities, validation_data, words
from ltm_pyro.evaluation.perplexity import PROBABILITIES, UPPER_BOUNDS, count_words

TEXTS = ["naïve  café au lait", "  日本語 and\t🙂👩\u200d💻 \n x ", "plain", "no\u00a0break here", "ends "]
COUNTS = [4, 4, 1, 2, 1]
"""A no-break space is no ASCII white space, so it is inside a word."""


@pytest.fixture(scope="module", params=["bytes", "merged"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Tokens of a byte each, or of whole words with the blank before them."""
    return Tokenizer.train(["zz"] if request.param == "bytes" else TEXTS * 5, 257 if request.param == "bytes" else 400)


def dataset(path: Path, tokenizer: Tokenizer, layout: str, length: int) -> SequenceDataset:
    path = path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    settings = tiny_settings({"data.layout": layout, "data.sequence_length": length})
    return validation_data(settings, tokenizer, str(path))


def test_words_are_runs_of_anything_but_ascii_white_space():
    assert [count_words(text) for text in TEXTS] == COUNTS
    assert count_words("") == count_words(" \n\t") == 0
    assert count_words("\ud800 a") == 2


@pytest.mark.parametrize("layout", ["packed", "documents"])
@pytest.mark.parametrize("length", [2, 3, 7, 1000])
def test_pieces_have_the_words_of_the_text_wherever_they_are_cut(
    tmp_path: Path, tokenizer: Tokenizer, layout: str, length: int
):
    data = dataset(tmp_path, tokenizer, layout, length)
    pieces = [words(data, [i], tokenizer) for i in range(len(data))]
    assert sum(pieces) == words(data, range(len(data)), tokenizer) == sum(COUNTS)


def test_a_document_has_the_words_of_its_text(tmp_path: Path, tokenizer: Tokenizer):
    data = dataset(tmp_path, tokenizer, "documents", 1000)
    assert [words(data, [i], tokenizer) for i in range(len(TEXTS))] == COUNTS


def test_pieces_of_the_tokenizer_are_the_bytes_of_the_text(tokenizer: Tokenizer):
    for text in TEXTS:
        assert b"".join(tokenizer.pieces[i] for i in tokenizer.encode(text)).decode() == text
    assert tokenizer.pieces[tokenizer.end_of_text] == b""


def test_words_of_tokens_that_are_no_bytes_are_not_counted(tmp_path: Path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    whole = Tokenizer(Backend(models.WordLevel({"<|endoftext|>": 0, "plain": 1}, unk_token="<|endoftext|>")))
    assert whole.pieces is None
    assert words(dataset(tmp_path, whole, "documents", 9), [0], whole) is None


def report(*names: str, bound: bool = True, **values: list[float]) -> Report:
    nats = {name: torch.tensor(value).double() for name, value in values.items()}
    return Report(nats, torch.tensor([2, 3]), 1, 0, 0, protocols=names, bound=bound)


def test_perplexities_are_by_hand():
    row = perplexities(report("elbo", "prequential", elbo=[3.0, 5.0], prequential=[2.0, 4.0]), 4)
    assert row == {
        "elbo_perplexity": pytest.approx(math.exp(8 / 5)),
        "elbo_perplexity_per_word": pytest.approx(math.exp(2)),
        "prequential_perplexity": pytest.approx(math.exp(6 / 5)),
        "prequential_perplexity_per_word": pytest.approx(math.exp(1.5)),
        "words": 4,
    }


def test_every_protocol_is_a_probability_or_a_bound_but_for_the_one_that_leaves_the_kl_out():
    assert not set(PROBABILITIES) & set(UPPER_BOUNDS)
    assert set(PROTOCOLS) - {*PROBABILITIES, *UPPER_BOUNDS} == {"reconstruction"}


def test_what_leaves_the_kl_out_has_no_perplexity():
    assert perplexities(report("reconstruction", reconstruction=[1.0, 1.0], log_joint=[1.0, 1.0]), 4) == {"words": 4}


def test_what_there_is_none_of_is_none():
    row = perplexities(report("elbo", bound=False), 4)
    assert row == {"elbo_perplexity": None, "elbo_perplexity_per_word": None, "words": 4}
    for none in (0, None):
        assert perplexities(report("elbo", elbo=[1.0, 1.0]), none)["elbo_perplexity_per_word"] is None
    assert perplexities(report("elbo", elbo=[1e9, 1e9]), 4)["elbo_perplexity"] is None  # JSON has no infinity
