"""The flow prior: its inverse, and its density against numerical Jacobians and integrals."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import pytest
import torch
from torch.distributions import Normal

from ltm_pyro.errors import LTMError
from ltm_pyro.priors import FlowPrior

SHAPES = [(1, 1, 2), (1, 1, 3), (2, 3, 4), (2, 4, 32)]


def shaken(shape: tuple[int, int, int], *, scale: float = 0.2, **options) -> FlowPrior:
    """A prior whose every weight is off its start by about what training moves it."""
    prior = FlowPrior(shape, **options)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return prior


def density(prior: FlowPrior, *batch: int):
    base = Normal(torch.zeros(*batch, math.prod(prior.shape)), 1.0)
    return torch.distributions.TransformedDistribution(
        torch.distributions.Independent(base, 1), prior.transform.parts, validate_args=False
    )


def banana(num: int) -> torch.Tensor:
    x = torch.randn(num)
    return torch.stack([x, 0.5 * (x**2 - 1) + 0.5 * torch.randn(num)], dim=1).view(num, 1, 1, 2)


def trained_on_bananas(steps: int = 200) -> FlowPrior:
    prior = FlowPrior((1, 1, 2), hidden=32)
    adam = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(steps):
        adam.zero_grad()
        (-density(prior).log_prob(banana(256)).mean()).backward()
        adam.step()
    return prior


@torch.no_grad()
def assert_inverse_is_exact(prior: FlowPrior) -> None:
    transform = prior.transform
    noise, z = torch.randn(256, math.prod(prior.shape)), torch.randn(256, *prior.shape)
    torch.testing.assert_close(transform.inv(transform(noise)), noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(transform(transform.inv(z)), z, atol=1e-5, rtol=0)
    assert (transform(noise).flatten(1) - noise).abs().max() > 0.1


@pytest.mark.parametrize("layers", [2, 4, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_inverse_is_exact_in_single_precision(shape, layers):
    assert_inverse_is_exact(shaken(shape, layers=layers))


def test_a_trained_flow_has_its_datas_density_and_an_exact_inverse():
    prior = trained_on_bananas()
    assert_inverse_is_exact(prior)
    x, y = (z := banana(4000))[:, 0, 0].unbind(-1)
    truth = Normal(0.0, 1.0).log_prob(x) + Normal(0.5 * (x**2 - 1), 0.5).log_prob(y)
    with torch.no_grad():
        assert (truth - density(prior).log_prob(z)).mean() < 0.05  # KL(truth ‖ flow); 0.35 before training


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_fresh_flow_is_the_identity_and_its_prior_the_standard_normal(shape):
    prior, noise = FlowPrior(shape), torch.randn(5, math.prod(shape))
    z = prior.transform(noise)
    assert torch.equal(z.flatten(1), noise)
    torch.testing.assert_close(density(prior).log_prob(z), Normal(0.0, 1.0).log_prob(noise).sum(1))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("layers", [2, 5])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_the_density_is_that_of_the_numerical_jacobian(shape, layers):
    prior, size = shaken(shape, scale=1.0, layers=layers), math.prod(shape)
    noise = torch.randn(4, size)
    jacobians = [torch.autograd.functional.jacobian(lambda e: prior.transform(e).flatten(), e) for e in noise]
    expected = Normal(0.0, 1.0).log_prob(noise).sum(1) - torch.stack([j.slogdet().logabsdet for j in jacobians])
    torch.testing.assert_close(density(prior).log_prob(prior.transform(noise)), expected.detach())


@pytest.mark.usefixtures("float64")
def test_the_density_of_two_entries_integrates_to_one_and_its_draws_have_its_moments():
    prior = shaken((1, 1, 2), scale=0.3)
    with torch.no_grad():
        draws = density(prior).sample((100_000,)).flatten(1)
        line = torch.linspace(-12, 12, 241)
        z = torch.cartesian_prod(line, line)
        mass = density(prior).log_prob(z.view(-1, 1, 1, 2)).exp() * (line[1] - line[0]) ** 2
    assert abs(mass.sum() - 1) < 1e-6
    mean = mass @ z
    covariance = (z - mean).T @ ((z - mean) * mass[:, None])
    scale = covariance.diag().sqrt()
    assert ((draws.mean(0) - mean) / scale).abs().max() < 0.02  # 5 standard errors are 0.016
    assert ((torch.cov(draws.T) - covariance) / torch.outer(scale, scale)).abs().max() < 0.05


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("layers", [2, 3])
def test_every_entry_is_moved(size, layers):
    prior, noise = shaken((1, 1, size), layers=layers), torch.randn(8, size)
    assert ((prior.transform(noise).flatten(1) - noise).abs().max(0).values > 1e-3).all()


def test_a_density_and_its_gradient_follow_the_weights_of_the_moment():
    prior = shaken((2, 3, 4))
    p = density(prior)
    with torch.no_grad():
        z = p.sample((5,))
        before = p.log_prob(z)
        for parameter in prior.parameters():
            parameter.mul_(1.1)
    # A twin that has never seen z has nothing to remember.
    twin = density(copy.deepcopy(prior))
    log_prob = p.log_prob(z)
    assert not torch.allclose(log_prob, before)
    assert torch.equal(log_prob, twin.log_prob(z))
    weights = [prior.couplings[k].nn.network.layers[0].weight for k in range(4)]
    gradients = torch.autograd.grad(log_prob.sum(), weights)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_no_graph_outlives_its_use():
    prior = shaken((2, 3, 4))
    gc.disable()
    try:
        # A leaf lives as long as a graph that ends in it.
        z, noise = torch.randn(5, 2, 3, 4, requires_grad=True), torch.randn(5, 24, requires_grad=True)
        leaves = [weakref.ref(z), weakref.ref(noise)]
        results = [density(prior).log_prob(z), prior.transform(noise)]
        del z, noise
        assert all(leaf() is not None for leaf in leaves)
        del results
        assert all(leaf() is None for leaf in leaves)
    finally:
        gc.enable()


def test_the_permutations_are_the_same_for_every_prior_and_are_stored():
    prior, other = FlowPrior((2, 3, 4)), FlowPrior((2, 3, 4))
    assert torch.equal(prior.state_dict()["permutations"], other.permutations)
    assert torch.equal(prior.permutations.sort(1).values, torch.arange(24).expand(4, 24))
    # Those of a checkpoint are the ones that count.
    moved = dict(prior.state_dict()) | {"permutations": prior.permutations.flip(0)}
    other.load_state_dict(moved)
    assert torch.equal(other.permutations, prior.permutations.flip(0))


def test_particles_and_sequences_are_scored_one_by_one():
    prior, z = shaken((2, 3, 4)), torch.randn(3, 5, 2, 3, 4)
    log_prob = density(prior, 3, 5).log_prob(z)
    assert log_prob.shape == (3, 5)
    torch.testing.assert_close(log_prob[1, 2], density(prior).log_prob(z[1, 2]))


def test_autocast_leaves_the_density_as_it_is():
    prior, z = shaken((2, 3, 4)), torch.randn(5, 2, 3, 4)
    expected = density(prior).log_prob(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(density(prior).log_prob(z), expected)


def test_the_flow_follows_its_modules_type():
    prior = FlowPrior((2, 3, 4)).double()
    assert prior(5).dtype == torch.float64


@pytest.mark.parametrize(("shape", "options", "words"), [
    ((1, 1, 1), {}, "widen the thoughts"),
    ((1, 1, 2), {"layers": 1}, "2 layers or more"),
    ((1, 1, 2), {"hidden": 0}, "1 hidden unit or more"),
    ((1, 1, 2), {"max_log_scale": 0.0}, "above 0 and at most at 3"),
    ((1, 1, 2), {"max_log_scale": math.nan}, "above 0 and at most at 3"),
])  # fmt: skip
def test_a_flow_that_cannot_be_is_refused(shape, options, words):
    with pytest.raises(LTMError, match=words):
        FlowPrior(shape, **options)
