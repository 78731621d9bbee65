"""Guides q(z | x), one family per file."""

from ltm_pyro.guides.amortized import Amortized
from ltm_pyro.guides.base import Guide, LocalParams
from ltm_pyro.guides.local_delta import LocalDelta
from ltm_pyro.guides.local_flow import LocalFlow
from ltm_pyro.guides.local_lowrank import LocalLowRank
from ltm_pyro.guides.local_normal import LocalNormal
from ltm_pyro.guides.semi_amortized import SemiAmortized
from ltm_pyro.guides.sites import LatentSite, latent_sites

GUIDES: dict[str, type[Guide]] = {
    "local-normal": LocalNormal,
    "local-lowrank": LocalLowRank,
    "local-flow": LocalFlow,
    "local-delta": LocalDelta,
    "amortized": Amortized,
    "semi-amortized": SemiAmortized,
}
"""The guides that the command line knows by name."""

__all__ = [
    "GUIDES",
    "Amortized",
    "Guide",
    "LatentSite",
    "LocalDelta",
    "LocalFlow",
    "LocalLowRank",
    "LocalNormal",
    "LocalParams",
    "SemiAmortized",
    "latent_sites",
]
