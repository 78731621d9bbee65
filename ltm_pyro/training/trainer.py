"""The trainer: slow steps with their schedule, validations, checkpoints, and a resume that is exact."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ltm_pyro.components import build_guide, build_model
from ltm_pyro.config import Settings, TrainingSettings
from ltm_pyro.data import Data, Sampler
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import evaluate
from ltm_pyro.infer.fast_slow import FastSlowSVI, StepInfo
from ltm_pyro.infer.warm_start import PosteriorTable
from ltm_pyro.noise import mix64
from ltm_pyro.priors import Prior
from ltm_pyro.training.checkpoints import Checkpoint
from ltm_pyro.training.initial_weights import load_initial_weights
from ltm_pyro.training.metrics import MetricsLog
from ltm_pyro.training.run import RunDirectory, autocast_type, choose_device, fast_config, load_weights
from ltm_pyro.training.schedules import fast_lr, kl_weight, slow_lr
from ltm_pyro.training.signals import StopRequest

__all__ = ["Observer", "Trainer", "build_optimizer"]


class Observer:
    """What a trainer tells of its progress; override what is of interest."""

    def step(self, row: dict[str, Any]) -> None:
        """A training row of metrics was written."""

    def validation(self, row: dict[str, Any]) -> None:
        """A validation row of metrics was written."""

    def saved(self, path: Path) -> None:
        """A checkpoint is complete."""


class Trainer:
    """Trains the model of a run.

    The noise and every other draw of slow step k come from (seed, k) alone, so that a resumed run needs no generator's
    state and equals the uninterrupted one bit for bit on the CPU.

    Args:
        settings: of the run.
        data: what to train and validate on.
        run: where metrics and checkpoints go.
        observer: told of each row and checkpoint.

    Raises:
        LTMError: settings that do not fit each other, the data or the machine.
    """

    def __init__(self, settings: Settings, data: Data, run: RunDirectory, observer: Observer | None = None):
        training = settings.training
        self.settings = settings
        self.data = data
        self.run = run
        self.observer = observer or Observer()
        self.device = choose_device(training.device)
        torch.manual_seed(training.seed)
        self.model = build_model(settings, data.tokenizer.vocab_size).to(self.device)
        self.guide = build_guide(settings, self.model).to(self.device)
        self.model.prior.check_classes(data.class_names)
        modules = nn.ModuleDict({"model": self.model, "guide": self.guide})
        _refuse_shared_weights(modules)
        if not run.store().paths():  # a checkpoint's weights would replace them
            load_initial_weights(modules, settings, data.tokenizer)
        self.optimizer = build_optimizer(modules, training)
        if settings.decoder.compile:
            self.model.decoder.compile()
        self.svi = FastSlowSVI(
            self.model,
            self.guide,
            fast=fast_config(settings),
            slow=self.optimizer,
            clip_norm=training.clip_norm,
            autocast=autocast_type(settings),
            free_bits=settings.inference.free_bits,
            starts=PosteriorTable(run.path / "posteriors") if settings.inference.warm_start else None,
        )
        self.sampler = Sampler(len(data.train), training.batch_size, seed=training.seed)
        chosen = Sampler(len(data.validation), min(training.eval_sequences, len(data.validation)))
        self._validation = sorted(next(iter(chosen)))
        self.store = run.store(training.keep_checkpoints)
        events = run.path / "tensorboard" if training.tensorboard else None
        self.metrics = MetricsLog(run.path / "metrics.jsonl", tensorboard=events)
        self.step = 0
        # Sums over the steps since the last row of metrics, first as tensors that wait on the device, and since when.
        self._unread: list[dict[str, Tensor]] = []
        self._sums: dict[str, float] = {}
        self._clock = (time.perf_counter(), 0.0)

    def resume(self) -> None:
        """Goes back to the newest whole checkpoint, or to the start where there is none yet.

        Raises:
            LTMError: every checkpoint is damaged, or they are of another model or of data with other classes.
        """
        if self.run.class_names != self.data.class_names:
            raise LTMError(
                f"the data have the classes {', '.join(self.data.class_names) or 'none'}, the run was started with "
                f"{', '.join(self.run.class_names) or 'none'}; resume with the data that it was started with"
            )
        starts = self.svi.starts
        if not self.store.paths():
            self.metrics.rewind(-1)
            if starts is not None:
                starts.clear()
            return
        checkpoint = self.store.latest()
        load_weights(self.model, self.guide, checkpoint)
        _restore_moments(self.optimizer, self._names(), checkpoint.optimizer)
        self.sampler.load_state_dict(checkpoint.state["sampler"])
        self._sums = dict(checkpoint.state["sums"])
        self.step = checkpoint.step
        if starts is not None:
            starts.load_unwritten(checkpoint.posteriors)
            starts.flush()
        self.metrics.rewind(self.step)

    def fit(self) -> bool:
        """Trains up to the configured number of steps; returns whether it got there.

        SIGINT and SIGTERM end it after the present step, with a checkpoint.

        Raises:
            LTMError: the loss is no longer finite, or the disk is full; the last checkpoint stands.
        """
        training = self.settings.training
        if self.step == 0:
            self._validate()
        self._clock = (time.perf_counter(), self._sums.get("tokens", 0.0))
        with StopRequest() as stop:
            while self.step < training.steps and not stop:
                info = self._take_step()
                last = self.step == training.steps
                if last or self.step % training.log_every == 0:
                    self._log(info)
                paused = time.perf_counter()
                if last or self.step % training.eval_every == 0:
                    self._validate()
                if last or stop or self.step % training.checkpoint_every == 0:
                    self._require_finite(info)
                    self._save()
                # The speed is that of training: what else was done does not count.
                began, before = self._clock
                self._clock = (began + time.perf_counter() - paused, before)
        return self.step >= training.steps

    def _take_step(self) -> StepInfo:
        training = self.settings.training
        for group in self.optimizer.param_groups:
            group["lr"] = slow_lr(training, self.step)
        batch = self.data.train.batch(next(self.sampler)).to(self.device)
        pyro.set_rng_seed(_global_seed(training.seed, self.step))
        info = self.svi.step(
            batch,
            micro_batch_size=training.micro_batch_size,
            seed=_step_seed(training.seed, self.step),
            lr=fast_lr(self.settings.inference, training, self.step),
            kl_weight=kl_weight(self.settings.inference, self.step),
        )
        self.step += 1
        sums = {"tokens": info.num_scored.sum(), "loss": info.loss * info.num_scored.sum()}
        if info.terms is not None:
            # A point estimate has no KL; what stands in its place is the negative log-prior.
            name = "kl" if self.guide.has_density else "negative_log_prior"
            sums |= {"reconstruction": -info.terms.log_likelihood.sum(), name: info.terms.kl.sum()}
        if info.guide_loss is not None:
            sums["guide_loss"] = info.guide_loss * info.num_scored.sum()
        self._unread.append(sums)
        return info

    def _log(self, info: StepInfo) -> None:
        self._require_finite(info)
        sums = self._read_sums()
        tokens = sums.pop("tokens")
        row: dict[str, Any] = {"step": self.step, "split": "train"}
        row |= {name: value / tokens for name, value in sums.items()}
        row["gradient_norm"] = float(info.gradient_norm)
        row["slow_lr"] = self.optimizer.param_groups[0]["lr"]
        row["fast_lr"] = fast_lr(self.settings.inference, self.settings.training, self.step - 1)
        row["epoch"] = self.sampler.progress
        # The reads above have waited for the device, so the clock covers the work.
        began, before = self._clock
        row["tokens_per_s"] = (tokens - before) / (time.perf_counter() - began)
        self._sums, self._clock = {}, (time.perf_counter(), 0.0)
        self.metrics.append(row)
        self.observer.step(row)

    def _read_sums(self) -> dict[str, float]:
        """Sums over the steps since the last row; a checkpoint keeps them, so that a resumed run averages the same."""
        for step in self._unread:
            self._sums = {name: self._sums.get(name, 0.0) + float(value) for name, value in step.items()}
        self._unread = []
        return dict(self._sums)

    def _validate(self) -> None:
        training = self.settings.training
        self.model.eval()
        self.guide.eval()
        report = evaluate(
            self.svi,
            self.data.validation,
            self._validation,
            fast_lr=fast_lr(self.settings.inference, training, self.step),
            batch_size=training.micro_batch_size or training.batch_size,
            seed=training.seed,
            device=self.device,
        )
        self.model.train()
        self.guide.train()
        row = {"step": self.step, "split": "validation", **report.to_dict()}
        self.metrics.append(row)
        self.observer.validation(row)

    def _save(self) -> None:
        modules = nn.ModuleDict({"model": self.model, "guide": self.guide})
        path = self.store.save(
            Checkpoint(
                step=self.step,
                model=modules.state_dict(),
                optimizer=_moments(self.optimizer, self._names()),
                state={"sampler": self.sampler.state_dict(), "sums": self._read_sums()},
                posteriors={} if self.svi.starts is None else self.svi.starts.unwritten(),
            )
        )
        if self.svi.starts is not None:
            self.svi.starts.flush()
        self.observer.saved(path)

    def _require_finite(self, info: StepInfo) -> None:
        if not (math.isfinite(float(info.loss)) and math.isfinite(float(info.gradient_norm))):
            saved = self.store.paths()
            where = f"the last checkpoint, {saved[0].name}, stands" if saved else "no checkpoint was written yet"
            raise LTMError(
                f"the loss or its gradient is not finite at step {self.step}: lower training.slow_lr or "
                f"inference.fast_lr; {where}"
            )

    def _names(self) -> dict[Tensor, str]:
        modules = nn.ModuleDict({"model": self.model, "guide": self.guide})
        return {parameter: name for name, parameter in modules.named_parameters()}


def build_optimizer(modules: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone: the weights of linear maps, attentions and embeddings.

    Norms and all that is a prior's own, be it a mean or a network, are left as they are.
    """
    kinds = {nn.Linear: "weight", nn.Embedding: "weight", nn.MultiheadAttention: "in_proj_weight"}
    maps = {getattr(m, name) for m in modules.modules() for kind, name in kinds.items() if isinstance(m, kind)}
    matrices = maps - {p for m in modules.modules() if isinstance(m, Prior) for p in m.parameters()}
    parameters = [p for p in modules.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p in matrices], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.slow_lr, betas=(settings.beta1, settings.beta2))


