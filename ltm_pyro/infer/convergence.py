"""Early stop of the fast loop, sequence by sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Convergence"]


class Convergence:
    """Holds the local parameters of every sequence whose running objective has stopped improving, and says who may go.

    The objective is what the fast loop climbs: the ELBO, in training with the KL's weight and free bits. A running one
    is the mean over the last four fast steps, held against that over the four before: single values carry the noise of
    their draw. Each sequence is judged alone, so its posterior still does not depend on its batch.

    Args:
        tolerance: (B,) least improvement, in nats per sequence.
    """

    span = 4

    def __init__(self, tolerance: Float[Tensor, " batch"]):
        self.tolerance = tolerance
        self.done = torch.zeros_like(tolerance, dtype=torch.bool)
        self._taken = 0
        self._history: list[Tensor] = []
        self._stood: list[Tensor] = []

    def before_step(self, leaves: Sequence[Tensor], objective: Float[Tensor, " batch"]) -> None:
        """Judges the objective met before a fast step, and remembers where the local parameters stood."""
        self._history = [*self._history[1 - 2 * self.span :], objective.detach()]
        if len(self._history) == 2 * self.span:
            before, now = torch.stack(self._history).chunk(2)
            self.done = self.done | (now.mean(0) - before.mean(0) < self.tolerance)
        self._stood = [leaf.detach().clone() for leaf in leaves]

    def after_step(self, leaves: Sequence[Tensor]) -> None:
        """Undoes the step of every sequence that is done."""
        self._taken += 1
        with torch.no_grad():
            for leaf, stood in zip(leaves, self._stood, strict=True):
                leaf.copy_(torch.where(self.done.view(-1, *[1] * (leaf.dim() - 1)), stood, leaf))

    def going_on(self) -> Int[Tensor, " rows"] | None:
        """The rows that are not done, where it pays that the others leave the batch; None where all stay for now.

        A GPU is asked every fourth step, and a quarter of its rows have to be done: waiting for it costs more than the
        step that a few rows would save.
        """
        on_gpu = self.done.is_cuda
        if self._taken < 2 * self.span or (on_gpu and self._taken % self.span):
            return None
        total = len(self.done)
        left = int((~self.done).sum())
        if left and total - left < (total / 4 if on_gpu else 1):
            return None
        return (~self.done).nonzero()[:, 0]

    def cut(self, rows: Int[Tensor, " rows"]) -> None:
        """Forgets all but these rows."""
        self.tolerance, self.done = self.tolerance[rows], self.done[rows]
        self._history = [objective[rows] for objective in self._history]
