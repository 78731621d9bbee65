"""Probes: what the thoughts of some layers hold, and what changes when thoughts are swapped or mixed."""

from ltm_pyro.evaluation.probes.facts import facts_of, mentions, read_fable
from ltm_pyro.evaluation.probes.fitted import FittedThoughts, fit_thoughts
from ltm_pyro.evaluation.probes.interpolation import Interpolation, interpolate
from ltm_pyro.evaluation.probes.layers import LayerProbe, probe_layers
from ltm_pyro.evaluation.probes.swaps import SwapMatrix, agreement, mixed_texts, swap_thoughts

__all__ = [
    "FittedThoughts",
    "Interpolation",
    "LayerProbe",
    "SwapMatrix",
    "agreement",
    "facts_of",
    "fit_thoughts",
    "interpolate",
    "mentions",
    "mixed_texts",
    "probe_layers",
    "read_fable",
    "swap_thoughts",
]
