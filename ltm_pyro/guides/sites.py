"""Reads the latent sites of a model's prior from a trace, so that a guide can be made for any prior."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Size
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform

from ltm_pyro.errors import LTMError
from ltm_pyro.model import LatentThoughtModel

__all__ = ["LatentSite", "latent_sites"]


@dataclass(frozen=True)
class LatentSite:
    """One continuous latent site of one sequence.

    Args:
        name: the site's name.
        event_shape: shape of its value for one sequence.
        unconstrained_shape: shape of its preimage under ``transform``.
        support: where its values live; None means all reals.
    """

    name: str
    event_shape: Size
    unconstrained_shape: Size
    support: constraints.Constraint | None

    @property
    def transform(self) -> Transform | None:
        """Bijection from the reals to the support; None is the identity."""
        return None if self.support is None else biject_to(self.support)


def latent_sites(model: LatentThoughtModel) -> list[LatentSite]:
    """The prior's continuous latent sites in the order in which it samples them.

    Discrete sites are left out, being summed by enumeration. The global random stream is left as it was.

    Raises:
        LTMError: a site stands outside the plate of sequences, or the prior samples nothing.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad(), poutine.block():
        try:
            trace = poutine.trace(_prior_program(model)).get_trace()
        except ValueError as error:
            clash = re.match(r"Shape mismatch inside plate\('sequences'\) at site (.+) dim -1", str(error))
            if clash is None:
                raise
            raise LTMError(
                f"latent site {clash[1]!r} has a last batch dimension that is not that of the sequences: sample it "
                "inside the plate of sequences, every other dimension declared with .to_event()"
            ) from error
    sites = []
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
            continue
        fn = site["fn"]
        if fn.batch_shape != (_PROBE,):
            raise LTMError(
                f"latent site {name!r} has batch shape {tuple(fn.batch_shape)} for {_PROBE} sequences, expected "
                f"({_PROBE},): sample it inside the plate of sequences, every other dimension declared with .to_event()"
            )
        if fn.support.is_discrete:
            continue
        real = _is_real(fn.support)
        value = site["value"]
        preimage = value if real else biject_to(fn.support).inv(value)
        sites.append(LatentSite(name, value.shape[1:], preimage.shape[1:], None if real else fn.support))
    if not sites:
        raise LTMError(f"{type(model.prior).__name__} samples no continuous latent site, so there is nothing to infer")
    return sites


_PROBE = 13  # sequences in the traced program: a number that no other dimension is likely to have by chance


def _prior_program(model: LatentThoughtModel):  # type: ignore[no-untyped-def]
    def program() -> None:
        with pyro.plate("sequences", _PROBE, dim=-1):
            model.prior(_PROBE)

    return program


def _is_real(support: constraints.Constraint) -> bool:
    while hasattr(support, "base_constraint"):  # of Independent and of mixtures
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector
