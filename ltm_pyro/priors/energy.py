"""An energy-based prior: the standard normal tilted by a network, drawn from by short-run Langevin dynamics."""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Normal, constraints

from ltm_pyro.errors import LTMError
from ltm_pyro.priors.base import Prior

__all__ = ["EnergyDistribution", "EnergyPrior", "Tilt"]


class Tilt(nn.Module):
    r"""The network f of an energy-based prior, 0 at the start and bounded by c everywhere.

    .. math:: f(z) = c \tanh(g(z) / c)

    Args:
        size: L · n · H.
        hidden: width of the two hidden layers of g.
        bound: c.
    """

    def __init__(self, size: int, hidden: int, bound: float):
        super().__init__()
        self.bound = bound
        self.network = nn.Sequential(
            nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1, bias=False)
        )
        for weight in self.network[-1].parameters():
            nn.init.zeros_(weight)

    def forward(self, thoughts: Float[Tensor, "*batch layer slot hidden"]) -> Float[Tensor, "*batch"]:
        """The log-density relative to the standard normal's, up to a constant."""
        # Autocast is for the decoder: in bfloat16 the density would have two digits.
        with torch.autocast(thoughts.device.type, enabled=False):
            g: Tensor = self.network(thoughts.flatten(-3)).squeeze(-1)
        return self.bound * torch.tanh(g / self.bound)


class EnergyDistribution(TorchDistribution):
    r"""The standard normal tilted by exp f.

    .. math:: p(z) = \exp f(z) \, N(z; 0, I) / Z, \qquad Z = E_{N(0, I)}[\exp f]

    log Z is two estimates in one. Its *value* is log mean exp f over ``base``, the same draws every time. Its
    *gradient* in f's weights is the mean of ∇f over ``chains`` draws by Langevin dynamics: unlike the value's, it finds
    where f puts its mass, and f cannot learn its way around a fixed set of draws. It is taken, and the chains are run,
    only where a weight asks for a gradient and gradients are on, hence not in the fast loop.

    Args:
        tilt: f, of thoughts (…, L, n, H).
        base: (M, L, n, H) draws of N(0, I).
        shape: batch shape.
        steps: Langevin steps of a draw.
        step_size: s, the standard deviation of a step's noise.
        chains: Langevin draws behind the gradient of log Z.
    """

    has_rsample = False
    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - the name and type are torch's
    support = constraints.independent(constraints.real, 3)

    def __init__(
        self,
        tilt: nn.Module,
        base: Float[Tensor, "draw layer slot hidden"],
        shape: tuple[int, ...],
        *,
        steps: int,
        step_size: float,
        chains: int,
    ):
        self.tilt = tilt
        self.base = base
        self.steps = steps
        self.step_size = step_size
        self.chains = chains
        super().__init__(torch.Size(shape), base.shape[1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> EnergyDistribution:
        """The same distribution for more sequences or particles."""
        return EnergyDistribution(
            self.tilt,
            self.base,
            tuple(batch_shape),
            steps=self.steps,
            step_size=self.step_size,
            chains=self.chains,
        )

    def log_prob(self, value: Float[Tensor, "*shape layer slot hidden"]) -> Float[Tensor, "*shape"]:
        """f(z) + log N(z; 0, I) - log Z; draws from torch's global stream where the weights get a gradient."""
        normal = Normal(0.0, 1.0, validate_args=False).log_prob(value).sum((-3, -2, -1))
        log_z = self.log_normalizer()
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in self.tilt.parameters()):
            slope = self.tilt(self.langevin(self.chains)).mean()
            log_z = log_z + (slope - slope.detach())
        result: Tensor = self.tilt(value) + normal - log_z
        return result

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "*shape layer slot hidden"]:
        """Short-run Langevin draws, from torch's global stream."""
        shape = (*sample_shape, *self.batch_shape)
        return self.langevin(math.prod(shape)).reshape(*shape, *self.event_shape)

    def langevin(self, num: int) -> Float[Tensor, "num layer slot hidden"]:
        r"""``num`` chains from N(0, I), without a graph.

        .. math:: z \leftarrow z + h (\nabla f(z) - z) + \sqrt{h / 2} \, (\xi_t + \xi_{t+1}), \qquad h = s^2 / 2

        Unadjusted. Since each ξ serves two steps, the stationary law is exact for every normal and off by O(h²), not
        O(h), otherwise; and since ξ_0 has its share in the start, the draws are N(0, I) throughout where f is 0.
        """
        h = 0.5 * self.step_size**2
        noise, z = self.base.new_empty(2, num, *self.event_shape).normal_()
        z = math.sqrt(0.5 * h) * noise + math.sqrt(1 - 0.5 * h) * z
        for _ in range(self.steps):
            with torch.enable_grad():
                z.requires_grad_()
                (slope,) = torch.autograd.grad(self.tilt(z).sum(), z)
            last, noise = noise, torch.randn_like(noise)
            z = (1 - h) * z.detach() + h * slope + math.sqrt(0.5 * h) * (last + noise)
        draws: Tensor = z
        return draws

    @torch.no_grad()
    def log_normalizer(self) -> Float[Tensor, ""]:
        """The value of log Z, an importance estimate that is too small on average, by half of its error squared."""
        log_z: Tensor = self.tilt(self.base).logsumexp(0) - math.log(len(self.base))
        return log_z

    @torch.no_grad()
    def log_normalizer_error(self) -> Float[Tensor, ""]:
        """Standard error of `log_normalizer` over the choice of its draws."""
        weights = self.tilt(self.base).softmax(0) * len(self.base)
        error: Tensor = weights.std() / math.sqrt(len(self.base))
        return error


