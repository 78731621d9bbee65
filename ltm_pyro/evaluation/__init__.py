"""Evaluation by protocols that say what they leave out."""

from ltm_pyro.evaluation.characters import bits_per_character, characters
from ltm_pyro.evaluation.facts import facts_of, mentions, read_fable
from ltm_pyro.evaluation.fitted import FittedThoughts, fit_thoughts
from ltm_pyro.evaluation.information import Information, information, mutual_information
from ltm_pyro.evaluation.interpolation import Interpolation, interpolate
from ltm_pyro.evaluation.perplexity import perplexities, words
from ltm_pyro.evaluation.prequential import block_log_probs
from ltm_pyro.evaluation.probes import LayerProbe, probe_layers
from ltm_pyro.evaluation.protocols import PROTOCOLS, VALIDATION, Protocol, Report, evaluate
from ltm_pyro.evaluation.sources import generator_entropy, validation_data
from ltm_pyro.evaluation.swaps import SwapMatrix, agreement, mixed_texts, swap_thoughts

__all__ = [
    "PROTOCOLS",
    "VALIDATION",
    "FittedThoughts",
    "Information",
    "Interpolation",
    "LayerProbe",
    "Protocol",
    "Report",
    "SwapMatrix",
    "agreement",
    "bits_per_character",
    "block_log_probs",
    "characters",
    "evaluate",
    "facts_of",
    "fit_thoughts",
    "generator_entropy",
    "information",
    "interpolate",
    "mentions",
    "mixed_texts",
    "mutual_information",
    "perplexities",
    "probe_layers",
    "read_fable",
    "swap_thoughts",
    "validation_data",
    "words",
]
