"""Ranks that each hold a part of the weights take the steps of one process that holds them all."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from many_ranks import run_ranks
from safetensors.torch import load_file
from test_ranks import KINDS, SHARED
from tiny_runs import new_trainer, reopened, tiny_settings, untimed
from torch import nn

from ltm_pyro.config import Settings
from ltm_pyro.data import Data, Sampler
from ltm_pyro.errors import LTMError
from ltm_pyro.ranks import Ranks, is_split
from ltm_pyro.sharding import joined
from ltm_pyro.training import RunDirectory, Trainer
from ltm_pyro.training.batch_size import fit_batch_size
from ltm_pyro.training.learners import Learner, build_learner
from ltm_pyro.training.sharded import check_sharding

TWO_LAYERS = SHARED | {"decoder.layers": 2, "training.batch_size": 12}
MORE: dict[str, dict[str, Any]] = KINDS | {
    "clipped": {"training.clip_norm": 0.1, "guide.name": "amortized"},
    "again": {"decoder.checkpointing": True, "training.micro_batch_size": 2},
    "ar again": {"decoder.checkpointing": True, "model.name": "ar"},
    "bfloat16": {"training.dtype": "bfloat16", "training.micro_batch_size": 2},
    "ar bfloat16": {"training.dtype": "bfloat16", "model.name": "ar"},
    "one layer": {"decoder.layers": 1},
}
del MORE["trajectory"]  # refused
QUICK = ("parts", "clipped", "learned prior", "again", "ar parts", "mdlm")
RUN = {"training.batch_size": 12, "training.micro_batch_size": 2, "decoder.layers": 2, "training.slow_lr": 1e-3}


def learner_of(kind: str, data: Data, folder: Path, device: str = "cpu") -> Learner:
    torch.manual_seed(0)
    settings = tiny_settings(TWO_LAYERS | MORE[kind])
    return build_learner(settings, data.tokenizer.vocab_size, (), torch.device(device), folder / "posteriors")


def steps(
    ranks: Ranks, data: Data, folder: Path, kinds: list[str], count: int, device: str = "cpu"
) -> dict[str, dict[str, Any]]:
    """Loss and gradient norm of every step, and the weights behind them, by kind."""
    found = {}
    for kind in kinds:
        learner = learner_of(kind, data, folder, device if ranks.size == 1 else "cpu")
        if ranks.size > 1:
            learner.shard(torch.device(device))
        sampler = Sampler(len(data.train), 12, seed=0)
        losses, norms = [], []
        for step in range(count):
            batch = data.train.batch(ranks.share(next(sampler))).to(torch.device(device))
            taken = learner.step(batch, at=step, seed=step)
            sums = torch.stack([taken.sums["loss"].double(), taken.sums["tokens"].double()])
            loss, tokens = ranks.sum(sums).tolist()
            losses.append(loss / tokens)
            norms.append(float(taken.gradient_norm))
        state = list(learner.modules.state_dict().items())  # what is read from a file has no order
        weights = joined(dict(state if ranks.is_main else reversed(state)), ranks)
        found[kind] = {"losses": losses, "norms": norms, "weights": {n: w.cpu() for n, w in weights.items()}}
    return found


def assert_same_steps(data: Data, folder: Path, size: int, kinds: list[str], count: int, device: str = "cpu") -> None:
    alone = steps(Ranks(), data, folder, kinds, count, device)
    together = run_ranks(size, steps, data, folder, kinds, count, device)
    for kind in kinds:
        one = alone[kind]
        # Products in bfloat16 round at every step, and AdamW makes the sign of the smallest gradients count.
        loose = "bfloat16" in kind
        for rank in (answer[kind] for answer in together):
            assert rank["losses"] == pytest.approx(one["losses"], rel=1e-3 if loose else 1e-5), kind
            assert rank["norms"] == pytest.approx(one["norms"], rel=3e-2 if loose else 1e-3), kind
        for name, weight in together[0][kind]["weights"].items():
            torch.testing.assert_close(weight, one["weights"][name], rtol=0, atol=1e-2 if loose else 1e-3, msg=name)


def test_two_ranks_with_parts_of_the_weights_take_the_steps_of_one_process(data: Data, tmp_path: Path):
    assert_same_steps(data, tmp_path, 2, list(QUICK), 4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_eight_steps_of_every_kind_of_model_are_those_of_one_process(data: Data, tmp_path: Path, size: int):
    # 3 ranks share no width of the network equally, so their parts are of unequal sizes.
    assert_same_steps(data, tmp_path, size, list(MORE), 8)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for each of two ranks")
def test_two_gpus_take_the_steps_of_one(data: Data, tmp_path: Path):
    assert_same_steps(data, tmp_path, 2, list(MORE), 6, "cuda")


def held_bytes(learner: Learner) -> tuple[int, int]:
    """Bytes of the network's weights and moments that this rank holds, and of all of them."""
    here = whole = 0
    for parameter in learner.network.parameters():
        for tensor in (parameter, *(v for n, v in learner.optimizer.state[parameter].items() if n != "step")):
            assert is_split(tensor)
            here += tensor.to_local().untyped_storage().nbytes()
            whole += tensor.nbytes
    return here, whole


