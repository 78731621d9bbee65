"""Per-sequence noise: normal, independent, reproducible, and fed to Pyro's sites, whose distributions it keeps."""

from __future__ import annotations

import math
from typing import get_args

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import biject_to, constraints

from ltm_pyro.noise import Purpose, SequenceGenerator, fixed_global_stream, sequence_noise


def keys(num: int) -> torch.Tensor:
    """Identities as unfavourable as they come: consecutive integers."""
    return torch.arange(num)


def kolmogorov_smirnov(x: torch.Tensor) -> float:
    """Largest distance of the empirical distribution function from the normal one, times sqrt(n)."""
    x = x.flatten().double().sort().values
    n = len(x)
    cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    above = (torch.arange(1, n + 1) / n - cdf).max()
    below = (cdf - torch.arange(n) / n).max()
    return float(torch.maximum(above, below)) * math.sqrt(n)


def assert_standard_normal(x: torch.Tensor) -> None:
    n = x.numel()
    # Five standard errors of each moment of n standard normals.
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(x.double().pow(power).mean()) - expected) < 5 * math.sqrt(variance / n), power
    # Kolmogorov's statistic exceeds 2.2 with probability 1e-4.
    assert kolmogorov_smirnov(x) < 2.2


def test_draws_are_standard_normal_across_keys_draws_and_entries():
    generator = SequenceGenerator(keys(50), seed=3)
    x = torch.stack([generator.normal((100,), particles=(2,)) for _ in range(10)])
    assert x.shape == (10, 2, 50, 100)
    assert_standard_normal(x)
    assert_standard_normal(x[0, 0])


