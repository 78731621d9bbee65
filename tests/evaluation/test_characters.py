"""Bits per character: characters counted by hand, wherever a sequence is cut."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_settings

from ltm_pyro.data import SequenceDataset, Tokenizer
from ltm_pyro.evaluation import Report, bits_per_character, characters, validation_data

TEXTS = ["naïve café", "日本語 and 🙂👩\u200d💻", "plain", "ß" * 9]
"""10, 12, 5 and 9 characters, of one to four bytes."""
COUNTS = [10, 12, 5, 9]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["plain words"], 270)  # no merges of other bytes: a character is many tokens


def dataset(path: Path, tokenizer: Tokenizer, layout: str, length: int) -> SequenceDataset:
    path = path / "texts.txt"
    path.write_text("\n\n".join(TEXTS), encoding="utf-8")
    settings = tiny_settings({"data.layout": layout, "data.sequence_length": length})
    return validation_data(settings, tokenizer, str(path))


@pytest.mark.parametrize("layout", ["packed", "documents"])
@pytest.mark.parametrize("length", [2, 3, 7, 1000])
def test_pieces_add_up_to_the_text_wherever_they_are_cut(
    tmp_path: Path, tokenizer: Tokenizer, layout: str, length: int
):
    data = dataset(tmp_path, tokenizer, layout, length)
    pieces = [characters(data, [i], tokenizer) for i in range(len(data))]
    assert sum(pieces) == sum(COUNTS) == characters(data, range(len(data)), tokenizer)


def test_a_document_has_the_characters_of_its_text(tmp_path: Path, tokenizer: Tokenizer):
    data = dataset(tmp_path, tokenizer, "documents", 1000)
    assert [characters(data, [i], tokenizer) for i in range(4)] == COUNTS == [len(text) for text in TEXTS]


def test_a_character_is_counted_where_its_first_byte_is(tokenizer: Tokenizer):
    counts = tokenizer.characters
    assert [counts[i] for i in tokenizer.encode("a語🙂")] == [1, 1, 0, 0, 1, 0, 0, 0]
    assert counts[tokenizer.end_of_text] == 0
    assert len(counts) == tokenizer.vocab_size
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0xE100)]))
    assert sum(counts[i] for i in tokenizer.encode(every)) == len(every)


def test_tokens_that_are_no_bytes_have_no_count(tmp_path: Path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    words = Tokenizer(Backend(models.WordLevel({"<|endoftext|>": 0, "plain": 1}, unk_token="<|endoftext|>")))
    assert words.characters is None
    assert characters(dataset(tmp_path, words, "documents", 9), [0], words) is None


def test_bits_are_the_nats_of_the_whole_text_by_its_characters():
    values = {name: torch.tensor([3.0, 5.0]).double() for name in ("elbo", "reconstruction", "prequential")}
    protocols = ("elbo", "reconstruction", "iwae", "prequential")
    report = Report(values, torch.tensor([2, 3]), 1, 0, 0, protocols=protocols, bound=False)
    row = bits_per_character(report, 16)
    bits = 8 / math.log(2) / 16
    assert row == {
        "elbo_bits_per_character": pytest.approx(bits),
        "iwae_bits_per_character": None,
        "prequential_bits_per_character": pytest.approx(bits),
        "characters": 16,
    }
    for none in (0, None):
        assert bits_per_character(report, none)["elbo_bits_per_character"] is None
