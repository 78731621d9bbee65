"""Early stop of the fast loop, sequence by sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Convergence"]


class Convergence:
    """Holds the local parameters of every sequence whose running ELBO has stopped improving.

    The running ELBO is the mean over the last four fast steps, held against that over the four before: single values
    carry the noise of their draw. Each sequence is judged alone, so its posterior still does not depend on its batch.

    Args:
        tolerance: (B,) least improvement, in nats per sequence.
    """

    span = 4

    def __init__(self, tolerance: Float[Tensor, " batch"]):
        self.tolerance = tolerance
        self.done = torch.zeros_like(tolerance, dtype=torch.bool)
        self._history: list[Tensor] = []

    def hold(self, leaves: Sequence[Tensor], elbo: Float[Tensor, " batch"]) -> Callable[[], bool]:
        """Judges the ELBO met before a step; the returned call undoes that step where a sequence was done before it.

        The call says whether every sequence is done.
        """
        self._history = [*self._history[1 - 2 * self.span :], elbo.detach()]
        if len(self._history) == 2 * self.span:
            before, now = (
                torch.stack(part).mean(0) for part in (self._history[: self.span], self._history[self.span :])
            )
            self.done = self.done | (now - before < self.tolerance)
        done, kept = self.done, [leaf.detach().clone() for leaf in leaves]

        def restore() -> bool:
            with torch.no_grad():
                for leaf, value in zip(leaves, kept, strict=True):
                    leaf.copy_(torch.where(done.view(-1, *[1] * (leaf.dim() - 1)), value, leaf))
            return bool(done.all())

        return restore
