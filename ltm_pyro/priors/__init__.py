"""Priors p(z) over thoughts, one family per file."""

from ltm_pyro.priors.base import Prior
from ltm_pyro.priors.gaussian import GaussianPrior

PRIORS: dict[str, type[Prior]] = {"gaussian": GaussianPrior}
"""The priors that the command line knows by name."""

__all__ = ["PRIORS", "GaussianPrior", "Prior"]
