"""Thoughts at given values of a prior's continuous sites, its enumerated sites inferred from those and the data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.infer.density import is_enumerated, is_latent, joint_of_values, trace_model, trace_of
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator

__all__ = ["draw_thoughts", "expected_thoughts"]


def draw_thoughts(
    model: LatentThoughtModel, batch: TokenBatch, values: Mapping[str, Tensor], generator: SequenceGenerator
) -> Float[Tensor, "particle batch layer slot width"]:
    """The prior's thoughts at values (S, B, *event) of its continuous sites.

    Thoughts that depend on an enumerated site k directly are those of one k ~ p(k | z, x) by the generator's noise.

    Raises:
        LTMError: the prior has a latent site that has no value and is not enumerated.
    """
    thoughts, weights = _at(model, batch, values)
    if weights is None:
        return thoughts
    uniform = torch.special.ndtr(generator.normal((), particles=tuple(weights.shape[1:2])))
    k = (weights.cumsum(0) < uniform).sum(0).clamp(max=len(weights) - 1)
    return thoughts.take_along_dim(k[None, ..., None, None, None], 0)[0]


def expected_thoughts(
    model: LatentThoughtModel, batch: TokenBatch, values: Mapping[str, Tensor]
) -> Float[Tensor, "particle batch layer slot width"]:
    """The same, averaged over p(k | z, x) where thoughts depend on an enumerated site k directly."""
    thoughts, weights = _at(model, batch, values)
    return thoughts if weights is None else (thoughts * weights[..., None, None, None]).sum(0)


def _at(model: LatentThoughtModel, batch: TokenBatch, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Thoughts (S, B, …); where an enumerated k moves them, at every k (K, S, B, …), with p(k | z, x) (K, S, B)."""
    particles = len(next(iter(values.values())))
    plate = pyro.plate("particles", particles, dim=-2)

    def prior() -> Tensor:
        with pyro.plate("sequences", len(batch), dim=-1):
            return model.thoughts(batch)

    trace = trace_model(plate(prior), trace_of(values))
    for name, site in trace.nodes.items():
        if is_latent(site) and name not in values and not is_enumerated(site):
            raise LTMError(
                f"the guide has no posterior of the latent site {name!r}, so there are no thoughts to draw: sum the "
                'site out in the prior, or mark it infer={"enumerate": "parallel"}'
            )
    thoughts: Tensor = trace.nodes["_RETURN"]["value"]
    shape = thoughts.shape[-3:]
    if thoughts.dim() <= 5:
        return thoughts.expand(particles, len(batch), *shape), None
    log_weights = joint_of_values(trace_model(plate(partial(model, batch)), trace_of(values)))
    return thoughts.expand(*log_weights.shape, *shape).flatten(0, -6), log_weights.flatten(0, -3).softmax(0)
