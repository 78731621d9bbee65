"""The trainer: slow steps with their schedule, validations, checkpoints, and a resume that is exact."""

from __future__ import annotations

import copy
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from ltm_pyro.config import Settings
from ltm_pyro.data import Data, Sampler
from ltm_pyro.data.prefetch import Prefetched
from ltm_pyro.errors import DivergenceError, LTMError
from ltm_pyro.evaluation.together import evaluate_together
from ltm_pyro.noise import mix64
from ltm_pyro.ranks import RankLost, present_ranks
from ltm_pyro.sharding import joined, local_part
from ltm_pyro.training.checkpoint_state import not_finite
from ltm_pyro.training.checkpoints import Checkpoint
from ltm_pyro.training.initial_weights import load_initial_weights
from ltm_pyro.training.learners import SlowStep, build_learner
from ltm_pyro.training.metrics import MetricsLog
from ltm_pyro.training.optimizer import moments, restore_moments
from ltm_pyro.training.provenance import recorded_session
from ltm_pyro.training.run import RunDirectory, choose_device, load_weights
from ltm_pyro.training.schedules import slow_lr
from ltm_pyro.training.sharded import check_sharding
from ltm_pyro.training.signals import OutOfTime, StopRequest
from ltm_pyro.training.sinks import build_sinks
from ltm_pyro.training.skipping import SkippedSteps, describe_sequences

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
    """Trains the model of a run, of whatever kind; alone, or as one of the ranks that train it together.

    Ranks share out the sequences of each slow step and of each validation; what comes of them is what one process would
    have made of all. Rank 0 alone writes.

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
        self.ranks = present_ranks()
        if training.batch_size < self.ranks.size:
            raise LTMError(
                f"{self.ranks.size} ranks cannot share a batch of training.batch_size={training.batch_size} sequences: "
                "start fewer, or take a larger batch"
            )
        self.device = choose_device(training.device, self.ranks)
        torch.manual_seed(training.seed)
        sharded = training.shard and self.ranks.size > 1
        if sharded:
            check_sharding(settings, self.ranks)
        # A model of which a device is to hold a part is made beside it.
        device = torch.device("cpu") if sharded else self.device
        self.learner = build_learner(
            settings, data.tokenizer.vocab_size, data.class_names, device, run.path / "posteriors"
        )
        if not run.store().paths():  # a checkpoint's weights would replace them
            load_initial_weights(self.learner.modules, settings, data.tokenizer)
        self.ranks.align(self.learner.modules)
        if sharded:
            self.learner.shard(self.device)
        self.optimizer = self.learner.optimizer
        self.sampler = data.training.sampler(training.batch_size, seed=training.seed)
        batch, share = data.training.batch, self.ranks.share  # the thread must not hold the trainer
        self.batches = Prefetched(self.sampler, lambda indices: batch(share(indices)), settings.data.prefetch)
        chosen = Sampler(len(data.validation), min(training.eval_sequences, len(data.validation)))
        self._validation = sorted(next(iter(chosen)))
        self.store = run.store(training.keep_checkpoints)
        self.metrics = MetricsLog(run.path / "metrics.jsonl", build_sinks(settings, run.path))
        self.skipping = SkippedSteps(training.max_skipped_steps)
        self._stop = StopRequest()
        # An update that has begun is brought to its end, whatever hurry there is.
        self.optimizer.register_step_pre_hook(lambda *_: self._stop.finish())
        self.step = 0
        self._saved = 0
        self._crossed = False  # whether the last step's batch went over an epoch's end
        self.tokens = 0  # scored by all ranks' steps up to when they last told each other
        self.flops = 0  # likewise
        self._untold = [0, 0]  # this rank's tokens and operations since
        # Sums over the steps since the last row of metrics, first as tensors that wait on the device, and since when.
        self._unread: list[dict[str, Tensor]] = []
        self._sums: dict[str, float] = {}
        self._clock = (time.perf_counter(), 0.0)

    def resume(self) -> None:
        """Goes back to the newest whole checkpoint, or to the start where there is none yet.

        Raises:
            LTMError: every checkpoint is damaged, or they are of another model or of data with other classes; another
                trainer works on the run.
        """
        with self._lock():
            self._resume()

    def _resume(self) -> None:
        if self.run.class_names != self.data.class_names:
            raise LTMError(
                f"the data have the classes {', '.join(self.data.class_names) or 'none'}, the run was started with "
                f"{', '.join(self.run.class_names) or 'none'}; resume with the data that it was started with"
            )
        starts = self.learner.starts
        if not self.store.paths():
            self._rewind(-1)
            if starts is not None:
                starts.clear(write=self.ranks.is_main)
            return
        checkpoint = self.store.latest()
        load_weights(self.learner.modules, checkpoint)
        restore_moments(self.optimizer, self.learner.modules, checkpoint.optimizer)
        self.tokens, self.flops = self._spent_until(checkpoint)
        self.sampler.load_state_dict(checkpoint.state["sampler"])
        self._sums = dict(checkpoint.state["sums"])
        self.skipping.load_state_dict(checkpoint.state.get("skipped", {}))
        self.step = self._saved = checkpoint.step
        if starts is not None:
            starts.load_unwritten(checkpoint.posteriors)
        self._flush_starts()
        self._rewind(self.step)

    def fit(self) -> bool:
        """Trains up to the configured number of steps; returns whether it got there.

        SIGINT, SIGTERM and SIGUSR1 end it after the present step, with a checkpoint; a step that takes too long after
        one of the latter two is given up, and the checkpoint is of the step before.

        Raises:
            DivergenceError: the loss is not finite too often; the last checkpoint stands.
            LTMError: the disk is full, or another trainer works on the run; the last checkpoint stands.
            RankLost: another rank ended; the last checkpoint stands.
        """
        if self.step >= self.settings.training.steps and self._is_validated():
            return True
        # Ranks give up nothing on their own: the others would wait for their sums.
        alone = self.ranks.size == 1
        with (
            self._lock(),
            self.metrics,
            recorded_session(self.run.path, lambda: self.step, self.device),
            StopRequest(self.settings.training.grace_seconds if alone else None, alone) as self._stop,
        ):
            try:
                self._fit()
            except OutOfTime:  # what is there is that of the last whole step
                if self._saved != self.step:
                    self._save()
            except RankLost as error:
                raise RankLost(f"{error}; {self._what_stands()}: start the job again with --resume") from error
            finally:
                self.batches.close()
        return self.step >= self.settings.training.steps

    def _fit(self) -> None:
        training, stop = self.settings.training, self._stop
        if (self.step == training.steps or self.step % training.eval_every == 0) and not self._is_validated():
            self._validate()
        self._clock = (time.perf_counter(), self._sums.get("tokens", 0.0))
        stopping = False
        while self.step < training.steps and not stopping:
            taken = self._take_step()
            last = self.step == training.steps
            if last or self.step % training.log_every == 0:
                self._log(taken)
            stopping = self.ranks.any(bool(stop))  # the signal may have reached one rank alone
            paused = time.perf_counter()
            if last or stopping or self.step % training.checkpoint_every == 0:
                self._save()
            # After the checkpoint, and not in a hurry: a run that goes on from there makes up for it.
            if last or (not stopping and self.step % training.eval_every == 0):
                self._validate()
                stopping = self.ranks.any(bool(stop))
            # The speed is that of training: what else was done does not count.
            began, before = self._clock
            self._clock = (began + time.perf_counter() - paused, before)
        if self._saved != self.step:
            self._save()

    def _is_validated(self) -> bool:
        rows = self.metrics.rows() if self.ranks.is_main else []
        return self.ranks.same(any(row["step"] == self.step and row["split"] == "validation" for row in rows))

    def _lock(self) -> AbstractContextManager[object]:
        """Rank 0 holds the run's lock for all."""
        return self.run.lock() if self.ranks.is_main else nullcontext()

    def _take_step(self) -> SlowStep:
        training = self.settings.training
        for group in self.optimizer.param_groups:
            group["lr"] = slow_lr(training, self.step)
        before = copy.copy(self.sampler)
        indices = next(self.sampler)
        # A sequence of the new epoch may have been another rank's in the old one, as late as in the step between them.
        crosses = self.sampler.epoch != before.epoch
        if crosses or self._crossed:
            self._exchange_starts()
        self._crossed = crosses
        batch = self.batches(indices)
        if self.settings.decoder.compile:
            batch = batch.rounded_up(_COMPILED_LENGTHS)
        pyro.set_rng_seed(_global_seed(training.seed, self.step))
        seed = _step_seed(training.seed, self.step)
        try:
            with self._stop.bounded():
                taken = self.learner.step(batch.to(self.device), at=self.step, seed=seed)
        except OutOfTime:
            self.sampler.load_state_dict(before.state_dict())
            raise
        self.step += 1
        self._untold[0] += int(batch.num_scored.sum())
        self._untold[1] += self.learner.flops(batch, taken.fast_steps)
        if taken.skipped:
            self._count_skipped(indices, taken)
        else:
            self.skipping.taken()
            self._unread.append(taken.sums)
        return taken

    def _count_skipped(self, indices: list[int], taken: SlowStep) -> None:
        """Warns of a step that was left out.

        Raises:
            DivergenceError: it was one too many.
        """
        too_many = self.skipping.skipped()
        here = not_finite({name: local_part(p) for name, p in self.learner.modules.named_parameters()})
        weight = next((name for name in self.ranks.gather(here) if name is not None), None)
        lost = int(self.ranks.sum(taken.sums.get("diverged_sequences", torch.tensor(0))))
        known = self.ranks.gather(None if taken.sequence_losses is None else taken.sequence_losses.cpu())
        losses = torch.cat([part for part in known if part is not None]) if None not in known else None
        what = describe_sequences(self.data.training, self.data.tokenizer, indices, losses, lost)
        what = what if weight is None else f"the weights {weight} are not finite"
        if not too_many and weight is None:
            if self.ranks.is_main:
                warnings.warn(f"step {self.step} is left out: {what}", stacklevel=3)
            return
        mend = (
            "lower training.slow_lr"
            if weight
            else "lower training.slow_lr, inference.fast_lr or natural_lr, or mend the texts"
        )
        raise DivergenceError(
            f"step {self.step} is left out ({self.skipping.in_a_row} in a row): {what}; {mend}; {self._what_stands()}"
        )

    def _what_stands(self) -> str:
        saved = self.store.paths()
        return f"the last checkpoint, {saved[0].name}, stands" if saved else "no checkpoint was written yet"

    def _log(self, taken: SlowStep) -> None:
        sums = self._read_sums()
        if not sums:
            return  # every step since the last row was left out
        tokens = sums.pop("tokens")
        diverged = sums.pop("diverged_sequences", None)
        row: dict[str, Any] = {"step": self.step, "split": "train"}
        row |= {name: value / tokens for name, value in sums.items()}
        row["gradient_norm"] = None if taken.skipped else float(taken.gradient_norm)
        row["skipped_steps"] = self.skipping.total
        row |= {} if diverged is None else {"diverged_sequences": int(diverged)}
        row |= self.learner.rates(self.step - 1)
        row["epoch"] = self.sampler.progress
        row |= self._spent()
        # The reads above have waited for the device, so the clock covers the work.
        began, before = self._clock
        row["tokens_per_s"] = (tokens - before) / (time.perf_counter() - began)
        self._sums, self._clock = {}, (time.perf_counter(), 0.0)
        if self.ranks.is_main:
            self.metrics.append(row)
        self.observer.step(row)

    def _read_sums(self) -> dict[str, float]:
        """Sums over the steps since the last row; a checkpoint keeps them, so that a resumed run averages the same."""
        if self._unread:
            here = {name: sum(float(step[name]) for step in self._unread) for name in self._unread[0]}
            told = self.ranks.sum(torch.tensor(list(here.values()), dtype=torch.float64)).tolist()
            self._sums = {name: self._sums.get(name, 0.0) + value for name, value in zip(here, told, strict=True)}
        self._unread = []
        return dict(self._sums)

    def _validate(self) -> None:
        training = self.settings.training
        self.learner.modules.eval()
        model = self.learner.language_model(self.step)
        try:
            with self._stop.bounded(), self.learner.whole():
                report = evaluate_together(
                    model,
                    self.data.validation,
                    self._validation,
                    ranks=self.ranks,
                    samples=model.validation_samples,
                    batch_size=training.micro_batch_size or training.batch_size,
                    seed=training.seed,
                )
        finally:
            self.learner.modules.train()
        row = {"step": self.step, "split": "validation", **report.to_dict(), **self._spent()}
        if self.ranks.is_main:
            self.metrics.append(row)
        self.observer.validation(row)

    def _save(self) -> None:
        starts = self.learner.starts
        self._exchange_starts()
        checkpoint = Checkpoint(
            step=self.step,
            model=joined(self.learner.modules.state_dict(), self.ranks),
            optimizer=joined(moments(self.optimizer, self.learner.modules), self.ranks),
            state={
                "sampler": self.sampler.state_dict(),
                "sums": self._read_sums(),
                "skipped": self.skipping.state_dict(),
            }
            | {name.removeprefix("training_"): value for name, value in self._spent().items()},
            posteriors={} if starts is None else starts.unwritten(),
        )
        if self.ranks.is_main:
            self.store.save(checkpoint)
        self.ranks.wait()
        self._flush_starts()
        self._saved = self.step
        self.observer.saved(self.store.path(self.step))

    def _exchange_starts(self) -> None:
        """Posteriors that outlive a step become known to all ranks."""
        if self.learner.starts is not None and self.ranks.size > 1:
            for fitted in self.ranks.gather(self.learner.starts.untold()):
                self.learner.starts.add_unwritten(fitted)

    def _flush_starts(self) -> None:
        if self.learner.starts is not None:
            self.learner.starts.flush(write=self.ranks.is_main)
            self.ranks.wait()  # the others read what rank 0 writes

    def _rewind(self, step: int) -> None:
        if self.ranks.is_main:
            self.metrics.rewind(step)

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
        tokens, flops = self.ranks.sum(torch.tensor(self._untold)).tolist()
        self.tokens, self.flops, self._untold = self.tokens + tokens, self.flops + flops, [0, 0]
        return {"training_tokens": self.tokens, "training_flops": self.flops}


def _step_seed(seed: int, step: int) -> int:
    # Distinct for every pair below 2**32, and so are the streams that `SequenceGenerator` mixes from it.
    return (seed << 32) + step


def _global_seed(seed: int, step: int) -> int:
    """A seed below 2**32, which numpy asks for, that depends on both numbers."""
    mixed = mix64(mix64(torch.tensor(seed)) + step)
    return int(mixed) % 2**32
