"""Steps whose loss or gradient is not finite: left out to the last bit, counted, named by their texts."""

from __future__ import annotations

import math
import re
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same_tensors, new_trainer, reopened, weights_of
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data import Data, SequenceDataset
from ltm_pyro.errors import LTMError
from ltm_pyro.infer.slow_update import slow_update
from ltm_pyro.likelihood import TokenSequence
from ltm_pyro.training import Trainer
from ltm_pyro.training.optimizer import moments
from ltm_pyro.training.skipping import describe_sequences

RARE = {"training.checkpoint_every": 1, "training.eval_every": 100}


def poison_gradient(trainer: Trainer, when: Callable[[int], bool]) -> None:
    """Makes a weight's gradient infinite at some steps."""
    weight = next(p for name, p in trainer.learner.modules.named_parameters() if name.endswith("norm.weight"))
    weight.register_hook(lambda gradient: gradient * math.inf if when(trainer.step) else gradient)


def poison_text(patch: pytest.MonkeyPatch, trainer: Trainer, key: int, value: float = math.nan) -> None:
    """Makes the likelihood of one text ``value`` in slow steps, as an overflow in the network would."""
    real = TokenSequence.log_prob

    def poisoned(self: TokenSequence, tokens: Tensor) -> Tensor:
        log_prob = real(self, tokens)
        slow = torch.is_grad_enabled() and trainer.learner.model.decoder.norm.weight.requires_grad
        return log_prob * torch.where(self.batch.keys == key, value, 1.0) if slow else log_prob

    patch.setattr(TokenSequence, "log_prob", poisoned)


@pytest.mark.parametrize("model", ["ltm", "ar"])
def test_a_skipped_step_leaves_weights_and_moments_as_they_were(tmp_path: Path, data: Data, model: str):
    trainer = new_trainer(tmp_path / "run", data, RARE | {"model.name": model, "training.steps": 4})
    poison_gradient(trainer, lambda step: step == 2)
    with pytest.warns(UserWarning, match=r"^step 3 is left out: the losses are finite, their gradient is not"):
        trainer.fit()
    rows = [row for row in trainer.metrics.rows() if row["split"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 4]  # a step that was left out has no losses to report
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1]
    before, after = trainer.store.folder / "step-00000002", trainer.store.folder / "step-00000003"
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (before / name).read_bytes() == (after / name).read_bytes()
    assert trainer.store.latest().state["skipped"] == {"total": 1, "in_a_row": 0}


def test_a_row_over_several_steps_leaves_the_skipped_ones_out(tmp_path: Path, data: Data):
    rows = {}
    for name, every in (("each", 1), ("all", 3)):
        trainer = new_trainer(tmp_path / name, data, RARE | {"training.steps": 3, "training.log_every": every})
        poison_gradient(trainer, lambda step, trainer=trainer: step == 2)
        with pytest.warns(UserWarning, match="step 3 is left out"):
            trainer.fit()
        rows[name] = [row for row in trainer.metrics.rows() if row["split"] == "train"]
    (row,) = rows["all"]
    assert row["step"] == 3
    assert row["gradient_norm"] is None  # JSON has no infinity
    assert min(r["loss"] for r in rows["each"]) <= row["loss"] <= max(r["loss"] for r in rows["each"])


@pytest.mark.parametrize("most", [0, 2])
def test_training_stops_after_the_stated_number_in_a_row_and_names_the_text(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch, most: int
):
    changes = RARE | {"training.max_skipped_steps": most, "training.batch_size": len(data.train), "training.steps": 9}
    trainer = new_trainer(tmp_path / "run", data, changes)
    at = 7  # met at every step, the batch being the whole corpus
    poison_text(monkeypatch, trainer, int(data.train.batch([at]).keys))
    batch = data.train.batch([at])
    words = data.tokenizer.decode(batch.tokens[0].tolist())[:20]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(LTMError) as error:
            trainer.fit()
    named = [str(w.message) for w in caught if "is left out" in str(w.message)]
    assert [text.split(":")[0] for text in named] == [f"step {k} is left out" for k in range(1, most + 1)]
    (document,) = data.train.document_of(at)
    for text in (*named, str(error.value)):
        assert f"the loss is not finite for sequence {at} (document {document}, which begins '{words}" in text
        assert f"in {data.train.shard.manifest.name}" in text
    assert f"step {most + 1} is left out ({most + 1} in a row)" in str(error.value)
    assert ("no checkpoint was written yet" in str(error.value)) == (most == 0)


def test_a_good_step_between_begins_the_count_anew(tmp_path: Path, data: Data):
    trainer = new_trainer(tmp_path / "run", data, RARE | {"training.max_skipped_steps": 2, "training.steps": 20})
    poison_gradient(trainer, lambda step: step not in (2, 5))
    with pytest.warns(UserWarning, match="left out"), pytest.raises(LTMError, match=r"step 9 is left out \(3 in a row"):
        trainer.fit()
    assert trainer.skipping.total == 7


def test_the_count_goes_on_after_a_resume(tmp_path: Path, data: Data):
    changes = RARE | {"training.max_skipped_steps": 3, "training.steps": 2}
    trainer = new_trainer(tmp_path / "run", data, changes)
    poison_gradient(trainer, lambda step: True)
    with pytest.warns(UserWarning, match="left out"):
        trainer.fit()
    again = reopened(tmp_path / "run", data, {"training.steps": 9})
    poison_gradient(again, lambda step: True)
    with (
        pytest.warns(UserWarning, match="step 3 "),
        pytest.raises(LTMError, match=r"step 4 is left out \(4 in a row\)"),
    ):
        again.fit()


