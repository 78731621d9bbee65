"""The contract of a prior over thoughts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

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

    takes_labels: ClassVar[bool] = False
    """Whether `forward` takes ``labels=None``: (B,) the sequences' classes, -1 where unknown, or None."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.shape = shape

    @abstractmethod
    def forward(self, batch_size: int) -> Float[Tensor, "*particles batch layer slot hidden"]:
        """Samples the latent sites for ``batch_size`` sequences and returns their thoughts."""

    def template(self, batch_size: int) -> None:
        """The program from which guides read names, shapes and supports of the sites: the prior itself.

        A prior that cannot run before it knows its guide overrides this one.
        """
        self(batch_size)

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Told the names of the data's classes, none where they have no labels, before training.

        Raises:
            LTMError: the prior's own classes do not fit them.
        """

    def pair(self, guide: nn.Module) -> None:
        """Told of the guide when `FastSlowSVI` joins them, of one with an encoder already when that is made.

        Most priors need to know nothing of it.
        """

    @classmethod
    def refusal(cls, guide: type) -> str | None:
        """Why a guide of this class cannot serve this prior, as a sentence with the mend; None where it can."""
        return None
