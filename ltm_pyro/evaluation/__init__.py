"""Evaluation by protocols that say what they leave out.

The suites have packages of their own: `probes`, `zero_shot`, `gsm8k`, `generation` and `harness`.
"""

from ltm_pyro.evaluation.characters import bits_per_character, characters
from ltm_pyro.evaluation.information import Information, information, mutual_information
from ltm_pyro.evaluation.perplexity import perplexities, words
from ltm_pyro.evaluation.prequential import block_log_probs
from ltm_pyro.evaluation.protocols import PROTOCOLS, VALIDATION, Protocol, Report, evaluate
from ltm_pyro.evaluation.sources import generator_entropy, validation_data

__all__ = [
    "PROTOCOLS",
    "VALIDATION",
    "Information",
    "Protocol",
    "Report",
    "bits_per_character",
    "block_log_probs",
    "characters",
    "evaluate",
    "generator_entropy",
    "information",
    "mutual_information",
    "perplexities",
    "validation_data",
    "words",
]