@pytest.mark.parametrize("axis", ["keys", "draws", "entries", "seeds"])
def test_draws_are_standard_normal_along_each_axis_alone(axis):
    num = 20_000
    if axis == "keys":
        x = SequenceGenerator(keys(num), 0).normal((1,))
    elif axis == "entries":
        x = SequenceGenerator(keys(1), 0).normal((num,))
    elif axis == "draws":
        generator = SequenceGenerator(keys(40), 0)
        x = torch.stack([generator.normal(()) for _ in range(num // 40)])
    else:
        x = torch.stack([SequenceGenerator(keys(40), seed).normal(()) for seed in range(num // 40)])
    assert_standard_normal(x)


def test_tails_are_those_of_a_normal_and_always_finite():
    x = SequenceGenerator(keys(100), 1).normal((20_000,))
    n = x.numel()
    assert x.isfinite().all()
    for threshold in (3.0, 4.0, 4.5):
        expected = n * math.erfc(threshold / math.sqrt(2))
        # Counts are Poisson: five standard deviations.
        assert abs(int((x.abs() > threshold).sum()) - expected) < 5 * math.sqrt(expected)
    assert 4.8 < float(x.abs().max()) < 5.9  # the largest of 2e6, and the end of a 24-bit radius


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.flatten() * b.flatten()).mean()) * math.sqrt(a.numel())


def test_neighbouring_keys_draws_particles_entries_and_seeds_are_uncorrelated():
    generator, other = SequenceGenerator(keys(40), 5), SequenceGenerator(keys(40), 6)
    x = torch.stack([generator.normal((50,), particles=(3,)) for _ in range(6)])
    y = torch.stack([other.normal((50,), particles=(3,)) for _ in range(6)])
    for f in (lambda t: t, lambda t: (t**2 - 1) / math.sqrt(2)):
        pairs = {
            "draws": (x[:-1], x[1:]),
            "particles": (x[:, :-1], x[:, 1:]),
            "keys": (x[:, :, :-1], x[:, :, 1:]),
            "entries": (x[..., :-1], x[..., 1:]),
            "seeds": (x, y),
            "a key's next draw against the next key": (x[1:, :, :-1], x[:-1, :, 1:]),
        }
        for name, (a, b) in pairs.items():
            assert abs(correlation(f(a), f(b))) < 5, name  # standard errors


def test_the_stream_of_a_key_does_not_depend_on_the_others():
    one, many = SequenceGenerator(torch.tensor([7]), 2), SequenceGenerator(torch.tensor([5, 7, 1]), 2)
    for particles in ((), (3,), (2, 2)):
        a, b = one.normal((4, 2), particles=particles), many.normal((4, 2), particles=particles)
        assert torch.equal(a[..., 0, :, :], b[..., 1, :, :])
        assert not torch.equal(b[..., 0, :, :], b[..., 1, :, :])


def test_first_particles_do_not_depend_on_how_many_are_asked_for():
    few = SequenceGenerator(keys(3), 2).normal((4,), particles=(2,))
    many = SequenceGenerator(keys(3), 2).normal((4,), particles=(7,))
    assert torch.equal(few, many[:2])
    assert torch.equal(SequenceGenerator(keys(3), 2).normal((4,)), many[0])


def test_equal_seeds_repeat_and_other_seeds_do_not():
    def draws(seed: int) -> torch.Tensor:
        generator = SequenceGenerator(keys(2), seed)
        return torch.stack([generator.normal((3,)), generator.normal((3,))])

    for seed in (0, -1, 2**62, 2**64 + 5):
        assert torch.equal(draws(seed), draws(seed))
    assert not torch.equal(draws(0), draws(1))
    assert not torch.equal(draws(0)[0], draws(0)[1])


def test_every_purpose_has_streams_of_its_own():
    for seed in (0, 1):
        draws = [SequenceGenerator(keys(40), seed, p).normal((100,)) for p in get_args(Purpose)]
        draws.append(SequenceGenerator(keys(40), seed + 1).normal((100,)))
        for i, a in enumerate(draws):
            for b in draws[:i]:
                assert abs(correlation(a, b)) < 5  # standard errors


def test_seeds_of_a_key_do_not_depend_on_the_others_and_a_fixed_stream_leaves_the_global_one_as_it_was():
    generator = SequenceGenerator(keys(3), 2, "chain")
    first, second = generator.seeds(), generator.seeds()
    assert len({*first, *second}) == 6
    assert SequenceGenerator(keys(3)[1:2], 2, "chain").seeds() == first[1:2]

    def draw(seed: int) -> torch.Tensor:
        with fixed_global_stream(seed, torch.device("cpu")):
            return torch.randn(4)

    before = torch.get_rng_state()
    a, b = draw(first[0]), draw(first[1])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(draw(first[0]), a)
    assert not torch.equal(a, b)


def test_words_are_uniform_and_the_first_do_not_depend_on_how_many_are_asked_for():
    keys = torch.arange(100)
    words = SequenceGenerator(keys, seed=1, purpose="mask").words(1000)
    assert torch.equal(words[:, :7], SequenceGenerator(keys, seed=1, purpose="mask").words(7))
    assert len(words.unique()) == words.numel()  # 64 bits: ranks have no ties
    # Each bit of 100 000 words: a frequency of 1/2 with a standard error of 0.0016.
    bits = torch.stack([(words >> bit) & 1 for bit in range(64)]).double().mean((1, 2))
    assert (bits - 0.5).abs().max() < 4.5 * 0.0016


def test_draws_take_the_type_asked_for():
    generator = SequenceGenerator(keys(2), 0)
    assert generator.normal((3,), dtype=torch.float64).dtype == torch.float64
    assert generator.normal((3,)).dtype == torch.get_default_dtype()


SIZE = 4000


def draw(fn, *, seed: int = 0, particles: int | None = None) -> torch.Tensor:
    """One site in the plate of sequences, drawn from the sequences' own noise."""

    def program():
        with pyro.plate("sequences", SIZE, dim=-1):
            return pyro.sample("z", fn)

    if particles is not None:
        program = pyro.plate("particles", particles, dim=-2)(program)
    with sequence_noise(SequenceGenerator(keys(SIZE), seed)):
        return program()


FACTOR = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.0, 2.0]])
HANDLED = {
    "normal": lambda: dist.Normal(torch.linspace(-1, 1, SIZE), 2.0),
    "independent normal": lambda: dist.Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])).to_event(1),
    "low rank normal": lambda: dist.LowRankMultivariateNormal(
        torch.tensor([1.0, 0.0, -1.0]), FACTOR, torch.tensor([0.1, 0.5, 1.0])
    ),
    "independent low rank normal": lambda: dist.LowRankMultivariateNormal(
        torch.zeros(2, 3), torch.stack([FACTOR, -2 * FACTOR]), torch.ones(2, 3)
    ).to_event(1),
    "exponentiated normal": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 0.5).to_event(1), [biject_to(constraints.independent(constraints.positive, 1))]
    ),
    "log-normal": lambda: dist.LogNormal(torch.zeros(2), 0.5).to_event(1),
    "normal on the simplex": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), [biject_to(constraints.simplex)]
    ),
    "normal on Cholesky factors of correlations": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), 1.0).to_event(1), [biject_to(constraints.corr_cholesky)]
    ),
}


