"""Learning rates against their closed forms, and which weights decay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_runs import tiny_settings
from torch import nn

from ltm_pyro.components import build_model
from ltm_pyro.config import InferenceSettings, TrainingSettings
from ltm_pyro.errors import LTMError
from ltm_pyro.training import build_optimizer
from ltm_pyro.training.schedules import fast_lr, kl_weight, slow_lr


def test_the_slow_rate_warms_up_linearly_and_falls_along_a_cosine():
    settings = TrainingSettings(steps=101, warmup_steps=10, slow_lr=0.8, slow_lr_final=0.2)
    found = [slow_lr(settings, step) for step in range(101)]
    np.testing.assert_allclose(found[:10], 0.08 * np.arange(1, 11))
    angles = np.linspace(0, np.pi, 91)  # from the step after warm-up to the last
    np.testing.assert_allclose(found[10:], 0.5 + 0.3 * np.cos(angles))
    assert found[100] == pytest.approx(0.2)


def test_without_warm_up_the_slow_rate_begins_at_its_peak():
    settings = TrainingSettings(steps=5, warmup_steps=0, slow_lr=1.0, slow_lr_final=0.0)
    expected = [1.0, 0.5 + 0.5 * 2**-0.5, 0.5, 0.5 - 0.5 * 2**-0.5, 0.0]
    np.testing.assert_allclose([slow_lr(settings, s) for s in range(5)], expected, atol=1e-12)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 100), (2, 1), (3, 3)])
def test_short_runs_have_rates_between_zero_and_the_peak(steps: int, warmup: int):
    settings = TrainingSettings(steps=steps, warmup_steps=warmup, slow_lr=1.0, slow_lr_final=0.1)
    assert all(0 < slow_lr(settings, s) <= 1 for s in range(steps + 2))


def test_the_fast_rate_goes_linearly_from_first_to_last():
    inference = InferenceSettings(fast_lr=0.3, fast_lr_final=0.34)
    training = TrainingSettings(steps=5)
    np.testing.assert_allclose([fast_lr(inference, training, s) for s in range(5)], [0.3, 0.31, 0.32, 0.33, 0.34])
    assert fast_lr(inference, training, 50) == pytest.approx(0.34)
    assert fast_lr(inference, TrainingSettings(steps=1), 0) == 0.3


def test_the_weight_of_the_kl_rises_linearly_from_zero_to_one_and_is_one_without_warm_up():
    inference = InferenceSettings(kl_warmup_steps=4)
    assert [kl_weight(inference, TrainingSettings(), s) for s in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert [kl_weight(InferenceSettings(), TrainingSettings(), s) for s in range(3)] == [1.0, 1.0, 1.0]


def test_the_weight_of_the_kl_can_be_held_before_it_rises_and_start_above_zero():
    inference = InferenceSettings(kl_warmup_steps=2, kl_weight_start=0.5, kl_hold_steps=3)
    assert [kl_weight(inference, TrainingSettings(), s) for s in range(7)] == [0.5, 0.5, 0.5, 0.5, 0.75, 1.0, 1.0]
    with pytest.raises(LTMError, match="kl_warmup_steps"):
        InferenceSettings(kl_hold_steps=3)
    shares = InferenceSettings(kl_warmup_steps=0.2, kl_weight_start=0.5, kl_hold_steps=0.3)
    assert [kl_weight(shares, TrainingSettings(steps=10), s) for s in range(7)] == [0.5, 0.5, 0.5, 0.5, 0.75, 1.0, 1.0]
    with pytest.raises(LTMError, match=r"kl_hold_steps = 0\.6 and kl_warmup_steps = 0\.5 are more than the whole"):
        InferenceSettings(kl_hold_steps=0.6, kl_warmup_steps=0.5)
    # A share of few steps is one step at least.
    assert kl_weight(shares, TrainingSettings(steps=1), 2) == 1.0
    with pytest.raises(
        LTMError, match=r"kl_warmup_steps must be a whole number of steps, or a share below 1, got 2\.5"
    ):
        InferenceSettings(kl_warmup_steps=2.5)
    with pytest.raises(LTMError, match="fast_beta2 must be below 1"):
        InferenceSettings(fast_beta2=1.0)


def test_weight_decay_acts_on_matrices_alone():
    model = build_model(tiny_settings(), 300)
    optimizer = build_optimizer(model, TrainingSettings(weight_decay=0.5, slow_lr=0.1, beta1=0.7, beta2=0.8))
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decays) == set(model.parameters())
    for name, parameter in model.named_parameters():
        assert decays[parameter] == (0.0 if "norm" in name else 0.5), name
    assert all(group["betas"] == (0.7, 0.8) for group in optimizer.param_groups)
    before = {p: p.detach().clone() for p in decays}
    for parameter in decays:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, decay in decays.items():  # AdamW with a zero gradient: w (1 - lr · decay)
        torch.testing.assert_close(parameter.detach(), before[parameter] * (1 - 0.1 * decay))


def test_frozen_weights_are_not_optimised():
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    optimizer = build_optimizer(layer, TrainingSettings())
    assert [p for group in optimizer.param_groups for p in group["params"]] == [layer.bias]
