"""LAMBADA's task: the last word of a passage, predicted from all words before it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ltm_pyro.data import Tokenizer
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.perplexity import exp_or_none
from ltm_pyro.evaluation.texts import scored_ends
from ltm_pyro.language_model import LanguageModel

__all__ = ["LastWords", "Passage", "last_words", "passage"]

_LAST_WORD = re.compile(r"(.*\S)(\s+\S+)", re.DOTALL)


class Passage(NamedTuple):
    """Token ids of a passage and how many of the last of them are its last word; ``start`` stands before the first."""

    tokens: list[int]
    scored: int
    start: int


@dataclass(frozen=True, eq=False)
class LastWords:
    """What a model says of the last words of M passages.

    Args:
        log_prob: (M,) log-probability of each word in nats, or a lower bound on it.
        greedy: (M,) whether each of its tokens is the most probable one given all before.
        exact: whether ``log_prob`` is a probability.
        shortened: passages whose beginning was left out, being longer than the model's sequences.
    """

    log_prob: Float[Tensor, " passage"]
    greedy: Bool[Tensor, " passage"]
    exact: bool
    shortened: int

    def to_dict(self) -> dict[str, Any]:
        """Accuracy and perplexity per last word, with the standard errors of accuracy and nats per word."""
        count = len(self.log_prob)
        accuracy, nats = float(self.greedy.double().mean()), -self.log_prob.double()
        several = count > 1
        return {
            "last_word_accuracy": accuracy,
            "last_word_accuracy_se": math.sqrt(accuracy * (1 - accuracy) / (count - 1)) if several else None,
            "last_word_nats": float(nats.mean()),
            "last_word_nats_se": float(nats.std() / math.sqrt(count)) if several else None,
            "last_word_perplexity": exp_or_none(float(nats.sum()), count),
            "last_word_is_upper_bound": not self.exact,
            "passages": count,
            "passages_shortened": self.shortened,
        }


def passage(text: str, tokenizer: Tokenizer, max_length: int) -> Passage | None:
    """A text's tokens with those of its last word marked; None where there are no two words.

    The whole text is encoded, as a model reads it, and so are the words before the last by themselves: the last word's
    tokens are those after the longest common beginning of the two. The blank before the word belongs to it, as it does
    in the tokens of byte-level BPE. A passage that is too long loses its beginning.

    Raises:
        LTMError: the last word alone is longer than the model's sequences.
    """
    parts = _LAST_WORD.fullmatch(text.strip())
    if parts is None:
        return None
    tokens, context = tokenizer.encode(text.strip()), tokenizer.encode(parts[1])
    shared = next((i for i, (a, b) in enumerate(zip(tokens, context, strict=False)) if a != b), len(context))
    scored = len(tokens) - shared
    if scored > max_length:
        raise LTMError(
            f"the last word {parts[2].strip()!r} has {scored} tokens, more than the model's sequences of {max_length}: "
            "evaluate a model of longer sequences"
        )
    cut = max(len(tokens) - max_length, 0)
    return Passage(tokens[cut:], scored, tokens[cut - 1] if cut else tokenizer.end_of_text)


def last_words(
    model: LanguageModel,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    samples: int = 1,
    fast_steps: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> LastWords:
    """Predicts each text's last word from the words before it; texts of a single word are passed over.

    Args:
        model: of any kind (`LanguageModel.predict`).
        texts: the passages.
        tokenizer: the model's.
        samples: S, draws per passage, where the model needs any.
        fast_steps: T_fast of a model with thoughts; None takes the configured number.
        batch_size: passages at once; changes the time taken and nothing else.
        seed: of the noise.

    Raises:
        LTMError: no text has two words, or a last word is longer than the model's sequences.

    References: Paperno et al. (2016), The LAMBADA Dataset.
    """
    found = [part for part in (passage(text, tokenizer, model.max_length) for text in texts) if part is not None]
    if not found:
        raise LTMError("no passage has a last word and a word before it: give whole passages, one per document")
    log_probs, greedy = [], []
    for begin in range(0, len(found), batch_size):
        tokens, scored, starts = zip(*found[begin : begin + batch_size], strict=True)
        batch = scored_ends(tokens, starts, scored)
        predicted = model.predict(batch, samples=samples, fast_steps=fast_steps, seed=seed)
        log_probs.append(predicted.log_prob.double().cpu())
        greedy.append(predicted.greedy.cpu())
    shortened = sum(part.start != tokenizer.end_of_text for part in found)
    return LastWords(torch.cat(log_probs), torch.cat(greedy), model.exact, shortened)
