"""Log-probabilities of a traced program, sequence by sequence, with its enumerated sites summed out exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any, NamedTuple, cast

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ltm_pyro.errors import LTMError

__all__ = [
    "LogJoint",
    "enumerated_posterior",
    "is_enumerated",
    "is_latent",
    "joint_at",
    "joint_of_values",
    "log_joint",
    "sample_sites",
    "site_log_prob",
    "sum_out",
    "trace_model",
    "trace_of",
]

_PLATES = 2  # particles and sequences: dimensions to the left of theirs are enumerated values


class LogJoint(NamedTuple):
    """log p(x | z) and log p(z) at the values of a trace, (…, B) each; enumerated sites are summed out of both.

    Where the data depend on an enumerated site k directly, the first is log Σ_k p(k | z) p(x | z, k).
    """

    likelihood: Float[Tensor, "*particles batch"]
    prior: Float[Tensor, "*particles batch"]

    @property
    def total(self) -> Float[Tensor, "*particles batch"]:
        """Log p(x, z)."""
        return self.likelihood + self.prior


def trace_model(model: Callable[..., Any], guide_trace: Any = None, *args: Any, **kwargs: Any) -> Any:
    """A trace of the model with the guide's values, and every value of the sites that are marked for enumeration.

    Raises:
        LTMError: an enumerated site has a mask, or it or one that depends on it a scale: the sum would not keep them.
    """
    program = model if guide_trace is None else poutine.replay(model, trace=guide_trace)
    with EnumMessenger(first_available_dim=-1 - _PLATES):
        trace = poutine.trace(program).get_trace(*args, **kwargs)
    for site in sample_sites(trace):
        _require_plain(site)
    return trace


def _require_plain(site: Any) -> None:
    name = site["name"]
    if is_enumerated(site) and site["mask"] is not None:
        raise LTMError(
            f"site {name!r} is enumerated under a mask, where each of its K values counts as certain and adds log K "
            "to the bound: mask the sites below it alone"
        )
    scaled = isinstance(site["scale"], Tensor) or site["scale"] != 1
    if scaled and (is_enumerated(site) or len(site["fn"].batch_shape) > _PLATES):
        raise LTMError(
            f"site {name!r} has a scale, and depends on enumerated values, which are summed inside the logarithm: take "
            "poutine.scale, or the plate's subsampling, away"
        )


def trace_of(values: Mapping[str, Tensor]) -> poutine.Trace:
    """A trace to replay a program against, so that its latent sites take these values."""
    trace = poutine.Trace()
    for name, value in values.items():
        trace.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
    return trace


def sample_sites(trace: Any) -> list[Any]:
    """The random choices and the data of a trace in order; plates are neither."""
    return [site for site in trace.nodes.values() if site["type"] == "sample" and not site_is_subsample(site)]


def is_latent(site: Any) -> bool:
    """Whether a site of a trace is a random choice that was not observed; plates are none."""
    return site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)


def is_enumerated(site: Any) -> bool:
    """Whether a latent site holds all of its values, as `trace_model` makes it where the prior asks for it."""
    return "_enumerate_dim" in site["infer"]


def site_log_prob(site: Any) -> Float[Tensor, "*shape batch"]:
    """A site's log-probability at its value, scaled and masked; a latent site's without autocast."""
    if is_latent(site):
        with torch.autocast(site["value"].device.type, enabled=False):
            log_prob = site["fn"].log_prob(site["value"])
    else:
        log_prob = site["fn"].log_prob(site["value"])
    return cast(Tensor, scale_and_mask(log_prob, scale=site["scale"], mask=site["mask"]))


def sum_out(log_probs: Iterable[Tensor]) -> Float[Tensor, "*particles batch"]:
    """Log Σ_k exp Σ_i log_probs_i(k), over every enumerated value k."""
    total = reduce(torch.add, log_probs)
    return total.flatten(0, -1 - _PLATES).logsumexp(0) if total.dim() > _PLATES else total


def log_joint(trace: Any) -> LogJoint:
    """The two parts of log p(x, z) of a trace that `trace_model` made, at its values."""
    data: list[Tensor] = []
    prior: list[Tensor] = []
    for site in sample_sites(trace):
        (data if site["is_observed"] else prior).append(site_log_prob(site))
    if not prior:
        raise LTMError("the program has no latent site, so there is nothing to infer")
    log_prior = sum_out(prior)
    return LogJoint(sum_out([*prior, *data]) - log_prior, log_prior)


def joint_at(model: Callable[[], Any], values: Mapping[str, Tensor]) -> LogJoint:
    """Log p(x | z) and log p(z), (S, B) each, at values (S, B, *event) of every site that is not enumerated."""
    particles = len(next(iter(values.values())))
    return log_joint(trace_model(pyro.plate("particles", particles, dim=-2)(model), trace_of(values)))


def joint_of_values(trace: Any) -> Float[Tensor, "*value particles batch"]:
    """Log p(x, z, k) for every value k of the enumerated sites, whose dimensions stand to the left."""
    return reduce(torch.add, map(site_log_prob, sample_sites(trace)))


def enumerated_posterior(trace: Any) -> dict[str, Float[Tensor, "value *particles batch"]]:
    """p(k | z, x) of every enumerated site by name, at a trace's values of all others; the first dimension is k."""
    total = joint_of_values(trace)
    dims = {site["name"]: site["infer"]["_enumerate_dim"] for site in sample_sites(trace) if is_enumerated(site)}
    marginals = {}
    for name, dim in dims.items():
        others = [d for d in range(-total.dim(), -_PLATES) if d != dim]
        own = total.logsumexp(others, keepdim=True) if others else total
        marginals[name] = own.softmax(dim).movedim(dim, 0).reshape(-1, *own.shape[-_PLATES:])
    return marginals
