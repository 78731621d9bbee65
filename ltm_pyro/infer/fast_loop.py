"""The fast loop: local variational parameters by gradient steps, every sequence on its own, the decoder constant."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pyro
import torch
from jaxtyping import Bool, Float, Int
from pyro.infer import ELBO
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder.transformer import Stem
from ltm_pyro.guides.base import Guide, LocalParams
from ltm_pyro.infer.captured import CapturedStep
from ltm_pyro.infer.convergence import Convergence
from ltm_pyro.infer.divergence import restarted
from ltm_pyro.infer.elbo import ELBOTerms, SequenceELBO
from ltm_pyro.infer.fast_config import FastConfig
from ltm_pyro.infer.natural import NaturalGradient
from ltm_pyro.infer.posterior import autocasting
from ltm_pyro.infer.subsampling import FastStep, TokenSubset, TokenSubsets
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
    """Fitted local parameters, what the steps behind them ran on, and where the loop's noise began in each stream.

    ``diverged`` (B,) are the sequences whose loop led to NaN or infinity: they stand where they started. None where
    nothing was fitted.
    """

    local: LocalParams
    steps: tuple[FastStep, ...]
    first_draw: int
    diverged: Bool[Tensor, " batch"] | None = None


@dataclass
class _Fitted:
    """The sequences that the loop still moves, and all that a fast step reads of them.

    ``local`` are leaves of the graph, ``optimizer`` moves them, ``generator`` counts the noise
    drawn so far.
    """

    batch: TokenBatch
    local: LocalParams
    optimizer: torch.optim.Optimizer
    generator: SequenceGenerator
    stem: Stem | None

    @property
    def leaves(self) -> list[Tensor]:
        """The local parameters in order."""
        return list(self.local.values())

    def rows(self, index: Int[Tensor, " rows"]) -> _Fitted:
        """Some of the sequences, with what Adam knows of them: everything has its sequence as its leading dimension."""
        local = {name: value.detach()[index].requires_grad_() for name, value in self.local.items()}
        if isinstance(self.optimizer, NaturalGradient):
            optimizer: torch.optim.Optimizer = NaturalGradient(local, **self.optimizer.defaults)
        else:
            optimizer = torch.optim.Adam(list(local.values()), **self.optimizer.defaults)
            for old, new in zip(self.leaves, local.values(), strict=True):
                moments = self.optimizer.state[old].items()
                optimizer.state[new] = {name: value[index] if value.dim() else value for name, value in moments}
        stem = None if self.stem is None else Stem(*(part[index] for part in self.stem))
        return _Fitted(self.batch[index], local, optimizer, self.generator.rows(index), stem)


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
        config = self.config
        lr = config.lr if lr is None else lr
        with autocasting(batch.device, self.autocast):
            local = self.guide.init_local(batch, generator)
        first_draw = generator.draws
        if not local or not self.guide.refined:
            return Fit({name: value.detach() for name, value in local.items()}, (), first_draw)
        if objective is not None and objective.starts is not None:
            local = objective.starts.start(batch.keys, local)
        start, local = local, {name: value.detach().clone().requires_grad_() for name, value in local.items()}
        stem = None
        if not weights:
            with torch.no_grad(), autocasting(batch.device, self.autocast):
                stem = self.model.stem(batch)
        alike = config.tolerance is None and config.token_fraction == 1 and not weights
        captures = config.cuda_graph and alike and _on_cuda(batch)
        rate = torch.tensor(lr, device=batch.device) if captures else lr
        natural = self.guide.natural_under(config.optimizer)
        optimizer = NaturalGradient(local, config.natural_lr) if natural else _adam(config, local, rate, captures)
        now = _Fitted(batch, local, optimizer, generator, stem)
        captured: CapturedStep | None = None
        watch = None if config.tolerance is None else Convergence(config.tolerance * batch.num_scored)
        subsets = None if config.token_fraction == 1 else TokenSubsets(batch, config.token_fraction, generator.seed)
        ended: LocalParams = {}
        places: Tensor | None = None  # of the sequences that are still fitted, once some have left
        taken: list[FastStep] = []
        for t in range(steps):
            if config.noise == "fixed":
                now.generator.draws = first_draw
            # The subset is new even where the noise is not: one for the whole loop would be all that q is fitted to.
            subset = subsets.draw() if subsets is not None and t < steps - config.full_final_steps else None
            scored = now.batch if subset is None else subset.batch
            taken.append(FastStep(len(scored), len(scored.scored_index)))
            _set_rate(now.optimizer, config.natural_lr_at(t) if natural else config.lr_at(t, steps, lr))
            if captures and t == 1:
                captured = CapturedStep.of(
                    partial(self._step_alike, now, objective),
                    generator,
                    draws=generator.draws - first_draw if config.noise == "fresh" else 0,
                    fresh=config.noise == "fresh",
                )
            if captured is not None:
                captured.replay()
                continue
            # Checks of arguments and values read the device; once per loop is enough to catch a wrong program.
            with nullcontext() if t == 0 else pyro.validation_enabled(False):
                losses = self._losses(now, objective, subset)
            # A sequence that is done adds no more gradients to a trajectory, however long the others go on.
            loss = (losses if watch is None else torch.where(watch.done, 0.0, losses)).sum()
            leaves = now.leaves
            gradients = torch.autograd.grad(loss, [*leaves, *weights], allow_unused=True)
            for leaf, gradient in zip(leaves, gradients, strict=False):
                leaf.grad = gradient
            for weight, gradient in zip(weights, gradients[len(leaves) :], strict=True):
                if gradient is not None:
                    share = gradient / total
                    weight.grad = share if weight.grad is None else weight.grad + share
            if watch is None:
                now.optimizer.step()
                continue
            watch.before_step(leaves, -losses)
            now.optimizer.step()
            watch.after_step(leaves)
            if (rows := watch.going_on()) is not None:
                if not len(rows):
                    break
                ended, places = _kept(ended, places, now.local), rows if places is None else places[rows]
                now = now.rows(rows)
                watch.cut(rows)
        if captured is not None:
            captured.end()
        fitted, diverged = restarted(_kept(ended, places, now.local), start)
        return Fit(fitted, tuple(taken), first_draw, diverged)

    def _step_alike(self, now: _Fitted, objective: Objective | None) -> None:
        """A fast step that nothing but its noise and its rate tells from the next one; what a CUDA graph captures."""
        with pyro.validation_enabled(False):
            loss = self._losses(now, objective).sum()
        for leaf, gradient in zip(now.leaves, torch.autograd.grad(loss, now.leaves, allow_unused=True), strict=True):
            leaf.grad = gradient
        now.optimizer.step()

    def _losses(self, now: _Fitted, objective: Objective | None, subset: TokenSubset | None = None) -> Tensor:
        """(B,) what the fast loop makes small; a scalar, the sum of it, of an ELBO that gives no terms."""
        loss, terms = self.evaluate(now.batch, now.local, now.generator, now.stem, subset)
        if terms is None:
            return loss
        return -terms.elbo if objective is None else objective.loss(terms)

    def evaluate(
        self,
        batch: TokenBatch,
        local: LocalParams,
        generator: SequenceGenerator,
        stem: Stem | None,
        subset: TokenSubset | None = None,
    ) -> tuple[Tensor, ELBOTerms | None]:
        """-Σ_b L_b and, where the ELBO gives them, its terms; of a ``subset`` of the tokens an unbiased estimate."""
        scored, scale = (batch, None) if subset is None else subset
        model = partial(self.model, scored, stem=stem, scale=scale)

        def guide() -> None:
            with autocasting(batch.device, None):
                self.guide(batch, local)

        with sequence_noise(generator), autocasting(batch.device, self.autocast):
            if isinstance(self.elbo, SequenceELBO):
                terms = self.elbo.terms(model, guide)
                return -terms.elbo.sum(), terms
            loss: Tensor = self.elbo.differentiable_loss(model, guide)  # type: ignore[attr-defined]
            return loss, None


def _on_cuda(batch: TokenBatch) -> bool:
    return batch.device.type == "cuda"


def _adam(config: FastConfig, local: LocalParams, rate: float | Tensor, captures: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(local.values(), lr=rate, betas=config.betas, eps=config.eps, capturable=captures)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate, in place where a CUDA graph reads it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _kept(ended: LocalParams, places: Tensor | None, local: LocalParams) -> LocalParams:
    """All sequences' parameters, those at ``places`` replaced by present ones; None is all."""
    if places is None:
        return {name: value.detach() for name, value in local.items()}
    return {name: value.index_copy(0, places, local[name].detach()) for name, value in ended.items()}
