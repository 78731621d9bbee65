"""One step of a slow optimiser from the gradients that its weights hold, the same for every kind of model."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, optim

from ltm_pyro.ranks import Ranks
from ltm_pyro.sharding import clip_norm_, total_norm

__all__ = ["slow_update"]


def slow_update(
    optimizer: optim.Optimizer, *, clip_norm: float | None = None, ranks: Ranks | None = None
) -> Float[Tensor, ""]:
    """Sums the gradients over the ranks, clips their norm, and steps.

    Args:
        optimizer: whose weights have gradients; those without one are left as they are.
        clip_norm: the gradient's norm is clipped to this; None leaves it.
        ranks: those that each hold a part of the gradient; None for a process alone.

    Returns:
        The gradient's norm before clipping.

    Raises:
        RankLost: another rank does not take part.
    """
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    ranks = ranks or Ranks()
    ranks.sum_gradients(weights)
    gradients = [p.grad for p in weights if p.grad is not None]
    norm = total_norm(gradients, ranks)
    if clip_norm is not None:
        clip_norm_(gradients, clip_norm, norm)
    optimizer.step()
    return norm
