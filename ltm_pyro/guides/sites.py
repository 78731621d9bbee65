"""Reads the latent sites of a model's prior from a trace, so that a guide can be made for any prior."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Size
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import ReshapeTransform, Transform

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

    @property
    def from_flat(self) -> list[Transform]:
        """From the preimage as a vector to the value; cached, so that a draw's density has its preimage at hand."""
        flat = torch.Size([self.unconstrained_shape.numel()])
        reshape = ReshapeTransform(flat, self.unconstrained_shape, cache_size=1)
        return [reshape] if self.transform is None else [reshape, self.transform.with_cache(1)]


def latent_sites(model: LatentThoughtModel) -> list[LatentSite]:
    """The prior's continuous latent sites in the order in which it samples them.

    Discrete sites marked for enumeration are left out. The global random stream is left as it was.

    Raises:
        LTMError: a site stands outside the plate of sequences, or the prior samples nothing.
    """
    device = model.decoder.embedding.weight.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), poutine.block():
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
            if not site["infer"].get("enumerate"):
                raise LTMError(
                    f"latent site {name!r} is discrete, and a guide is continuous: mark it "
                    'infer={"enumerate": "parallel"}, and it is summed out exactly, or sum it out in the prior itself'
                )
            continue
        value = site["value"][0]
        support = None if _is_real(fn.support) else _of_one_sequence(name, fn.support)
        preimage = value if support is None else biject_to(support).inv(value)
        sites.append(LatentSite(name, value.shape, preimage.shape, support))
    if not sites:
        raise LTMError(f"{type(model.prior).__name__} samples no continuous latent site, so there is nothing to infer")
    return sites


_PROBE = 13  # sequences in the traced program: a number that no other dimension is likely to have by chance


def _prior_program(model: LatentThoughtModel):  # type: ignore[no-untyped-def]
    def program() -> None:
        with pyro.plate("sequences", _PROBE, dim=-1):
            model.prior.template(_PROBE)

    return program


def _is_real(support: constraints.Constraint) -> bool:
    while hasattr(support, "base_constraint"):  # of Independent and of mixtures
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector


def _of_one_sequence(name: str, support: constraints.Constraint) -> constraints.Constraint:
    """The support without the traced batch: its bounds are the same for every sequence, or there is no such thing."""
    if isinstance(support, constraints.independent):
        base = _of_one_sequence(name, support.base_constraint)
        return constraints.independent(base, support.reinterpreted_batch_ndims)
    bounds = [b for b in ("lower_bound", "upper_bound") if isinstance(getattr(support, b, None), torch.Tensor)]
    if not bounds:
        return support
    support = copy(support)
    for bound in bounds:
        value = getattr(support, bound)
        if value.dim() and not torch.equal(value, value[:1].expand_as(value)):
            raise LTMError(
                f"latent site {name!r} has bounds that differ between sequences, so that no guide can be made from a "
                "trace: sample it with fixed bounds and move or scale the value"
            )
        value = value[0] if value.dim() else value
        # A number serves on every device.
        constant = bool((value == value.flatten()[0]).all())
        setattr(support, bound, float(value.flatten()[0]) if constant else value)
    return support
