"""The end of every slow step: the gradient's norm, clipping, and no update where a number is not finite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["SlowUpdate", "slow_update"]


class SlowUpdate(NamedTuple):
    """What became of a slow gradient: its norm before clipping, and whether the update was left out."""

    norm: Float[Tensor, ""]
    skipped: bool


def slow_update(
    optimizer: torch.optim.Optimizer, weights: Iterable[Tensor], clip_norm: float | None, loss: Tensor
) -> SlowUpdate:
    """Clips the weights' ``grad`` and lets the optimiser step, if both the loss and the gradient are finite.

    Where they are not, weights and moments stay as they are, to the last bit. That reads one number back from the
    device; an optimiser that decided there would have to be fused, and count its steps on the device.

    Args:
        optimizer: of the slow parameters.
        weights: these parameters; those without a gradient are passed over.
        clip_norm: the gradient's norm is clipped to this; None leaves it.
        loss: scalar, what the gradient is of.
    """
    weights = [weight for weight in weights if weight.grad is not None]
    norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    finite = bool(norm.isfinite() & loss.detach().isfinite())
    if finite:
        if clip_norm is not None:
            nn.utils.clip_grads_with_norm_(weights, clip_norm, norm)
        optimizer.step()
    return SlowUpdate(norm, not finite)
