"""Several ranks together take the slow steps that one process would take on all their sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from many_ranks import run_ranks
from tiny_runs import new_trainer, reopened, tiny_data, tiny_settings, untimed

from ltm_pyro.data import Data, Sampler
from ltm_pyro.errors import LTMError
from ltm_pyro.ranks import Ranks, present_ranks
from ltm_pyro.training.learners import build_learner

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
    "ar": {"model.name": "ar"},
    "ar parts": {"model.name": "ar", "training.micro_batch_size": 3},
    "mdlm": {"model.name": "mdlm"},
}
QUICK = ("parts", "amortized", "learned prior", "ar parts")


def steps(ranks: Ranks, data: Data, folder: Path, kinds: list[str], count: int) -> dict[str, dict[str, Any]]:
    """Loss of every step, posteriors of the first and of the last one, and gradient norms, by kind."""
    found = {}
    for kind in kinds:
        settings = tiny_settings(SHARED | KINDS[kind])
        torch.manual_seed(0)
        learner = build_learner(settings, data.tokenizer.vocab_size, (), torch.device("cpu"), folder / "posteriors")
        sampler = Sampler(len(data.train), 16, seed=0)
        losses, norms, local = [], [], []
        for step in range(count):
            batch = data.train.batch(ranks.share(next(sampler)))
            taken = learner.step(batch, at=step, seed=step)
            loss, tokens = ranks.sum(torch.stack([taken.sums["loss"].double(), taken.sums["tokens"].double()])).tolist()
            losses.append(loss / tokens)
            norms.append(float(taken.gradient_norm))
            if step in (0, count - 1) and hasattr(learner, "svi"):
                posterior = learner.svi.infer(batch, seed=step)
                local.append({name: value.detach() for name, value in posterior.local.items()})
        weights = torch.cat([p.detach().flatten() for p in learner.modules.parameters()])
        found[kind] = {"losses": losses, "norms": norms, "local": local, "weights": weights}
    return found


def assert_same_steps(data: Data, folder: Path, size: int, kinds: list[str], count: int) -> None:
    alone = steps(Ranks(), data, folder, kinds, count)
    together = run_ranks(size, steps, data, folder, kinds, count)
    for kind in kinds:
        one, several = alone[kind], [rank[kind] for rank in together]
        for rank in several:
            assert rank["losses"] == pytest.approx(one["losses"], rel=1e-5), kind
            assert rank["norms"] == pytest.approx(one["norms"], rel=1e-3), kind
            assert torch.equal(rank["weights"], several[0]["weights"]), kind
        for at, tolerance in zip(range(len(one["local"])), (1e-5, 1e-3), strict=False):
            for name, value in one["local"][at].items():
                joined = torch.cat([rank["local"][at][name] for rank in several])
                torch.testing.assert_close(joined, value, rtol=tolerance, atol=tolerance, msg=f"{kind} {name}")


def test_two_ranks_take_the_steps_of_one_process(data: Data, tmp_path: Path):
    assert_same_steps(data, tmp_path, 2, list(QUICK), 6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_fifty_steps_of_every_kind_of_model_are_those_of_one_process(data: Data, tmp_path: Path, size: int):
    assert_same_steps(data, tmp_path, size, list(KINDS), 50)
