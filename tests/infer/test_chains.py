"""Diagnostics of chains against processes whose autocorrelation is known, and against ArviZ."""

from __future__ import annotations

import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussianModel
from tiny_models import ragged_batch, tiny_model

from ltm_pyro.errors import LTMError
from ltm_pyro.infer import Chains, langevin
from ltm_pyro.priors import HierarchicalPrior, MixturePrior, Prior

SHAPE = (1, 2, 2)


def chains_of(**sites: torch.Tensor) -> Chains:
    _, chains, batch = next(iter(sites.values())).shape[:3]
    ones = torch.ones(chains, batch)
    return Chains(tiny_model(), ragged_batch(*[3] * batch), sites, "mala", ones, ones, 0)


def autoregressive(rho: float, *shape: int) -> torch.Tensor:
    noise = torch.randn(shape)
    draws = [noise[0]]
    for e in noise[1:]:
        draws.append(rho * draws[-1] + (1 - rho**2) ** 0.5 * e)
    return torch.stack(draws)


@pytest.mark.parametrize("rho", [-0.4, 0.0, 0.7])
def test_the_effective_sample_size_is_that_of_an_autoregressive_process(rho):
    chains = chains_of(z=autoregressive(rho, 1000, 8, 2, 3))
    size = chains.effective_sample_size()["z"]
    assert size.shape == (2, 3)
    # (1 - ρ) / (1 + ρ) of 8000; the estimate errs by some percent.
    assert (size / (8000 * (1 - rho) / (1 + rho)) - 1).abs().max() < 0.2


def test_the_effective_sample_size_of_alternating_draws_is_bounded():
    signs = torch.tensor([1.0, -1.0]).repeat(50)[:, None, None].expand(100, 2, 1)
    size = chains_of(z=signs + 1e-3 * torch.randn(100, 2, 1)).effective_sample_size()["z"]
    assert 200 < float(size) <= 200 * 2.31  # log10(200) = 2.30


def test_r_hat_tells_chains_that_are_stuck_apart_from_chains_that_agree():
    agree = autoregressive(0.5, 400, 4, 2, 3)
    apart = agree.clone()
    apart[:, :, 1, 2] += torch.tensor([0.0, 0.0, 2.0, 0.0])
    drifting = agree.clone()
    drifting[:, :, 0, 0] += torch.linspace(-2, 2, 400)[:, None]  # every chain alike: only its halves differ
    assert (chains_of(z=agree).r_hat()["z"] < 1.05).all()
    r_hat = chains_of(z=apart).r_hat()["z"]
    assert r_hat[1, 2] > 1.1
    assert (r_hat.flatten()[:-1] < 1.05).all()
    assert chains_of(z=drifting).r_hat()["z"][0, 0] > 1.1


def test_the_summary_holds_the_worst_entry_of_every_sequence():
    draws = autoregressive(0.0, 400, 4, 2, 3)
    slow = autoregressive(0.95, 400, 4, 2)
    slow[:, :, 0] = draws[:, :, 0, 0]
    summary = chains_of(z=draws, level=slow).summary()
    assert summary.effective_sample_size.shape == summary.r_hat.shape == summary.acceptance.shape == (2,)
    assert summary.effective_sample_size[0] > 800
    assert summary.effective_sample_size[1] < 150


def test_diagnostics_of_a_large_site_do_not_depend_on_how_it_is_cut(monkeypatch):
    chains = chains_of(z=autoregressive(0.5, 40, 2, 2, 3, 5))
    whole = chains.effective_sample_size()["z"]
    monkeypatch.setattr("ltm_pyro.infer.chains._LAG_TABLE", 40**2 * 7)
    torch.testing.assert_close(chains.effective_sample_size()["z"], whole)
    assert whole.shape == (2, 3, 5)


def test_too_few_draws_for_a_diagnostic_are_told():
    with pytest.raises(LTMError, match="need 4 draws or more, got 3"):
        chains_of(z=torch.randn(3, 2, 1, 2)).r_hat()


