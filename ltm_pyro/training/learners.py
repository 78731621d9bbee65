"""Learners: how a kind of model takes one slow step. The trainer around them is the same for every kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ltm_pyro.baselines import Baseline
from ltm_pyro.batch import TokenBatch
from ltm_pyro.components import autocast_type, build_baseline, build_guide, build_model
from ltm_pyro.config import Settings
from ltm_pyro.decoder.tied import TiedTransformer
from ltm_pyro.errors import LTMError
from ltm_pyro.flops import DecoderSize, slow_step_flops
from ltm_pyro.infer.fast_slow import FastSlowSVI
from ltm_pyro.infer.slow_update import slow_update
from ltm_pyro.infer.subsampling import FastStep, planned_steps
from ltm_pyro.infer.warm_start import PosteriorTable
from ltm_pyro.language_model import LanguageModel, ThoughtLanguageModel
from ltm_pyro.ranks import Ranks, present_ranks
from ltm_pyro.sharding import Sharding
from ltm_pyro.training.optimizer import build_optimizer, refuse_shared_weights
from ltm_pyro.training.run import fast_config
from ltm_pyro.training.schedules import fast_lr, kl_weight

__all__ = ["BaselineLearner", "Learner", "SlowStep", "ThoughtLearner", "build_learner"]


class SlowStep(NamedTuple):
    """What one slow step saw; tensors stay on the device.

    ``sums`` are nats of the rank's whole batch by name, ``loss`` among them, and its scored ``tokens``;
    ``gradient_norm`` is that of all ranks, before clipping. ``fast_steps`` are what each micro-batch's ran on; empty
    where there are none to take. A step is ``skipped`` where the loss or its gradient is not finite, on any rank:
    weights and moments are as before it. ``sequence_losses`` (B,) are the rank's own, None where not known apart.
    """

    sums: dict[str, Tensor]
    gradient_norm: Tensor
    fast_steps: tuple[tuple[FastStep, ...], ...] = ()
    skipped: bool = False
    sequence_losses: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        """Nats per scored token."""
        return self.sums["loss"] / self.sums["tokens"]


class Learner(ABC):
    """A model with its slow optimiser.

    Attributes: ``modules`` are what a checkpoint keeps, under the names that it has there; ``optimizer`` moves them;
    ``starts`` are posteriors that outlive a step, None where there are none. ``sharding`` is how the weights lie in
    parts on the ranks, None where each has them all.
    """

    settings: Settings
    ranks: Ranks
    modules: nn.ModuleDict
    optimizer: torch.optim.AdamW
    starts: PosteriorTable | None = None
    sharding: Sharding | None = None
    sharded_methods: ClassVar[tuple[str, ...]] = ()
    """Methods of the model, besides its forward, that go through its network."""

    @abstractmethod
    def step(self, batch: TokenBatch, *, at: int, seed: int) -> SlowStep:
        """Takes slow step ``at`` (0, 1, …) on a batch, with the noise of ``seed``."""

    @property
    def network(self) -> TiedTransformer:
        """The Transformer in the model, whose weights can lie in parts on the ranks.

        Raises:
            LTMError: a learner that has none, or steps through it in a way of its own.
        """
        raise LTMError(f"{type(self).__name__} cannot train with training.shard=true: leave it out")

    def shard(self, device: torch.device) -> None:
        """Moves the model to a device, its network's weights in parts; the optimiser is a new one.

        Priors and guides stay whole on every rank.
        """
        model, kept = self.modules["model"], [self.modules[name] for name in self.modules if name != "model"]
        kept += [module for name, module in model.named_children() if name == "prior"]
        for module in kept:
            module.to(device)
        self.sharding = Sharding.of(
            model,
            self.network,
            self.ranks,
            device,
            ignored=[parameter for module in kept for parameter in module.parameters()],
            autocast=autocast_type(self.settings),
            methods=self.sharded_methods,
        )
        self.optimizer = build_optimizer(self.modules, self.settings.training)

    def stepping(self) -> AbstractContextManager[None]:
        """Inside, a slow step is taken."""
        return nullcontext() if self.sharding is None else self.sharding.stepping()

    def whole(self) -> AbstractContextManager[None]:
        """Inside, every rank holds all weights, and does with the model as it likes but for a slow step."""
        return nullcontext() if self.sharding is None else self.sharding.whole()

    @abstractmethod
    def language_model(self, at: int) -> LanguageModel:
        """The model as it is now, its settings those of step ``at``."""

    @abstractmethod
    def flops(self, batch: TokenBatch, fast_steps: Sequence[Sequence[FastStep]] = ()) -> int:
        """Floating point operations of `step` on a batch, by `ltm_pyro.flops`, from its sizes alone.

        Args:
            batch: the sequences.
            fast_steps: `SlowStep.fast_steps`, where an early stop can make them less; empty takes the configured ones.
        """

    def rates(self, at: int) -> dict[str, float]:
        """The learning rates at step ``at``, by the names of metrics.jsonl."""
        return {"slow_lr": self.optimizer.param_groups[0]["lr"]}


class ThoughtLearner(Learner):
    """A Latent Thought Language Model, by fast and slow steps.

    Args:
        settings: of the run.
        vocab_size: V.
        device: where the weights go.
        posteriors: folder of a warm start's table.
    """

    sharded_methods = ("stem",)

    def __init__(self, settings: Settings, vocab_size: int, device: torch.device, posteriors: Path):
        training, inference = settings.training, settings.inference
        self.settings = settings
        self.ranks = present_ranks()
        self.model = build_model(settings, vocab_size).to(device)
        self.guide = build_guide(settings, self.model).to(device)
        self.modules = nn.ModuleDict({"model": self.model, "guide": self.guide})
        refuse_shared_weights(self.modules)
        self.optimizer = build_optimizer(self.modules, training)
        if settings.decoder.compile:
            self.model.decoder.compile(dynamic=False)
        self.starts = PosteriorTable(posteriors) if inference.warm_start else None
        self.svi = FastSlowSVI(
            self.model,
            self.guide,
            fast=fast_config(settings),
            slow=self.optimizer,
            clip_norm=training.clip_norm,
            autocast=autocast_type(settings),
            free_bits=inference.free_bits,
            starts=self.starts,
            ranks=self.ranks,
        )

    def step(self, batch: TokenBatch, *, at: int, seed: int) -> SlowStep:  # noqa: D102
        with self.stepping():
            info = self.svi.step(
                batch,
                micro_batch_size=self.settings.training.micro_batch_size,
                seed=seed,
                lr=fast_lr(self.settings.inference, self.settings.training, at),
                kl_weight=kl_weight(self.settings.inference, self.settings.training, at),
            )
        sums = {"tokens": info.num_scored.sum(), "loss": info.loss * info.total}
        if info.terms is not None:
            # A point estimate has no KL; what stands in its place is the negative log-prior.
            name = "kl" if self.guide.has_density else "negative_log_prior"
            sums |= {"reconstruction": -info.terms.log_likelihood.sum(), name: info.terms.kl.sum()}
        if info.guide_loss is not None:
            sums["guide_loss"] = info.guide_loss * info.total
        if info.diverged is not None:
            sums["diverged_sequences"] = info.diverged.sum()
        fast_steps = tuple(posterior.fast_steps for posterior in info.posteriors)
        losses = None if info.terms is None else -info.terms.elbo
        return SlowStep(sums, info.gradient_norm, fast_steps, info.skipped, losses)

    @property
    def network(self) -> TiedTransformer:  # noqa: D102
        return self.model.decoder

    def shard(self, device: torch.device) -> None:  # noqa: D102
        super().shard(device)
        self.svi.slow = self.optimizer

    def flops(self, batch: TokenBatch, fast_steps: Sequence[Sequence[FastStep]] = ()) -> int:  # noqa: D102
        size = self.settings.training.micro_batch_size or len(batch)
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        return sum(
            slow_step_flops(
                DecoderSize.of(self.model.decoder),
                len(part),
                part.tokens.shape[1],
                int(part.num_scored.sum()),
                fast_steps=steps,
                slow_gradient=self.svi.fast.slow_gradient,
            )
            for part, steps in zip(parts, fast_steps or map(self._planned, parts), strict=True)
        )

    def _planned(self, batch: TokenBatch) -> tuple[FastStep, ...]:
        return planned_steps(batch, self.svi.fast, self.svi.fast_steps())

    def language_model(self, at: int) -> LanguageModel:  # noqa: D102
        return ThoughtLanguageModel(self.svi, fast_lr(self.settings.inference, self.settings.training, at))

    def rates(self, at: int) -> dict[str, float]:  # noqa: D102
        inference, training = self.settings.inference, self.settings.training
        natural = self.svi.guide.natural_under(self.svi.fast.optimizer)
        fast = inference.natural_lr if natural else fast_lr(inference, training, at)
        return super().rates(at) | {"fast_lr": fast, "kl_weight": kl_weight(inference, training, at)}


class BaselineLearner(Learner):
    """A model without thoughts, by gradient descent on its `Baseline.sequence_loss`, per scored token.

    Args:
        settings: of the run.
        vocab_size: V.
        device: where the weights go.
    """

    sharded_methods = ("sequence_loss",)

    def __init__(self, settings: Settings, vocab_size: int, device: torch.device):
        self.settings = settings
        self.ranks = present_ranks()
        self.model: Baseline = build_baseline(settings, vocab_size).to(device)
        self.modules = nn.ModuleDict({"model": self.model})
        refuse_shared_weights(self.modules)
        self.optimizer = build_optimizer(self.modules, settings.training)
        if settings.decoder.compile:
            self.model.network.hidden = torch.compile(self.model.network.hidden, dynamic=False)  # type: ignore[method-assign]

    @property
    def network(self) -> TiedTransformer:  # noqa: D102
        return self.model.network

    def step(self, batch: TokenBatch, *, at: int, seed: int) -> SlowStep:  # noqa: D102
        with self.stepping():
            return self._step(batch, seed)

    def _step(self, batch: TokenBatch, seed: int) -> SlowStep:
        training = self.settings.training
        size = training.micro_batch_size or len(batch)
        self.optimizer.zero_grad(set_to_none=True)
        total = self.ranks.sum(batch.num_scored.sum()).clamp(min=1)
        losses = []
        for start in range(0, len(batch), size):
            part = batch if size >= len(batch) else batch[slice(start, start + size)]
            losses.append(self.model.sequence_loss(part, seed=seed))
            (losses[-1].sum() / total).backward()
        each = torch.cat(losses).detach()
        loss = torch.stack([part.detach().sum() for part in losses]).sum()
        update = slow_update(self.optimizer, loss, clip_norm=training.clip_norm, ranks=self.ranks)
        sums = {"tokens": batch.num_scored.sum(), "loss": loss}
        return SlowStep(sums, update.norm, (), update.skipped, each)

    def flops(self, batch: TokenBatch, fast_steps: Sequence[Sequence[FastStep]] = ()) -> int:  # noqa: D102
        return self.model.step_flops(batch)

    def language_model(self, at: int) -> LanguageModel:  # noqa: D102
        return self.model


def build_learner(
    settings: Settings, vocab_size: int, class_names: tuple[str, ...], device: torch.device, posteriors: Path
) -> Learner:
    """The learner of a run, its weights fresh from torch's global stream.

    Args:
        settings: of the run.
        vocab_size: V.
        class_names: the data's classes.
        device: where the weights go.
        posteriors: folder of a warm start's table.

    Raises:
        LTMError: settings that do not fit each other or the data.
    """
    if settings.model.name != "ltm":
        if class_names:
            raise LTMError(
                f"data.label_column is set, but model {settings.model.name!r} reads no labels: leave it out, or take "
                "--model ltm with a prior that does"
            )
        return BaselineLearner(settings, vocab_size, device)
    learner = ThoughtLearner(settings, vocab_size, device, posteriors)
    learner.model.prior.check_classes(class_names)
    return learner
