"""A corpus scored under models whose probabilities are known."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from known_models import UnigramModel

from ltm_pyro.data import Tokenizer
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.zero_shot import CorpusResult, find_files, passage, score_corpus

LINES = [f" it was n't the {word} 's N \n" for word in ("cat", "dog", "<unk>", "bird", "fish")]
TEXT = "\n".join(f"it wasn't the {word}'s 1" for word in ("cat", "dog", "?", "bird", "fish"))
WORDS = 7 * 5 + 5
"""Seven words and an end-of-line mark in each of the five lines."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 290)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ptb.txt").write_text("".join(LINES), encoding="utf-8")
    (tmp_path / "lambada.txt").write_text("the dog saw the cat\nthe cat\nit was the dog\n", encoding="utf-8")
    return tmp_path


def scored(folder: Path, name: str, model: UnigramModel, tokenizer: Tokenizer, **options) -> CorpusResult:
    corpus = find_files(folder)[name]
    return score_corpus(model, tokenizer, corpus, corpus.sequences(tokenizer, model.max_length), **options)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(folder: Path, tokenizer: Tokenizer):
    model = UnigramModel(tokenizer.vocab_size)
    row = scored(folder, "ptb", model, tokenizer).to_dict()
    tokens = len(tokenizer.encode(TEXT)) + 1
    assert (row["corpus"], row["title"], row["documents"], row["tokens"]) == ("ptb", "PTB", 1, tokens)
    assert row["layout"] == "packed"
    assert row["prequential_perplexity"] == pytest.approx(tokenizer.vocab_size)
    assert row["words"] == WORDS
    assert row["prequential_perplexity_per_word"] == pytest.approx(tokenizer.vocab_size ** (tokens / WORDS))
    assert row["characters"] == len(TEXT)
    bits = tokens * math.log2(tokenizer.vocab_size) / len(TEXT)
    assert row["prequential_bits_per_character"] == pytest.approx(bits)
    assert not row["words_estimated"]
    assert row["upper_bounds"] == []


def test_a_unigram_model_has_the_perplexity_of_its_counts(folder: Path, tokenizer: Tokenizer):
    tokens = [*tokenizer.encode(TEXT), tokenizer.end_of_text]
    counts = Counter(tokens)
    shares = torch.tensor([counts[i] / len(tokens) for i in range(tokenizer.vocab_size)])
    entropy = -sum(n / len(tokens) * math.log(n / len(tokens)) for n in counts.values())
    row = scored(folder, "ptb", UnigramModel(tokenizer.vocab_size, shares), tokenizer).to_dict()
    assert row["prequential"] == pytest.approx(entropy, rel=1e-6)
    assert row["prequential_perplexity"] == pytest.approx(math.exp(entropy), rel=1e-6)
    assert row["prequential_perplexity_per_word"] == pytest.approx(math.exp(entropy * len(tokens) / WORDS), rel=1e-6)


def test_protocols_are_kept_apart_and_what_leaves_the_kl_out_has_no_perplexity(folder: Path, tokenizer: Tokenizer):
    model = UnigramModel(tokenizer.vocab_size)
    row = scored(folder, "ptb", model, tokenizer, protocols=["elbo", "reconstruction"]).to_dict()
    assert row["upper_bounds"] == ["elbo"]
    sequences, tokens = row["sequences"], row["tokens"]
    above = math.exp(math.log(tokenizer.vocab_size) + 0.5 * sequences / tokens)
    assert row["elbo_perplexity"] == pytest.approx(above)
    below = math.exp(math.log(tokenizer.vocab_size) - sequences / tokens)
    assert row["reconstruction_exp_without_kl"] == pytest.approx(below)
    assert not [key for key in row if key.startswith("reconstruction") and ("perplexity" in key or "bits" in key)]
    with pytest.raises(LTMError, match="a model of kind unigram has no iwae"):
        scored(folder, "ptb", model, tokenizer, protocols=["iwae"])


def test_a_part_of_a_corpus_has_its_share_of_the_words(folder: Path, tokenizer: Tokenizer):
    model = UnigramModel(tokenizer.vocab_size, max_length=8)
    row = scored(folder, "ptb", model, tokenizer, max_sequences=2).to_dict()
    assert row["tokens"] == 16
    assert row["words_estimated"]
    assert row["words"] == pytest.approx(WORDS * 16 / (len(tokenizer.encode(TEXT)) + 1))
    assert row["prequential_perplexity_per_word"] == pytest.approx(tokenizer.vocab_size ** (16 / row["words"]))
    assert not scored(folder, "ptb", model, tokenizer, max_sequences=999).to_dict()["words_estimated"]


def test_the_model_is_asked_as_the_caller_says(folder: Path, tokenizer: Tokenizer):
    model = UnigramModel(tokenizer.vocab_size)
    options = {"samples": 3, "fast_steps": 5, "batch_size": 2, "seed": 7}
    scored(folder, "ptb", model, tokenizer, block_size=4, max_sequences=1, **options)
    assert model.asked == [{"protocols": ("prequential",), "indices": [0], "block_size": 4, **options}]


def test_lambada_has_its_last_words_too_and_no_other_corpus_has(folder: Path, tokenizer: Tokenizer):
    model = UnigramModel(tokenizer.vocab_size)
    row = scored(folder, "lambada", model, tokenizer).to_dict()
    counts = [passage(t, tokenizer, 16).scored for t in ("the dog saw the cat", "the cat", "it was the dog")]
    assert row["passages"] == 3
    assert row["last_word_perplexity"] == pytest.approx(tokenizer.vocab_size ** (sum(counts) / 3))
    assert row["words"] == 11
    assert scored(folder, "lambada", model, tokenizer, max_sequences=1).to_dict()["passages"] == 1
    assert "passages" not in scored(folder, "ptb", model, tokenizer).to_dict()
