"""Generation quality: a model's texts beside as many real ones, and the same statistics of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ltm_pyro.data import SequenceDataset, Tokenizer
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.generation import text_statistics as statistics
from ltm_pyro.evaluation.generation.mauve import mauve
from ltm_pyro.evaluation.generation.second_model import SecondModel

if TYPE_CHECKING:
    from ltm_pyro.language_model import LanguageModel

__all__ = ["Unit", "WrittenTexts", "compare_features", "compare_scores", "compare_statistics", "write_texts"]

Unit = Literal["words", "tokens"]
"""What statistics count: words and punctuation marks (`text_statistics.words`), or the run's tokens."""


@dataclass(frozen=True)
class WrittenTexts:
    """M texts of a model and M real ones, as token ids without the end-of-text token.

    Args:
        prompts: M first pieces of documents, all empty for texts from the prior.
        generated: the model's texts, prompts left out.
        reference: with prompts their own continuations, else the beginnings of documents.
        control: the same of other documents, a second set of real texts; fewer than M where the documents run out.
        max_tokens: where every text is cut. One of fewer tokens has ended by itself.
        tokenizer: of the ids.
    """

    prompts: list[list[int]]
    generated: list[list[int]]
    reference: list[list[int]]
    control: list[list[int]]
    max_tokens: int
    tokenizer: Tokenizer

    def decoded(self, side: list[list[int]]) -> list[str]:
        """One of the four lists as texts."""
        return [self.tokenizer.decode(ids) for ids in side]

    def rows(self) -> list[dict[str, str]]:
        """The texts side by side: ``prompt``, ``generated`` and ``reference``."""
        columns = (self.decoded(side) for side in (self.prompts, self.generated, self.reference))
        return [dict(zip(("prompt", "generated", "reference"), row, strict=True)) for row in zip(*columns, strict=True)]


def write_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    data: SequenceDataset,
    *,
    num: int = 100,
    max_tokens: int = 128,
    prompt_tokens: int = 0,
    sampling: Sampling | None = None,
    fast_steps: int | None = None,
    seed: int = 0,
) -> WrittenTexts:
    """Has a model write ``num`` texts, and takes as many real ones from documents of ``data``.

    Without prompts the model writes from its prior. With them, the first ``prompt_tokens`` tokens of a document are
    continued, one text each, and the document's own continuation is the reference. Documents are chosen at random.

    Args:
        model: any kind.
        tokenizer: of the model and of ``data``.
        data: real texts that the model was not trained on.
        num: M.
        max_tokens: most tokens of a text, prompt left out; real ones are cut there.
        prompt_tokens: P; 0 writes from the prior.
        sampling: how tokens are drawn; None is the model's own distribution.
        fast_steps: T_fast of a model with thoughts, for the prompts.
        seed: of the choice of documents, and of thoughts and tokens.

    Raises:
        LTMError: a number is out of range, too few documents are longer than the prompt, or the model cannot write as
            much after it.
    """
    for name, number, least in (("num", num, 1), ("max_tokens", max_tokens, 1), ("prompt_tokens", prompt_tokens, 0)):
        if number < least:
            raise LTMError(f"{name} must be {least} or more, got {number}")
    if not model.open_ended and prompt_tokens + max_tokens > model.max_length:
        # It would write less than it was asked for, and all of its texts would seem to have ended by themselves.
        raise LTMError(
            f"a model of kind {model.kind} reads and writes {model.max_length} tokens at most, got a prompt of "
            f"{prompt_tokens} and texts of {max_tokens}: ask for fewer"
        )
    bounds = data.shard.offsets
    # A document's last token is end-of-text.
    long_enough = np.flatnonzero(np.diff(bounds) - 1 > prompt_tokens)
    if len(long_enough) < num:
        raise LTMError(
            f"only {len(long_enough)} of the {data.num_documents} documents are longer than {prompt_tokens} tokens, "
            f"and {num} texts were asked for: ask for fewer texts or shorter prompts, or choose another source"
        )
    chosen = np.random.default_rng(seed).permutation(long_enough)[: 2 * num]
    documents = [
        data.shard.tokens[bounds[i] : min(bounds[i + 1] - 1, bounds[i] + prompt_tokens + max_tokens)].tolist()
        for i in chosen
    ]
    prompts = [document[:prompt_tokens] for document in documents[:num]]
    real = [document[prompt_tokens:] for document in documents]
    drawn = model.generate_batch(
        prompts if prompt_tokens else [[]],
        start=tokenizer.end_of_text,
        num=1 if prompt_tokens else num,
        max_tokens=max_tokens,
        sampling=sampling,
        stop=tokenizer.end_of_text,
        fast_steps=fast_steps,
        seed=seed,
    )
    generated = [text for texts in drawn for text in texts]
    return WrittenTexts(prompts, generated, real[:num], real[num:], max_tokens, tokenizer)


