"""The contract of a guide, and the local variational parameters that it makes for a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float
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

    refined: ClassVar[bool] = True
    """Whether the fast loop moves the local parameters; False takes them as `init_local` makes them."""

    natural: ClassVar[bool] = False
    """Whether the local parameters are ``<site>.mu`` and ``<site>.log_var`` of independent normals, which the fast loop
    may move along natural gradients. Not inherited: a subclass whose q is that, too, says so itself."""

    has_density: ClassVar[bool] = True
    """False for a point estimate: its ELBO is no bound, and evaluations do not report it as one."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        cls.natural = cls.__dict__.get("natural", False)

    @classmethod
    def natural_under(cls, optimizer: str) -> bool:
        """Whether fast steps are natural ones: `FastConfig.optimizer` asks for them, and q takes them."""
        return optimizer == "natural" and cls.natural

    @abstractmethod
    def init_local(self, batch: TokenBatch, generator: SequenceGenerator | None = None) -> LocalParams:
        """Starting values, tensors with leading dimension B; the fast loop works on copies of them.

        Args:
            batch: the sequences to be inferred.
            generator: source of random starts, one stream per sequence; None seeds one from torch's global stream.
        """

    @abstractmethod
    def forward(self, batch: TokenBatch, local: LocalParams) -> None:
        """Calls ``pyro.sample`` at every latent site, inside the plate ``sequences`` (dim -1)."""

    def attached(self, batch: TokenBatch, local: LocalParams) -> LocalParams:
        """The fitted parameters as functions of the guide's own weights, for the slow gradient.

        A local guide's are constants, and come back as they are.
        """
        return local

    def slow_loss(self, batch: TokenBatch, local: LocalParams) -> Float[Tensor, " batch"] | None:
        """(B,) what the slow step makes small besides -L, in nats, for the sake of the guide's own weights; or None."""
        return None