def test_thoughts_are_the_priors_program_at_the_drawn_sites():
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4, 4)
    model.prior = HierarchicalPrior(SHAPE, topics=3, centred=False)
    chains = langevin(model, batch, draws=70, warmup=5, chains=2, seed=0)  # more than one part of 64
    assert chains.sites["topic"].shape == (70, 2, 2, 3)
    prior = model.prior
    mean = torch.einsum("lnht,...t->...lnh", prior.weight, chains.sites["topic"])
    expected = (mean + prior.bias + prior.log_scale.exp() * chains.sites["noise"]).detach()
    torch.testing.assert_close(chains.thoughts(), expected)
    torch.testing.assert_close(chains.mean, expected.mean((0, 1)))


class SwitchedPrior(Prior):
    """Normal thoughts, moved by -1 or 2 according to a coin that stands beside them."""

    def forward(self, batch_size):
        coin = pyro.sample("coin", dist.Bernoulli(torch.full((batch_size,), 0.4)), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(torch.zeros(batch_size, *self.shape), 1.0).to_event(3))
        return z + (3 * coin - 1)[..., None, None, None]


def test_thoughts_that_depend_on_an_enumerated_site_are_drawn_with_it():
    """Given the coin, the thoughts have a normal prior with another mean: their posterior is a mixture of two."""
    model, batch = LinearGaussianModel(orthogonal=False, scale=4.0), ragged_batch(4, 4)
    model.prior = SwitchedPrior(SHAPE)
    chains = langevin(model, batch, draws=500, warmup=200, chains=16, seed=0)
    w, y = model.matrix.detach(), model.table[batch.tokens].flatten(-2)
    precision = torch.eye(4) + w.T @ w / 16
    scores, means = [], []
    for probability, shift in ((0.6, -1.0), (0.4, 2.0)):
        prior_mean = torch.full((4,), shift)
        evidence = torch.distributions.MultivariateNormal(w @ prior_mean, w @ w.T + 16 * torch.eye(8))
        scores.append(evidence.log_prob(y) + torch.tensor(probability).log())
        means.append((y @ w / 16 + prior_mean) @ torch.linalg.inv(precision))
    weights = torch.stack(scores).softmax(0)
    exact = (weights[..., None] * torch.stack(means)).sum(0)
    assert (weights > 0.05).all()
    thoughts = chains.thoughts().flatten(3)
    error = thoughts.flatten(0, 1).std(0) / chains.effective_sample_size()["z"].flatten(1).sqrt()
    assert ((thoughts.mean((0, 1)) - exact).abs() < 5 * error).all()
    assert torch.equal(chains.thoughts(), chains.thoughts())


def test_thoughts_above_an_enumerated_site_need_no_draw_of_it():
    model, batch = LinearGaussianModel(orthogonal=False), ragged_batch(4)
    model.prior = MixturePrior(SHAPE, components=2)
    chains = langevin(model, batch, draws=4, warmup=2, chains=2, seed=0)
    assert torch.equal(chains.thoughts(), chains.sites["z"])


def test_arviz_gets_every_draw_and_its_diagnostics_are_close_to_ours():
    arviz = pytest.importorskip("arviz", reason="ArviZ is an extra: pip install 'ltm-pyro[arviz]'")
    chains = chains_of(z=autoregressive(0.6, 500, 4, 2, 3), level=autoregressive(0.2, 500, 4, 2))
    data = chains.to_arviz()
    assert data.posterior["z"].dims == ("chain", "draw", "sequence", "z_dim_0")
    assert data.posterior["level"].dims == ("chain", "draw", "sequence")
    assert data.constant_data["step_size"].dims == ("chain", "sequence")
    assert data.posterior.attrs["method"] == "mala"
    assert torch.equal(torch.from_numpy(data.posterior["z"].values).transpose(0, 1), chains.sites["z"])
    r_hat, size = arviz.rhat(data, method="split"), arviz.ess(data, method="mean")
    for name in ("z", "level"):
        ours = chains.r_hat()[name]
        torch.testing.assert_close(ours, torch.from_numpy(r_hat[name].values).to(ours), atol=1e-4, rtol=0)
        # Theirs takes halves of chains for chains of their own.
        theirs = torch.from_numpy(size[name].values)
        assert (chains.effective_sample_size()[name] / theirs - 1).abs().max() < 0.1


def test_a_missing_arviz_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(LTMError, match=r"needs ArviZ: pip install 'ltm-pyro\[arviz\]'"):
        chains_of(z=torch.randn(4, 2, 1)).to_arviz()
