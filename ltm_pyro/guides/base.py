"""The contract of a guide, and the local variational parameters that it makes for a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ltm_pyro.batch import TokenBatch
from ltm_pyro.noise import SequenceGenerator

__all__ = ["Guide", "LocalParams"]

LocalParams = dict[str, Tensor]
"""Local variational parameters by name, each with the B sequences as its leading dimension."""


class Guide(nn.Module, ABC):
    """q(z | x): local variational parameters belong to one sequence and live only as long as its inference.

    What a guide keeps as a module (an encoder, say) is slow and learns with the decoder.
    """

    @abstractmethod
    def init_local(self, batch: TokenBatch, generator: SequenceGenerator | None = None) -> LocalParams:
        """Starting values, leaf tensors with leading dimension B.

        Args:
            batch: the sequences to be inferred.
            generator: source of random starts, one stream per sequence; None seeds one from torch's global stream.
        """

    @abstractmethod
    def forward(self, batch: TokenBatch, local: LocalParams) -> None:
        """Calls ``pyro.sample`` at every latent site, inside the plate ``sequences`` (dim -1)."""
