"""Generation quality: a model's texts beside as many real ones."""

from ltm_pyro.evaluation.generation.comparison import (
    Unit,
    WrittenTexts,
    compare_features,
    compare_scores,
    compare_statistics,
    write_texts,
)

__all__ = ["Unit", "WrittenTexts", "compare_features", "compare_scores", "compare_statistics", "write_texts"]
