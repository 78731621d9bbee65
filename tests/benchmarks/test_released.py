"""The loops that the library is measured against compute what they say."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ragged_batch, random_thoughts, tiny_decoder, tiny_model

pytest.importorskip("benchmarks", reason="the benchmarks stand in the checkout, not in the wheel")
from benchmarks.by_hand import HandWritten
from benchmarks.released import ReleasedAlgorithm, forward_logits
from ltm_pyro.decoder.linear import product
from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.likelihood import TokenSequence


@pytest.mark.parametrize("window", [3, 64])
def test_the_released_forward_pass_gives_the_decoders_logits(window):
    decoder = tiny_decoder(layers=3, window=window, max_length=9)  # shorter than the text
    inputs, thoughts = torch.randint(11, (2, 12)), random_thoughts(decoder, 2)
    expected = decoder.logits(decoder(decoder.stem(inputs), thoughts))
    for linear in (torch.nn.functional.linear, product):
        torch.testing.assert_close(forward_logits(decoder, inputs, thoughts, linear), expected, atol=1e-5, rtol=1e-5)


def test_the_released_slow_gradient_is_the_sum_over_its_fast_steps(monkeypatch):
    """With local parameters that do not move, T + 1 times the gradient at the start."""
    model, batch, seen = tiny_model(), ragged_batch(7, 7), []
    slow = torch.optim.SGD(model.parameters(), lr=0.0)
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda weights, _: seen.extend(w.grad.clone() for w in weights)
    )
    for steps in (0, 3):
        torch.manual_seed(5)
        # Adam's steps are of the size of its learning rate.
        ReleasedAlgorithm(model.decoder, FastConfig(steps=steps, lr=1e-9), slow, init_log_var=-1.0).step(batch)
    once, four_times = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    for a, b in zip(once, four_times, strict=True):
        torch.testing.assert_close(4 * a, b, atol=1e-6, rtol=1e-4)


def test_the_hand_written_loop_follows_the_same_path_as_the_library(monkeypatch):
    """Without noise, the two must end at the same weights."""
    batch, ends = ragged_batch(6, 6, 6), []
    models = [tiny_model(), tiny_model()]
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(torch, "randn", lambda shape, **where: torch.zeros(shape, **where))
    monkeypatch.setattr("ltm_pyro.noise._noise", lambda shape, *_: torch.zeros(shape))
    for model, by_hand in zip(models, (False, True), strict=True):
        slow = torch.optim.SGD(model.parameters(), lr=0.1)
        guide = LocalNormal(model, init_log_var=-2.0, init_log_var_spread=0.0)
        svi = FastSlowSVI(model, guide, fast=FastConfig(steps=5, lr=0.1), slow=slow, clip_norm=1.0)
        for _ in range(2):
            if by_hand:
                HandWritten(svi, -2.0).step(batch)
            else:
                svi.step(batch, seed=0)
        ends.append(
            TokenSequence(model.decoder, torch.zeros(3, *model.decoder.thought_shape), batch).log_prob(batch.tokens)
        )
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=1e-5)
