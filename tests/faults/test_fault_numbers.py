"""NaN in gradients, losses and weights at random steps: left out and counted, or refused by name; never saved."""

from __future__ import annotations

import math
import random
import warnings
from pathlib import Path

import pytest
import torch
from tiny_runs import new_trainer, reopened
from torch import Tensor

from ltm_pyro.data import Data
from ltm_pyro.errors import LTMError
from ltm_pyro.likelihood import TokenSequence
from ltm_pyro.training import read_checkpoint

CHANGES = {
    "training.steps": 8,
    "training.checkpoint_every": 1,
    "training.keep_checkpoints": 20,
    "training.eval_every": 8,
}


def test_gradients(tmp_path: Path, data: Data, tally):
    """A step with a NaN or an infinite gradient leaves weights and moments as they were, whichever weight it is in."""
    injected = 0
    for seed in range(3):
        draw = random.Random(seed)
        trainer = new_trainer(tmp_path / str(seed), data, CHANGES)
        bad = sorted(draw.sample(range(1, 8), 3))
        weight = draw.choice([p for p in trainer.learner.modules.parameters() if p.requires_grad])
        value = draw.choice([math.nan, math.inf, -math.inf])

        def poison(gradient: Tensor, trainer=trainer, bad=bad, value=value) -> Tensor:
            return gradient * value if trainer.step in bad else gradient

        weight.register_hook(poison)
        with pytest.warns(UserWarning, match="is left out: the losses are finite, their gradient is not"):
            assert trainer.fit()
        assert trainer.skipping.total == 3
        for step in bad:
            before, after = (trainer.store.folder / f"step-{k:08d}" for k in (step, step + 1))
            for name in ("model.safetensors", "optimizer.safetensors"):
                assert (before / name).read_bytes() == (after / name).read_bytes()
        injected += 3
    tally("NaN or infinity in a weight's gradient", injected=injected, exact=injected)


def test_losses(tmp_path: Path, data: Data, tally, monkeypatch: pytest.MonkeyPatch):
    """A text whose likelihood is NaN in the slow step: the step is left out, and the text is named."""
    sequences = [3, 11, 30]
    keys = data.train.batch(sequences).keys
    trainer = new_trainer(tmp_path / "run", data, CHANGES | {"training.steps": 24, "training.eval_every": 24})
    real = TokenSequence.log_prob

    def poisoned(self: TokenSequence, tokens: Tensor) -> Tensor:
        slow = torch.is_grad_enabled() and trainer.learner.model.decoder.norm.weight.requires_grad
        return real(self, tokens) * torch.where(torch.isin(self.batch.keys, keys) & slow, math.nan, 1.0)

    monkeypatch.setattr(TokenSequence, "log_prob", poisoned)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert trainer.fit()
    named = [str(w.message) for w in caught if "is left out" in str(w.message)]
    assert len(named) == trainer.skipping.total >= 4
    # Every step that met one of the texts, and no other one, named it and no other text.
    met: dict[int, list[int]] = {}
    sampler = new_trainer(tmp_path / "order", data, CHANGES).sampler
    for step in range(1, 25):
        if bad := [index for index in next(sampler) if index in sequences]:
            met[step] = bad
    assert [int(text.split()[1]) for text in named] == list(met)
    for text, bad in zip(named, met.values(), strict=True):
        assert [f"sequence {index} (document" in text for index in sequences] == [i in bad for i in sequences]
    tally("NaN in the loss of a text", injected=len(named), exact=len(named))


def test_weights(tmp_path: Path, data: Data, tally):
    """NaN in a weight between two steps is named at the next save or step, is never saved, and costs no checkpoint."""
    for seed in range(4):
        draw = random.Random(seed)
        trainer = new_trainer(tmp_path / str(seed), data, CHANGES | {"training.checkpoint_every": draw.choice([1, 3])})
        at = draw.randint(1, 6)
        name, weight = draw.choice(list(trainer.learner.model.named_parameters()))

        def poison(row: dict, trainer=trainer, at=at, weight=weight) -> None:
            if row["step"] == at:
                weight.data.view(-1)[0] = math.nan

        trainer.observer.step = poison  # type: ignore[method-assign]
        with pytest.raises(LTMError, match=rf"{name} (is|are) not finite"):
            trainer.fit()
        for path in trainer.store.paths():
            assert all(bool(value.isfinite().all()) for value in read_checkpoint(path).model.values())
        assert reopened(tmp_path / str(seed), data).step <= at
    tally("NaN in a weight, in memory", injected=4, refused=4)
