"""The energy prior against integrals over a grid: what it learns, its log Z, and the gradient of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from tiny_models import ragged_batch, tiny_decoder
from torch.distributions import Normal

from ltm_pyro import FastConfig, FastSlowSVI, LatentThoughtModel, LocalNormal
from ltm_pyro.errors import LTMError
from ltm_pyro.priors import EnergyPrior
from ltm_pyro.priors.energy import EnergyDistribution

PLANE = (1, 1, 2)
SHAPE = (2, 2, 4)


class Grid(NamedTuple):
    """Points (P, 1, 1, 2) of the plane and the area of one."""

    points: torch.Tensor
    area: float

    @classmethod
    def of(cls, half_width: float = 6.0, points: int = 161) -> Grid:
        line = torch.linspace(-half_width, half_width, points)
        return cls(torch.cartesian_prod(line, line).view(-1, 1, 1, 2), float(line[1] - line[0]) ** 2)

    def log_integral(self, log_density: torch.Tensor) -> torch.Tensor:
        return log_density.logsumexp(0) + math.log(self.area)

    def moments(self, log_density: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mass, z = log_density.softmax(0), self.points.view(-1, 2)
        mean = mass @ z
        return mean, (z - mean).T @ ((z - mean) * mass[:, None])


def standard_normal(z: torch.Tensor) -> torch.Tensor:
    return Normal(0.0, 1.0).log_prob(z).sum((-3, -2, -1))


def ring(z: torch.Tensor) -> torch.Tensor:
    """Radius about 1.5, unnormalised."""
    return -0.5 * ((z.flatten(-3).norm(dim=-1) - 1.5) / 0.4) ** 2


def three_normals(z: torch.Tensor) -> torch.Tensor:
    """Three equal round normals around the origin, unnormalised."""
    means = 1.5 * torch.tensor([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
    return (-0.5 * ((z.flatten(-3)[..., None, :] - means) / 0.5).square().sum(-1)).logsumexp(-1)


def draws(log_density, num: int) -> torch.Tensor:
    """Draws from a density on the plane by rejection from a square."""
    z = 12 * torch.rand(40 * num, 1, 1, 2) - 6
    log_p = log_density(z)
    kept = z[torch.rand(len(z)).log() < log_p - log_density(Grid.of().points).max() - 1e-3]
    return kept[:num]


def shaken(shape: tuple[int, int, int], **options) -> EnergyPrior:
    """A prior whose f varies by some nats."""
    prior = EnergyPrior(shape, **({"hidden": 16} | options))
    with torch.no_grad():
        for parameter in prior.tilt.network.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return prior


def spread(difference: torch.Tensor, log_density: torch.Tensor) -> torch.Tensor:
    """Standard deviation of a difference over the points that hold 99 % of a density."""
    mass = log_density.softmax(0)
    order = mass.argsort(descending=True)
    kept = order[mass[order].cumsum(0) < 0.99]
    weight = mass[kept] / mass[kept].sum()
    mean = (weight * difference[kept]).sum()
    return (weight * (difference[kept] - mean).square()).sum().sqrt()


# Some seconds: each of the 300 slow steps takes 40 Langevin steps.
@pytest.mark.parametrize(
    ("truth", "unlearned"),
    [(ring, 0.6), pytest.param(three_normals, 0.9, marks=pytest.mark.slow)],
    ids=["ring", "three normals"],
)
def test_the_learned_log_density_agrees_with_the_truth_up_to_a_constant(truth, unlearned):
    prior, data = EnergyPrior(PLANE, hidden=32, langevin_chains=256), draws(truth, 20_000)
    assert len(data) == 20_000
    adam = torch.optim.Adam(prior.parameters(), lr=1e-2)
    anneal = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 300)
    for _ in range(300):
        adam.zero_grad()
        (-prior.distribution().log_prob(data[torch.randint(len(data), (512,))]).mean()).backward()
        adam.step()
        anneal.step()
    grid, p = Grid.of(), prior.distribution()
    with torch.no_grad():
        true, learned = truth(grid.points), p.log_prob(grid.points)
    assert spread(standard_normal(grid.points) - true, true) > unlearned
    assert spread(learned - true, true) < 0.15
    # The density integrates to 1 up to the error that it states, and its draws have the truth's moments.
    assert abs(grid.log_integral(learned)) < 4 * p.log_normalizer_error() < 0.3
    mean, covariance = grid.moments(true)
    samples = p.sample((20_000,)).flatten(1)
    assert (samples.mean(0) - mean).abs().max() < 0.06
    assert (torch.cov(samples.T) - covariance).abs().max() < 0.1


def test_a_fresh_prior_is_the_standard_normal():
    p, z = EnergyPrior(SHAPE).distribution(5), torch.randn(5, *SHAPE)
    torch.testing.assert_close(p.log_prob(z), standard_normal(z))
    assert p.log_normalizer_error() == 0
    # The chain is exact there after any number of steps: standard errors of a variance of 320 000 draws are 0.0025.
    for steps in (1, 2, 20):
        x = EnergyPrior(SHAPE, langevin_steps=steps, langevin_step_size=1.0).distribution().sample((20_000,))
        assert abs(x.var() - 1) < 0.01
        assert abs(x.mean()) < 0.01


def test_the_tilt_is_bounded():
    prior, far = shaken(SHAPE, bound=1.5), 1e4 * torch.randn(100, *SHAPE)
    assert 1.4 < prior.tilt(far).abs().max() <= 1.5


def test_log_z_is_that_of_the_grid_within_its_standard_error():
    prior = shaken(PLANE, normalizer_draws=10_000)
    grid, p = Grid.of(), prior.distribution()
    with torch.no_grad():
        exact = grid.log_integral(prior.tilt(grid.points) + standard_normal(grid.points))
    assert p.log_normalizer_error() < 0.03
    assert abs(exact - p.log_normalizer()) < 4 * p.log_normalizer_error()
    # The error is that of other draws, too.
    estimates = []
    for _ in range(200):
        prior.base = torch.randn_like(prior.base)
        estimates.append(prior.distribution().log_normalizer())
    assert 0.8 < torch.stack(estimates).std() / p.log_normalizer_error() < 1.2


def test_the_gradient_is_that_of_the_density_normalised_on_the_grid():
    prior = shaken(PLANE, langevin_steps=400, langevin_step_size=0.3, langevin_chains=10_000)
    grid, z = Grid.of(), draws(ring, 500)
    weights = list(prior.tilt.parameters())
    surrogate = torch.autograd.grad(prior.distribution().log_prob(z).mean(), weights)
    log_z = grid.log_integral(prior.tilt(grid.points) + standard_normal(grid.points))
    exact = torch.autograd.grad((prior.tilt(z) + standard_normal(z) - log_z).mean(), weights)
    difference = torch.cat([(s - e).flatten() for s, e in zip(surrogate, exact, strict=True)])
    # Two sets of chains differ by 0.02 to 0.03; 100 steps are off by 0.1, since f has hills of 5 nats.
    assert difference.norm() < 0.05 * torch.cat([e.flatten() for e in exact]).norm()


def test_the_gradient_in_the_thoughts_is_exact():
    prior, z = shaken(PLANE), torch.randn(5, *PLANE, requires_grad=True)
    (slope,) = torch.autograd.grad(prior.distribution(5).log_prob(z).sum(), z)
    (expected,) = torch.autograd.grad((prior.tilt(z) + standard_normal(z)).sum(), z)
    torch.testing.assert_close(slope, expected)


def test_the_value_is_a_function_of_the_weights_and_the_thoughts_alone():
    prior, z = shaken(SHAPE), torch.randn(3, 5, *SHAPE)
    with_gradient = prior.distribution(3, 5).log_prob(z)
    assert with_gradient.requires_grad
    assert torch.equal(prior.distribution(3, 5).log_prob(z), with_gradient)
    with torch.no_grad():
        assert torch.equal(prior.distribution(3, 5).log_prob(z), with_gradient)
    other = EnergyPrior(SHAPE, hidden=16)
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.distribution(3, 5).log_prob(z), with_gradient)
    torch.testing.assert_close(prior.distribution().log_prob(z[1, 2]), with_gradient[1, 2])


def test_draws_and_gradients_come_from_the_global_stream():
    prior, z = shaken(SHAPE), torch.randn(5, *SHAPE)

    def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        p = prior.distribution(5)
        sample = p.sample()
        return sample, torch.autograd.grad(p.log_prob(z).sum(), prior.tilt.network[-1].weight)[0]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of chains of every Langevin run so far."""
    runs: list[int] = []
    langevin = EnergyDistribution.langevin

    def counted(self: EnergyDistribution, num: int) -> torch.Tensor:
        runs.append(num)
        return langevin(self, num)

    monkeypatch.setattr(EnergyDistribution, "langevin", counted)
    return runs