class EnergyPrior(Prior):
    r"""Thoughts whose log-density is a network's, relative to the standard normal.

    .. math:: p(z) = \exp f(z) \, N(z; 0, I) / Z, \qquad f \text{ a network}, \quad |f| \le c

    f starts at 0, so that a fresh prior is N(0, I). Since it is bounded, so are the importance weights behind log Z, in
    any dimension.

    Latent sites: ``z`` with event shape (L, n, H). Slow parameters: ``tilt.*``, the network f.

    Args:
        shape: (L, n, H) of the thoughts.
        hidden: width of the two hidden layers of f.
        bound: c.
        langevin_steps: steps of a draw, and of the chains behind the gradient of log Z.
        langevin_step_size: s.
        langevin_chains: chains behind the gradient of log Z.
        normalizer_draws: draws of N(0, I) behind the value of log Z.

    Raises:
        LTMError: an option is out of range.

    References: Pang et al. (2020), Learning Latent Space Energy-Based Prior Model; Nijkamp et al. (2019), Learning
    Non-Convergent Non-Persistent Short-Run MCMC Toward Energy-Based Model; Leimkuhler & Matthews (2013), Rational
    Construction of Stochastic Numerical Methods for Molecular Sampling (the Langevin step).
    """

    base: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        hidden: int = 128,
        bound: float = 5.0,
        langevin_steps: int = 40,
        langevin_step_size: float = 0.4,
        langevin_chains: int = 64,
        normalizer_draws: int = 512,
    ):
        super().__init__(shape)
        counts = {"hidden": hidden, "langevin_steps": langevin_steps, "langevin_chains": langevin_chains}
        for name, count in counts.items():
            if count < 1:
                raise LTMError(f"an energy prior's {name} must be 1 or more, got {count}")
        if normalizer_draws < 2:
            raise LTMError(f"an energy prior's normalizer_draws must be 2 or more, got {normalizer_draws}")
        if not 0 < bound < math.inf:
            raise LTMError(f"an energy prior's bound must be a positive number, got {bound}")
        if not 0 < langevin_step_size < 2:
            raise LTMError(
                f"an energy prior's langevin_step_size must lie between 0 and 2, where the normal's own chain is still "
                f"stable, got {langevin_step_size}"
            )
        self.langevin_steps = langevin_steps
        self.langevin_step_size = langevin_step_size
        self.langevin_chains = langevin_chains
        self.tilt = Tilt(math.prod(shape), hidden, bound)
        draws = torch.randn(normalizer_draws, *shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("base", draws, persistent=False)

    def forward(self, batch_size: int) -> Float[Tensor, "*particles batch layer slot hidden"]:
        """Samples ``z`` (…, B, L, n, H)."""
        z: Tensor = pyro.sample("z", self.distribution(batch_size))
        return z

    def distribution(self, *batch_shape: int) -> EnergyDistribution:
        """p(z) for a batch, which also knows log Z and its standard error."""
        return EnergyDistribution(
            self.tilt,
            self.base,
            batch_shape,
            steps=self.langevin_steps,
            step_size=self.langevin_step_size,
            chains=self.langevin_chains,
        )
