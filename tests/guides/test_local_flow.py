"""The flow guide: its density against a numerical Jacobian, where it starts, and the posteriors that need it."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import EmbeddedNormal, LinearGaussianModel
from pyro import poutine
from pyro.infer import Trace_ELBO
from tiny_models import ragged_batch, tiny_decoder, tiny_model

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import LocalFlow, LocalNormal
from ltm_pyro.guides.local_flow import PlanarStep
from ltm_pyro.infer import FastConfig, FastSlowSVI, SequenceELBO
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, sequence_noise
from ltm_pyro.priors import GaussianPrior, Prior

STEPS, SIZE = 3, 4


def shaken(local, by: float = 1.0):
    return {name: value.detach() + by * torch.randn_like(value) for name, value in local.items()}


def small():
    """Model, batch, guide and moved local parameters of four thought entries."""
    decoder = tiny_decoder(layers=1, hidden=2, heads=1, thoughts_per_layer=2)
    model, batch = LatentThoughtModel(decoder, GaussianPrior(decoder.thought_shape)), ragged_batch(3, 5)
    guide = LocalFlow(model, steps=STEPS, init_log_var=-1.0)
    local = shaken(guide.init_local(batch))
    # Far beyond what a step may shift against its direction, so that the bound on it matters.
    local["z.shift"] = 4 * local["z.shift"] - 8 * local["z.direction"].sign()
    return model, batch, guide, local


def pushed(local, b: int, x: torch.Tensor) -> torch.Tensor:
    """Sequence b's planar steps, entry by entry as Rezende and Mohamed write them, on one vector."""
    for r in range(STEPS):
        w, u = local["z.direction"][b, r] / SIZE**0.5, local["z.shift"][b, r] / SIZE**0.5
        along = float(w @ u) + math.log(math.e - 1)
        u = u + (math.log1p(math.exp(along)) - 1 - float(w @ u)) * w / (w @ w)  # wᵀu above -1; 0 for a shift of 0
        x = x + u * torch.tanh(w @ x + local["z.offset"][b, r])
    return x


def log_density(local, b: int, x: torch.Tensor) -> torch.Tensor:
    """Log q at the image of x: the normal's, over the Jacobian by central differences."""
    step = 1e-5
    columns = [
        (pushed(local, b, x + step * e) - pushed(local, b, x - step * e)) / (2 * step) for e in torch.eye(len(x))
    ]
    normal = torch.distributions.Normal(local["z.mu"][b].flatten(), (0.5 * local["z.log_var"][b].flatten()).exp())
    return normal.log_prob(x).sum() - torch.linalg.det(torch.stack(columns, 1)).abs().log()


def test_the_density_of_a_draw_is_the_normals_over_the_jacobian(float64):
    _, batch, guide, local = small()
    with sequence_noise(SequenceGenerator(batch.keys, 0)):
        trace = poutine.trace(guide).get_trace(batch, local)
    trace.compute_log_prob()
    noise = SequenceGenerator(batch.keys, 0).normal((SIZE,))
    x = local["z.mu"].flatten(1) + (0.5 * local["z.log_var"].flatten(1)).exp() * noise
    for b in range(2):
        torch.testing.assert_close(trace.nodes["z"]["value"][b].flatten(), pushed(local, b, x[b]))
        found = trace.nodes["z"]["log_prob"][b]
        torch.testing.assert_close(found, log_density(local, b, x[b]), atol=1e-7, rtol=0)


def test_the_density_of_any_value_is_that_of_its_preimage(float64):
    _, batch, guide, local = small()
    x = 3 * torch.randn(2, SIZE)
    z = torch.stack([pushed(local, b, x[b]) for b in range(2)]).view(2, 1, 2, 2)
    trace = poutine.trace(poutine.condition(guide, {"z": z})).get_trace(batch, local)
    trace.compute_log_prob()
    expected = torch.stack([log_density(local, b, x[b]) for b in range(2)])
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("along", [-30.0, -1.0, 0.0, 5.0, 30.0])
def test_a_step_is_inverted_wherever_its_shift_points(float64, along):
    direction = torch.randn(50, SIZE)
    across = torch.randn(50, SIZE)
    offset = torch.randn(50)
    step = PlanarStep(direction, across + along * direction, offset)
    x = 3 * torch.randn(50, SIZE)
    image = step(x)
    # A new object, which has no memory of the way here.
    back = PlanarStep(direction, across + along * direction, offset).inv(image)
    # Near a slope of -1 + e⁻³⁰ the image hardly moves with x: what can be asked for is a preimage of it.
    torch.testing.assert_close(step(back), image, atol=1e-10, rtol=0)
    if along > -5:
        torch.testing.assert_close(back, x, atol=1e-8, rtol=0)


