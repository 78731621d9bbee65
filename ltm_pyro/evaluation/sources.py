"""What an evaluation scores: a run's validation text or another source, and what the fables' generator says of it."""

from __future__ import annotations

from collections.abc import Sequence

from ltm_pyro.config import Settings
from ltm_pyro.data import SequenceDataset, Tokenizer, build_evaluation_data, shard_of, split_corpus
from ltm_pyro.data.build import choose_layout
from ltm_pyro.data.cache import known_cache
from ltm_pyro.data.fables import log_prob
from ltm_pyro.errors import LTMError

__all__ = ["generator_entropy", "validation_data"]


def validation_data(
    settings: Settings,
    tokenizer: Tokenizer,
    source: str | None = None,
    column: str | None = None,
    *,
    class_names: Sequence[str] = (),
    label_column: str | None = None,
) -> SequenceDataset:
    """Sequences of another ``source``, or a run's validation sequences where that is None.

    Args:
        settings: of the run.
        tokenizer: of the run.
        source: what to take instead of the run's validation text.
        column: the text column of ``source``; None is the run's.
        class_names: the run's classes, by which labels are numbered; empty gives no labels.
        label_column: the field of ``source`` that holds the class; None gives its sequences no class that is known.
            The run's own validation text has the run's field.

    Raises:
        LTMError: the source is unusable, or there is a ``column`` and no ``source``.
    """
    if column is not None and source is None:
        raise LTMError(
            f"column {column!r} is that of another source, and there is none: give --data, too, or leave --column out"
        )
    data, seed = settings.data, settings.training.seed
    layout = choose_layout(data.layout, source or data.source, data.label_column)
    if source is not None:
        return build_evaluation_data(
            source,
            tokenizer,
            sequence_length=data.sequence_length,
            layout=layout,
            column=column or data.column,
            text_unit=data.text_unit,
            seed=seed,
            streaming=data.streaming,
            cache_dir=known_cache(data.cache_dir),
            label_column=label_column,
            class_names=class_names,
        )
    _, corpus = split_corpus(
        data.source,
        data.validation,
        fraction=data.validation_fraction,
        column=data.column,
        text_unit=data.text_unit,
        documents=data.documents,
        seed=seed,
        streaming=data.streaming,
        label_column=data.label_column,
        max_document_mb=data.max_document_mb,
    )
    shard = shard_of(corpus, tokenizer, known_cache(data.cache_dir))
    return SequenceDataset(shard, layout, data.sequence_length, class_names=class_names)


def generator_entropy(data: SequenceDataset, indices: Sequence[int], tokenizer: Tokenizer) -> float | None:
    """Exact -log p(x) of whole fables under their generator, in nats per token; None where one is cut.

    A text has just one encoding, and its end-of-text token is certain, so the text's probability is that of its tokens.
    """
    batch = data.batch(indices)
    nats = 0.0
    for row, length, start in zip(batch.tokens.tolist(), batch.lengths.tolist(), batch.start.tolist(), strict=True):
        tokens = row[:length]
        if start != tokenizer.end_of_text or not tokens or tokens[-1] != tokenizer.end_of_text:
            return None
        nats -= log_prob(tokenizer.decode(tokens[:-1]))
    return nats / int(batch.lengths.sum())
