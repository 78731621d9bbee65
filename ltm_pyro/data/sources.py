"""The three kinds of SOURCE, and how each is split into training and validation documents."""

from __future__ import annotations

from typing import cast, get_args

from ltm_pyro.data.corpora import (
    FABLES_DOCUMENTS,
    Corpus,
    FablesCorpus,
    FileCorpus,
    Head,
    HeldOut,
    Limited,
    Split,
)
from ltm_pyro.data.files import LONGEST, TextUnit
from ltm_pyro.data.hub import HubCorpus
from ltm_pyro.errors import LTMError
from ltm_pyro.untrusted import local_path

__all__ = ["open_corpus", "split_corpus"]

_HEAD_CHARACTERS = 64_000_000


def open_corpus(
    source: str,
    *,
    split: Split = "train",
    column: str | None = None,
    text_unit: str = "auto",
    documents: int | None = None,
    seed: int = 0,
    streaming: bool = False,
    label_column: str | None = None,
    max_document_mb: int = LONGEST // 1_000_000,
) -> Corpus:
    """The corpus that a SOURCE string names.

    Args:
        source: ``fables``, a local file or folder, or ``hf:name[/config][:column]``.
        split: which split of the fables or of a hub data set; local files have none.
        column: the text column of .jsonl, .parquet and hub data sets; None is ``text``.
        text_unit: what a document is in a .txt file (`FileCorpus`).
        documents: how many documents; None is all of them, for fables 5 000 (validation: 250).
        seed: of the fables' generator.
        streaming: read a hub data set without keeping a copy of it, and know local files by their names, sizes and
            dates, without reading them first.
        label_column: the field that holds a document's class, for fables a plan variable; None gives no classes.
        max_document_mb: megabytes of the longest line of .jsonl.

    Raises:
        LTMError: the source cannot be what it says, or has no such classes.
    """
    if documents is not None and documents < 1:
        raise LTMError(f"documents={documents}: expected at least 1, or nothing for all of them")
    if source == "fables":
        count = FABLES_DOCUMENTS[split] if documents is None else documents
        return FablesCorpus(count, seed, split, label_column=label_column)
    corpus: Corpus
    if source.startswith("hf:"):
        corpus = HubCorpus(source, column, split, streaming, label_column)
    elif not source:
        raise LTMError("the data source is empty; give `fables`, a file or folder, or `hf:name`")
    else:
        corpus = FileCorpus(
            local_path(source),
            column or "text",
            _text_unit(text_unit),
            label_column,
            longest=1_000_000 * max_document_mb,
            hashed=not streaming,
        )
    return corpus if documents is None else Limited(corpus, documents)


def split_corpus(
    source: str,
    validation: str | None = None,
    *,
    fraction: float = 0.05,
    column: str | None = None,
    text_unit: str = "auto",
    documents: int | None = None,
    seed: int = 0,
    streaming: bool = False,
    label_column: str | None = None,
    max_document_mb: int = LONGEST // 1_000_000,
) -> tuple[Corpus, Corpus]:
    """(training, validation) corpora of a source.

    Validation is the ``validation`` source where there is one; the generator's own split for fables
    (``fraction`` of the training count); a hub data set's own validation split; otherwise the documents whose
    hash falls below ``fraction`` (`HeldOut`); of a stream, those among its first 64 million characters, while all such
    documents are left out of the training. ``documents`` bounds the training source (before documents are held out of
    it).

    Raises:
        LTMError: as `open_corpus`, or a fraction outside (0, 1), or both sources the same.
    """

    def opened(name: str, side: Split, count: int | None) -> Corpus:
        return open_corpus(
            name,
            split=side,
            column=column,
            text_unit=text_unit,
            documents=count,
            seed=seed,
            streaming=streaming,
            label_column=label_column,
            max_document_mb=max_document_mb,
        )

    train = opened(source, "train", documents)
    if validation is not None:
        held = opened(validation, "validation", None)
        whole = train.corpus if isinstance(train, Limited) else train
        if held.fingerprint() == whole.fingerprint():
            raise LTMError(
                f"{validation}: validation and training are the same documents; leave the validation source "
                "out to hold some of them out"
            )
        return train, held
    if not 0.0 < fraction < 1.0:
        raise LTMError(f"validation_fraction={fraction}: expected a number between 0 and 1, such as 0.05")
    if isinstance(train, FablesCorpus):
        return train, opened(source, "validation", max(1, round(train.count * fraction)))
    if source.startswith("hf:"):
        own = HubCorpus(source, column, "validation", streaming, label_column)
        if own.has_validation:
            return train, own
    whole = Head(train, _HEAD_CHARACTERS) if streaming else train
    return HeldOut(train, fraction, "train"), HeldOut(whole, fraction, "validation")


def _text_unit(text_unit: str) -> TextUnit:
    for known in get_args(TextUnit):
        if known == text_unit:
            return cast(TextUnit, known)
    raise LTMError(f"text_unit={text_unit!r}: expected auto, file, block or line")
