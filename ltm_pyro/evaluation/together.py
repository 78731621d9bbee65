"""Evaluation by several ranks: each scores its own sequences, and all have the report of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ltm_pyro.data.sequences import SequenceDataset
from ltm_pyro.evaluation.protocols import Report
from ltm_pyro.language_model import LanguageModel
from ltm_pyro.ranks import Ranks

__all__ = ["evaluate_together"]


def evaluate_together(
    model: LanguageModel, data: SequenceDataset, indices: Sequence[int], *, ranks: Ranks, **options: Any
) -> Report:
    """`LanguageModel.evaluate`, the sequences shared out over the ranks; its values do not depend on their number.

    Args:
        model: the same on every rank.
        data: likewise.
        indices: which sequences, likewise.
        ranks: those that score them.
        options: of `LanguageModel.evaluate`.

    Raises:
        LTMError: as `LanguageModel.evaluate`.
        RankLost: another rank does not take part.
    """
    if ranks.size == 1 or not indices:
        return model.evaluate(data, indices, **options)
    mine = ranks.share(indices)
    reports = ranks.gather(model.evaluate(data, mine, **options) if mine else None)
    return Report.joined([report for report in reports if report is not None])
