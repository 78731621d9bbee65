"""Inference: the ELBO's terms, fast-slow SVI, and the posteriors that it finds."""

from ltm_pyro.infer.elbo import ELBOTerms, SequenceELBO
from ltm_pyro.infer.fast_config import FastConfig
from ltm_pyro.infer.fast_slow import FastSlowSVI, StepInfo
from ltm_pyro.infer.posterior import Posterior
from ltm_pyro.infer.warm_start import PosteriorTable

__all__ = ["ELBOTerms", "FastConfig", "FastSlowSVI", "Posterior", "PosteriorTable", "SequenceELBO", "StepInfo"]
