"""A top-down chain of thoughts over the decoder's layers."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from einops import einsum
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Independent, Normal, constraints, register_kl

from ltm_pyro.priors.base import Prior

__all__ = ["GaussianChain", "MarkovPrior"]


class GaussianChain(TorchDistribution):
    r"""Normal thoughts in which layer l is drawn given the layer above it, l + 1; the top layer is standard normal.

    .. math:: z_L \sim N(0, I), \qquad z_l \mid z_{l+1} \sim N(A_l z_{l+1}, \operatorname{diag} s_l^2)

    Args:
        transition: (L - 1, H, H) the maps A_l, acting on each thought of a layer.
        log_scale: (L - 1, H) the logarithms of s_l.
        shape: batch shape.
        slots: n, thoughts per layer.
    """

    has_rsample = True
    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - the name and type are torch's
    support = constraints.independent(constraints.real, 3)

    def __init__(
        self,
        transition: Float[Tensor, "above hidden hidden"],
        log_scale: Float[Tensor, "above hidden"],
        shape: tuple[int, ...],
        slots: int,
    ):
        self.transition = transition
        self.log_scale = log_scale
        layers, hidden = log_scale.shape[0] + 1, log_scale.shape[1]
        super().__init__(torch.Size(shape), torch.Size([layers, slots, hidden]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GaussianChain:
        """The same chain for more sequences or particles."""
        return GaussianChain(self.transition, self.log_scale, tuple(batch_shape), self.event_shape[1])

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "*shape layer slot hidden"]:
        """Draws from the top down, from torch's global stream."""
        noise = self.log_scale.new_empty(*sample_shape, *self.batch_shape, *self.event_shape).normal_()
        layers = [noise[..., -1, :, :]]
        for layer in reversed(range(self.event_shape[0] - 1)):
            mean = einsum(self.transition[layer], layers[0], "to source, ... n source -> ... n to")
            layers.insert(0, mean + self.log_scale[layer].exp() * noise[..., layer, :, :])
        return torch.stack(layers, dim=-3)

    def log_prob(self, value: Float[Tensor, "*shape layer slot hidden"]) -> Float[Tensor, "*shape"]:
        """The sum log p(z_L) + Σ_l log p(z_l | z_{l+1})."""
        top = Normal(0.0, 1.0, validate_args=False).log_prob(value[..., -1, :, :]).sum((-2, -1))
        below = Normal(self.means(value), self.log_scale.exp()[:, None], validate_args=False)
        result: Tensor = top + below.log_prob(value[..., :-1, :, :]).sum((-3, -2, -1))
        return result

    def means(self, value: Float[Tensor, "*shape layer slot hidden"]) -> Float[Tensor, "*shape above slot hidden"]:
        """A_l z_{l+1} for l = 1 … L - 1."""
        return einsum(self.transition, value[..., 1:, :, :], "l to source, ... l n source -> ... l n to")


@register_kl(Independent, GaussianChain)  # type: ignore[untyped-decorator]
def _kl_normal_chain(q: Any, p: GaussianChain) -> Tensor:
    """KL of a diagonal normal from the chain: every term of E_q[log p] is the expectation of a square."""
    if not isinstance(q.base_dist, Normal) or len(q.event_shape) != 3:
        raise NotImplementedError
    mu, variance = q.base_dist.loc, q.base_dist.scale.square()
    top_mu, top_variance = mu[..., -1, :, :], variance[..., -1, :, :]
    kl = 0.5 * (top_mu.square() + top_variance).sum((-2, -1))
    spread = einsum(p.transition.square(), variance[..., 1:, :, :], "l to source, ... l n source -> ... l n to")
    square = (mu[..., :-1, :, :] - p.means(mu)).square() + variance[..., :-1, :, :] + spread
    log_scale = p.log_scale[:, None]
    kl = kl + (0.5 * square * (-2 * log_scale).exp() + log_scale).sum((-3, -2, -1))
    return kl - 0.5 * (variance.log() + 1).sum((-3, -2, -1))


class MarkovPrior(Prior):
    r"""Top-down chain of thoughts: each layer's thoughts are drawn given the layer above.

    .. math:: z_L \sim N(0, I), \qquad z_l \mid z_{l+1} \sim N(A_l z_{l+1}, \operatorname{diag} s_l^2)

    Latent sites: ``z`` with event shape (L, n, H). Slow parameters: ``A`` (L-1, H, H), ``log_s`` (L-1, H); at the start
    A_l is half of the identity and every entry of z is N(0, 1).

    Args:
        shape: (L, n, H) of the thoughts.

    References: Sønderby et al. (2016), Ladder Variational Autoencoders.
    """

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__(shape)
        layers, _, hidden = shape
        self.A = nn.Parameter(0.5 * torch.eye(hidden).repeat(layers - 1, 1, 1))
        self.log_s = nn.Parameter(torch.full((layers - 1, hidden), 0.75).sqrt().log())

    def forward(self, batch_size: int) -> Float[Tensor, "*particles batch layer slot hidden"]:
        """Samples ``z`` (…, B, L, n, H)."""
        z: Tensor = pyro.sample("z", GaussianChain(self.A, self.log_s, (batch_size,), self.shape[1]))
        return z
