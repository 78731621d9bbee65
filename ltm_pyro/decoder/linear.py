"""Linear: the matrix products of every network, by the fastest library, with weights that can be held constant.

On the CPU torch computes products in float32 by MKL, which on processors of another make than Intel's leaves the wide
vector units unused; oneDNN uses them wherever they are. Products in bfloat16 go through oneDNN in torch already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ltm_pyro.ranks import is_split

__all__ = ["Held", "Linear", "held", "product", "times_transposed"]


class Linear(nn.Linear):
    """x ↦ x Wᵀ, without a bias.

    Args:
        inputs: width of x.
        outputs: width of the result.
    """

    held: Tensor | None = None
    """The weight in another type, between `hold` and `release`."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """In autocast's type where that is on."""
        return product(x, self.weight if self.held is None else self.held)

    def hold(self, dtype: torch.dtype | None) -> None:
        """Keeps the weight as a constant in ``dtype``, None being its own; not one that lies in parts on the ranks."""
        if not is_split(self.weight):
            self.held = self.weight.detach().to(dtype)

    def release(self) -> None:
        """Ends `hold`."""
        self.held = None


@runtime_checkable
class Held(Protocol):
    """A part of a network that can keep what it makes of constant weights."""

    def hold(self, dtype: torch.dtype | None) -> None:
        """Makes it, in ``dtype``; None is the weights' own."""

    def release(self) -> None:
        """Forgets it."""


@runtime_checkable
class Parts(Protocol):
    """A network, or what wraps one."""

    def modules(self) -> Iterator[nn.Module]:
        """All its parts."""


@contextmanager
def held(network: Parts, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, what the network makes of its weights is made once, and in ``dtype`` (None: as they are).

    The weights are constants meanwhile. Autocast would cast each one anew at every call, for it keeps its copy of a
    weight only while that asks for a gradient.
    """
    parts = [part for part in network.modules() if isinstance(part, Held)]
    for part in parts:
        part.hold(dtype)
    try:
        yield
    finally:
        for part in parts:
            part.release()


def product(x: Float[Tensor, "*batch inputs"], weight: Float[Tensor, "outputs inputs"]) -> Tensor:
    """X Wᵀ, differentiable once in both; gradients are computed only for what asks for one."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        y: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), weight)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], weight.shape[0])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        for_x, for_weight = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        return times_transposed(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        return (
            None if weight is None else times_transposed(grad, weight.T),
            None if x is None else times_transposed(grad.T, x.T),
        )


def times_transposed(a: Float[Tensor, "row inner"], b: Float[Tensor, "column inner"]) -> Float[Tensor, "row column"]:
    """A Bᵀ; no graph."""
    some = a.shape[0] > 0 and a.shape[1] > 0 and b.shape[0] > 0  # oneDNN refuses empty products
    eager = not torch.compiler.is_compiling()  # the compiler takes oneDNN's product with a frozen weight alone
    if eager and some and a.dtype == torch.float32 and a.device.type == "cpu" and _onednn_products():
        result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return result
    return a @ b.T


@cache
def _onednn_products() -> bool:
    """Whether torch has oneDNN's product, and the processor vector units that it is good at."""
    has = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
