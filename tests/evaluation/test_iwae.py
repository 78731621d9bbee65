"""``iwae`` between the ELBO and the exact evidence, with the Pareto shape of its weights beside it."""

from __future__ import annotations

import math

import pytest
import torch
from linear_gaussian import ExactNormal, SequentialModel

from ltm_pyro.data import Data
from ltm_pyro.evaluation import Report, evaluate
from ltm_pyro.guides import LocalDelta
from ltm_pyro.infer import FastSlowSVI, importance_weights

BOUNDS = ("elbo", "iwae")
INDICES = range(8)


def known(log_ratio: float = 0.0) -> tuple[SequentialModel, FastSlowSVI]:
    """A model whose evidence is known, and its posterior with exp(log_ratio) times the variance."""
    model = SequentialModel()
    return model, FastSlowSVI(model, ExactNormal(model, log_ratio))


def test_elbo_and_iwae_are_the_evidence_where_q_is_exact(data: Data):
    model, svi = known()
    evidence = model.log_evidence(data.train.batch(INDICES)).double()
    for samples in (1, 30):
        report = evaluate(svi, data.train, INDICES, protocols=BOUNDS, samples=samples)
        torch.testing.assert_close(-report.values["iwae"], evidence, atol=1e-3, rtol=0)
    elbo = evaluate(svi, data.train, INDICES, samples=20_000).values["elbo"]
    spread = math.sqrt(2 / 2 / 20_000)  # of log p(x | z), whose variance is half the number of dimensions at most
    torch.testing.assert_close(-elbo, evidence, atol=5 * spread, rtol=0)


def test_iwae_rises_from_the_elbo_to_the_evidence_as_draws_are_added(data: Data):
    model, svi = known(1.0)
    evidence = model.log_evidence(data.train.batch(INDICES)).double()

    def gap(samples: int) -> float:
        """Mean of ``iwae`` above the truth, over sequences and seeds."""
        values = [
            evaluate(svi, data.train, INDICES, protocols=["iwae"], samples=samples, seed=seed, batch_size=999).values[
                "iwae"
            ]
            for seed in range(40)
        ]
        return float((torch.stack(values) + evidence).mean())

    one, three, thirty = gap(1), gap(3), gap(30)
    # KL(q ‖ posterior) of d = 2 dimensions: d (r - 1 - log r) / 2 with r = e; one draw of 320 deviates by 1.7.
    assert one == pytest.approx(math.e - 2, abs=4 * 1.72 / 320**0.5)
    assert one > three + 0.2
    assert three > thirty + 0.04
    assert abs(thirty) < 0.04
    assert (evaluate(svi, data.train, INDICES, samples=4000).values["elbo"] > -evidence).all()
    many = evaluate(svi, data.train, INDICES, protocols=["iwae"], samples=4000, batch_size=999).values["iwae"]
    # S / ESS = (r / √(2 r - 1))² = 1.67, so that the weights' relative deviation is 0.8.
    torch.testing.assert_close(-many, evidence, atol=5 * 0.82 / 4000**0.5, rtol=0)


def test_the_pareto_shape_tells_a_q_that_is_too_narrow(data: Data):
    def row(log_ratio: float) -> dict[str, float]:
        return evaluate(known(log_ratio)[1], data.train, INDICES, protocols=["iwae"], samples=1000).to_dict()

    narrow, wide = row(math.log(0.1)), row(math.log(1.5))
    assert narrow["k_hat_median"] > 0.7
    assert narrow["k_hat_above_0.7"] > 0.8
    assert wide["k_hat_median"] < 0.3
    assert wide["k_hat_above_0.7"] == 0


def test_values_are_those_of_the_weights_on_noise_after_the_fit(svi: FastSlowSVI, data: Data):
    report = evaluate(svi, data.train, [4, 9], protocols=["iwae"], samples=40, fast_steps=5, fast_lr=0.2, seed=8)
    weights = importance_weights(svi.infer(data.train.batch([4, 9]), steps=5, lr=0.2, seed=8), 40)
    torch.testing.assert_close(report.values["iwae"].float(), -weights.log_evidence, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(report.k_hat, weights.k_hat, atol=1e-2, rtol=1e-2)
    assert set(report.values) == {"iwae"}  # nothing else was computed
    row = report.to_dict()
    assert row["iwae"] == pytest.approx(-float(weights.log_evidence.sum()) / row["tokens"], rel=1e-5)
    assert row["k_hat_above_0.7"] == float((weights.k_hat > 0.7).double().mean())
    assert row["iwae_se"] > 0
    assert not row.keys() & {"elbo", "kl", "block_size"}


def test_one_draw_is_a_sample_of_the_elbo(svi: FastSlowSVI, data: Data):
    """log w averages to the ELBO, so that over many single draws the two agree."""
    indices = range(3)
    elbo = evaluate(svi, data.train, indices, samples=2000).values["elbo"]
    single = [evaluate(svi, data.train, indices, protocols=["iwae"], seed=s).values["iwae"] for s in range(30)]
    draws = torch.stack(single).sum(1)
    assert float(draws.mean() - elbo.sum()) == pytest.approx(0, abs=4 * float(draws.std()) / 30**0.5 + 0.2)


@pytest.mark.parametrize("protocols", [("iwae",), ("elbo", "iwae")])
def test_neither_the_batch_size_nor_the_order_changes_a_number_and_the_seed_does(
    svi: FastSlowSVI, data: Data, protocols: tuple[str, ...]
):
    def of(indices: list[int], **options: int) -> Report:
        return evaluate(svi, data.train, indices, protocols=protocols, samples=25, **options)

    one = of([0, 1, 2, 3, 4], batch_size=1)
    for size in (2, 100):
        many = of([0, 1, 2, 3, 4], batch_size=size)
        torch.testing.assert_close(many.values["iwae"], one.values["iwae"], rtol=1e-5, atol=1e-3)
    backward = of([4, 3, 2, 1, 0], batch_size=100)
    torch.testing.assert_close(backward.values["iwae"].flip(0), one.values["iwae"], rtol=1e-5, atol=1e-3)
    torch.manual_seed(999)
    assert torch.equal(of([0, 1, 2, 3, 4], batch_size=1).values["iwae"], one.values["iwae"])
    assert not torch.equal(of([0, 1, 2, 3, 4], batch_size=1, seed=1).values["iwae"], one.values["iwae"])


def test_a_point_has_no_iwae(svi: FastSlowSVI, data: Data):
    point = FastSlowSVI(svi.model, LocalDelta(svi.model), fast=svi.fast)
    row = evaluate(point, data.train, [0, 1], protocols=("elbo", "iwae"), samples=30).to_dict()
    assert [row[name] for name in ("iwae", "iwae_se", "k_hat_median", "k_hat_above_0.7", "elbo", "kl")] == [None] * 6
    assert row["log_joint"] > 0
    alone = evaluate(point, data.train, [0, 1], protocols=["iwae"]).to_dict()
    assert (alone["iwae"], alone["sequences"]) == (None, 2)


def test_too_few_draws_have_no_pareto_shape_to_report(svi: FastSlowSVI, data: Data):
    for samples, says in ((1, False), (20, False), (21, True)):
        row = evaluate(svi, data.train, range(4), protocols=["iwae"], samples=samples).to_dict()
        assert (row["k_hat_above_0.7"] is not None) == says
        assert row["iwae"] > 0
