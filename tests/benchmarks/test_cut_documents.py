"""Documents cut out of longer texts: their lengths, and that no token differs from the whole text's."""

from __future__ import annotations

import gzip
import json

import pytest

from benchmarks.reproduce.long_documents import SLACK, pieces, write_long_documents
from ltm_pyro.data.fables import generate
from ltm_pyro.data.tokenizer import Tokenizer

TEXTS = [fable.text for fable in generate(40)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 400)


def test_pieces_are_consecutive_parts_whose_tokens_are_those_of_the_text(tokenizer):
    text = "\n\n".join(TEXTS[:4])
    parts = list(pieces(text, tokenizer, 50))
    assert len(parts) > 20
    assert text.startswith("".join(parts))
    ids = [token for part in parts for token in tokenizer.encode(part)]
    assert ids == tokenizer.encode(text)[: len(ids)]
    assert all(50 <= len(tokenizer.encode(part)) <= 50 + SLACK for part in parts)
    # What is left is too short for one more.
    assert len(tokenizer.encode(text)) - len(ids) < 50


def test_what_has_no_space_in_time_and_what_is_too_short_is_left_out(tokenizer):
    assert list(pieces("short", tokenizer, 50)) == []
    endless = "abcdefgh" * 100
    assert list(pieces(f"{endless} {TEXTS[0]}", tokenizer, 50)) == list(pieces(f" {TEXTS[0]}", tokenizer, 50))


def test_each_source_gives_at_most_so_many_spread_over_it(tokenizer, tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    first.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:20]), encoding="utf-8")
    with gzip.open(second, "wt", encoding="utf-8") as out:
        out.write(json.dumps({"text": TEXTS[20]}) + "\n")
    out = tmp_path / "out" / "long.jsonl"
    written = write_long_documents([first, second], out, tokenizer, 50, 10)
    found = [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines()]
    assert written[str(first)] == 10
    assert sum(written.values()) == len(found)
    places = [next(n for n, text in enumerate(TEXTS) if part in text) for part in found[:10]]
    assert places == sorted(places)
    assert places[-1] > 15
