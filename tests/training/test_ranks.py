"""Several ranks together take the slow steps that one process would take on all their sequences."""

from __future__ import annotations

import os
import shutil
import signal
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from many_ranks import run_ranks
from tiny_runs import tiny_settings, untimed

from ltm_pyro.data import Data, Sampler
from ltm_pyro.ranks import Ranks, present_ranks
from ltm_pyro.training import Observer, RunDirectory, Trainer
from ltm_pyro.training.learners import ThoughtLearner, build_learner

# At a larger slow_lr so small a network's training amplifies rounding tenfold every few steps.
SHARED = {"training.batch_size": 16, "inference.fast_steps": 3, "training.slow_lr": 1e-3}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "parts": {"training.micro_batch_size": 3},
    "amortized": {"guide.name": "amortized"},
    "amortized parts": {"guide.name": "amortized", "training.micro_batch_size": 3},
    "semi-amortized": {"guide.name": "semi-amortized"},
    "learned prior": {"prior.name": "learned-gaussian"},
    "learned prior, parts": {"prior.name": "learned-gaussian", "training.micro_batch_size": 3},
    "flow prior": {"prior.name": "flow"},
    "trajectory": {"inference.slow_gradient": "trajectory", "inference.noise": "fixed"},
    "addresses, natural steps": {"decoder.thought_addresses": True, "inference.fast_optimizer": "natural"},
    "ar": {"model.name": "ar"},
    "ar parts": {"model.name": "ar", "training.micro_batch_size": 3},
    "mdlm": {"model.name": "mdlm"},
}
QUICK = ("parts", "amortized", "learned prior", "addresses, natural steps", "ar parts")


def steps(
    ranks: Ranks, data: Data, folder: Path, kinds: list[str], count: int, dtype: torch.dtype
) -> dict[str, dict[str, Any]]:
    """Loss of every step, posteriors of the first and of the last one, and gradient norms, by kind."""
    torch.set_default_dtype(dtype)
    try:
        return _steps(ranks, data, folder, kinds, count)
    finally:
        torch.set_default_dtype(torch.float32)


def _steps(ranks: Ranks, data: Data, folder: Path, kinds: list[str], count: int) -> dict[str, dict[str, Any]]:
    found = {}
    for kind in kinds:
        settings = tiny_settings(SHARED | KINDS[kind])
        torch.manual_seed(0)
        learner = build_learner(settings, data.tokenizer.vocab_size, (), torch.device("cpu"), folder / "posteriors")
        sampler = Sampler(len(data.train), 16, seed=0)
        losses, norms, local = [], [], []
        for step in range(count):
            batch = data.train.batch(ranks.share(next(sampler)))
            if step in (0, count - 1) and isinstance(learner, ThoughtLearner):
                posterior = learner.svi.infer(batch, seed=step)
                local.append({name: value.detach() for name, value in posterior.local.items()})
            taken = learner.step(batch, at=step, seed=step)
            loss, tokens = ranks.sum(torch.stack([taken.sums["loss"].double(), taken.sums["tokens"].double()])).tolist()
            losses.append(loss / tokens)
            norms.append(float(taken.gradient_norm))
        weights = torch.cat([p.detach().flatten() for p in learner.modules.parameters()])
        found[kind] = {"losses": losses, "norms": norms, "local": local, "weights": weights}
    return found


def assert_same_steps(
    data: Data, folder: Path, size: int, kinds: list[str], count: int, dtype: torch.dtype = torch.float32
) -> None:
    """Of a float32 posterior only the first is compared: Adam's steps make the rounding of fifty slow ones visible."""
    exact = dtype == torch.float64
    alone = steps(Ranks(), data, folder, kinds, count, dtype)
    together = run_ranks(size, steps, data, folder, kinds, count, dtype)
    for kind in kinds:
        one, several = alone[kind], [rank[kind] for rank in together]
        for rank in several:
            assert rank["losses"] == pytest.approx(one["losses"], rel=1e-9 if exact else 1e-5), kind
            assert rank["norms"] == pytest.approx(one["norms"], rel=1e-7 if exact else 1e-3), kind
            assert torch.equal(rank["weights"], several[0]["weights"]), kind
        for place in range(len(one["local"])) if exact else range(min(1, len(one["local"]))):
            for name, value in one["local"][place].items():
                joined = torch.cat([rank["local"][place][name] for rank in several])
                off = float((joined - value).abs().max() / value.abs().max().clamp(min=1))
                assert off <= (1e-7 if exact else 1e-5), (kind, name, off, place)


