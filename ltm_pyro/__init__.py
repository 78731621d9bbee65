"""ltm-pyro: Latent Thought Language Models as a modular probabilistic program in Pyro.

The public names are imported when they are first used, so that the command line's help need not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltm_pyro.baselines import Autoregressive, MaskedDiffusion
    from ltm_pyro.batch import TokenBatch
    from ltm_pyro.config import Settings
    from ltm_pyro.decoder import Sampling, ThoughtDecoder
    from ltm_pyro.errors import LTMError
    from ltm_pyro.generate import generate_batch
    from ltm_pyro.guides import (
        Amortized,
        Guide,
        LocalDelta,
        LocalFlow,
        LocalLowRank,
        LocalNormal,
        LocalParams,
        SemiAmortized,
    )
    from ltm_pyro.infer import (
        Chains,
        ChainSummary,
        ELBOTerms,
        FastConfig,
        FastSlowSVI,
        ImportanceWeights,
        Posterior,
        PosteriorTable,
        SequenceELBO,
        StepInfo,
        importance_weights,
        langevin,
        mcmc,
    )
    from ltm_pyro.language_model import LanguageModel, ThoughtLanguageModel
    from ltm_pyro.likelihood import TokenSequence
    from ltm_pyro.model import LatentThoughtModel
    from ltm_pyro.presets import preset
    from ltm_pyro.priors import (
        EnergyPrior,
        FlowPrior,
        GaussianPrior,
        HierarchicalPrior,
        LearnedGaussianPrior,
        MarkovPrior,
        MixturePrior,
        Prior,
        SupervisedPrior,
        VampPrior,
    )
    from ltm_pyro.training import LoadedRun, Trainer, load_run

__version__ = "0.1.0"

_HOMES = {
    "Amortized": "guides",
    "Autoregressive": "baselines",
    "ChainSummary": "infer",
    "Chains": "infer",
    "ELBOTerms": "infer",
    "EnergyPrior": "priors",
    "FastConfig": "infer",
    "FastSlowSVI": "infer",
    "FlowPrior": "priors",
    "GaussianPrior": "priors",
    "Guide": "guides",
    "HierarchicalPrior": "priors",
    "ImportanceWeights": "infer",
    "LTMError": "errors",
    "LanguageModel": "language_model",
    "LatentThoughtModel": "model",
    "LearnedGaussianPrior": "priors",
    "LoadedRun": "training",
    "LocalDelta": "guides",
    "LocalFlow": "guides",
    "LocalLowRank": "guides",
    "LocalNormal": "guides",
    "LocalParams": "guides",
    "MarkovPrior": "priors",
    "MaskedDiffusion": "baselines",
    "MixturePrior": "priors",
    "Posterior": "infer",
    "PosteriorTable": "infer",
    "Prior": "priors",
    "Sampling": "decoder",
    "SemiAmortized": "guides",
    "SequenceELBO": "infer",
    "Settings": "config",
    "StepInfo": "infer",
    "SupervisedPrior": "priors",
    "ThoughtDecoder": "decoder",
    "ThoughtLanguageModel": "language_model",
    "TokenBatch": "batch",
    "TokenSequence": "likelihood",
    "Trainer": "training",
    "VampPrior": "priors",
    "generate_batch": "generate",
    "importance_weights": "infer",
    "langevin": "infer",
    "load_run": "training",
    "mcmc": "infer",
    "preset": "presets",
}

__all__ = [
    "Amortized",
    "Autoregressive",
    "ChainSummary",
    "Chains",
    "ELBOTerms",
    "EnergyPrior",
    "FastConfig",
    "FastSlowSVI",
    "FlowPrior",
    "GaussianPrior",
    "Guide",
    "HierarchicalPrior",
    "ImportanceWeights",
    "LTMError",
    "LanguageModel",
    "LatentThoughtModel",
    "LearnedGaussianPrior",
    "LoadedRun",
    "LocalDelta",
    "LocalFlow",
    "LocalLowRank",
    "LocalNormal",
    "LocalParams",
    "MarkovPrior",
    "MaskedDiffusion",
    "MixturePrior",
    "Posterior",
    "PosteriorTable",
    "Prior",
    "Sampling",
    "SemiAmortized",
    "SequenceELBO",
    "Settings",
    "StepInfo",
    "SupervisedPrior",
    "ThoughtDecoder",
    "ThoughtLanguageModel",
    "TokenBatch",
    "TokenSequence",
    "Trainer",
    "VampPrior",
    "generate_batch",
    "importance_weights",
    "langevin",
    "load_run",
    "mcmc",
    "preset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
