"""ltm-pyro: Latent Thought Language Models as a modular probabilistic program in Pyro."""

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder import Sampling, ThoughtDecoder
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import Guide, LocalNormal, LocalParams
from ltm_pyro.infer import ELBOTerms, FastConfig, FastSlowSVI, Posterior, SequenceELBO, StepInfo
from ltm_pyro.likelihood import TokenSequence
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import GaussianPrior, Prior

__version__ = "0.1.0"

__all__ = [
    "ELBOTerms",
    "FastConfig",
    "FastSlowSVI",
    "GaussianPrior",
    "Guide",
    "LTMError",
    "LatentThoughtModel",
    "LocalNormal",
    "LocalParams",
    "Posterior",
    "Prior",
    "Sampling",
    "SequenceELBO",
    "StepInfo",
    "ThoughtDecoder",
    "TokenBatch",
    "TokenSequence",
]
