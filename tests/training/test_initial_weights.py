"""Training from another run's weights: the weights alone, and only where they mean the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import assert_same_tensors, new_trainer, reopened, tiny_data, weights_of

from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.training import Trainer, read_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Trainer:
    trainer = new_trainer(tmp_path_factory.mktemp("base") / "run", data)
    trainer.fit()
    return trainer


def finetuning(path: Path, data: Data, source: Path, changes: dict[str, Any] | None = None) -> Trainer:
    return new_trainer(path, data, {"training.init_from": str(source), "training.seed": 5} | (changes or {}))


def test_the_weights_are_those_of_the_runs_last_checkpoint_and_the_optimiser_is_new(
    tmp_path: Path, data: Data, base: Trainer
):
    trainer = finetuning(tmp_path / "run", data, base.run.path)
    assert_same_tensors(weights_of(trainer), weights_of(base))
    assert trainer.step == 0
    assert not trainer.optimizer.state


def test_a_checkpoint_inside_a_run_may_be_named(tmp_path: Path, data: Data, base: Trainer):
    place = base.run.path / "checkpoints" / "step-00000002"
    trainer = finetuning(tmp_path / "run", data, place)
    state = {**trainer.learner.model.state_dict(prefix="model."), **trainer.learner.guide.state_dict(prefix="guide.")}
    assert_same_tensors(state, read_checkpoint(place).model)


def test_training_goes_on_from_them_and_leaves_the_other_run_alone(tmp_path: Path, data: Data, base: Trainer):
    before = weights_of(base)
    trainer = finetuning(tmp_path / "run", data, base.run.path)
    first = trainer.learner.model.decoder.embedding.weight.clone()
    assert trainer.fit()
    assert not first.equal(trainer.learner.model.decoder.embedding.weight)
    assert_same_tensors(weights_of(base), before)
    rows = [row for row in trainer.metrics.rows() if row["split"] == "validation"]
    ends = [row for row in base.metrics.rows() if row["split"] == "validation"]
    assert (
        rows[0]["reconstruction"] < ends[0]["reconstruction"]
    )  # before its first step it knows what the other learned


def test_a_guides_weights_come_along(tmp_path: Path, data: Data):
    guide = {"guide.name": "amortized", "guide.width": 8, "training.steps": 2}
    first = new_trainer(tmp_path / "first", data, guide)
    first.fit()
    second = finetuning(tmp_path / "second", data, tmp_path / "first", guide)
    assert any(name.startswith("guide.") for name in weights_of(second))
    assert_same_tensors(weights_of(second), weights_of(first))


def test_a_resumed_run_needs_the_other_no_longer_once_it_has_a_checkpoint(tmp_path: Path, data: Data, base: Trainer):
    source = tmp_path / "source"
    shutil.copytree(base.run.path, source)
    for steps, name in ((6, "whole"), (4, "halved")):
        finetuning(tmp_path / name, data, source, {"training.steps": steps, "training.warmup_steps": 0}).fit()
    shutil.rmtree(source)
    resumed = reopened(tmp_path / "halved", data, {"training.steps": 6})
    assert resumed.step == 4
    assert resumed.fit()
    with pytest.raises(LTMError, match="there is no run at"):
        finetuning(tmp_path / "late", data, source)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_from_the_same_weights(
    tmp_path: Path, data: Data, base: Trainer
):
    finetuning(tmp_path / "run", data, base.run.path)
    assert_same_tensors(weights_of(reopened(tmp_path / "run", data)), weights_of(base))


@pytest.mark.parametrize(
    "changes", [{"decoder.window": 4}, {"inference.fast_steps": 3}, {"data.sequence_length": 16}, {"training.steps": 2}]
)
def test_what_the_weights_do_not_settle_may_change(tmp_path: Path, data: Data, base: Trainer, changes: dict[str, Any]):
    assert_same_tensors(weights_of(finetuning(tmp_path / "run", data, base.run.path, changes)), weights_of(base))


def test_another_tokenizer_is_refused_with_the_one_to_take(tmp_path: Path, base: Trainer):
    other = tiny_data(tmp_path, layout="documents", vocab_size=290)
    with pytest.raises(LTMError, match=r"--tokenizer .*run/tokenizer\.json$"):
        finetuning(tmp_path / "run", other, base.run.path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoder.hidden": 32}, r"that run has decoder\.hidden = 16, the new one 32; give"),
        ({"decoder.layers": 2}, r"that run has decoder\.layers = 1, the new one 2; give"),
        ({"decoder.heads": 4}, r"that run has decoder\.heads = 2, the new one 4; give"),  # of the same shapes
        ({"decoder.num_thoughts": 4}, r"that run has decoder\.num_thoughts = 2, the new one 4; give"),  # likewise
        ({"decoder.thought_width": None}, r"that run has decoder\.thought_width = 8, the new one 16; give"),
        ({"decoder.rope_base": 500.0}, r"that run has decoder\.rope_base = 10000\.0, the new one 500\.0; give"),
        ({"prior.name": "mixture"}, r"the weight model\.prior\.\S+ is missing in that run"),
        ({"guide.name": "amortized", "guide.width": 8}, r"the weight guide\.\S+ is missing in that run"),
    ],
)
def test_weights_of_another_shape_are_refused_in_one_line(
    tmp_path: Path, data: Data, base: Trainer, changes: dict[str, Any], words: str
):
    with pytest.raises(LTMError, match=words) as caught:
        finetuning(tmp_path / "run", data, base.run.path, changes)
    assert "\n" not in str(caught.value)


def test_weights_that_the_new_model_has_not_are_refused(tmp_path: Path, data: Data):
    new_trainer(tmp_path / "first", data, {"prior.name": "learned-gaussian", "training.steps": 1}).fit()
    with pytest.raises(
        LTMError, match=r"the weight model\.prior\.\S+ is \(.*\) in that run and missing in the new one"
    ):
        finetuning(tmp_path / "run", data, tmp_path / "first")
