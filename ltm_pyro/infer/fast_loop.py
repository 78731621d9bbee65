"""The fast loop: local variational parameters by Adam, every sequence on its own, the decoder constant."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pyro
import torch
from jaxtyping import Float
from pyro.infer import ELBO
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder.transformer import Stem
from ltm_pyro.guides.base import Guide, LocalParams
from ltm_pyro.infer.convergence import Convergence
from ltm_pyro.infer.elbo import ELBOTerms, SequenceELBO
from ltm_pyro.infer.fast_config import FastConfig
from ltm_pyro.infer.posterior import autocasting
from ltm_pyro.infer.warm_start import PosteriorTable
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, sequence_noise

__all__ = ["FastLoop", "Fit", "Objective"]


class Objective(NamedTuple):
    """What training does to the ELBO and the starts, and inference does not.

    ``free_bits`` are nats of a sequence's KL that nothing is charged for, ``kl_weight`` is what the rest counts for,
    ``starts`` the table of earlier posteriors to start from.
    """

    free_bits: float = 0.0
    kl_weight: float = 1.0
    starts: PosteriorTable | None = None

    def loss(self, terms: ELBOTerms) -> Float[Tensor, " batch"]:
        """(B,) the negative ELBO, its KL free up to ``free_bits`` and weighted."""
        kl = terms.kl.clamp(min=self.free_bits) if self.free_bits > 0 else terms.kl
        return self.kl_weight * kl - terms.log_likelihood


class Fit(NamedTuple):
    """Fitted local parameters, the fast steps behind them, and where the loop's noise began in each stream."""

    local: LocalParams
    steps_taken: int
    first_draw: int


@dataclass(frozen=True)
class FastLoop:
    """Fits local parameters, and evaluates the ELBO at them.

    Args:
        model: generative program.
        guide: family of q.
        config: settings of the loop.
        elbo: the objective.
        autocast: type of the decoder's products; None for the weights' own.
    """

    model: LatentThoughtModel
    guide: Guide
    config: FastConfig
    elbo: ELBO
    autocast: torch.dtype | None = None

    def fit(
        self,
        batch: TokenBatch,
        generator: SequenceGenerator,
        steps: int,
        lr: float | None,
        objective: Objective | None = None,
        weights: Sequence[Tensor] = (),
        total: Tensor | float = 1.0,
    ) -> Fit:
        """The fast loop. The gradients for ``weights``, divided by ``total``, are added to their ``grad``."""
        lr = self.config.lr if lr is None else lr
        with autocasting(batch.device, self.autocast):
            local = self.guide.init_local(batch, generator)
        first_draw = generator.draws
        if not local or not self.guide.refined:
            return Fit({name: value.detach() for name, value in local.items()}, 0, first_draw)
        if objective is not None and objective.starts is not None:
            local = objective.starts.start(batch.keys, local)
        local = {name: value.detach().clone().requires_grad_() for name, value in local.items()}
        stem = None
        if not weights:
            with torch.no_grad(), autocasting(batch.device, self.autocast):
                stem = self.model.stem(batch)
        leaves = list(local.values())
        adam = torch.optim.Adam(leaves, lr=lr, betas=self.config.betas, eps=self.config.eps)
        watch = None if self.config.tolerance is None else Convergence(self.config.tolerance * batch.num_scored)
        taken = 0
        for t in range(steps):
            if self.config.noise == "fixed":
                generator.draws = first_draw
            # Checks of arguments and values read the device; once per loop is enough to catch a wrong program.
            with nullcontext() if t == 0 else pyro.validation_enabled(False):
                loss, terms = self.evaluate(batch, local, generator, stem)
            if terms is not None:
                losses = -terms.elbo if objective is None else objective.loss(terms)
                # A sequence that is done adds no more gradients to a trajectory, however long the others go on.
                loss = (losses if watch is None else torch.where(watch.done, 0.0, losses)).sum()
            gradients = torch.autograd.grad(loss, [*leaves, *weights], allow_unused=True)
            for leaf, gradient in zip(leaves, gradients, strict=False):
                leaf.grad = gradient
            for weight, gradient in zip(weights, gradients[len(leaves) :], strict=True):
                if gradient is not None:
                    share = gradient / total
                    weight.grad = share if weight.grad is None else weight.grad + share
            adam.param_groups[0]["lr"] = self.config.lr_at(t, steps, lr)
            if watch is not None and terms is not None:
                watch.before_step(leaves, -losses)
            adam.step()
            taken += 1
            if watch is not None and watch.after_step(leaves):
                break
        return Fit({name: value.detach() for name, value in local.items()}, taken, first_draw)

    def evaluate(
        self, batch: TokenBatch, local: LocalParams, generator: SequenceGenerator, stem: Stem | None
    ) -> tuple[Tensor, ELBOTerms | None]:
        """-Σ_b L_b and, where the ELBO gives them, its terms."""
        model = partial(self.model, batch, stem=stem)

        def guide() -> None:
            with autocasting(batch.device, None):
                self.guide(batch, local)

        with sequence_noise(generator), autocasting(batch.device, self.autocast):
            if isinstance(self.elbo, SequenceELBO):
                terms = self.elbo.terms(model, guide)
                return -terms.elbo.sum(), terms
            loss: Tensor = self.elbo.differentiable_loss(model, guide)  # type: ignore[attr-defined]
            return loss, None