def test_a_run_that_skips_and_is_resumed_equals_the_uninterrupted_one(tmp_path: Path, data: Data):
    ends = []
    for name, stops in (("whole", [6]), ("parts", [3, 6])):
        for number, steps in enumerate(stops):
            changes = {"training.steps": 6, "training.max_skipped_steps": 2}
            path = tmp_path / name
            trainer = new_trainer(path, data, changes) if not number else reopened(path, data)
            poison_gradient(trainer, lambda step, trainer=trainer: step in (1, 2, 4))
            if steps == 3:
                _stop_at(trainer, 3)
            with pytest.warns(UserWarning, match="left out"):
                trainer.fit()
        ends.append(trainer)
    assert_same_tensors(weights_of(ends[0]), weights_of(ends[1]))
    assert ends[0].store.latest().state == ends[1].store.latest().state
    losses = [[row.get("loss") for row in t.metrics.rows()] for t in ends]
    assert losses[0] == losses[1]


def _stop_at(trainer: Trainer, step: int) -> None:
    """Asks a trainer to stop once a step is done, as a signal would."""
    take = trainer._take_step

    def taken() -> Any:
        result = take()
        if trainer.step == step:
            signal.raise_signal(signal.SIGTERM)
        return result

    trainer._take_step = taken  # type: ignore[method-assign]


def test_a_step_in_which_every_sequence_diverges_is_left_out(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
):
    trainer = new_trainer(tmp_path / "run", data, RARE | {"training.steps": 3})
    real = TokenSequence.log_prob

    def poisoned(self: TokenSequence, tokens: Tensor) -> Tensor:
        fast = not trainer.learner.model.decoder.norm.weight.requires_grad
        return real(self, tokens) * (math.nan if fast and trainer.step == 1 and torch.is_grad_enabled() else 1.0)

    monkeypatch.setattr(TokenSequence, "log_prob", poisoned)
    with pytest.warns(UserWarning, match="step 2 is left out: the fast loop diverged for every sequence"):
        trainer.fit()
    assert trainer.skipping.total == 1


def test_diverged_sequences_are_counted_in_the_rows(tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch):
    trainer = new_trainer(tmp_path / "run", data, RARE | {"training.steps": 2, "training.batch_size": len(data.train)})
    real = TokenSequence.log_prob
    key = int(data.train.batch([3]).keys)

    def poisoned(self: TokenSequence, tokens: Tensor) -> Tensor:
        fast = not trainer.learner.model.decoder.norm.weight.requires_grad
        return real(self, tokens) * torch.where((self.batch.keys == key) & fast, math.nan, 1.0)

    monkeypatch.setattr(TokenSequence, "log_prob", poisoned)
    trainer.fit()
    rows = [row for row in trainer.metrics.rows() if row["split"] == "train"]
    assert [row["diverged_sequences"] for row in rows] == [1, 1]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert trainer.skipping.total == 0


def test_weights_that_are_not_finite_are_named_and_never_saved(tmp_path: Path, data: Data):
    trainer = new_trainer(tmp_path / "run", data, RARE)

    def spoil(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            with torch.no_grad():
                trainer.learner.model.decoder.embedding.weight[0, 0] = math.nan

    trainer.observer.step = spoil  # type: ignore[method-assign]
    with pytest.raises(LTMError, match=r"embedding\.weight is not finite after step 3, so it is not saved: lower"):
        trainer.fit()
    assert reopened(tmp_path / "run", data).step == 2


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("bad", ["loss", "gradient", "norm"])
def test_an_update_that_is_left_out_changes_nothing(optimizer: type[torch.optim.Optimizer], bad: str):
    weights = [
        torch.nn.Parameter(torch.randn(3)),
        torch.nn.Parameter(torch.randn(2)),
        torch.nn.Parameter(torch.ones(1)),
    ]
    slow = optimizer(weights, lr=0.1)
    modules = torch.nn.ParameterDict({str(i): weight for i, weight in enumerate(weights)})
    for step in range(3):
        for weight in weights[:2]:  # the third has no gradient
            weight.grad = torch.randn_like(weight)
        before = {n: v.detach().clone() for n, v in {**modules.state_dict(), **moments(slow, modules)}.items()}
        if step == 2:
            if bad == "gradient":
                weights[1].grad[0] = math.nan
            elif bad == "norm":
                weights[1].grad.fill_(1e38)  # finite, but not its square
        loss = torch.tensor(math.inf if step == 2 and bad == "loss" else 1.0)
        update = slow_update(slow, loss, clip_norm=1.0)
        after = {**modules.state_dict(), **moments(slow, modules)}
        assert update.skipped == (step == 2)
        assert (step == 0 or all(torch.equal(before[n], after[n]) for n in after)) == (step == 2 or step == 0)


def test_many_texts_are_counted_and_a_wrong_token_is_said(data: Data, monkeypatch: pytest.MonkeyPatch):
    losses = torch.full((6,), math.nan)
    text = describe_sequences(data.train, data.tokenizer, [0, 1, 2, 3, 4, 5], losses)
    assert re.search(r"not finite for sequence 0 .*; sequence 1 .*; sequence 2 .*; 3 more, in ", text)
    wrong = TokenBatch.from_lists([[5, 299, 300]], 0)
    monkeypatch.setattr(SequenceDataset, "batch", lambda data, indices: wrong)
    assert "token id 300: expected 0 … 299" in describe_sequences(data.train, data.tokenizer, [4], losses[:1])
