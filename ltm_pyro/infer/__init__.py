"""Inference: the ELBO's terms, fast-slow SVI and the posteriors that it finds, samplers, importance weights."""

from ltm_pyro.infer.chains import Chains, ChainSummary
from ltm_pyro.infer.elbo import ELBOTerms, SequenceELBO
from ltm_pyro.infer.fast_config import FastConfig
from ltm_pyro.infer.fast_slow import FastSlowSVI, StepInfo
from ltm_pyro.infer.importance import ImportanceWeights, importance_weights
from ltm_pyro.infer.langevin import langevin
from ltm_pyro.infer.mcmc import mcmc
from ltm_pyro.infer.posterior import Posterior
from ltm_pyro.infer.warm_start import PosteriorTable

__all__ = [
    "ChainSummary",
    "Chains",
    "ELBOTerms",
    "FastConfig",
    "FastSlowSVI",
    "ImportanceWeights",
    "Posterior",
    "PosteriorTable",
    "SequenceELBO",
    "StepInfo",
    "importance_weights",
    "langevin",
    "mcmc",
]
