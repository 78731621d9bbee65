"""The zero-shot suite: one corpus after another under a model that was trained on other text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ltm_pyro.data import Layout, SequenceDataset, Tokenizer
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.characters import bits_per_character, characters
from ltm_pyro.evaluation.perplexity import UPPER_BOUNDS, exp_or_none, perplexities
from ltm_pyro.evaluation.protocols import Protocol, Report
from ltm_pyro.evaluation.zero_shot.catalogue import CORPORA
from ltm_pyro.evaluation.zero_shot.corpora import SuiteCorpus, find_files, from_hub
from ltm_pyro.evaluation.zero_shot.last_word import last_words
from ltm_pyro.language_model import LanguageModel

__all__ = ["CorpusResult", "score_corpus", "suite_corpora"]

RECONSTRUCTION_EXP = "reconstruction_exp_without_kl"
"""exp of ``reconstruction`` per token: what it would be if the KL were nothing. It is no perplexity."""


@dataclass(frozen=True, eq=False)
class CorpusResult:
    """One corpus under one model.

    Args:
        corpus: which it is, and where its text comes from.
        report: nats by protocol.
        layout: how documents became sequences.
        documents: of the whole corpus.
        characters: of the scored text; None where the tokenizer is not byte-level.
        words: own words of the scored text.
        whole: whether all of the corpus was scored; where it was not, ``words`` is its share by tokens of the words of
            the whole.
        last_word: LAMBADA's task (`LastWords.to_dict`), empty for other corpora.
    """

    corpus: SuiteCorpus
    report: Report
    layout: Layout
    documents: int
    characters: int | None
    words: float
    whole: bool
    last_word: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the report's, then bits per character, perplexities and what they are."""
        row: dict[str, Any] = {
            "corpus": self.corpus.spec.name,
            "title": self.corpus.spec.title,
            "data": self.corpus.name,
            "layout": self.layout,
            "documents": self.documents,
            **self.report.to_dict(),
            **bits_per_character(self.report, self.characters),
            **perplexities(self.report, self.words),
            "words_estimated": not self.whole,
            "upper_bounds": [name for name in self.report.protocols if name in UPPER_BOUNDS],
        }
        if "reconstruction" in self.report.protocols:
            row[RECONSTRUCTION_EXP] = exp_or_none(row["reconstruction"], 1)
        return row | self.last_word


def suite_corpora(
    folder: Path | None = None, *, column: str | None = None, only: Sequence[str] | None = None
) -> dict[str, SuiteCorpus]:
    """The corpora to score, in the suite's order: those of a folder, or of the hub where that is None.

    Args:
        folder: local files (`find_files`).
        column: the field of local .jsonl and .parquet files that holds the text; None is each corpus's own.
        only: names of some of `CORPORA`; None is all.

    Raises:
        LTMError: a name is none of the suite's, the folder has no corpus that was asked for, or there is a column and
            no folder.
    """
    if folder is None and column is not None:
        raise LTMError(f"column={column!r} is of local files: give their folder, or leave the column out")
    wrong = next((name for name in only or () if name not in CORPORA), None)
    if wrong is not None:
        raise LTMError(f"{wrong!r} is no corpus of the zero-shot suite; there are {', '.join(CORPORA)}")
    found = from_hub() if folder is None else find_files(folder.expanduser(), column)
    chosen = {name: corpus for name, corpus in found.items() if only is None or name in only}
    if not chosen:
        raise LTMError(f"{folder}: holds {', '.join(found)}, none of which was asked for ({', '.join(only or ())})")
    return chosen


def score_corpus(
    model: LanguageModel,
    tokenizer: Tokenizer,
    corpus: SuiteCorpus,
    data: SequenceDataset,
    *,
    protocols: Sequence[Protocol] | None = None,
    max_sequences: int | None = None,
    samples: int = 1,
    block_size: int = 32,
    fast_steps: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> CorpusResult:
    """Scores a corpus, and LAMBADA's last words.

    Args:
        model: of any kind.
        tokenizer: the model's.
        corpus: what to score.
        data: its sequences (`SuiteCorpus.sequences`).
        protocols: some of the model's; None takes the one that compares between kinds of model.
        max_sequences: score the first M sequences, and the last words of the first M passages; None is all.
        samples: S, draws per sequence, where the model needs any.
        block_size: tokens of a block of ``prequential``.
        fast_steps: T_fast of a model with thoughts; None takes the configured number.
        batch_size: sequences at once.
        seed: of the noise.

    Raises:
        LTMError: a protocol is not the model's, or a last word is longer than its sequences.
    """
    chosen = model.choose([model.comparable] if protocols is None else protocols)
    indices = range(min(len(data), max_sequences or len(data)))
    draws: dict[str, Any] = {
        "samples": samples,
        "fast_steps": fast_steps,
        "batch_size": batch_size,
        "seed": seed,
    }
    report = model.evaluate(data, indices, protocols=chosen, block_size=block_size, **draws)
    whole = len(indices) == len(data)
    share = 1.0 if whole else int(report.num_scored.sum()) / data.num_tokens
    last_word: dict[str, Any] = {}
    if corpus.spec.name == "lambada":
        texts = [document.text for document in islice(corpus.documents(), max_sequences)]
        last_word = last_words(model, texts, tokenizer, **draws).to_dict()
    return CorpusResult(
        corpus,
        report,
        data.layout,
        data.num_documents,
        characters(data, indices, tokenizer),
        corpus.words if whole else corpus.words * share,
        whole,
        last_word,
    )
