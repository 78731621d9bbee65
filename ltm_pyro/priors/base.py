"""The contract of a prior over thoughts."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Prior"]


class Prior(nn.Module, ABC):
    """p(z): a Pyro program that runs inside the ``sequences`` plate (dim -1) and returns the thoughts.

    A prior may sample any number of sites, each with B as its last batch dimension; every one of them gets a matching
    local guide with no further code. Its parameters are slow: they learn with the decoder.

    Args:
        shape: (L, n, H) of one sequence's thoughts.
    """

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.shape = shape

    @abstractmethod
    def forward(self, batch_size: int) -> Float[Tensor, "*particles batch layer slot hidden"]:
        """Samples the latent sites for ``batch_size`` sequences and returns their thoughts."""
