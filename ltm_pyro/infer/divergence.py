"""What becomes of a sequence whose fast loop diverges: it goes back to where it started, and no other one notices."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from ltm_pyro.guides.base import LocalParams

__all__ = ["restarted", "without"]


def restarted(local: LocalParams, start: LocalParams) -> tuple[LocalParams, Bool[Tensor, " batch"]]:
    """``local`` with every sequence back at ``start`` whose parameters are not all finite, and which these are.

    One look after the loop is enough: each sequence's Adam is its own, and once it has met a NaN it stays NaN. Nothing
    is read back to the host.
    """
    finite = torch.stack([value.reshape(len(value), -1).isfinite().all(1) for value in local.values()]).all(0)
    kept = {
        name: torch.where(finite.view(-1, *[1] * (value.dim() - 1)), value, start[name].detach())
        for name, value in local.items()
    }
    return kept, ~finite


def without(diverged: Bool[Tensor, " batch"] | None, losses: Tensor) -> Tensor:
    """(B,) losses, 0 for the sequences that diverged: a q that was not fitted teaches the weights nothing.

    A scalar, the sum of an ELBO that gives no terms, comes back as it is.
    """
    return losses if diverged is None or not losses.dim() else torch.where(diverged, 0.0, losses)
