"""The last word of a passage: which tokens it has, and what is made of a model's predictions."""

from __future__ import annotations

import math

import pytest
import torch
from known_models import Parrot, UnigramModel

from ltm_pyro.data import Tokenizer
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.zero_shot import last_words, passage


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Merges the blank with the word after it, as GPT-2's does."""
    return Tokenizer.train(["the cat and the dog saw the cat"] * 3, 300)


@pytest.mark.parametrize(
    ("text", "context", "word"),
    [
        ("the dog saw the cat", "the dog saw the", " cat"),
        ("  the dog \n", "the", " dog"),
        ("the\ncat", "the", "\ncat"),
        ("the  cat", "the", "  cat"),
        ('she said "naïve."', "she said", ' "naïve."'),
        ("日本語 語", "日本語", " 語"),
    ],
)
def test_the_blank_belongs_to_the_last_word(tokenizer: Tokenizer, text: str, context: str, word: str):
    found = passage(text, tokenizer, 100)
    assert found.start == tokenizer.end_of_text
    cut = len(found.tokens) - found.scored
    assert tokenizer.decode(found.tokens) == context + word
    # A run of blanks is a token of its own up to the last one, which still is no part of the context.
    assert (tokenizer.decode(found.tokens[:cut]), tokenizer.decode(found.tokens[cut:])) == (context, word)


def test_a_token_over_the_boundary_is_scored_with_the_word():
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers

    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "Ġ": 3, "aĠ": 4, "aĠb": 5}
    backend = Backend(models.BPE(vocabulary, [("a", "Ġ"), ("aĠ", "b")]))
    backend.normalizer = normalizers.Replace(" ", "Ġ")
    across = Tokenizer(backend)
    assert across.encode("ba b") == [2, 5]
    assert passage("ba b", across, 9) == ([2, 5], 1, 0)  # all that is left of the context is its first letter


def test_a_text_without_two_words_has_no_last_one(tokenizer: Tokenizer):
    assert passage("word", tokenizer, 100) is None
    assert passage(" \n", tokenizer, 100) is None
    with pytest.raises(LTMError, match="no passage has a last word and a word before it"):
        last_words(UnigramModel(tokenizer.vocab_size), ["word"], tokenizer)


def test_a_long_passage_loses_its_beginning(tokenizer: Tokenizer):
    whole = passage("the dog saw the cat", tokenizer, 100)
    cut = passage("the dog saw the cat", tokenizer, len(whole.tokens) - 2)
    assert cut.tokens == whole.tokens[2:]
    assert cut.start == whole.tokens[1]
    assert cut.scored == whole.scored
    with pytest.raises(LTMError, match=r"the last word 'zzzz' has 5 tokens, more than the model's sequences of 4"):
        passage("the zzzz", tokenizer, 4)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tokenizer: Tokenizer):
    model = UnigramModel(tokenizer.vocab_size)
    texts = ["the cat saw the dog", "the dog", "and xy"]
    counts = [passage(text, tokenizer, 16).scored for text in texts]
    row = last_words(model, texts, tokenizer, batch_size=2).to_dict()
    assert row["last_word_perplexity"] == pytest.approx(tokenizer.vocab_size ** (sum(counts) / 3))
    assert row["last_word_nats"] == pytest.approx(math.log(tokenizer.vocab_size) * sum(counts) / 3)
    nats = torch.tensor(counts).double() * math.log(tokenizer.vocab_size)
    assert row["last_word_nats_se"] == pytest.approx(float(nats.std()) / math.sqrt(3))
    assert (row["passages"], row["passages_shortened"], row["last_word_is_upper_bound"]) == (3, 0, False)


def test_accuracy_is_the_share_of_words_whose_every_token_is_expected():
    # The parrot repeats the last token, so it is right where the last letter, with the blank before it, comes twice.
    letters = Tokenizer.train([" a a a b b b"] * 9, 260)
    assert letters.encode("b a a") == [letters.encode("b")[0], letters.encode(" a")[0], letters.encode(" a")[0]]
    parrot = Parrot(letters.vocab_size)
    found = last_words(parrot, ["b a a", "b a b", "a b b", "b b"], letters, batch_size=3)
    assert found.greedy.tolist() == [True, False, True, False]
    row = found.to_dict()
    assert row["last_word_accuracy"] == 0.5
    assert row["last_word_accuracy_se"] == pytest.approx(math.sqrt(0.5 * 0.5 / 3))
    others = letters.vocab_size - 1
    assert row["last_word_perplexity"] == pytest.approx(math.exp((2 * math.log(2) + 2 * math.log(2 * others)) / 4))


def test_the_last_word_alone_is_scored_and_the_batch_changes_nothing(tokenizer: Tokenizer):
    draw = torch.Generator().manual_seed(0)
    model = UnigramModel(tokenizer.vocab_size, torch.rand(tokenizer.vocab_size, generator=draw).softmax(0))
    texts = ["the cat saw the dog", "the dog", "and then the cat saw"]
    together, one_by_one = (last_words(model, texts, tokenizer, batch_size=size) for size in (8, 1))
    assert torch.equal(together.log_prob, one_by_one.log_prob)
    batch = model.batches[0]
    for row, text in enumerate(texts):
        found = passage(text, tokenizer, 16)
        assert batch.mask[row].nonzero()[:, 0].tolist() == list(
            range(len(found.tokens) - found.scored, len(found.tokens))
        )
        word = found.tokens[-found.scored :]
        assert float(together.log_prob[row]) == pytest.approx(float(model.probabilities[word].log().sum()))


def test_a_single_passage_has_no_standard_error_and_a_bound_says_so(tokenizer: Tokenizer):
    class Bounding(UnigramModel):
        exact = False

    row = last_words(Bounding(tokenizer.vocab_size), ["the cat"], tokenizer).to_dict()
    assert row["last_word_accuracy_se"] is row["last_word_nats_se"] is None
    assert row["last_word_is_upper_bound"]
