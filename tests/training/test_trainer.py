"""What a run writes and what must not change it: accumulation, logging, validations, dtype, compilation."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import assert_same_tensors, new_trainer, reopened, untimed, weights_of

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import evaluate
from ltm_pyro.guides import LocalNormal, LocalParams
from ltm_pyro.noise import SequenceGenerator
from ltm_pyro.training import Observer, load_run
from ltm_pyro.training.run import choose_device
from ltm_pyro.training.schedules import fast_lr, slow_lr

QUICK = {"training.steps": 4, "training.eval_every": 100, "training.checkpoint_every": 100}


def rows_of(path: Path, data: Data, changes: dict[str, Any]) -> list[dict[str, Any]]:
    trainer = new_trainer(path, data, QUICK | changes)
    trainer.fit()
    return trainer.metrics.rows()


def training_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["split"] == "train"]


def test_training_lowers_the_loss(tmp_path: Path, data: Data):
    rows = rows_of(tmp_path / "run", data, {"training.steps": 25, "training.slow_lr": 0.03, "training.log_every": 5})
    losses = [row["loss"] for row in training_rows(rows)]
    assert losses[-1] < losses[0] - 1  # from log 300 = 5.7 nats towards the words' own entropy
    validations = [row["elbo"] for row in rows if row["split"] == "validation"]
    assert validations[-1] < validations[0] - 1


def test_rows_say_what_was_trained_at_which_rates(tmp_path: Path, data: Data):
    trainer = new_trainer(tmp_path / "run", data, QUICK)
    seen: list[dict[str, Any]] = []
    trainer.observer = type("Seen", (Observer,), {"step": lambda self, row: seen.append(row)})()
    trainer.fit()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert training_rows(lines) == seen
    assert [row["step"] for row in seen] == [1, 2, 3, 4]
    for row in seen:
        assert row["loss"] == pytest.approx(row["reconstruction"] + row["kl"], abs=1e-5)
        assert row["kl"] > 0
        assert row["slow_lr"] == slow_lr(trainer.settings.training, row["step"] - 1)
        assert row["fast_lr"] == fast_lr(trainer.settings.inference, trainer.settings.training, row["step"] - 1)
        assert row["epoch"] == pytest.approx(row["step"] * 4 / len(data.train))
        assert row["tokens_per_s"] > 0
        assert row["gradient_norm"] > 0


def test_the_weight_of_the_kl_follows_its_schedule_and_rows_report_the_whole_elbo(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
):
    trainer = new_trainer(tmp_path / "run", data, QUICK | {"inference.kl_warmup_steps": 3, "inference.free_bits": 2.0})
    assert trainer.learner.svi.free_bits == 2.0
    weights: list[float] = []
    step = trainer.learner.svi.step

    def recorded(batch: TokenBatch, *, kl_weight: float, **settings: Any) -> Any:
        weights.append(kl_weight)
        return step(batch, kl_weight=kl_weight, **settings)

    monkeypatch.setattr(trainer.learner.svi, "step", recorded)
    trainer.fit()
    assert weights == pytest.approx([0, 1 / 3, 2 / 3, 1])
    for row in training_rows(trainer.metrics.rows()):
        assert row["loss"] == pytest.approx(row["reconstruction"] + row["kl"], abs=1e-5)


def test_validation_rows_have_the_sum_of_their_terms_and_standard_errors(tmp_path: Path, data: Data):
    rows = rows_of(tmp_path / "run", data, {"training.eval_every": 2})
    found = [row for row in rows if row["split"] == "validation"]
    assert [row["step"] for row in found] == [0, 2, 4]
    for row in found:
        assert row["elbo"] == pytest.approx(row["reconstruction"] + row["kl"], abs=1e-6)
        assert all(row[f"{name}_se"] > 0 for name in ("elbo", "reconstruction", "kl"))
        assert (row["sequences"], row["samples"], row["fast_steps"]) == (4, 1, 2)


def test_validation_is_the_evaluation_of_the_weights_of_that_step(tmp_path: Path, data: Data):
    trainer = new_trainer(tmp_path / "run", data, QUICK | {"training.eval_sequences": 100})
    trainer.fit()
    last = trainer.metrics.rows()[-1]
    run = load_run(tmp_path / "run", device="cpu")
    report = evaluate(run.svi, data.validation, range(len(data.validation)), fast_lr=run.fast_lr).to_dict()
    assert last["sequences"] == len(data.validation)
    assert {name: last[name] for name in ("elbo", "kl")} == pytest.approx({n: report[n] for n in ("elbo", "kl")})


def test_rows_over_several_steps_are_the_means_over_their_tokens(tmp_path: Path, data: Data):
    each = training_rows(rows_of(tmp_path / "each", data, {"training.batch_size": 5}))
    pairs = training_rows(rows_of(tmp_path / "pairs", data, {"training.batch_size": 5, "training.log_every": 3}))
    assert [row["step"] for row in pairs] == [3, 4]  # the last step is always reported
    sampler = new_trainer(tmp_path / "order", data, {"training.batch_size": 5}).sampler
    tokens = np.array([data.train.lengths[next(sampler)].sum() for _ in range(3)])
    assert len(set(tokens.tolist())) > 1  # so that a plain mean would differ
    for name in ("loss", "reconstruction", "kl"):
        values = np.array([row[name] for row in each])
        assert pairs[0][name] == pytest.approx((values[:3] * tokens).sum() / tokens.sum(), rel=1e-6)
        assert pairs[1][name] == pytest.approx(values[3], rel=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_leave_the_loss_curve_as_it_is(tmp_path: Path, data: Data, size: int):
    whole = training_rows(rows_of(tmp_path / "whole", data, {}))
    parts = training_rows(rows_of(tmp_path / "parts", data, {"training.micro_batch_size": size}))
    for name in ("loss", "reconstruction", "kl", "gradient_norm"):
        assert [row[name] for row in parts] == pytest.approx([row[name] for row in whole], rel=1e-4)


def test_how_often_is_validated_logged_or_saved_does_not_change_training(tmp_path: Path, data: Data):
    plain = new_trainer(tmp_path / "plain", data, QUICK)
    plain.fit()
    changes = {"training.eval_every": 1, "training.eval_sequences": 2, "training.checkpoint_every": 1}
    busy = new_trainer(tmp_path / "busy", data, QUICK | changes)
    busy.fit()
    assert_same_tensors(weights_of(plain), weights_of(busy))
    assert untimed(training_rows(plain.metrics.rows())) == untimed(training_rows(busy.metrics.rows()))
    quiet = new_trainer(tmp_path / "quiet", data, QUICK | {"training.log_every": 4})
    quiet.fit()
    assert_same_tensors(weights_of(plain), weights_of(quiet))


class GlobalStarts(LocalNormal):
    """A guide that draws from torch's global stream, as one of the user's own may."""

    def init_local(self, batch: TokenBatch, generator: SequenceGenerator | None = None) -> LocalParams:
        local = super().init_local(batch, generator)
        return {name: torch.randn_like(value).requires_grad_() for name, value in local.items()}


@pytest.mark.parametrize("guide", ["local-normal", f"{__name__}:GlobalStarts"])
def test_the_state_of_the_global_random_streams_does_not_change_training(tmp_path: Path, data: Data, guide: str):
    first = new_trainer(tmp_path / "first", data, QUICK | {"guide.name": guide})
    first.fit()
    second = new_trainer(tmp_path / "second", data, QUICK | {"guide.name": guide})
    torch.manual_seed(12345)
    second.fit()
    assert_same_tensors(weights_of(first), weights_of(second))


def test_bfloat16_trains_and_stays_close_to_float32(tmp_path: Path, data: Data):
    full = training_rows(rows_of(tmp_path / "full", data, {}))
    half = new_trainer(tmp_path / "half", data, QUICK | {"training.dtype": "bfloat16"})
    half.fit()
    rows = training_rows(half.metrics.rows())
    assert all(p.dtype == torch.float32 for p in half.learner.model.parameters())
    # bfloat16 keeps eight bits: 2⁻⁸ = 0.4 % of a logit, and logits are below one here.
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in full], abs=0.02)
    assert [row["loss"] for row in rows] != [row["loss"] for row in full]
    assert load_run(tmp_path / "half", device="cpu").svi.autocast == torch.bfloat16


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_checkpoint_stands(tmp_path: Path, data: Data):
    trainer = new_trainer(tmp_path / "run", data)
    poison = trainer._take_step

    def poisoned():
        if trainer.step == 4:
            with torch.no_grad():
                trainer.learner.model.decoder.embedding.weight.fill_(math.nan)
        return poison()

    trainer._take_step = poisoned
    with pytest.raises(LTMError, match=r"step 5 .*embedding.weight are not finite; lower .*-00000004, stands"):
        trainer.fit()
    assert reopened(tmp_path / "run", data).fit()


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path: Path, data: Data):
    changes = {"training.log_every": 100, "training.checkpoint_every": 1, "training.max_skipped_steps": 0}
    trainer = new_trainer(tmp_path / "run", data, changes)

    def infinite(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf if trainer.step == 2 else gradient

    trainer.learner.model.decoder.norm.weight.register_hook(infinite)
    with pytest.raises(LTMError, match=r"step 3 is left out .*gradient is not.*step-00000002, stands"):
        trainer.fit()
    assert all(bool(v.isfinite().all()) for v in trainer.store.latest().model.values())


def test_a_corpus_smaller_than_a_batch_fills_it_by_going_round(tmp_path: Path, data: Data):
    trainer = new_trainer(tmp_path / "run", data, QUICK | {"training.batch_size": 50, "training.steps": 2})
    trainer.fit()
    assert len(data.train) < 50
    assert trainer.metrics.rows()[-2]["epoch"] == pytest.approx(100 / len(data.train))


def test_tensorboard_events_are_written_where_they_are_asked_for(tmp_path: Path, data: Data):
    pytest.importorskip("tensorboard")
    new_trainer(tmp_path / "run", data, QUICK | {"training.tensorboard": True, "training.steps": 1}).fit()
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_a_run_is_not_started_where_there_is_one(tmp_path: Path, data: Data):
    new_trainer(tmp_path / "run", data)
    with pytest.raises(LTMError, match="already holds a run: continue it with --resume, or choose another --out"):
        new_trainer(tmp_path / "run", data)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu", "unknown device 'gpu': use auto, cpu, cuda or cuda:K"),
        ("", "unknown device ''"),
        ("meta", "device 'meta' is not supported: use auto, cpu, cuda or cuda:K"),
        ("cuda:99", r"device 'cuda:99' is not there \(\d+ CUDA devices found\): use --device cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, words: str):
    with pytest.raises(LTMError, match=words):
        choose_device(name)
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_no_thread_is_left_behind_a_training(tmp_path: Path, data: Data):
    others = set(threading.enumerate())
    trainer = new_trainer(tmp_path / "run", data)
    assert trainer.fit()
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - others) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left
