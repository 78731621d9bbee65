"""Langevin dynamics in the place of the fast loop: in training, and as the posterior that predicts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch

from ltm_pyro.batch import TokenBatch
from ltm_pyro.config import Settings
from ltm_pyro.data import Data
from ltm_pyro.guides import Guide, LocalParams, latent_sites
from ltm_pyro.infer import FastConfig, FastSlowSVI, Posterior, langevin
from ltm_pyro.infer.slow_update import slow_update
from ltm_pyro.language_model import LanguageModel
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, draw_seed
from ltm_pyro.training import LoadedRun, RunDirectory, Trainer, load_run
from ltm_pyro.training.learners import Learner, SlowStep, ThoughtLearner

__all__ = ["ChainEnds", "LangevinInference", "LangevinLearner", "langevin_trained"]


class ChainEnds(Guide):
    r"""The last draws of C chains of each sequence, and nothing more: :math:`\frac1C \sum_c \delta(z - z_{bc})`.

    Local parameters: every site by its name, (B, C, \*event). A program that draws C times gets each of them once.
    """

    has_density: ClassVar[bool] = False

    def __init__(self, model: LatentThoughtModel):
        super().__init__()
        self.sites = latent_sites(model)

    def init_local(self, batch: TokenBatch, generator: SequenceGenerator | None = None) -> LocalParams:
        """None: a chain starts at a draw of the prior, which `langevin` makes."""
        return {}

    def forward(self, batch: TokenBatch, local: LocalParams) -> None:
        """Samples every latent site at the chains' ends."""
        with pyro.plate("sequences", len(batch), dim=-1):
            for site in self.sites:
                value = local[site.name].movedim(1, 0)
                pyro.sample(site.name, dist.Delta(value, event_dim=len(site.event_shape), validate_args=False))


class LangevinInference(FastSlowSVI):
    r"""`infer` by unadjusted Langevin dynamics from a draw of the prior, instead of the fast loop.

    .. math:: z \leftarrow z + s\, \nabla_z \log p(z \mid x) + \sqrt{2s}\, \epsilon, \qquad \text{T_fast times}

    Each step takes one gradient, as a fast step does. Of the posterior's protocols there are those that need draws
    alone: its points have no density.

    Args:
        model: the generative program.
        steps: T_fast.
        step_size: s.
        chains: C, and the only number of draws that its posteriors can make.
        autocast: type of the decoder's products, None for the weights' own.
    """

    def __init__(
        self,
        model: LatentThoughtModel,
        *,
        steps: int,
        step_size: float,
        chains: int = 1,
        autocast: torch.dtype | None = None,
    ):
        super().__init__(model, ChainEnds(model), fast=FastConfig(steps=steps), autocast=autocast)
        self.step_size = step_size
        self.chains = chains

    def infer(
        self, batch: TokenBatch, *, steps: int | None = None, seed: int | None = None, lr: float | None = None
    ) -> Posterior:
        """The last draw of every chain; ``lr``, the fast loop's, has no meaning here."""
        steps, seed = self.fast_steps(steps), draw_seed() if seed is None else seed
        drawn = langevin(
            self.model,
            batch,
            draws=1,
            warmup=steps - 1,
            step_size=self.step_size,
            adjusted=False,
            chains=self.chains,
            seed=seed,
            autocast=self.autocast,
        )
        local = {name: value[0].movedim(0, 1) for name, value in drawn.sites.items()}
        return Posterior(self.model, self.guide, batch, local, seed, steps, self.autocast)


class LangevinLearner(Learner):
    r"""A slow step on :math:`-\sum_b \log p_\beta(x_b \mid z_b) / \sum_b N_b`, z_b the end of one chain.

    This is Monte Carlo EM with one draw. The fixed prior has no weights, so that log p(x, z) has the same gradient.
    Validations are those of the learner inside: by its guide and fast loop, like all others.

    Args:
        inner: the model with its optimiser.
        step_size: s of the chains; they have the T_fast of ``inner``.
    """

    def __init__(self, inner: ThoughtLearner, step_size: float):
        self.inner = inner
        self.modules, self.optimizer = inner.modules, inner.optimizer
        self.chains = LangevinInference(
            inner.model, steps=inner.svi.fast.steps, step_size=step_size, autocast=inner.svi.autocast
        )

    def step(self, batch: TokenBatch, *, at: int, seed: int) -> SlowStep:  # noqa: D102
        model = self.inner.model
        thoughts = self.chains.infer(batch, seed=seed).sample()[0]
        self.optimizer.zero_grad(set_to_none=True)
        total = batch.num_scored.sum().clamp(min=1)
        losses = -model.likelihood(thoughts, batch, None).log_prob(batch.tokens)
        (losses.sum() / total).backward()
        losses = losses.detach()
        update = slow_update(self.optimizer, losses.sum(), clip_norm=self.inner.svi.clip_norm)
        sums = {"tokens": total, "loss": losses.sum(), "reconstruction": losses.sum()}
        return SlowStep(sums, update.norm, skipped=update.skipped, sequence_losses=losses)

    def language_model(self, at: int) -> LanguageModel:  # noqa: D102
        return self.inner.language_model(at)

    def flops(self, batch: TokenBatch, fast_steps: Sequence[Any] = ()) -> int:  # noqa: D102
        return self.inner.flops(batch, fast_steps)


def langevin_trained(settings: Settings, data: Data, folder: Path, step_size: float) -> LoadedRun:
    """A finished run with a `LangevinLearner`: trained now, gone on with, or taken as it is.

    Raises:
        SystemExit: the folder holds a run with other settings, or the training was interrupted.
    """
    run = RunDirectory(folder)
    if not run.exists:
        run = RunDirectory.create(folder, settings, data.tokenizer)
    elif run.settings != settings:
        sys.exit(f"{folder} holds a run with other settings: remove it, or choose another --runs")
    trainer = Trainer(settings, data, run)
    assert isinstance(trainer.learner, ThoughtLearner)
    trainer.learner = LangevinLearner(trainer.learner, step_size)
    trainer.resume()
    print(f"training {folder}", flush=True)
    if not trainer.fit():
        sys.exit(130)
    return load_run(folder, device=settings.training.device)