def _step_seed(seed: int, step: int) -> int:
    # Distinct for every pair below 2**32, and so are the streams that `SequenceGenerator` mixes from it.
    return (seed << 32) + step


def _refuse_shared_weights(modules: nn.Module) -> None:
    names: dict[Tensor, str] = {}
    for name, parameter in modules.named_parameters(remove_duplicate=False):
        if parameter in names:
            raise LTMError(
                f"the weight {names[parameter]} is also {name}, and a checkpoint keeps each weight once: a guide must "
                "not hold its model as a module (keep it in a tuple), nor a prior tie its weights"
            )
        names[parameter] = name


def _global_seed(seed: int, step: int) -> int:
    """A seed below 2**32, which numpy asks for, that depends on both numbers."""
    mixed = mix64(mix64(torch.tensor(seed)) + step)
    return int(mixed) % 2**32


def _moments(optimizer: torch.optim.Optimizer, names: dict[Tensor, str]) -> dict[str, Tensor]:
    return {
        f"{names[parameter]}.{moment}": value
        for parameter, state in optimizer.state.items()
        for moment, value in state.items()
    }


def _restore_moments(optimizer: torch.optim.Optimizer, names: dict[Tensor, str], moments: dict[str, Tensor]) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            prefix = f"{names[parameter]}."
            found = {key[len(prefix) :]: value for key, value in moments.items() if key.startswith(prefix)}
            for moment, value in found.items():
                # Adam counts its steps on the host.
                place = value if moment == "step" else value.to(parameter.device)
                optimizer.state[parameter][moment] = place.clone()
