"""Guides q(z | x), one family per file."""

from ltm_pyro.guides.base import Guide, LocalParams
from ltm_pyro.guides.local_lowrank import LocalLowRank
from ltm_pyro.guides.local_normal import LocalNormal
from ltm_pyro.guides.sites import LatentSite, latent_sites

GUIDES: dict[str, type[Guide]] = {"local-normal": LocalNormal, "local-lowrank": LocalLowRank}
"""The guides that the command line knows by name."""

__all__ = ["GUIDES", "Guide", "LatentSite", "LocalLowRank", "LocalNormal", "LocalParams", "latent_sites"]
