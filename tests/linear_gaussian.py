"""Programs with an exact answer: a linear-Gaussian likelihood of a fixed embedding of the tokens."""

from __future__ import annotations

import torch
from dense_normals import dense_normals
from pyro.distributions import TorchDistribution
from tiny_models import tiny_decoder
from torch.distributions import MultivariateNormal

from ltm_pyro.batch import TokenBatch
from ltm_pyro.guides import LocalNormal
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


class MaskedNormal(EmbeddedNormal):
    """The same, of the scored tokens alone."""

    def __init__(self, mean, scale, table, batch):
        super().__init__(mean, scale, table, batch.tokens.shape[1])
        self.batch = batch

    def expand(self, batch_shape, _instance=None):
        return MaskedNormal(self.mean_.expand(*batch_shape, -1), self.scale, self.table, self.batch)

    def log_prob(self, value):
        y = self.table[value].flatten(-2)
        entries = torch.distributions.Normal(self.mean_, self.scale).log_prob(y)
        return (entries.unflatten(-1, (value.shape[-1], -1)).sum(-1) * self.batch.mask).sum(-1)


class SequentialModel(LatentThoughtModel):
    """p(y_n | z) = N(c_n R_n z, s² I) for every token on its own, with z in the plane and R_n rotations.

    Under z ~ N(0, I) the posterior of any prefix is a normal with a covariance that is a multiple of the identity.
    """

    def __init__(self, *, length: int = 32, vocab_size: int = 300, scale: float = 1.0, prior: Prior | None = None):
        super().__init__(
            tiny_decoder(layers=1, hidden=2, heads=1, thoughts_per_layer=1), prior or GaussianPrior((1, 1, 2))
        )
        generator = torch.Generator().manual_seed(11)
        angle, size = (
            6.28 * torch.rand(length, generator=generator),
            0.2 + 0.4 * torch.rand(length, generator=generator),
        )
        rows = [torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)]
        self.weight = size[:, None, None] * torch.stack(rows, 1)  # (length, 2, 2)
        self.table = torch.randn(vocab_size, 2, generator=generator)
        self.scale = scale

    def likelihood(self, thoughts, batch, stem):
        weight = self.weight[: batch.tokens.shape[1]].flatten(0, 1)
        return MaskedNormal(thoughts.flatten(-3) @ weight.T, self.scale, self.table, batch)

    def stem(self, batch):
        return None

    def exact_posterior(self, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 2) means and (B,) variances of z given the real tokens."""
        weight = self.weight[: batch.tokens.shape[1]]
        size = weight.square().sum((1, 2)) / 2  # c_n²
        variance = 1 / (1 + (batch.real * size).sum(-1) / self.scale**2)
        y = self.table[batch.tokens] * batch.real[..., None]
        return variance[:, None] * torch.einsum("nij,bni->bj", weight, y) / self.scale**2, variance

    def log_evidence(self, batch: TokenBatch) -> torch.Tensor:
        """(B,) log p(y) of the real tokens, by the dense covariance of all their entries."""
        found = []
        for tokens, length in zip(batch.tokens, batch.lengths.tolist(), strict=True):
            w = self.weight[:length].flatten(0, 1)
            y = self.table[tokens[:length]].flatten()
            dense = MultivariateNormal(torch.zeros(len(w)), w @ w.T + self.scale**2 * torch.eye(len(w)))
            found.append(dense.log_prob(y) if length else torch.zeros(()))
        return torch.stack(found)


class ExactNormal(LocalNormal):
    """The posterior of a `SequentialModel` by its formula, with exp(log_ratio) times its variance; no fast loop."""

    refined = False

    def __init__(self, model: SequentialModel, log_ratio: float = 0.0):
        super().__init__(model)
        self.exact, self.log_ratio = model.exact_posterior, log_ratio

    def init_local(self, batch, generator=None):
        mean, variance = self.exact(batch)
        log_var = (variance.log() + self.log_ratio)[:, None, None, None].expand(-1, 1, 1, 2)
        return {"z.mu": mean[:, None, None], "z.log_var": log_var}