@pytest.mark.parametrize("name", HANDLED)
@pytest.mark.parametrize("particles", [None, 2])
def test_handled_sites_keep_their_distribution(name, particles):
    fn = HANDLED[name]()
    ours = draw(fn, particles=particles)
    with pyro.plate("sequences", SIZE, dim=-1):
        peer = pyro.sample("z", fn)
    expected = (SIZE,) if particles is None else (particles, SIZE)
    assert ours.shape == (*expected, *fn.event_shape)
    ours = (ours if particles is None else ours[1]).reshape(SIZE, -1)
    peer = peer.reshape(SIZE, -1)

    def moments(x: torch.Tensor) -> torch.Tensor:
        """(n, m) the entries and their products: their means are the means and the covariance."""
        return torch.cat([x, torch.einsum("ni,nj->nij", x, x).flatten(1)], dim=1)

    a, b = moments(ours), moments(peer)
    error = ((a.var(0) + b.var(0)) / SIZE).sqrt().clamp(min=1e-6)
    assert ((a.mean(0) - b.mean(0)).abs() / error < 5).all()  # five standard errors of the difference


@pytest.mark.parametrize("name", HANDLED)
def test_handled_sites_draw_from_the_sequences_own_streams(name):
    fn = HANDLED[name]()
    before = torch.get_rng_state()
    ours = draw(fn)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draw(fn), ours)
    assert not torch.equal(draw(fn, seed=1), ours)
    torch.testing.assert_close(draw(fn, particles=3)[0], ours)


def test_the_handled_low_rank_normal_has_its_stated_covariance():
    x = draw(HANDLED["low rank normal"]())
    expected = FACTOR @ FACTOR.T + torch.diag(torch.tensor([0.1, 0.5, 1.0]))
    # A covariance of n draws errs by at most sqrt(2 / n) of the largest variance, 5: five standard errors.
    torch.testing.assert_close(torch.cov(x.T), expected, atol=5 * 5 * math.sqrt(2 / SIZE), rtol=0)
    assert abs(x.mean(0) - torch.tensor([1.0, 0.0, -1.0])).max() < 5 * math.sqrt(5 / SIZE)


def test_draws_are_reparameterised():
    mu, log_scale = torch.zeros(3, 2, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
    with sequence_noise(SequenceGenerator(keys(3), 0)), pyro.plate("sequences", 3, dim=-1):
        z = pyro.sample("z", dist.Normal(mu, log_scale.exp()).to_event(1))
    d_mu, d_log_scale = torch.autograd.grad(z.sum(), [mu, log_scale])
    torch.testing.assert_close(d_mu, torch.ones(3, 2))
    torch.testing.assert_close(d_log_scale, z.detach())  # z = ε at μ = 0, σ = 1


def test_other_distributions_fall_back_to_the_global_stream():
    for fn in (dist.Gamma(2.0, 3.0), dist.Categorical(torch.ones(3))):
        torch.manual_seed(5)
        ours = draw(fn)
        torch.manual_seed(5)
        with pyro.plate("sequences", SIZE, dim=-1):
            peer = pyro.sample("z", fn)
        assert torch.equal(ours, peer)


def test_observed_and_given_values_are_left_alone():
    value = torch.ones(3)

    def program():
        with pyro.plate("sequences", 3, dim=-1):
            pyro.sample("a", dist.Normal(0.0, 1.0), obs=value)
            pyro.sample("b", dist.Normal(0.0, 1.0))

    given = poutine.condition(program, data={"b": 2 * value})
    generator = SequenceGenerator(keys(3), 0)
    with sequence_noise(generator):
        trace = poutine.trace(given).get_trace()
    assert torch.equal(trace.nodes["a"]["value"], value)
    assert torch.equal(trace.nodes["b"]["value"], 2 * value)
    assert generator.draws == 0
