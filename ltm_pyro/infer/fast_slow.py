"""Fast-slow stochastic variational inference: local parameters by fast steps, the decoder by slow ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from pyro.infer import ELBO
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder.linear import held
from ltm_pyro.errors import LTMError
from ltm_pyro.guides.base import Guide
from ltm_pyro.infer.constant import constant
from ltm_pyro.infer.divergence import without
from ltm_pyro.infer.elbo import ELBOTerms, SequenceELBO
from ltm_pyro.infer.fast_config import FastConfig
from ltm_pyro.infer.fast_loop import FastLoop, Fit, Objective
from ltm_pyro.infer.posterior import Posterior, autocasting
from ltm_pyro.infer.slow_update import slow_update
from ltm_pyro.infer.warm_start import PosteriorTable
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, draw_seed
from ltm_pyro.ranks import Ranks

__all__ = ["FastSlowSVI", "StepInfo"]


@dataclass(frozen=True)
class StepInfo:
    """What one `FastSlowSVI.step` saw; tensors stay on the device.

    Args:
        loss: scalar, negative ELBO in nats per scored token over the batch; where several ranks take the step, this
            one's share of it: the ranks' sum is that of all their sequences.
        terms: (B,) ELBO terms at the final q, before the slow update; None where the ELBO does not give them apart.
        num_scored: (B,) scored tokens.
        total: scalar, scored tokens of the step, of all ranks; what the losses are divided by.
        gradient_norm: scalar, norm of the slow gradient before clipping, of all ranks.
        guide_loss: scalar, what the guide's own weights are taught besides the ELBO, in nats per scored token (how far
            a semi-amortised guide's encoder starts from where the fast loop ends); None where there is no such thing.
        posteriors: those of the micro-batches; they were fitted under the weights before the update, and score under
            the model's present ones.
        diverged: (B,) sequences whose fast loop led to NaN or infinity; they stand where they started and have no share
            in the slow gradient. None where nothing was fitted.
        skipped: whether the slow update was left out, because the loss or its gradient is not finite or every sequence
            diverged.
    """

    loss: Float[Tensor, ""]
    terms: ELBOTerms | None
    num_scored: Tensor
    total: Tensor
    gradient_norm: Float[Tensor, ""]
    posteriors: Sequence[Posterior]
    guide_loss: Float[Tensor, ""] | None = None
    diverged: Bool[Tensor, " batch"] | None = None
    skipped: bool = False


class FastSlowSVI:
    r"""Custom SVI with two time scales.

    1. Fast, for every sequence on its own, with :math:`\beta` constant:
       :math:`(\mu_b, \log \sigma^2_b) \leftarrow \mathrm{Adam}_{\eta_{fast}}(-\nabla L_b)`, T_fast times.
    2. Slow: one step of ``slow`` on :math:`-\sum_b L_b / \sum_b N_b`, which is the batch mean of :math:`-L_b` up to the
       mean number of tokens, so that clipping and ε mean the same at every length.

    The loss of the fast loop is summed over sequences and the noise of each is its own (`SequenceGenerator`), so a
    sequence's posterior depends neither on its batch nor on its place there.

    Args:
        model: generative program; its parameters are slow.
        guide: family of q; its module parameters are slow, too.
        fast: settings of the fast loop.
        slow: optimiser of the slow parameters; None if only `infer` is called.
        elbo: any differentiable ELBO of Pyro; None is `SequenceELBO`, which gives the terms apart.
        clip_norm: the slow gradient's norm is clipped to this; None leaves it.
        autocast: type of the decoder's products (bfloat16, say); None for the weights' own.
        free_bits: nats of a sequence's KL that training does not charge for; it reports the ELBO all the same.
        starts: where `step` keeps each sequence's fitted local parameters, to start from when it meets the sequence
            again; None starts every time anew. `infer` neither reads nor fills it.
        ranks: those that take each slow step together, each on its own sequences: the step is that of one process on
            all of them. None for a process alone.

    Raises:
        LTMError: the prior refuses the guide, ``free_bits`` is below 0, or a setting needs `SequenceELBO`.

    References: Kong et al. (2025), Scalable Language Models with Posterior Inference of Latent Thought Vectors; Hoffman
    et al. (2013), Stochastic Variational Inference.
    """

    def __init__(
        self,
        model: LatentThoughtModel,
        guide: Guide,
        *,
        fast: FastConfig | None = None,
        slow: torch.optim.Optimizer | None = None,
        elbo: ELBO | None = None,
        clip_norm: float | None = None,
        autocast: torch.dtype | None = None,
        free_bits: float = 0.0,
        starts: PosteriorTable | None = None,
        ranks: Ranks | None = None,
    ):
        if refusal := model.prior.refusal(type(guide)):
            raise LTMError(refusal)
        if not free_bits >= 0:
            raise LTMError(f"free_bits must be 0 or more, got {free_bits}")
        model.prior.pair(guide)
        self.model = model
        self.guide = guide
        self.fast = fast or FastConfig()
        self.slow = slow
        self.elbo = elbo or SequenceELBO()
        self.clip_norm = clip_norm
        self.autocast = autocast
        self.free_bits = free_bits
        self.starts = starts
        self.ranks = ranks or Ranks()
        for name, asked in (("a tolerance", self.fast.tolerance is not None), ("free_bits", free_bits > 0)):
            if asked:
                self._require_terms(name)

    def fast_steps(self, asked: int | None = None) -> int:
        """T_fast of an inference that is asked for some number, or None: the configured one."""
        if not self.guide.refined:  # an encoder's posterior is taken as it is
            return 0
        return self.fast.steps if asked is None else asked

    def infer(
        self, batch: TokenBatch, *, steps: int | None = None, seed: int | None = None, lr: float | None = None
    ) -> Posterior:
        """Fits q(z | x) to every sequence; the decoder is constant.

        Args:
            batch: the sequences.
            steps: T_fast; None takes the configured number.
            seed: of the sequences' noise; None draws one from torch's global stream.
            lr: η_fast of Adam, which natural steps do not read; None takes the configured one.
        """
        seed = draw_seed() if seed is None else seed
        generator = SequenceGenerator(batch.keys, seed)
        with constant(self.model, self.guide), held(self.model.decoder, self.autocast):
            fit = self._loop.fit(batch, generator, self.fast_steps(steps), lr)
        return self._posterior(batch, fit, seed)

    def step(
        self,
        batch: TokenBatch,
        *,
        micro_batch_size: int | None = None,
        seed: int | None = None,
        lr: float | None = None,
        kl_weight: float = 1.0,
    ) -> StepInfo:
        """Infers every sequence, then takes one slow step on the batch.

        Args:
            batch: the sequences.
            micro_batch_size: sequences that are inferred at once, their slow gradients added up; None takes all. The
                result is that of the whole batch up to rounding.
            seed: of the sequences' noise; None draws one from torch's global stream.
            lr: η_fast; None takes the configured one.
            kl_weight: what the KL counts for in training (KL annealing), fast steps included; what is reported is the
                ELBO all the same.

        Raises:
            LTMError: there is no slow optimiser.
        """
        if self.slow is None:
            raise LTMError(
                "FastSlowSVI.step needs a slow optimiser: pass slow=torch.optim.AdamW(model.parameters(), …)"
            )
        if kl_weight != 1:
            self._require_terms("a kl_weight")
        objective = Objective(self.free_bits, kl_weight, self.starts)
        seed = draw_seed() if seed is None else seed
        size = micro_batch_size or len(batch)
        weights = [p for group in self.slow.param_groups for p in group["params"] if p.requires_grad]
        self.slow.zero_grad(set_to_none=True)
        total = self.ranks.sum(batch.num_scored.sum()).clamp(min=1)
        losses, terms, posteriors, guide_losses = [], [], [], []
        for start in range(0, len(batch), size):
            # The whole batch keeps its index of scored tokens, which a part has to make anew.
            part = batch if size >= len(batch) else batch[slice(start, start + size)]
            loss, guide_loss, part_terms, posterior = self._accumulate(part, seed, lr, weights, total, objective)
            losses.append(loss)
            guide_losses += [] if guide_loss is None else [guide_loss]
            terms.append(part_terms)
            posteriors.append(posterior)
        diverged = [posterior.diverged for posterior in posteriors if posterior.diverged is not None]
        loss, lost = torch.stack(losses).sum(), torch.cat(diverged) if diverged else None
        fitted = None if lost is None else (~lost).sum()
        update = slow_update(self.slow, loss, taught=fitted, clip_norm=self.clip_norm, ranks=self.ranks)
        if self.starts is not None and self.guide.refined:
            for posterior in posteriors:  # not before, so that a text that stands in two parts starts alike in both
                self.starts.store(posterior.batch.keys, posterior.local)
        known = [t for t in terms if t is not None]
        return StepInfo(
            loss=loss,
            terms=ELBOTerms.cat(known) if len(known) == len(terms) else None,
            num_scored=batch.num_scored,
            total=total,
            gradient_norm=update.norm,
            posteriors=posteriors,
            guide_loss=torch.stack(guide_losses).sum() if guide_losses else None,
            diverged=lost,
            skipped=update.skipped,
        )

    def _accumulate(
        self,
        batch: TokenBatch,
        seed: int,
        lr: float | None,
        weights: list[Tensor],
        total: Tensor,
        objective: Objective,
    ) -> tuple[Tensor, Tensor | None, ELBOTerms | None, Posterior]:
        """Infers a micro-batch and adds its slow gradient to the weights' ``grad``."""
        generator = SequenceGenerator(batch.keys, seed)
        if self.fast.slow_gradient == "trajectory":
            fit = self._loop.fit(batch, generator, self.fast.steps, lr, objective, weights, total)
        else:
            with constant(self.model, self.guide), held(self.model.decoder, self.autocast):
                fit = self._loop.fit(batch, generator, self.fast.steps, lr, objective)
        if self.fast.noise == "fixed":
            generator.draws = fit.first_draw
        else:
            generator = SequenceGenerator(batch.keys, seed, "slow")
        with autocasting(batch.device, self.autocast):
            attached = self.guide.attached(batch, fit.local)
            guide_loss = self.guide.slow_loss(batch, fit.local)
        loss, terms = self._loop.evaluate(batch, attached, generator, None)
        taught = loss if terms is None else without(fit.diverged, objective.loss(terms)).sum()
        if guide_loss is not None:
            guide_loss = without(fit.diverged, guide_loss).sum() / total
        (taught / total + (0.0 if guide_loss is None else guide_loss)).backward()
        posterior = self._posterior(batch, fit, seed)
        return (
            loss.detach() / total,
            None if guide_loss is None else guide_loss.detach(),
            None if terms is None else terms.detach(),
            posterior,
        )

    def _posterior(self, batch: TokenBatch, fit: Fit, seed: int) -> Posterior:
        taken = len(fit.steps)
        return Posterior(self.model, self.guide, batch, fit.local, seed, taken, self.autocast, fit.steps, fit.diverged)

    @property
    def _loop(self) -> FastLoop:
        return FastLoop(self.model, self.guide, self.fast, self.elbo, self.autocast)

    def _require_terms(self, what: str) -> None:
        if not isinstance(self.elbo, SequenceELBO):
            raise LTMError(f"{what} needs each sequence's own ELBO: leave elbo out, or pass a SequenceELBO")
