"""A standard normal pushed through a normalising flow: z = T(ε)."""

from __future__ import annotations

import math
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.transforms import AffineCoupling, ComposeTransform, Permute, ReshapeTransform, Transform
from pyro.nn import DenseNN
from torch import Tensor, nn

from ltm_pyro.errors import LTMError
from ltm_pyro.priors.base import Prior

__all__ = ["FlowPrior"]


class FlowPrior(Prior):
    r"""Thoughts are standard normal noise under an invertible map of affine couplings; the density is exact.

    .. math::
        z = T(\varepsilon), \quad \varepsilon \sim N(0, I), \qquad
        \log p(z) = \log N(T^{-1}(z); 0, I) - \log |\det \partial T(\varepsilon) / \partial \varepsilon|

    A coupling keeps one half a of the flattened entries and moves the other: b ← exp(s(a)) · b + m(a). The next one
    moves what it kept, and a random permutation, the same for every prior of a size, comes after each pair. T starts as
    the identity, so that a fresh prior is N(0, I).

    Latent sites: ``z`` with event shape (L, n, H). Slow parameters: ``couplings.*``, the networks m and s.

    Args:
        shape: (L, n, H) of the thoughts.
        layers: couplings.
        hidden: width of the two hidden layers of each coupling's network.
        max_log_scale: bound of abs(s), which keeps the inverse well conditioned.

    Raises:
        LTMError: an option is out of range, or the thoughts have one entry alone.

    References: Dinh et al. (2017), Density Estimation Using Real NVP; Chen et al. (2017), Variational Lossy Autoencoder
    (flows as priors).
    """

    permutations: Tensor
    zero: Tensor
    one: Tensor

    def __init__(self, shape: tuple[int, int, int], *, layers: int = 4, hidden: int = 64, max_log_scale: float = 1.0):
        super().__init__(shape)
        size = math.prod(shape)
        if size < 2:
            raise LTMError(
                f"a flow prior couples entries of the thoughts with one another, got the single one of shape {shape}: "
                "widen the thoughts (decoder.thought_width), or take the prior learned-gaussian"
            )
        if layers < 2:
            raise LTMError(f"a flow prior needs 2 layers or more, so that every entry is moved, got layers = {layers}")
        if hidden < 1:
            raise LTMError(f"a flow prior needs 1 hidden unit or more, got hidden = {hidden}")
        if not 0 < max_log_scale <= 3:
            raise LTMError(f"a flow prior's max_log_scale must lie above 0 and at most at 3, got {max_log_scale}")
        kept = size // 2
        self.couplings = nn.ModuleList(
            _Coupling(kept, _Hypernet(kept, size - kept, hidden, max_log_scale)) for _ in range(layers)
        )
        self.register_buffer("permutations", _permutations(size, layers))
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self.register_buffer("one", torch.ones(()), persistent=False)

    @property
    def transform(self) -> ComposeTransform:
        """T, from noise (…, L · n · H) to thoughts (…, L, n, H); ``transform.inv`` goes back."""
        parts: list[Transform] = []
        for coupling, order in zip(self.couplings, self.permutations, strict=True):
            parts += [cast(_Coupling, coupling), Permute(order, cache_size=0)]
        return ComposeTransform([*parts, ReshapeTransform(self.permutations.shape[1:], torch.Size(self.shape))])

    def forward(self, batch_size: int) -> Float[Tensor, "*particles batch layer slot hidden"]:
        """Samples ``z`` (…, B, L, n, H)."""
        noise = dist.Normal(self.zero, self.one, validate_args=False).expand((batch_size, math.prod(self.shape)))
        flow = dist.TransformedDistribution(noise.to_event(1), self.transform.parts, validate_args=False)
        z: Tensor = pyro.sample("z", flow)
        return z


class _Coupling(AffineCoupling):
    """Pyro's coupling without its memory of the last value.

    That one can be stale after a slow step, and holds the last graph until the next call. The price is a second run of
    the network, for the Jacobian.
    """

    _cached_log_scale = property(lambda _: None, lambda _, value: None)

    def __init__(self, kept: int, network: nn.Module):
        super().__init__(kept, network)  # type: ignore[no-untyped-call]
        self._cache_size = 0


class _Hypernet(nn.Module):
    """m(a) and s(a) = c tanh(· / c), both 0 at the start."""

    def __init__(self, kept: int, moved: int, hidden: int, max_log_scale: float):
        super().__init__()
        # Hyperbolic tangents bound m, too, so that T is affine far out and the tails stay those of a normal.
        self.network = DenseNN(kept, [hidden, hidden], [moved, moved], nonlinearity=nn.Tanh())
        self.max_log_scale = max_log_scale
        # Adam moves all weights of a row at once, and T by their number; so much less, or the fast loop cannot follow.
        self.temper = hidden**-0.5
        for parameter in self.network.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, kept: Float[Tensor, "*batch kept"]) -> tuple[Tensor, Tensor]:
        """The shift and the log-scale of the moved entries, each (…, moved)."""
        # In bfloat16 the inverse would not be one: autocast is for the decoder.
        with torch.autocast(kept.device.type, enabled=False):
            mean, log_scale = self.network(kept)
        bounded = self.max_log_scale * torch.tanh(self.temper / self.max_log_scale * log_scale)
        return self.temper * mean, bounded


def _permutations(size: int, layers: int) -> Tensor:
    """(layers, size): the order of the entries after each coupling; together they are the identity."""
    generator = torch.Generator().manual_seed(0)
    kept = size // 2
    swap = torch.arange(size).roll(-kept)
    orders = [swap if layer % 2 == 0 else torch.randperm(size, generator=generator) for layer in range(layers - 1)]
    product = torch.arange(size)
    for order in orders:
        product = product[order]
    return torch.stack([*orders, product.argsort()])
