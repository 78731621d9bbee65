"""Guides q(z | x), one family per file."""

from ltm_pyro.guides.base import Guide, LocalParams
from ltm_pyro.guides.local_normal import LocalNormal
from ltm_pyro.guides.sites import LatentSite, latent_sites

GUIDES: dict[str, type[Guide]] = {"local-normal": LocalNormal}
"""The guides that the command line knows by name."""

__all__ = ["GUIDES", "Guide", "LatentSite", "LocalNormal", "LocalParams", "latent_sites"]
