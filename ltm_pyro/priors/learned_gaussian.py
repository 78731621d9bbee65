"""A normal prior whose mean and scale learn with the decoder."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ltm_pyro.priors.base import Prior

__all__ = ["LearnedGaussianPrior"]


class LearnedGaussianPrior(Prior):
    r"""Independent normal thoughts with a mean and a scale for every entry.

    .. math:: z \sim N(m, \operatorname{diag} s^2)

    Latent sites: ``z`` with event shape (L, n, H). Slow parameters: ``mu`` and ``log_scale``, (L, n, H) each, at
    first 0: the standard normal.

    Args:
        shape: (L, n, H) of the thoughts.

    References: Tomczak & Welling (2018), VAE with a VampPrior (learned priors and the aggregate posterior).
    """

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__(shape)
        self.mu = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))

    def forward(self, batch_size: int) -> Float[Tensor, "*particles batch layer slot hidden"]:
        """Samples ``z`` (…, B, L, n, H)."""
        normal = dist.Normal(self.mu, self.log_scale.exp(), validate_args=False)
        z: Tensor = pyro.sample("z", normal.expand((batch_size, *self.shape)).to_event(3))
        return z
