"""Settings of the fast loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ltm_pyro.errors import LTMError

__all__ = ["FastConfig"]


@dataclass(frozen=True, kw_only=True)
class FastConfig:
    """Settings of the fast loop.

    Args:
        steps: T_fast.
        lr: η_fast, Adam's step size on the local parameters at the start of a loop.
        lr_decay: the cosine inside one loop ends at ``lr * lr_decay``.
        optimizer: ``adam`` (the paper), or ``natural`` for natural gradients (`NaturalGradient`) where the guide is one
            of independent normals (`Guide.natural`); other guides keep Adam.
        natural_lr: ρ of the first natural step, a share of the way where the KL counts for 1.
        natural_delay: τ of the rates ``natural_lr / (1 + (t - 1) / τ)`` at fast step t = 1, 2, …: step t is the same
            however many follow, and more steps average more noise out (Robbins & Monro 1951; Hoffman et al. 2013,
            Stochastic Variational Inference).
        betas: Adam's moment decays.
        eps: Adam's ε.
        noise: ``fresh`` draws a new ε at each fast step (the paper); ``fixed`` keeps one for the loop and the slow step
            (the released code).
        slow_gradient: ``final`` takes the slow gradient at the final q (the paper); ``trajectory`` adds the gradients
            met at every fast step (the released code).
        cuda_graph: capture a fast step on CUDA once per loop and replay it; computes the same. Not where a tolerance, a
            token fraction or a trajectory makes the steps differ.
        tolerance: a sequence's fast loop ends once its running ELBO improves by less than this, in nats per token; None
            takes every step. Reads one number from the device per step, on a GPU every fourth.
        token_fraction: share of each sequence's scored tokens that a fast step scores, drawn anew at every step
            (`TokenSubsets`): an unbiased estimate of the ELBO. 1 scores them all.
        full_final_steps: last fast steps that score all tokens whatever ``token_fraction``.

    Raises:
        LTMError: a value out of range, or a ``tolerance`` beside a ``token_fraction`` below 1.
    """

    steps: int = 16
    lr: float = 0.3
    lr_decay: float = 0.1
    optimizer: Literal["adam", "natural"] = "adam"
    natural_lr: float = 0.9
    natural_delay: float = 4.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    noise: Literal["fresh", "fixed"] = "fresh"
    slow_gradient: Literal["final", "trajectory"] = "final"
    tolerance: float | None = None
    cuda_graph: bool = False
    token_fraction: float = 1.0
    full_final_steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise LTMError(f"fast steps must be 0 or more, got {self.steps}")
        if not self.lr > 0:
            raise LTMError(f"the fast learning rate must be above 0, got {self.lr}")
        if not 0 <= self.lr_decay <= 1:
            raise LTMError(f"the fast learning rate's decay must lie in 0 … 1, got {self.lr_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise LTMError(f"Adam's betas must be 0 or more and below 1, got {self.betas}")
        if not self.eps > 0:
            raise LTMError(f"Adam's eps must be above 0, got {self.eps}")
        if self.optimizer not in ("adam", "natural"):
            raise LTMError(f"optimizer must be 'adam' or 'natural', got {self.optimizer!r}")
        if not 0 < self.natural_lr <= 1:
            raise LTMError(f"natural_lr must be above 0 and at most 1, a share of the way, got {self.natural_lr}")
        if not self.natural_delay > 0:
            raise LTMError(f"natural_delay must be above 0, got {self.natural_delay}")
        if self.optimizer == "natural" and self.cuda_graph:
            raise LTMError(
                "optimizer = natural has no CUDA graph, whatever the guide: leave cuda_graph out, or take adam"
            )
        if self.noise not in ("fresh", "fixed"):
            raise LTMError(f"noise must be 'fresh' or 'fixed', got {self.noise!r}")
        if self.slow_gradient not in ("final", "trajectory"):
            raise LTMError(f"slow_gradient must be 'final' or 'trajectory', got {self.slow_gradient!r}")
        if self.tolerance is not None and not self.tolerance > 0:
            raise LTMError(f"tolerance must be above 0, got {self.tolerance}: leave it out to take every fast step")
        if not 0 < self.token_fraction <= 1:
            raise LTMError(f"token_fraction must be above 0 and at most 1, got {self.token_fraction}")
        if self.full_final_steps < 0:
            raise LTMError(f"full_final_steps must be 0 or more, got {self.full_final_steps}")
        if self.tolerance is not None and self.token_fraction < 1:
            raise LTMError(
                f"a tolerance must see the ELBO of all tokens, which token_fraction = {self.token_fraction} makes far "
                "noisier than any improvement that is left: leave one of the two out"
            )

    def lr_at(self, step: int, steps: int, lr: float) -> float:
        """Cosine from ``lr`` at the first of ``steps`` fast steps to ``lr * lr_decay`` at the last."""
        progress = step / max(steps - 1, 1)
        return lr * (self.lr_decay + (1 - self.lr_decay) * 0.5 * (1 + math.cos(math.pi * progress)))

    def natural_lr_at(self, step: int) -> float:
        """ρ of natural fast step ``step`` = 0, 1, …, by ``natural_lr`` and ``natural_delay``."""
        return self.natural_lr / (1 + step / self.natural_delay)
