"""Activation checkpointing changes memory and time, and no number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import ragged_batch, tiny_model
from torch import Tensor

from ltm_pyro.baselines import BASELINES, TransformerShape
from ltm_pyro.components import build_baseline, build_model
from ltm_pyro.config import Settings
from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.memory_meter import measured_peak
from ltm_pyro.model import LatentThoughtModel

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
BATCH = ragged_batch(11, 6, 11, 9)


def program(checkpointing: bool, autocast: torch.dtype | None, **shape: Any) -> tuple[LatentThoughtModel, FastSlowSVI]:
    model = tiny_model(**({"layers": 3} | shape))
    model.decoder.checkpointing = checkpointing
    slow = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, FastSlowSVI(model, LocalNormal(model), fast=FastConfig(steps=3), slow=slow, autocast=autocast)


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def assert_equal_gradients(left: torch.nn.Module, right: torch.nn.Module) -> None:
    found = gradients(right)
    assert found.keys() == gradients(left).keys()
    for name, gradient in gradients(left).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("autocast", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("layers", [1, 3])
def test_slow_step_and_fast_loop_are_those_without_checkpointing(layers: int, autocast: torch.dtype | None):
    (plain, svi), (same, again) = (program(c, autocast, layers=layers) for c in (False, True))
    info, other = svi.step(BATCH, seed=0), again.step(BATCH, seed=0)
    torch.testing.assert_close(other.loss, info.loss, rtol=1e-6, atol=0)
    for name, value in info.posteriors[0].local.items():
        torch.testing.assert_close(other.posteriors[0].local[name], value, rtol=1e-6, atol=1e-6)
    assert_equal_gradients(plain, same)


def test_slow_gradient_along_the_trajectory_is_that_without_checkpointing():
    models = []
    for checkpointing in (False, True):
        model, svi = program(checkpointing, None)
        svi.fast = FastConfig(steps=2, slow_gradient="trajectory")
        svi.step(BATCH, seed=0)
        models.append(model)
    assert_equal_gradients(*models)


@pytest.mark.parametrize("autocast", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("kind", BASELINES)
def test_gradient_of_a_baseline_is_that_without_checkpointing(kind: str, autocast: torch.dtype | None):
    models = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        shape = TransformerShape(vocab_size=11, layers=3, hidden=8, heads=2, feed_forward=16, window=4, max_length=12)
        model = BASELINES[kind](shape, autocast=autocast)
        model.network.checkpointing = checkpointing
        model.sequence_loss(BATCH, seed=0).sum().backward()
        models.append(model)
    assert_equal_gradients(*models)


@pytest.mark.parametrize("autocast", PRECISIONS.values(), ids=PRECISIONS)
def test_peak_of_a_step_is_lower(autocast: torch.dtype | None):
    batch = ragged_batch(*[48] * 6)
    peaks = []
    for checkpointing in (False, True):
        model, svi = program(checkpointing, autocast, layers=6, hidden=32, window=64, max_length=64)
        peaks.append(measured_peak(lambda svi=svi: svi.step(batch, seed=0), model.parameters()))
    assert peaks[1] < 0.5 * peaks[0]


def test_nothing_runs_again_where_there_is_no_backward_pass(monkeypatch: pytest.MonkeyPatch):
    model, _ = program(True, None)
    monkeypatch.setattr("ltm_pyro.decoder.tied.checkpoint", lambda *_, **__: pytest.fail("checkpointed"))
    thoughts = torch.randn(len(BATCH), *model.decoder.thought_shape)
    with torch.no_grad():
        model.decoder(model.decoder.stem(BATCH.inputs), thoughts)
        model.decoder.prefill(BATCH.inputs, BATCH.lengths, thoughts)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_setting_reaches_the_network(checkpointing: bool):
    settings = Settings().updated({"decoder.checkpointing": checkpointing})
    with torch.device("meta"):
        assert build_model(settings, 300).decoder.checkpointing is checkpointing
        for kind in BASELINES:
            assert build_baseline(settings.updated({"model.name": kind}), 300).network.checkpointing is checkpointing
