"""What the samplers' tests share: chains held against moments, and priors with numerical or closed-form posteriors."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from linear_gaussian import LinearGaussianModel
from pyro.ops.stats import effective_sample_size

from ltm_pyro.infer import Chains
from ltm_pyro.priors import Prior


def assert_moments(chains: Chains, mean: torch.Tensor, variance: torch.Tensor, *, site="z", errors=5.0) -> None:
    """Means (B, D) and variances (B, D) or (D,) within Monte Carlo error, each by its own effective sample size."""
    draws = chains.sites[site].double().reshape(*chains.sites[site].shape[:3], -1)
    mean, variance = mean.double(), variance.double().expand(mean.shape)
    squares = (draws - mean).square()
    for value, expected, scale in ((draws, mean, variance.sqrt()), (squares, variance, variance)):
        size = effective_sample_size(value, chain_dim=1, sample_dim=0)
        error = (value.var((0, 1)) / size).sqrt()
        assert ((value.mean((0, 1)) - expected).abs() < errors * error).all()
        assert (error < 0.25 * scale).all()  # or the check above would say nothing


class GammaPrior(Prior):
    """All thoughts equal one positive number."""

    def forward(self, batch_size):
        level = pyro.sample("level", dist.Gamma(torch.full((batch_size,), 2.0), 3.0))
        return level[..., None, None, None].expand(*level.shape, *self.shape)


def gamma_model() -> LinearGaussianModel:
    model = LinearGaussianModel(orthogonal=False)
    model.prior = GammaPrior(model.prior.shape)
    return model


def gamma_posterior(model: LinearGaussianModel, batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B, 1) means, (B, 1) variances and (B,) log evidence, on a grid of levels."""
    level = torch.linspace(1e-4, 8.0, 20_001, dtype=torch.float64)
    y = model.table[batch.tokens].flatten(-2).double()
    fit = torch.distributions.Normal(level[:, None, None] * model.matrix.detach().double().sum(-1), model.scale)
    log_joint = torch.distributions.Gamma(2.0, 3.0).log_prob(level)[:, None] + fit.log_prob(y).sum(-1)
    weights = log_joint.softmax(0)
    mean = (weights * level[:, None]).sum(0)
    variance = (weights * (level[:, None] - mean).square()).sum(0)
    return mean[:, None], variance[:, None], log_joint.logsumexp(0) + (level[1] - level[0]).log()
