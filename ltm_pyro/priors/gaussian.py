"""The paper's prior: standard normal thoughts."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from ltm_pyro.priors.base import Prior

__all__ = ["GaussianPrior"]


class GaussianPrior(Prior):
    r"""Independent standard normal thoughts.

    .. math:: z \sim N(0, I)

    Latent sites: ``z`` with event shape (L, n, H). Slow parameters: none.

    Args:
        shape: (L, n, H) of the thoughts.

    References: Kong et al. (2025), Scalable Language Models with Posterior Inference of Latent Thought Vectors.
    """

    zero: Tensor
    one: Tensor

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__(shape)
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self.register_buffer("one", torch.ones(()), persistent=False)

    def forward(self, batch_size: int) -> Float[Tensor, "*particles batch layer slot hidden"]:
        """Samples ``z`` (…, B, L, n, H)."""
        normal = dist.Normal(self.zero, self.one, validate_args=False)
        z: Tensor = pyro.sample("z", normal.expand((batch_size, *self.shape)).to_event(3))
        return z
