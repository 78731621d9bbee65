"""How much of what a thought says is one variable of the fables' plan."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.reproduce.recipe import spread_over
from ltm_pyro.data import Data
from ltm_pyro.evaluation.probes import facts_of, fit_thoughts
from ltm_pyro.training import LoadedRun

__all__ = ["plan_explained", "variance_explained"]


def plan_explained(
    run: LoadedRun, data: Data, *, texts: int, fast_steps: int, shuffles: int = 20
) -> dict[str, dict[str, Any]]:
    """By variable of the plan, the thought that it explains most of, over validation fables.

    Args:
        run: of an LTM.
        data: its fables.
        texts: at most so many, spread over the validation fables.
        fast_steps: of their posteriors.
        shuffles: of the variable's values among the texts, for what chance explains.

    Returns:
        ``thought`` (numbered through all layers), ``share`` (of its variance) and ``shuffled``, the greatest share of
        any thought in any of the shuffles. Nothing where one of the texts is no whole fable.
    """
    places = spread_over(len(data.validation), texts)
    fitted = fit_thoughts(
        run.svi, data.validation, places, fast_steps=fast_steps, fast_lr=run.fast_lr, batch_size=20, device=run.device
    )
    plans = facts_of(fitted, data.tokenizer.decode) or []
    thoughts, shuffler = fitted.mean.flatten(1, 2), random.Random(0)
    found = {}
    for variable in sorted({name for plan in plans for name in plan}):
        values = [plan.get(variable) for plan in plans]
        shares = variance_explained(thoughts, values)
        chance = [variance_explained(thoughts, shuffler.sample(values, len(values))) for _ in range(shuffles)]
        found[variable] = {
            "thought": int(shares.argmax()),
            "share": float(shares.max()),
            "shuffled": float(torch.stack(chance).max()),
        }
    return found


def variance_explained(
    thoughts: Float[Tensor, "text thought width"], values: Sequence[str | None]
) -> Float[Tensor, " thought"]:
    """The share of every thought's variance that lies between the means of texts of equal value (η² of ANOVA)."""
    centred = thoughts.double() - thoughts.double().mean(0)
    between = torch.zeros(thoughts.shape[1], dtype=torch.float64, device=thoughts.device)
    for value in set(values):
        alike = centred[[place for place, other in enumerate(values) if other == value]]
        between += len(alike) * alike.mean(0).square().sum(-1)
    return between / centred.square().sum((0, 2)).clamp(min=torch.finfo(torch.float64).tiny)
