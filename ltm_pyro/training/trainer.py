"""The trainer: slow steps with their schedule, validations, checkpoints, and a resume that is exact."""

from __future__ import annotations

import math
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from ltm_pyro.config import Settings
from ltm_pyro.data import Data, Sampler
from ltm_pyro.data.prefetch import Prefetched
from ltm_pyro.errors import LTMError
from ltm_pyro.noise import mix64
from ltm_pyro.training.checkpoints import Checkpoint
from ltm_pyro.training.initial_weights import load_initial_weights
from ltm_pyro.training.learners import SlowStep, build_learner
from ltm_pyro.training.metrics import MetricsLog
from ltm_pyro.training.optimizer import moments, restore_moments
from ltm_pyro.training.run import RunDirectory, choose_device, load_weights
from ltm_pyro.training.schedules import slow_lr
from ltm_pyro.training.signals import StopRequest

__all__ = ["Observer", "Trainer"]

_COMPILED_LENGTHS = 64  # a compiled network is compiled once for every length, so N is a multiple of so many tokens


class Observer:
    """What a trainer tells of its progress; override what is of interest."""

    def step(self, row: dict[str, Any]) -> None:
        """A training row of metrics was written."""

    def validation(self, row: dict[str, Any]) -> None:
        """A validation row of metrics was written."""

    def saved(self, path: Path) -> None:
        """A checkpoint is complete."""


class Trainer:
    """Trains the model of a run, of whatever kind.

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
        self.learner = build_learner(
            settings, data.tokenizer.vocab_size, data.class_names, self.device, run.path / "posteriors"
        )
        if not run.store().paths():  # a checkpoint's weights would replace them
            load_initial_weights(self.learner.modules, settings, data.tokenizer)
        self.optimizer = self.learner.optimizer
        self.sampler = data.training.sampler(training.batch_size, seed=training.seed)
        self.batches = Prefetched(self.sampler, data.training.batch, settings.data.prefetch)
        chosen = Sampler(len(data.validation), min(training.eval_sequences, len(data.validation)))
        self._validation = sorted(next(iter(chosen)))
        self.store = run.store(training.keep_checkpoints)
        events = run.path / "tensorboard" if training.tensorboard else None
        self.metrics = MetricsLog(run.path / "metrics.jsonl", tensorboard=events)
        self.step = 0
        self.tokens = 0  # scored by all steps so far
        self.flops = 0  # of all steps so far
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
        starts = self.learner.starts
        if not self.store.paths():
            self.metrics.rewind(-1)
            if starts is not None:
                starts.clear()
            return
        checkpoint = self.store.latest()
        load_weights(self.learner.modules, checkpoint)
        restore_moments(self.optimizer, self.learner.modules, checkpoint.optimizer)
        self.tokens, self.flops = self._spent_until(checkpoint)
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
                taken = self._take_step()
                last = self.step == training.steps
                if last or self.step % training.log_every == 0:
                    self._log(taken)
                paused = time.perf_counter()
                if last or self.step % training.eval_every == 0:
                    self._validate()
                if last or stop or self.step % training.checkpoint_every == 0:
                    self._require_finite(taken)
                    self._save()
                # The speed is that of training: what else was done does not count.
                began, before = self._clock
                self._clock = (began + time.perf_counter() - paused, before)
        return self.step >= training.steps

    def _take_step(self) -> SlowStep:
        training = self.settings.training
        for group in self.optimizer.param_groups:
            group["lr"] = slow_lr(training, self.step)
        batch = self.batches(next(self.sampler))
        if self.settings.decoder.compile:
            batch = batch.rounded_up(_COMPILED_LENGTHS)
        pyro.set_rng_seed(_global_seed(training.seed, self.step))
        taken = self.learner.step(batch.to(self.device), at=self.step, seed=_step_seed(training.seed, self.step))
        self.step += 1
        self.tokens += int(batch.num_scored.sum())
        self.flops += self.learner.flops(batch, taken.fast_steps)
        self._unread.append(taken.sums)
        return taken

    def _log(self, taken: SlowStep) -> None:
        self._require_finite(taken)
        sums = self._read_sums()
        tokens = sums.pop("tokens")
        row: dict[str, Any] = {"step": self.step, "split": "train"}
        row |= {name: value / tokens for name, value in sums.items()}
        row["gradient_norm"] = float(taken.gradient_norm)
        row |= self.learner.rates(self.step - 1)
        row["epoch"] = self.sampler.progress
        row |= self._spent()
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
        self.learner.modules.eval()
        model = self.learner.language_model(self.step)
        report = model.evaluate(
            self.data.validation,
            self._validation,
            samples=model.validation_samples,
            batch_size=training.micro_batch_size or training.batch_size,
            seed=training.seed,
        )
        self.learner.modules.train()
        row = {"step": self.step, "split": "validation", **report.to_dict(), **self._spent()}
        self.metrics.append(row)
        self.observer.validation(row)

    def _save(self) -> None:
        starts = self.learner.starts
        path = self.store.save(
            Checkpoint(
                step=self.step,
                model=self.learner.modules.state_dict(),
                optimizer=moments(self.optimizer, self.learner.modules),
                state={
                    "sampler": self.sampler.state_dict(),
                    "sums": self._read_sums(),
                    "tokens": self.tokens,
                    "flops": self.flops,
                },
                posteriors={} if starts is None else starts.unwritten(),
            )
        )
        if starts is not None:
            starts.flush()
        self.observer.saved(path)

    def _spent_until(self, checkpoint: Checkpoint) -> tuple[int, int]:
        """Tokens and operations of the steps behind a checkpoint; counted again where an older version kept none."""
        state, training = checkpoint.state, self.settings.training
        if "tokens" in state and "flops" in state:
            return state["tokens"], state["flops"]
        warnings.warn(
            f"the checkpoint of step {checkpoint.step} is of an older version, which counted neither tokens nor "
            "operations: they are counted again, as if all steps had been taken with the present settings",
            stacklevel=2,
        )
        sampler = self.data.training.sampler(training.batch_size, seed=training.seed)
        tokens = flops = 0
        for indices in islice(sampler, checkpoint.step):
            batch = self.data.training.batch(indices)
            tokens, flops = tokens + int(batch.num_scored.sum()), flops + self.learner.flops(batch)
        return tokens, flops

    def _spent(self) -> dict[str, int]:
        return {"training_tokens": self.tokens, "training_flops": self.flops}

    def _require_finite(self, taken: SlowStep) -> None:
        if not (math.isfinite(float(taken.loss)) and math.isfinite(float(taken.gradient_norm))):
            saved = self.store.paths()
            where = f"the last checkpoint, {saved[0].name}, stands" if saved else "no checkpoint was written yet"
            raise LTMError(
                f"the loss or its gradient is not finite at step {self.step}: lower training.slow_lr or "
                f"inference.fast_lr; {where}"
            )


def _step_seed(seed: int, step: int) -> int:
    # Distinct for every pair below 2**32, and so are the streams that `SequenceGenerator` mixes from it.
    return (seed << 32) + step


def _global_seed(seed: int, step: int) -> int:
    """A seed below 2**32, which numpy asks for, that depends on both numbers."""
    mixed = mix64(mix64(torch.tensor(seed)) + step)
    return int(mixed) % 2**32
