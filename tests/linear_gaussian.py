"""Programs with an exact answer: a linear-Gaussian likelihood of a fixed embedding of the tokens."""

from __future__ import annotations

import torch
from dense_normals import dense_normals
from pyro.distributions import TorchDistribution
from tiny_models import tiny_decoder
from torch.distributions import MultivariateNormal

from ltm_pyro.batch import TokenBatch
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import GaussianPrior, Prior


class EmbeddedNormal(TorchDistribution):
    """Tokens scored by a normal density of their embedding."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, mean, scale, table, num_tokens):
        self.mean_, self.scale, self.table = mean, scale, table
        super().__init__(mean.shape[:-1], torch.Size([num_tokens]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        mean = self.mean_.expand(*batch_shape, self.mean_.shape[-1])
        return EmbeddedNormal(mean, self.scale, self.table, self.event_shape[0])

    def log_prob(self, value):
        y = self.table[value].flatten(-2)
        return torch.distributions.Normal(self.mean_, self.scale).log_prob(y).sum(-1)


class EmbeddedModel(LatentThoughtModel):
    """p(y | z) = N(W z, s² I) of the flattened thoughts, where y is the tokens' rows of a table, end to end."""

    def __init__(self, prior: Prior, *, matrix: torch.Tensor, table: torch.Tensor, scale: float):
        layers, slots, hidden = prior.shape
        super().__init__(tiny_decoder(layers=layers, hidden=hidden, heads=1, thoughts_per_layer=slots), prior)
        self.matrix, self.table, self.scale = matrix, table, scale

    def likelihood(self, thoughts, batch, stem):
        return EmbeddedNormal(thoughts.flatten(-3) @ self.matrix.T, self.scale, self.table, batch.tokens.shape[1])

    def stem(self, batch):
        return None

    @torch.no_grad()
    def log_evidence(self, batch: TokenBatch, prior: Prior | None = None) -> torch.Tensor:
        """(B,) log p(y) under the model's prior or another."""
        weights, means, covariances = dense_normals(prior or self.prior)
        w = self.matrix
        covariances = w @ covariances @ w.T + self.scale**2 * torch.eye(len(w))
        y = self.table[batch.tokens].flatten(-2)[:, None]
        return (weights + MultivariateNormal(means @ w.T, covariances).log_prob(y)).logsumexp(-1)


class LinearGaussianModel(EmbeddedModel):
    """p(z) = N(0, I) and learned W; the four tokens of a sequence are embedded in the plane."""

    def __init__(self, *, orthogonal: bool, scale: float = 0.7):
        generator = torch.Generator().manual_seed(11)
        table = torch.randn(11, 2, generator=generator)
        matrix = torch.randn(8, 4, generator=generator)
        if orthogonal:
            matrix = torch.linalg.qr(matrix).Q * torch.tensor([0.5, 1.0, 1.5, 2.0])
        super().__init__(GaussianPrior((1, 2, 2)), matrix=torch.nn.Parameter(matrix), table=table, scale=scale)

    def exact_posterior(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 4) posterior means and the (4, 4) posterior precision that all sequences share."""
        w = self.matrix.detach()
        y = self.table[batch.tokens].flatten(-2)
        precision = torch.eye(4) + w.T @ w / self.scale**2
        return torch.linalg.solve(precision, (y @ w / self.scale**2).T).T, precision
