"""Evaluation by protocols that say what they leave out."""

from ltm_pyro.evaluation.protocols import PROTOCOLS, Protocol, Report, evaluate

__all__ = ["PROTOCOLS", "Protocol", "Report", "evaluate"]