def test_it_starts_as_the_local_normal():
    model, batch = tiny_model(), ragged_batch(5, 3, 0)
    settings = {"init_log_var": -1.0, "init_log_var_spread": 0.0}
    losses, terms, draws = [], [], []
    for guide in (LocalFlow(model, **settings), LocalNormal(model, **settings)):
        local = guide.init_local(batch)
        with sequence_noise(SequenceGenerator(batch.keys, 3)):  # Pyro's own estimate: both KLs at the draw
            loss = Trace_ELBO().differentiable_loss(lambda: model(batch), lambda g=guide, p=local: g(batch, p))
        posterior = FastSlowSVI(model, guide).infer(batch, steps=0, seed=4)
        losses.append(loss.detach())
        terms.append(posterior.elbo_terms(8).log_likelihood)
        draws.append(posterior.sample(5))
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(*terms, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(*draws, atol=1e-6, rtol=1e-6)


def test_a_step_that_moves_nothing_can_be_learned():
    model, batch = tiny_model(), ragged_batch(5, 3)
    posterior = FastSlowSVI(model, LocalFlow(model), fast=FastConfig(steps=2)).infer(batch, seed=0)
    assert (posterior.local["z.shift"] != 0).all()


def test_the_inverse_has_the_derivatives_of_the_solution(float64):
    parameters = [torch.randn(3, 2), torch.randn(3, 2), torch.randn(3)]
    y = torch.randn(3, 2)

    def density(y, *parameters):
        step = PlanarStep(*parameters)
        x = step.inv(y)
        return x, step.log_abs_det_jacobian(x, y)

    assert torch.autograd.gradcheck(density, [value.requires_grad_() for value in (y, *parameters)], atol=1e-6)


class PositivePrior(Prior):
    def forward(self, batch_size):
        scale = pyro.sample("scale", dist.Gamma(torch.full((batch_size, 2), 3.0), 3.0).to_event(1))
        z = pyro.sample("z", dist.Normal(torch.zeros(batch_size, *self.shape), 1.0).to_event(3))
        return scale.sum(-1)[:, None, None, None] * z


def test_a_constrained_site_is_the_image_of_its_flow(float64):
    decoder, batch = tiny_decoder(), ragged_batch(4, 2)
    guide = LocalFlow(LatentThoughtModel(decoder, PositivePrior(decoder.thought_shape)), steps=2, init_log_var=-1.0)
    local = shaken(guide.init_local(batch))
    trace = poutine.trace(guide).get_trace(batch, local)
    trace.compute_log_prob()
    value = trace.nodes["scale"]["value"]
    assert (value > 0).all()
    # biject_to(positive) is exp: the density of log scale, over the scale.
    flow = torch.distributions.TransformedDistribution(
        torch.distributions.Independent(
            torch.distributions.Normal(local["scale.mu"], (0.5 * local["scale.log_var"]).exp()), 1
        ),
        [
            PlanarStep(local["scale.direction"][:, r] / 2**0.5, local["scale.shift"][:, r] / 2**0.5, offset)
            for r, offset in enumerate(local["scale.offset"].unbind(1))
        ],
    )
    expected = flow.log_prob(value.log()) - value.log().sum(-1)
    torch.testing.assert_close(trace.nodes["scale"]["log_prob"], expected, atol=1e-8, rtol=0)


def test_a_posterior_does_not_depend_on_its_batch():
    model, batch = tiny_model(), ragged_batch(4, 7, 2)
    svi = FastSlowSVI(model, LocalFlow(model, init_log_var=-1.0), fast=FastConfig(steps=8))
    together, alone = svi.infer(batch, seed=1), svi.infer(batch[[1]], seed=1)
    for name, value in alone.local.items():
        torch.testing.assert_close(value[0], together.local[name][1], atol=1e-4, rtol=0)
    torch.testing.assert_close(alone.sample(2)[:, 0], together.sample(2)[:, 1], atol=1e-4, rtol=0)


def test_a_flow_of_no_steps_is_refused():
    with pytest.raises(LTMError, match=r"1 step or more, got steps = 0: the guide local-normal"):
        LocalFlow(tiny_model(), steps=0)


class SquareModel(LatentThoughtModel):
    """p(z) = N(0, 1), p(y | z) = N(z², s²): z and -z explain a token alike, so the posterior has two modes."""

    def __init__(self, scale: float = 0.4):
        decoder = tiny_decoder(layers=1, hidden=2, heads=1, thoughts_per_layer=1, thought_width=1)
        super().__init__(decoder, GaussianPrior(decoder.thought_shape))
        self.scale = scale
        self.table = torch.linspace(0.0, 2.0, 11)[:, None]

    def likelihood(self, thoughts, batch, stem):
        return EmbeddedNormal(thoughts.flatten(-3).square(), self.scale, self.table, 1)

    def stem(self, batch):
        return None

    def log_evidence(self, batch):
        z = torch.linspace(-8.0, 8.0, 100_001)
        y = self.table[batch.tokens].flatten(1)
        normal = torch.distributions.Normal
        joint = normal(0.0, 1.0).log_prob(z) + normal(z.square(), self.scale).log_prob(y)
        return joint.logsumexp(-1) + math.log(16 / 100_000)


class Parted(LocalFlow):
    """A flow whose first step begins to part the two sides of 0: from the usual start it may settle in one mode."""

    def _start(self, site, generator):
        local = super()._start(site, generator)
        local["z.direction"][:, 0], local["z.shift"][:, 0] = 4.0, 1.0
        return local


def test_two_modes_cost_the_normal_half_its_mass_and_the_flow_little():
    model, batch = SquareModel(), TokenBatch.from_lists([[6]], 0)
    fast = FastConfig(steps=300, lr=0.05, lr_decay=0.0)
    normal, flow = (
        FastSlowSVI(model, guide, fast=fast, elbo=SequenceELBO(128)).infer(batch, seed=0)
        for guide in (LocalNormal(model, init_log_var=-1.0, init_mu_spread=1.0), Parted(model, init_log_var=-1.0))
    )
    gaps = [model.log_evidence(batch) - posterior.elbo_terms(20_000).elbo for posterior in (normal, flow)]
    assert gaps[0] > math.log(2) - 0.02  # the best normal is in one mode
    assert 0 < gaps[1] < 0.4
    for posterior, low, high in ((normal, 0.0, 0.01), (flow, 0.3, 0.7)):
        above = float((posterior.sample(2000) > 0).float().mean())
        assert low <= min(above, 1 - above) <= high


def test_the_fast_loop_finds_the_exact_posterior():
    model, batch = LinearGaussianModel(orthogonal=True), ragged_batch(4, 4, 4)
    guide = LocalFlow(model, steps=2, init_log_var=-1.0)
    fast = FastConfig(steps=200, lr=0.05, lr_decay=0.0)
    posterior = FastSlowSVI(model, guide, fast=fast, elbo=SequenceELBO(2048)).infer(batch, seed=0)
    mean, precision = model.exact_posterior(batch)
    deviation = precision.diag().rsqrt()
    draws = posterior.sample(20_000).flatten(2)
    # Standard errors of 20 000 draws are 0.007 deviations in means and 1 % in variances.
    assert ((draws.mean(0) - mean) / deviation).abs().max() < 0.05
    assert (draws.var(0) / deviation.square() - 1).abs().max() < 0.07
    terms = posterior.elbo_terms(20_000)
    # Where q is the posterior, every draw's log p(x, z) - log q(z) is the evidence: no noise is left.
    assert ((terms.elbo - model.log_evidence(batch)).abs() < 0.01).all()
