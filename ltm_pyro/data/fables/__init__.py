"""The embedded corpus: short fables from a document-level plan, with an exact probability for every one of them."""

from ltm_pyro.data.fables.corpus import (
    PLAN_VARIABLES,
    SPLITS,
    Fable,
    derived,
    entropy,
    exact_entropy,
    fable,
    generate,
    log_prob,
    plan_of,
    split_of,
)

__all__ = [
    "PLAN_VARIABLES",
    "SPLITS",
    "Fable",
    "derived",
    "entropy",
    "exact_entropy",
    "fable",
    "generate",
    "log_prob",
    "plan_of",
    "split_of",
]