def test_two_ranks_take_the_steps_of_one_process(data: Data, tmp_path: Path):
    assert_same_steps(data, tmp_path, 2, list(QUICK), 6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_fifty_steps_of_every_kind_of_model_are_those_of_one_process(data: Data, tmp_path: Path, size: int):
    assert_same_steps(data, tmp_path, size, list(KINDS), 50)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_in_float64_losses_weights_and_posteriors_of_fifty_steps_are_the_same(data: Data, tmp_path: Path, size: int):
    assert_same_steps(data, tmp_path, size, ["plain", "parts", "amortized", "learned prior"], 50, torch.float64)


def train(
    ranks: Ranks, data: Data, path: Path, changes: dict[str, Any], stop: int | None
) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Trains, or goes on; gives up after ``stop`` steps. What sequences each step had here, and the rows of metrics."""
    met: list[list[int]] = []
    take = data.train.batch
    data.train.batch = lambda indices: (met.append(list(indices)), take(indices))[1]  # type: ignore[method-assign]
    settings = tiny_settings(changes)
    observer = Stop(stop)
    run = RunDirectory(path)
    resumed = run.exists
    ranks.wait()
    if ranks.is_main and not resumed:
        RunDirectory.create(path, settings, data.tokenizer)
    ranks.wait()
    trainer = Trainer(settings, data, run, observer)
    if resumed:
        trainer.resume()
    trainer.fit()
    return met, untimed(trainer.metrics.rows())


class Stop(Observer):
    """Sends its own process SIGTERM in a step's row: on one rank alone where it is told to."""

    def __init__(self, step: int | None, rank: int = 0):
        self.last, self.rank = step, rank

    def step(self, row: dict[str, Any]) -> None:
        if row["step"] == self.last and present_ranks().rank == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)


EVERY_STEP = {
    "training.log_every": 1,
    "training.slow_lr": 1e-3,
    "training.batch_size": 6,
    "training.eval_every": 4,
    "data.prefetch": 0,  # so that what is asked for is what a step has
}


def assert_same_rows(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if name == "training_flops":  # a rank pads its sequences to the longest of its own
                assert value <= other[name]
            elif isinstance(value, float):
                assert value == pytest.approx(other[name], rel=1e-4 if name == "gradient_norm" else 1e-5, abs=1e-6), (
                    name
                )
            else:
                assert value == other[name], name


@pytest.mark.parametrize(
    ("before", "after", "warm"),
    [
        (2, (1,), True),
        pytest.param(4, (1, 2, 3), False, marks=pytest.mark.slow),
        pytest.param(4, (1, 2, 3), True, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_goes_on_at_any_number_of_ranks_and_no_sequence_is_lost_or_repeated(
    data: Data, tmp_path: Path, before: int, after: tuple[int, ...], warm: bool
):
    total = 2 * len(data.train) // 6  # two epochs, to the last whole batch
    changes = EVERY_STEP | {"training.steps": total, "inference.warm_start": warm, "training.checkpoint_every": 1000}
    _, expected = train(Ranks(), data, tmp_path / "alone", changes, None)
    del data.train.batch
    run_ranks(before, train, data, tmp_path / "first", changes, total // 3)
    assert RunDirectory(tmp_path / "first").store().latest().step == total // 3
    order = list(islice(chain.from_iterable(Sampler(len(data.train), 6)), total * 6))
    for size in after:
        path = tmp_path / f"on{size}"
        shutil.copytree(tmp_path / "first", path)
        if size == 1:
            results = [train(Ranks(), data, path, changes, None)]
            del data.train.batch
        else:
            results = run_ranks(size, train, data, path, changes, None)
        assert_same_rows(results[0][1], expected)
        met = [index for step in zip(*(ranks for ranks, _ in results), strict=True) for index in chain(*step)]
        assert met == order[total // 3 * 6 :]
