"""Priors p(z) over thoughts, one family per file."""

from ltm_pyro.priors.base import Prior
from ltm_pyro.priors.energy import EnergyPrior
from ltm_pyro.priors.flow import FlowPrior
from ltm_pyro.priors.gaussian import GaussianPrior
from ltm_pyro.priors.hierarchical import HierarchicalPrior
from ltm_pyro.priors.learned_gaussian import LearnedGaussianPrior
from ltm_pyro.priors.markov import MarkovPrior
from ltm_pyro.priors.mixture import MixturePrior
from ltm_pyro.priors.supervised import SupervisedPrior
from ltm_pyro.priors.vamp import VampPrior

PRIORS: dict[str, type[Prior]] = {
    "gaussian": GaussianPrior,
    "learned-gaussian": LearnedGaussianPrior,
    "mixture": MixturePrior,
    "hierarchical": HierarchicalPrior,
    "markov": MarkovPrior,
    "flow": FlowPrior,
    "vamp": VampPrior,
    "energy": EnergyPrior,
    "supervised": SupervisedPrior,
}
"""The priors that the command line knows by name."""

__all__ = [
    "PRIORS",
    "EnergyPrior",
    "FlowPrior",
    "GaussianPrior",
    "HierarchicalPrior",
    "LearnedGaussianPrior",
    "MarkovPrior",
    "MixturePrior",
    "Prior",
    "SupervisedPrior",
    "VampPrior",
]