def compare_statistics(texts: WrittenTexts, *, unit: Unit = "words", self_bleu: bool = False) -> dict[str, Any]:
    """``generated`` and ``reference``: lengths and n-gram statistics of each side.

    ``distinct_1`` to ``distinct_4`` are of the first ``distinct_units`` units of each side, as many as the shorter one
    has: distinct-n of unequal amounts of text does not compare.

    Args:
        texts: both sides.
        unit: words or the run's tokens.
        self_bleu: also self-BLEU-4, of at most the first 100 texts.

    Raises:
        LTMError: self-BLEU is asked for and its package is not there.
    """
    sides = {"generated": texts.generated, "reference": texts.reference}
    units: dict[str, list[Sequence[Any]]] = {
        name: [statistics.words(text) for text in texts.decoded(side)] if unit == "words" else list(side)
        for name, side in sides.items()
    }
    amount = min(sum(map(len, side)) for side in units.values())
    report: dict[str, Any] = {"unit": unit, "distinct_units": amount}
    for name, side in units.items():
        lengths = [len(ids) for ids in sides[name]]
        row = {
            "tokens_per_text": float(np.mean(lengths)),
            "ended": float(np.mean([length < texts.max_tokens for length in lengths])),
            "unique_texts": statistics.unique(sides[name]),
        }
        row |= {f"distinct_{n}": statistics.distinct(statistics.clipped(side, amount), n) for n in (1, 2, 3, 4)}
        row |= {"repetition_4": statistics.repetition(side, 4), "repeated_units": statistics.repeated_tokens(side)}
        row["entropy"] = statistics.entropy(side)
        if self_bleu:
            row["self_bleu_4"] = statistics.self_bleu(side)
        report[name] = row
    return report


def compare_features(
    texts: WrittenTexts, model: SecondModel, *, buckets: int | None = None, seeds: int = 5, seed: int = 0
) -> dict[str, Any]:
    """``generated``: MAUVE of the model's texts and the real ones; ``reference``: that of other real texts and these.

    The second is what a perfect model would have, with the same number of texts; it is None where there are fewer
    other documents than texts. Prompts are left out of the features. The arguments are those of `mauve`.

    Raises:
        LTMError: the package is not there, the model has no features, or a number is out of range.
    """
    real = model.features(texts.decoded(texts.reference))
    found = mauve(model.features(texts.decoded(texts.generated)), real, buckets=buckets, seeds=seeds, seed=seed)
    report: dict[str, Any] = {
        "mauve": {
            "features": model.to_dict(),
            "texts": found.texts[0],
            "buckets": found.buckets,
            "seeds": seeds,
            "max_tokens": texts.max_tokens,
        },
        "generated": {"mauve": found.mean, "mauve_std": found.std},
        "reference": {"mauve": None, "mauve_std": None},
    }
    if len(texts.control) == len(texts.reference):
        ceiling = mauve(
            model.features(texts.decoded(texts.control)), real, buckets=found.buckets, seeds=seeds, seed=seed
        )
        report["reference"] = {"mauve": ceiling.mean, "mauve_std": ceiling.std}
    return report


def compare_scores(texts: WrittenTexts, model: SecondModel) -> dict[str, Any]:
    """``generated`` and ``reference``: nats per token of each side under a second model, and their exponential.

    A low value alone says nothing: a text that repeats itself has the lowest. With prompts, texts are scored given
    them.

    Raises:
        LTMError: nothing is left to score.
    """
    prompts = texts.decoded(texts.prompts)
    report: dict[str, Any] = {"second_model": model.to_dict() | {"protocol": model.protocol, "exact": model.exact}}
    for name, side in (("generated", texts.generated), ("reference", texts.reference)):
        scored = model.score(texts.decoded(side), prompts, [len(ids) < texts.max_tokens for ids in side])
        nats, error = scored.mean(model.protocol)
        report["second_model"] |= {
            "samples": scored.samples,
            "fast_steps": scored.fast_steps,
            "block_size": scored.block_size,
            "seed": scored.seed,
        }
        report[name] = {
            "nats_per_token": nats,
            "nats_per_token_se": None if math.isnan(error) else error,
            "generative_perplexity": math.exp(min(nats, 700.0)),
            "scored_tokens": int(scored.num_scored.sum()),
        }
    return report
