"""From a SOURCE string to the two sequence data sets and the tokenizer of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltm_pyro.data.cache import cached_folder, default_cache_dir
from ltm_pyro.data.corpora import Corpus, Split, digest_of, empty_corpus
from ltm_pyro.data.files import LONGEST, optional_import
from ltm_pyro.data.prepare import Progress
from ltm_pyro.data.sequences import Layout, SequenceDataset
from ltm_pyro.data.shards import shard_of
from ltm_pyro.data.sources import open_corpus, split_corpus
from ltm_pyro.data.streaming import StreamingDataset, stream_store
from ltm_pyro.data.supply import ChunkSupply
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError
from ltm_pyro.untrusted import local_path

__all__ = ["Data", "build_data", "build_evaluation_data", "prepare_data", "train_tokenizer"]

# What a tokenizer is trained on: enough to count by, and bounded, so that a large corpus costs no more.
_CHARACTERS_PER_ENTRY = 1_000
_LEAST_CHARACTERS = 2_000_000


@dataclass(frozen=True, eq=False)
class Data:
    """What a run trains and validates on.

    Args:
        training: the training split, which may be a stream.
        validation: the validation split.
        tokenizer: of both.
    """

    training: SequenceDataset | StreamingDataset
    validation: SequenceDataset
    tokenizer: Tokenizer

    @property
    def train(self) -> SequenceDataset:
        """The training split, for what needs the whole of it.

        Raises:
            LTMError: it is a stream.
        """
        if isinstance(self.training, StreamingDataset):
            raise LTMError(
                "the training text is a stream, of which neither the length nor the longest sequence is known: set "
                "data.streaming=false, or, for a batch size of auto, give the number"
            )
        return self.training

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Documents, sequences and scored tokens of both splits, and labels if there are any, for printing.

        Of a stream whose end was not met yet, the number of its chunks that are there.
        """
        found = {}
        for name, part in (("train", self.training), ("validation", self.validation)):
            if isinstance(part, StreamingDataset):
                found[name] = part.counts
                continue
            found[name] = {"documents": part.num_documents, "sequences": len(part), "tokens": part.num_tokens}
            if self.class_names:
                found[name] |= {"labelled": part.num_labelled, "classes": len(self.class_names)}
        return found

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; empty without classes."""
        return self.training.class_names


def build_data(
    *,
    source: str = "fables",
    validation: str | None = None,
    column: str | None = None,
    text_unit: str = "auto",
    layout: str = "auto",
    sequence_length: int = 256,
    tokenizer: str = "train",
    vocab_size: int = 2048,
    documents: int | None = None,
    validation_fraction: float = 0.05,
    seed: int = 0,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    label_column: str | None = None,
    labelled_fraction: float = 1.0,
    workers: int | None = None,
    window_chunks: int = 16,
    spool_chunks: bool = False,
    prefetch: int = 0,
    max_document_mb: int = LONGEST // 1_000_000,
    progress: Progress | None = None,
) -> Data:
    """Reads, splits, tokenises and lays out a source; what was done before is taken from the cache.

    Args:
        source: ``fables``, a local file or folder, or ``hf:name[/config][:column]`` (`open_corpus`).
        validation: a second such source; None holds documents out (`split_corpus`).
        column: the text column of .jsonl, .parquet and hub data sets; None is ``text``.
        text_unit: what a document is in a .txt file (`FileCorpus`).
        layout: ``packed``, ``documents``, or ``auto``: documents for fables and where there are classes, packed
            otherwise (`SequenceDataset`).
        sequence_length: greatest number of tokens in a sequence.
        tokenizer: ``train`` for a byte-level BPE trained on the training split, or a path or hub name to
            load.
        vocab_size: of a trained tokenizer.
        documents: how many training documents to use; None is all.
        validation_fraction: share of the documents held out where there is no validation source.
        seed: of the fables' generator.
        streaming: tokenise while the training goes on (`StreamingDataset`), and keep no copy of a hub data set. With
            classes, which must be known before, the whole is tokenised first.
        cache_dir: None is ``$LTM_PYRO_CACHE`` or ``~/.cache/ltm-pyro``.
        label_column: the field of .jsonl, .parquet and hub data sets that holds a document's class, or a plan variable
            of the fables; None gives no labels. The classes are those of the training split, whatever share of the
            labels is kept; a validation document of another class is unlabelled.
        labelled_fraction: share of the training documents that keep their label, chosen by a hash of their text;
            validation documents keep theirs.
        workers: processes that tokenise; None is one for each core, of a stream one for every four; 0 is none.
        window_chunks: of a stream, how many chunks are shuffled together.
        spool_chunks: of a stream, whether to remove chunks that were used.
        prefetch: the trainer's; not read here.
        max_document_mb: megabytes of the longest line of .jsonl.
        progress: told of every chunk that is tokenised.

    Raises:
        LTMError: a source or setting is unusable, or a split is empty or smaller than one sequence.
    """
    chosen = choose_layout(layout, source, label_column)
    train, held = split_corpus(
        source,
        validation,
        fraction=validation_fraction,
        column=column,
        text_unit=text_unit,
        documents=documents,
        seed=seed,
        streaming=streaming,
        label_column=label_column,
        max_document_mb=max_document_mb,
    )
    cache = _cache_path(cache_dir)
    _check_not_empty(train)
    _check_not_empty(held)
    encoder = train_tokenizer(train, vocab_size, cache) if tokenizer == "train" else Tokenizer.load(tokenizer)
    how: dict[str, Any] = {"workers": workers, "progress": progress}
    if streaming and label_column is None:
        supply = ChunkSupply(stream_store(train, encoder, cache), train, encoder, workers=workers)
        stream = StreamingDataset(
            supply, encoder, chosen, sequence_length, window_chunks=window_chunks, spool=spool_chunks
        )
        return Data(stream, SequenceDataset(shard_of(held, encoder, cache, **how), chosen, sequence_length), encoder)
    training = SequenceDataset(
        shard_of(train, encoder, cache, **how), chosen, sequence_length, labelled_fraction=labelled_fraction
    )
    if label_column is not None and not training.class_names:
        raise LTMError(
            f"{source}: no training document has a class in {label_column!r}; name the field that holds it with "
            "label_column, or leave that out"
        )
    if chosen == "packed" and training.num_tokens < sequence_length:
        raise LTMError(
            f"{source}: the training split has {training.num_tokens} tokens, fewer than one sequence of "
            f"{sequence_length}; give more text, a smaller sequence_length, or layout=documents"
        )
    validating = SequenceDataset(
        shard_of(held, encoder, cache, **how), chosen, sequence_length, class_names=training.class_names
    )
    return Data(training, validating, encoder)


def prepare_data(*, progress: Progress | None = None, **settings: Any) -> dict[str, dict[str, Any]]:
    """Does all that `build_data` with the same settings has to do, and of a stream tokenises the whole.

    Returns:
        Counts, SHA-256 digests and the place of ``train``, ``validation`` and ``tokenizer``.

    Raises:
        LTMError: as `build_data`.
    """
    data = build_data(**settings, progress=progress)
    found: dict[str, dict[str, Any]] = {}
    for name, part in (("train", data.training), ("validation", data.validation)):
        if isinstance(part, StreamingDataset):
            found[name] = part.prepare(settings.get("workers"), progress)
            continue
        manifest = part.shard.manifest
        found[name] = {
            **data.counts[name],
            "tokens_sha256": manifest.tokens_sha256,
            "documents_sha256": manifest.documents_sha256,
            "folder": str(part.shard.folder),
        }
    found["tokenizer"] = {"vocab_size": data.tokenizer.vocab_size, "sha256": data.tokenizer.digest}
    return found


def build_evaluation_data(
    source: str,
    tokenizer: Tokenizer,
    *,
    sequence_length: int = 256,
    layout: str = "auto",
    split: Split = "validation",
    column: str | None = None,
    text_unit: str = "auto",
    documents: int | None = None,
    seed: int = 0,
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
) -> SequenceDataset:
    """Any source with a tokenizer that there is already; the arguments are those of `build_data`.

    ``split`` says which split of the fables or of a hub data set to take; local files are taken whole. ``class_names``
    numbers the classes as a run does (`SequenceDataset`).

    Raises:
        LTMError: the source is unusable or has no documents.
    """
    corpus = open_corpus(
        source,
        split=split,
        column=column,
        text_unit=text_unit,
        documents=documents,
        seed=seed,
        streaming=streaming,
        label_column=label_column,
    )
    return SequenceDataset(
        shard_of(corpus, tokenizer, _cache_path(cache_dir)),
        choose_layout(layout, source, label_column),
        sequence_length,
        class_names=class_names,
    )


def train_tokenizer(corpus: Corpus, vocab_size: int, cache_dir: Path | None = None) -> Tokenizer:
    """A byte-level BPE, cached by content.

    It is trained on the first documents of the corpus: 1 000 characters per vocabulary entry, but at least 2 million.
    """
    characters = max(_LEAST_CHARACTERS, _CHARACTERS_PER_ENTRY * vocab_size)
    library = optional_import("tokenizers", "training a tokenizer").__version__
    key = digest_of(["bpe-1", library, str(vocab_size), str(characters), corpus.fingerprint()])[:32]
    root = default_cache_dir() if cache_dir is None else cache_dir

    def build(folder: Path) -> None:
        tokenizer = Tokenizer.train(_sample(corpus, characters), vocab_size)
        tokenizer.save(folder / "tokenizer.json")
        (folder / "digest").write_text(tokenizer.digest, encoding="ascii")

    def load(folder: Path) -> Tokenizer:
        tokenizer = Tokenizer.load(folder)
        if (folder / "digest").read_text(encoding="ascii") != tokenizer.digest:
            raise LTMError(f"{folder}: the cached tokenizer has changed since it was written; delete it")
        return tokenizer

    return cached_folder(root / "tokenizers" / key, build, load)


def _sample(corpus: Corpus, characters: int) -> Iterator[str]:
    left = characters
    for document in corpus.documents():
        for block in document.blocks():
            yield block[:left]
            left -= len(block)
            if left <= 0:
                return


def choose_layout(layout: str, source: str, label_column: str | None = None) -> Layout:
    if layout == "auto":
        return "documents" if source == "fables" or label_column is not None else "packed"
    if layout == "packed" and label_column is not None:
        raise LTMError(
            f"layout=packed with label_column={label_column!r}: a packed sequence has tokens of several documents, so "
            "it has no class; use layout=documents or auto, or leave label_column out"
        )
    layouts: dict[str, Layout] = {"packed": "packed", "documents": "documents"}
    if layout in layouts:
        return layouts[layout]
    raise LTMError(f"layout={layout!r}: expected auto, packed or documents")


def _cache_path(cache_dir: str | Path | None) -> Path | None:
    return None if cache_dir is None else local_path(cache_dir)


def _check_not_empty(corpus: Corpus) -> None:
    """Before any long work, rather than at its end."""
    if next(corpus.documents(), None) is None:
        raise empty_corpus(corpus)
