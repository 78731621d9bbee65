"""The semi-amortised guide: its encoder learns where the fast loop ends, and that alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from linear_gaussian import LinearGaussianModel
from tiny_models import ragged_batch, tiny_model
from tiny_runs import new_trainer, tiny_data
from torch.distributions import Normal, kl_divergence

from ltm_pyro.guides import LocalNormal, SemiAmortized
from ltm_pyro.infer import FastConfig, FastSlowSVI, SequenceELBO

SMALL = {"width": 16, "layers": 1, "heads": 2}


def test_the_encoders_start_comes_to_where_the_fast_loop_ends_and_two_fast_steps_do():
    model, batch = LinearGaussianModel(orthogonal=True), ragged_batch(4, 4, 4, 4)
    guide = SemiAmortized(model, init_log_var=-1.0, **SMALL)
    slow = torch.optim.Adam(guide.parameters(), lr=0.01)
    fast = FastConfig(steps=10, lr=0.1)
    svi = FastSlowSVI(model, guide, fast=fast, slow=slow, elbo=SequenceELBO(64))
    losses = [float(svi.step(batch, seed=i).guide_loss) for i in range(60)]
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])
    evidence = model.log_evidence(batch)
    local = FastSlowSVI(model, LocalNormal(model, init_log_var=-1.0), fast=fast, elbo=SequenceELBO(64))
    gaps = [(evidence - s.infer(batch, steps=2, seed=0).elbo_terms(4000).elbo).mean() for s in (svi, local)]
    assert gaps[0] < 0.3 * gaps[1], gaps


def start_and_end(shift: float):
    """A guide's start for two texts, and an end that lies ``shift`` from it in every entry, up to its sign."""
    model, batch = tiny_model(), ragged_batch(4, 6)
    guide = SemiAmortized(model, init_log_var=-1.0, **SMALL)
    start = {name: value.detach() for name, value in guide.init_local(batch).items()}
    end = {name: value + shift * torch.randn_like(value) for name, value in start.items()}
    return guide, batch, start, end


@pytest.mark.parametrize("forwards", [True, False])
def test_the_distance_is_the_kl_to_second_order(float64, forwards):
    ratios = []
    for shift in (0.3, 0.03, 0.003):
        torch.manual_seed(1)
        guide, batch, start, end = start_and_end(shift)
        normals = [Normal(p["z.mu"], (0.5 * p["z.log_var"]).exp()) for p in (start, end)]
        kl = kl_divergence(*(normals if forwards else normals[::-1])).flatten(1).sum(1)
        ratios.append((guide.slow_loss(batch, end) / kl).detach())
    errors = [float((r - 1).abs().max()) for r in ratios]
    assert errors[2] < 1e-2  # what is left is of third order: the ratio's error falls with the shift itself
    assert errors[1] < 0.2 * errors[0] or errors[1] < 1e-2
    assert errors[2] < 0.2 * errors[1]


def test_the_distance_is_zero_where_the_loop_ends_at_its_start():
    guide, batch, start, _ = start_and_end(0.0)
    assert (guide.slow_loss(batch, start) == 0).all()


def test_the_encoders_gradient_is_the_distances_alone(float64):
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4, 4, 4)
    guide = SemiAmortized(model, init_log_var=-1.0, **SMALL)
    slow = torch.optim.SGD([*model.parameters(), *guide.parameters()], lr=0.0)
    svi = FastSlowSVI(model, guide, fast=FastConfig(steps=4, lr=0.1), slow=slow)
    info = svi.step(batch, seed=0)
    (posterior,) = info.posteriors
    assert posterior.steps_taken == 4
    distance = guide.slow_loss(batch, posterior.local).sum() / 12
    torch.testing.assert_close(info.guide_loss, distance.detach())
    weights = list(guide.parameters())
    for weight, expected in zip(weights, torch.autograd.grad(distance, weights, allow_unused=True), strict=True):
        torch.testing.assert_close(weight.grad, expected)
    # The model's is the ELBO's at the fitted parameters, and the distance is no part of the reported loss.
    plain = LocalNormal(model)
    plain.init_local = lambda batch, generator=None: guide.init_local(batch)
    matrix = model.matrix.grad.clone()
    other = FastSlowSVI(model, plain, fast=svi.fast, slow=slow).step(batch, seed=0)
    torch.testing.assert_close(model.matrix.grad, matrix)
    torch.testing.assert_close(other.loss, info.loss)
    assert other.guide_loss is None


def test_the_distance_does_not_move_the_decoders_embeddings():
    guide, batch, _, end = start_and_end(0.3)
    guide.slow_loss(batch, end).sum().backward()
    assert all(weight.grad is not None for weight in guide.parameters())
    assert guide.embedding.weight.grad is None


def test_inference_starts_at_the_encoders_reading_and_leaves_it_as_it_was():
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4, 4)
    guide = SemiAmortized(model, init_log_var=-1.0, **SMALL)
    svi = FastSlowSVI(model, guide, fast=FastConfig(steps=3))
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    start = svi.infer(batch, steps=0, seed=0)
    for name, value in guide.init_local(batch).items():
        torch.testing.assert_close(start.local[name], value.detach())
    moved = svi.infer(batch, seed=0)
    assert moved.steps_taken == 3
    assert (moved.local["z.mu"] != start.local["z.mu"]).any()
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())


def test_parts_of_a_batch_add_up_to_the_whole():
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4, 4, 4)
    guide = SemiAmortized(model, init_log_var=-1.0, **SMALL)
    slow = torch.optim.SGD(guide.parameters(), lr=0.0)
    svi = FastSlowSVI(model, guide, fast=FastConfig(steps=3), slow=slow)
    results = []
    for size in (None, 2):
        info = svi.step(batch, seed=0, micro_batch_size=size)
        results.append([info.guide_loss, *(p.grad.clone() for p in guide.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_training_rows_tell_the_distance_beside_the_loss_and_not_in_it(tmp_path: Path):
    options = {"guide.name": "semi-amortized", "guide.width": 16, "guide.heads": 2, "training.steps": 3}
    trainer = new_trainer(tmp_path / "run", tiny_data(tmp_path, layout="documents"), options)
    trainer.fit()
    rows = [row for row in trainer.metrics.rows() if row["split"] == "train"]
    assert len(rows) == 3
    for row in rows:
        assert row["guide_loss"] > 0
        assert row["loss"] == pytest.approx(row["reconstruction"] + row["kl"])


def test_it_is_the_local_normal_in_all_that_is_sampled():
    model, batch = tiny_model(), ragged_batch(4, 2)
    posterior = FastSlowSVI(model, SemiAmortized(model, **SMALL), fast=FastConfig(steps=2)).infer(batch, seed=0)
    plain = replace(posterior, guide=LocalNormal(model))
    assert torch.equal(posterior.sample(3), plain.sample(3))
    torch.testing.assert_close(posterior.kl, plain.kl)
