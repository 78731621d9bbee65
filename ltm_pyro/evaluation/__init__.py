"""Evaluation by protocols that say what they leave out."""

from ltm_pyro.evaluation.protocols import PROTOCOLS, Protocol, Report, evaluate
from ltm_pyro.evaluation.sources import generator_entropy, validation_data

__all__ = ["PROTOCOLS", "Protocol", "Report", "evaluate", "generator_entropy", "validation_data"]