def counted_messages() -> Counter[str]:
    """How often this process gathers weights and sums gradients, from now on."""
    counts: Counter[str] = Counter()

    def counting(what: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            counts[what] += 1
            return original(*arguments, **named)

        return call

    # Torch has renamed them.
    for what in ("all_gather", "reduce_scatter"):
        for name in (f"{what}_into_tensor", f"{what}_tensor", f"{what}_single"):
            if hasattr(dist, name):
                setattr(dist, name, counting(what, getattr(dist, name)))
    return counts


def observe(ranks: Ranks, data: Data, folder: Path) -> dict[str, Any]:
    """What slow steps gather, sum, hold and ask gradients of, by watching them."""
    learner = learner_of("plain", data, folder)
    learner.shard(torch.device("cpu"))
    units, asked, gathered = learner.sharding.units, [], []

    def watch(module: nn.Module, _: Any) -> None:
        asked.append(any(parameter.requires_grad for parameter in module.parameters()))
        gathered.append(sum(not is_split(next(unit.parameters())) for unit in units))

    for unit in units:
        unit.register_forward_pre_hook(watch)
    batch = data.train.batch(ranks.share(range(12)))
    learner.step(batch, at=0, seed=0)
    found: dict[str, Any] = {"asked": list(asked), "gathered": list(gathered), "held": held_bytes(learner)}
    counts = counted_messages()
    learner.step(batch, at=1, seed=1)
    found["messages"] = dict(counts)
    with learner.whole():
        counts.clear()
        learner.svi.infer(batch, seed=0)
        found["messages when whole"] = dict(counts)
    found["split again"] = all(is_split(parameter) for parameter in learner.network.parameters())
    return found


def test_a_rank_holds_its_part_and_the_fast_loop_leaves_the_weights_without_gradients(data: Data, tmp_path: Path):
    for found in run_ranks(2, observe, data, tmp_path):
        here, whole = found["held"]
        assert here == whole / 2
        # Two layers of two units. The stem goes through the first one once, a fast step through the other three.
        assert found["asked"] == [False] + 3 * [False] * 3 + [True] * 4
        assert max(found["gathered"]) == 1
        messages = found["messages"]
        # Once for each unit and for the rest, in the slow gradient alone.
        assert messages["reduce_scatter"] == 5
        # The rest once; units for the stem, and for each pass forward and back; those sent ahead in vain are few.
        needed = 1 + 1 + 2 * 3 * 3 + 2 * 4
        assert needed <= messages["all_gather"] <= needed + 4
        assert found["messages when whole"] == {}
        assert found["split again"]


def train(ranks: Ranks, path: Path, data: Data, resume: bool) -> None:
    run = RunDirectory.open(path)
    trainer = Trainer(run.settings.updated({"training.shard": True}), data, run)
    assert (trainer.learner.sharding is None) == (ranks.size == 1)
    if resume:
        trainer.resume()
    assert trainer.fit()


def started(path: Path, data: Data, settings: Settings) -> Path:
    RunDirectory.create(path, settings, data.tokenizer, data.class_names)
    return path


def cut_off(run: Path, path: Path) -> Path:
    """A copy of a run without its last checkpoint."""
    shutil.copytree(run, path)
    shutil.rmtree(path / "checkpoints" / "step-00000006")
    return path


def assert_same_run(path: Path, other: Path) -> None:
    """Metrics, validations among them, and weights and moments of the last checkpoint, up to rounding."""
    rows, expected = (untimed(RunDirectory.open(p).metrics.rows()) for p in (path, other))
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, same in zip(rows, expected, strict=True):
        # Operations are counted with the padding, which depends on who shares a batch.
        for name, value in ((name, value) for name, value in same.items() if name != "training_flops"):
            tolerance = 1e-3 if name == "gradient_norm" or name.endswith("_se") else 2e-5
            assert row[name] == (value if isinstance(value, str | None) else pytest.approx(value, rel=tolerance)), name
    for file in ("model.safetensors", "optimizer.safetensors"):
        left, right = (load_file(p / "checkpoints" / "step-00000006" / file) for p in (path, other))
        assert left.keys() == right.keys()
        for name, value in left.items():
            torch.testing.assert_close(value, right[name], rtol=1e-2, atol=1e-3, msg=name)


def test_a_run_of_ranks_with_parts_goes_on_alone(data: Data, tmp_path: Path):
    alone = new_trainer(tmp_path / "alone", data, RUN)
    assert alone.fit()
    together = started(tmp_path / "together", data, tiny_settings(RUN))
    run_ranks(2, train, together, data, False)
    assert_same_run(together, tmp_path / "alone")
    rest = cut_off(together, tmp_path / "rest")
    assert reopened(rest, data).fit()
    assert_same_run(rest, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"model.name": "ar"}, {"guide.name": "semi-amortized"}])
