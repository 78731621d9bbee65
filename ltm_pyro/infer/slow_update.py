"""One step of a slow optimiser from the gradients that its weights hold, the same for every kind of model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, optim

from ltm_pyro.ranks import Ranks
from ltm_pyro.sharding import clip_norm_, total_norm

__all__ = ["SlowUpdate", "slow_update"]


class SlowUpdate(NamedTuple):
    """What became of a slow gradient: its norm before clipping, and whether the step was left out."""

    norm: Float[Tensor, ""]
    skipped: bool


def slow_update(
    optimizer: optim.Optimizer,
    loss: Float[Tensor, ""],
    *,
    taught: Tensor | None = None,
    clip_norm: float | None = None,
    ranks: Ranks | None = None,
) -> SlowUpdate:
    """Sums the gradients over the ranks, clips their norm, and steps, if the loss and the gradient are finite.

    Where they are not, on whatever rank, weights and moments stay as they are, to the last bit. One number is read back
    from the device for that: an optimiser that decided there would have to be fused, and count its steps there.

    Args:
        optimizer: whose weights have gradients; those without one are left as they are.
        loss: this rank's share of what the gradients are of.
        taught: how many sequences have a share in this rank's gradients, where that can be none: the moments alone are
            no reason to step. None where all have.
        clip_norm: the gradient's norm is clipped to this; None leaves it.
        ranks: those that each hold a part of the gradient; None for a process alone.

    Raises:
        RankLost: another rank does not take part.
    """
    ranks = ranks or Ranks()
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    ranks.sum_gradients(weights)
    gradients = [p.grad for p in weights if p.grad is not None]
    norm = total_norm(gradients, ranks)
    some = torch.ones_like(loss) if taught is None else taught.to(loss)
    whole, count = ranks.sum(torch.stack([loss.detach(), some]))
    skipped = not bool(norm.isfinite() & whole.isfinite() & (count > 0))
    if not skipped:
        if clip_norm is not None:
            clip_norm_(gradients, clip_norm, norm)
        optimizer.step()
    return SlowUpdate(norm, skipped)
