"""Learning rates as functions of the step, so that nothing about them has to be saved."""

from __future__ import annotations

import math

from ltm_pyro.config import InferenceSettings, TrainingSettings

__all__ = ["fast_lr", "kl_weight", "slow_lr"]


def slow_lr(settings: TrainingSettings, step: int) -> float:
    """η_slow at slow step 0 … steps - 1: linear warm-up, then a cosine that ends at ``slow_lr_final``."""
    if step < settings.warmup_steps:
        return settings.slow_lr * (step + 1) / settings.warmup_steps
    span = max(settings.steps - 1 - settings.warmup_steps, 1)
    progress = min((step - settings.warmup_steps) / span, 1.0)
    height = settings.slow_lr - settings.slow_lr_final
    return settings.slow_lr_final + height * 0.5 * (1 + math.cos(math.pi * progress))


def fast_lr(inference: InferenceSettings, training: TrainingSettings, step: int) -> float:
    """η_fast at slow step 0 … steps - 1: linear from ``fast_lr`` to ``fast_lr_final``."""
    progress = min(step / max(training.steps - 1, 1), 1.0)
    return inference.fast_lr + (inference.fast_lr_final - inference.fast_lr) * progress


def kl_weight(inference: InferenceSettings, training: TrainingSettings, step: int) -> float:
    """What the KL counts for at slow step 0, 1, … (Bowman et al. 2016).

    ``kl_weight_start`` for ``kl_hold_steps``, then linear to 1 over ``kl_warmup_steps``, each as steps or as a share of
    all.
    """
    if not inference.kl_warmup_steps:
        return 1.0
    hold, warmup = (
        max(round(steps * training.steps), 1) if 0 < steps < 1 else steps
        for steps in (inference.kl_hold_steps, inference.kl_warmup_steps)
    )
    progress = min(max(step - hold, 0) / warmup, 1.0)
    return inference.kl_weight_start + (1 - inference.kl_weight_start) * progress