def test_a_run_goes_on_with_any_number_of_ranks(data: Data, tmp_path: Path, changes: dict[str, Any]):
    alone = new_trainer(tmp_path / "alone", data, RUN | changes)
    assert alone.fit()
    for size, name, before in ((2, "two", "alone"), (3, "three", "two"), (1, "one", "three")):
        rest = cut_off(tmp_path / before, tmp_path / name)
        run_ranks(size, train, rest, data, True)
        assert_same_run(rest, tmp_path / "alone")


def test_a_process_alone_holds_all_weights(data: Data, tmp_path: Path):
    trainer = new_trainer(tmp_path / "run", data, {"training.shard": True})
    assert trainer.learner.sharding is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.batch_size": 7}, "training.batch_size that is a multiple of 2, not 7"),
        ({"inference.tolerance": 0.1}, "inference.tolerance"),
        ({"inference.slow_gradient": "trajectory"}, "inference.slow_gradient=trajectory"),
        ({"inference.cuda_graph": True}, "inference.cuda_graph"),
        ({"decoder.compile": True}, "decoder.compile"),
    ],
)
def test_what_keeps_ranks_from_equal_passes_is_refused(changes: dict[str, Any], message: str):
    check_sharding(tiny_settings(), Ranks(0, 2))
    with pytest.raises(LTMError, match=message):
        check_sharding(tiny_settings(changes), Ranks(0, 2))


def test_a_batch_that_fits_is_not_looked_for_where_weights_are_in_parts(data: Data, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ltm_pyro.training.batch_size.present_ranks", lambda: Ranks(0, 2))
    with pytest.raises(LTMError, match=r"auto.*training\.shard"):
        fit_batch_size(tiny_settings({"training.shard": True}), data)
