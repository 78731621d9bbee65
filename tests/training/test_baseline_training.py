"""Baselines go through the same trainer: resume, costs, loading, and what a model without thoughts refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same_tensors, new_trainer, reopened, untimed

from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.flop_counter import measured_flops
from ltm_pyro.flops import DecoderSize, slow_step_flops
from ltm_pyro.training import Observer, RunDirectory, Trainer, load_run, read_checkpoint
from ltm_pyro.training.learners import BaselineLearner

KINDS = ("ar", "mdlm")


class Crash(Observer):
    """Ends training with no chance to save, as a kill would."""

    def step(self, row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise RuntimeError("killed")


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.learner.modules.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_baseline_resumes_bit_for_bit(tmp_path: Path, data: Data, kind: str):
    whole = new_trainer(tmp_path / "whole", data, {"model.name": kind})
    assert whole.fit()
    first = new_trainer(tmp_path / "run", data, {"model.name": kind}, observer=Crash())
    with pytest.raises(RuntimeError, match="killed"):
        first.fit()
    second = reopened(tmp_path / "run", data)
    assert second.step == 4
    assert second.fit()
    assert_same_tensors(weights(second), weights(whole))
    assert untimed(second.metrics.rows()) == untimed(whole.metrics.rows())


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_baseline_scores_as_its_last_validation_did(tmp_path: Path, data: Data, kind: str):
    trainer = new_trainer(tmp_path / "run", data, {"model.name": kind, "training.eval_sequences": 10_000})
    trainer.fit()
    run = load_run(tmp_path / "run", device="cpu")
    model = run.language_model
    report = model.evaluate(data.validation, range(len(data.validation)), samples=model.validation_samples)
    row = trainer.metrics.rows()[-1]
    assert report.to_dict()[model.comparable] == pytest.approx(row[model.comparable], rel=1e-6)
    assert row["fast_steps"] is None
    assert not any(key in row for key in ("elbo", "reconstruction", "kl"))


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_baselines_own_number(tmp_path: Path, data: Data, kind: str):
    changes = {"model.name": kind, "training.steps": 60, "training.eval_every": 60, "training.checkpoint_every": 60}
    trainer = new_trainer(tmp_path / "run", data, changes | {"training.slow_lr": 3e-2})
    trainer.fit()
    name = trainer.learner.language_model(0).comparable
    before, after = (row for row in trainer.metrics.rows() if row["split"] == "validation")
    assert after[name] < before[name] - 1


def test_micro_batches_give_the_step_of_the_whole_batch(tmp_path: Path, data: Data):
    for kind in KINDS:
        rows = []
        for size in (None, 1):
            changes = {"model.name": kind, "training.micro_batch_size": size}
            trainer = new_trainer(tmp_path / f"{kind}-{size}", data, changes)
            trainer.fit()
            rows.append([row["loss"] for row in trainer.metrics.rows() if row["split"] == "train"])
        assert rows[0] == pytest.approx(rows[1], rel=1e-4)


@pytest.mark.parametrize("kind", ["ltm", "ar"])
def test_rows_hold_the_tokens_and_the_operations_that_torch_counts(tmp_path: Path, data: Data, kind: str):
    trainer = new_trainer(tmp_path / "run", data, {"model.name": kind})
    seen: list[int] = []
    step = trainer.learner.step

    def counted(batch: Any, **arguments: Any) -> Any:
        taken = []
        seen.append(measured_flops(lambda: taken.append(step(batch, **arguments))))
        return taken[0]

    trainer.learner.step = counted
    trainer.fit()
    rows = [row for row in trainer.metrics.rows() if row["split"] == "train"]
    assert [row["training_flops"] for row in rows] == [sum(seen[: i + 1]) for i in range(6)]
    assert rows[-1]["training_tokens"] == sum(
        data.train.lengths[list(indices)].sum() for _, indices in zip(range(6), _sampled(trainer), strict=False)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"guide.name": "amortized"},  # which takes no fast step
        {"inference.tolerance": 50.0, "inference.fast_steps": 12, "training.micro_batch_size": 2},
    ],
)
def test_operations_are_those_of_the_fast_steps_that_were_taken(tmp_path: Path, data: Data, changes: dict[str, Any]):
    trainer = new_trainer(tmp_path / "run", data, {"training.steps": 1} | changes)
    taken, step = [], trainer.learner.svi.step
    trainer.learner.svi.step = lambda *a, **k: taken.append(step(*a, **k)) or taken[-1]
    trainer.fit()
    batch = data.train.batch(next(_sampled(trainer)))
    size, flops = trainer.settings.training.micro_batch_size or 4, 0
    for start, posterior in zip(range(0, 4, size), taken[0].posteriors, strict=True):
        part = batch[start : start + size]
        assert posterior.steps_taken < trainer.settings.inference.fast_steps
        flops += slow_step_flops(
            DecoderSize.of(trainer.learner.model.decoder),
            len(part),
            part.tokens.shape[1],
            int(part.num_scored.sum()),
            fast_steps=posterior.fast_steps,
        )
    assert trainer.metrics.rows()[-1]["training_flops"] == flops


@pytest.mark.parametrize("kind", ["ltm", "ar"])
def test_a_run_of_an_older_version_goes_on_and_its_costs_are_counted_again(tmp_path: Path, data: Data, kind: str):
    changes = {"model.name": kind, "training.batch_size": 12}  # more than an epoch
    whole = new_trainer(tmp_path / "whole", data, changes)
    whole.fit()
    first = new_trainer(tmp_path / "run", data, changes, observer=Crash())
    with pytest.raises(RuntimeError, match="killed"):
        first.fit()
    old = first.store.latest()
    state = {name: value for name, value in old.state.items() if name not in ("tokens", "flops")}
    first.store.save(replace(old, state=state))
    with pytest.warns(UserWarning, match="step 4 is of an older version, which counted neither tokens nor operations"):
        second = reopened(tmp_path / "run", data)
    assert second.fit()
    assert_same_tensors(weights(second), weights(whole))
    assert untimed(second.metrics.rows()) == untimed(whole.metrics.rows())


def _sampled(trainer: Trainer) -> Any:
    from ltm_pyro.data import Sampler

    return Sampler(len(trainer.data.train), trainer.settings.training.batch_size, seed=trainer.settings.training.seed)


def test_all_kinds_of_model_meet_the_same_batches(tmp_path: Path, data: Data):
    tokens = []
    for kind in ("ltm", *KINDS):
        trainer = new_trainer(tmp_path / kind, data, {"model.name": kind})
        trainer.fit()
        rows = [row for row in trainer.metrics.rows() if row["split"] == "train"]
        tokens.append([row["training_tokens"] for row in rows])
        assert [row["tokens"] for row in trainer.metrics.rows() if row["split"] == "validation"]
    assert tokens[0] == tokens[1] == tokens[2]


def test_a_model_without_thoughts_has_no_svi(tmp_path: Path, data: Data):
    new_trainer(tmp_path / "run", data, {"model.name": "ar"}).fit()
    run = load_run(tmp_path / "run", device="cpu")
    with pytest.raises(LTMError, match=r"of kind ar, which has no thoughts: give a run .* --model ltm"):
        _ = run.svi
    assert RunDirectory(tmp_path / "run").settings.model.name == "ar"
    names = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000006").model
    assert all(name.startswith("model.network.") for name in names)


def test_a_baseline_of_ones_own_is_trained_by_its_path(tmp_path: Path, data: Data):
    trainer = new_trainer(tmp_path / "run", data, {"model.name": "ltm_pyro.baselines:Autoregressive"})
    assert isinstance(trainer.learner, BaselineLearner)
    assert trainer.fit()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.name": "arr"}, "unknown model 'arr': did you mean 'ar'"),
        ({"model.name": "lmt"}, "unknown model 'lmt': did you mean 'ltm'"),
        ({"model.name": "ar", "model.depth": 3}, "model 'ar' has no option 'depth': it takes same_parameters"),
        ({"model.name": "ar", "model.autocast": "bfloat16"}, "model 'ar' has no option 'autocast': it takes same_par"),
        ({"model.name": "mdlm", "model.sampling_steps": "few"}, "model.sampling_steps must be a whole number"),
        ({"model.depth": 3}, "model 'ltm' has no option 'depth'"),
        ({"model.name": "mdlm", "model.sampling_steps": 0}, "sampling_steps must be 1 or more"),
        ({"model.name": "ar", "model.same_parameters": "perhaps"}, "model.same_parameters"),
    ],
)
def test_a_wrong_model_is_refused(tmp_path: Path, data: Data, changes: dict[str, Any], words: str):
    with pytest.raises(LTMError, match=words):
        new_trainer(tmp_path / "run", data, changes)