@pytest.fixture
def svi() -> FastSlowSVI:
    decoder = tiny_decoder()
    model = LatentThoughtModel(decoder, EnergyPrior(decoder.thought_shape, langevin_steps=10, langevin_chains=32))
    guide = LocalNormal(model, init_log_var=-1.0)
    slow = torch.optim.Adam(model.parameters(), lr=1e-2)
    return FastSlowSVI(model, guide, fast=FastConfig(steps=4), slow=slow)


def test_no_chain_runs_in_the_fast_loop_or_in_scoring(svi: FastSlowSVI, chains: list[int]):
    posterior = svi.infer(ragged_batch(5, 7))
    assert posterior.elbo_terms(3).kl.isfinite().all()
    posterior.sample(2)
    assert chains == []
    svi.step(ragged_batch(5, 7))
    assert chains == [32]
    assert svi.model.sample_prior(6).shape == (6, *svi.model.prior.shape)
    assert chains == [32, 6]


def test_the_elbo_is_finite_and_trains_the_prior(svi: FastSlowSVI):
    batch = ragged_batch(5, 7, 9, 12)
    before = [p.clone() for p in svi.model.prior.parameters()]
    losses = [svi.step(batch, seed=0).loss for _ in range(40)]
    assert torch.stack(losses).isfinite().all()
    assert losses[-1] < losses[0] - 0.3
    assert not any(torch.equal(p, b) for p, b in zip(svi.model.prior.parameters(), before, strict=True))


def test_autocast_leaves_the_density_as_it_is():
    prior, z = shaken(SHAPE), torch.randn(5, *SHAPE)
    expected = prior.distribution(5).log_prob(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prior.distribution(5).log_prob(z), expected)


def test_the_prior_follows_its_modules_type_and_stores_no_draws():
    prior = EnergyPrior(SHAPE).double()
    assert prior.distribution(3).sample().dtype == torch.float64
    assert all(name.startswith("tilt.") for name in prior.state_dict())


@pytest.mark.parametrize(("options", "words"), [
    ({"hidden": 0}, "hidden must be 1 or more"),
    ({"langevin_steps": 0}, "langevin_steps must be 1 or more"),
    ({"langevin_chains": 0}, "langevin_chains must be 1 or more"),
    ({"normalizer_draws": 1}, "normalizer_draws must be 2 or more"),
    ({"bound": math.inf}, "bound must be a positive number"),
    ({"langevin_step_size": 2.0}, "between 0 and 2"),
    ({"langevin_step_size": math.nan}, "between 0 and 2"),
])  # fmt: skip
def test_an_energy_prior_that_cannot_be_is_refused(options, words):
    with pytest.raises(LTMError, match=words):
        EnergyPrior(SHAPE, **options)
