"""A normal per sequence, bent by a few planar steps of its own."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import Tensor
from torch.distributions.transforms import Transform

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.guides.base import LocalParams
from ltm_pyro.guides.local_normal import LocalNormal
from ltm_pyro.guides.sites import LatentSite
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator

__all__ = ["LocalFlow"]

# Pyro's planar step moves nothing where the shift's part along the direction w is this multiple of w / |w|².
_AT_REST = math.log(math.e - 1)
_BISECTIONS = 60


class LocalFlow(LocalNormal):
    r"""A normal pushed through R planar steps per sequence and site, then onto the site's support.

    .. math:: q(z \mid x_b) = (T \circ f_{bR} \circ \dots \circ f_{b1})_\# N(\mu_b, \operatorname{diag} \sigma_b^2),
        \qquad f(y) = y + u \tanh(w^\top y + c)

    Each step stretches or squeezes the density along one direction, so q may be skewed, heavy on one side, or have two
    modes. A fresh step moves nothing: at the start q is the local normal.

    Local parameters: ``<site>.mu`` and ``<site>.log_var``, each (B, \*unconstrained event shape), and for its D entries
    ``<site>.direction`` (B, R, D), ``<site>.shift`` (B, R, D), ``<site>.offset`` (B, R): w = direction / √D and c =
    offset; u is shift / √D, kept where the step is invertible.

    Args:
        model: the program whose prior's sites are guided.
        steps: R.
        init_log_var: where log σ² starts.
        init_log_var_spread: standard deviation of the starts of log σ² around it.
        init_mu_spread: standard deviation of the starts of μ around 0.

    Raises:
        LTMError: ``steps`` is below 1.

    References: Rezende & Mohamed (2015), Variational Inference with Normalizing Flows.
    """

    def __init__(
        self,
        model: LatentThoughtModel,
        *,
        steps: int = 4,
        init_log_var: float = -5.0,
        init_log_var_spread: float = 0.1,
        init_mu_spread: float = 0.0,
    ):
        super().__init__(
            model,
            init_log_var=init_log_var,
            init_log_var_spread=init_log_var_spread,
            init_mu_spread=init_mu_spread,
        )
        if steps < 1:
            raise LTMError(f"a flow guide needs 1 step or more, got steps = {steps}: the guide local-normal has none")
        self.steps = steps

    def _start(self, site: LatentSite, generator: SequenceGenerator) -> LocalParams:
        size = site.unconstrained_shape.numel()
        direction = generator.normal((self.steps, size))
        name = site.name
        return super()._start(site, generator) | {
            f"{name}.direction": direction,
            f"{name}.shift": torch.zeros_like(direction),
            f"{name}.offset": torch.zeros_like(direction[..., 0]),
        }

    def forward(self, batch: TokenBatch, local: LocalParams) -> None:
        """Samples every latent site of the prior under its own name."""
        with pyro.plate("sequences", len(batch), dim=-1):
            for site in self.sites:
                mu, log_var = (local[f"{site.name}.{part}"].reshape(len(batch), -1) for part in ("mu", "log_var"))
                normal = dist.Normal(mu, (0.5 * log_var).exp(), validate_args=False).to_event(1)
                transforms = [*self._steps(site, local), *site.from_flat]
                pyro.sample(site.name, dist.TransformedDistribution(normal, transforms, validate_args=False))

    def _steps(self, site: LatentSite, local: LocalParams) -> list[Transform]:
        parts = (local[f"{site.name}.{part}"] for part in ("direction", "shift", "offset"))
        direction, shift, offset = (part.unbind(1) for part in parts)
        root = direction[0].shape[-1] ** 0.5
        return [PlanarStep(w / root, u / root, c) for w, u, c in zip(direction, shift, offset, strict=True)]


class PlanarStep(ConditionedPlanar):
    """Pyro's planar step for each sequence, at rest where ``shift`` is 0, and with an inverse for any value.

    Args:
        direction: (B, D) w.
        shift: (B, D) what is added to the shift of a step at rest.
        offset: (B,) c.
    """

    def __init__(
        self,
        direction: Float[Tensor, "batch entry"],
        shift: Float[Tensor, "batch entry"],
        offset: Float[Tensor, " batch"],
    ):
        at_rest = _AT_REST * direction / direction.square().sum(-1, keepdim=True)
        super().__init__((offset[..., None], shift + at_rest, direction))  # type: ignore[no-untyped-call]

    def _inverse(self, y: Tensor) -> Tensor:
        """Solves a + wᵀu tanh(a + c) = wᵀy for a = wᵀx by bisection: the left side rises with a.

        One step of Newton's has the derivatives of the solution, and leaves its value up to rounding.
        """
        offset, shift, direction = self._params
        moved: Tensor = self.u_hat(shift, direction)  # type: ignore[no-untyped-call]
        slope = (direction * moved).sum(-1)
        target = (direction * y).sum(-1)
        with torch.no_grad():
            low, high = target - slope.abs(), target + slope.abs()
            for _ in range(_BISECTIONS):
                middle = 0.5 * (low + high)
                above = middle + slope * (middle + offset[..., 0]).tanh() > target
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            solution = 0.5 * (low + high)
            rise = 1 + slope * (1 - (solution + offset[..., 0]).tanh().square())
        error = solution + slope * (solution + offset[..., 0]).tanh() - target
        activation = (solution - error / rise.clamp(min=torch.finfo(rise.dtype).eps) + offset[..., 0]).tanh()
        self._cached_logDetJ = (slope * (1 - activation.square())).log1p()
        x: Tensor = y - moved * activation[..., None]
        return x
