"""Thoughts at given values of a prior's continuous sites, with its enumerated sites drawn given those and the data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.infer.density import joint_of_values, trace_model, trace_of
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator

__all__ = ["draw_thoughts"]


def draw_thoughts(
    model: LatentThoughtModel, batch: TokenBatch, values: Mapping[str, Tensor], generator: SequenceGenerator
) -> Float[Tensor, "particle batch layer slot width"]:
    """The prior's thoughts at values (S, B, *event) of its continuous sites.

    Thoughts that depend on an enumerated site k directly are those of one k ~ p(k | z, x) by the generator's noise.
    """
    particles = len(next(iter(values.values())))

    def prior() -> Tensor:
        with pyro.plate("sequences", len(batch), dim=-1):
            return model.thoughts(batch)

    plate = pyro.plate("particles", particles, dim=-2)
    thoughts: Tensor = trace_model(plate(prior), trace_of(values)).nodes["_RETURN"]["value"]
    shape = thoughts.shape[-3:]
    if thoughts.dim() <= 5:
        return thoughts.expand(particles, len(batch), *shape)
    log_weights = joint_of_values(trace_model(plate(partial(model, batch)), trace_of(values)))
    of_value = thoughts.expand(*log_weights.shape, *shape).flatten(0, -6)
    uniform = torch.special.ndtr(generator.normal((), particles=(particles,)))
    cumulative = log_weights.flatten(0, -3).softmax(0).cumsum(0)
    k = (cumulative < uniform).sum(0).clamp(max=len(cumulative) - 1)
    return of_value.take_along_dim(k[None, ..., None, None, None], 0)[0]
