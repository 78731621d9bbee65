"""What a user would pick instead: an autoregressive Transformer and masked diffusion, from the decoder's own blocks."""

from ltm_pyro.baselines.autoregressive import Autoregressive
from ltm_pyro.baselines.base import Baseline
from ltm_pyro.baselines.mdlm import MaskedDiffusion
from ltm_pyro.baselines.transformer import PlainTransformer, TransformerShape

__all__ = ["BASELINES", "Autoregressive", "Baseline", "MaskedDiffusion", "PlainTransformer", "TransformerShape"]

BASELINES: dict[str, type[Baseline]] = {"ar": Autoregressive, "mdlm": MaskedDiffusion}
"""The baselines by their names on the command line."""
