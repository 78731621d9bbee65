"""Terms of the ELBO, sequence by sequence, against Pyro's estimators, closed forms and finite differences."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from tiny_models import ragged_batch, tiny_decoder, tiny_model

from ltm_pyro.errors import LTMError
from ltm_pyro.guides import Guide, LocalNormal
from ltm_pyro.infer import ELBOTerms, FastConfig, FastSlowSVI, SequenceELBO
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, sequence_noise
from ltm_pyro.priors import Prior


class GammaScaled(Prior):
    """Thoughts with a positive scale, whose KL to a pushed-forward normal has no closed form."""

    def forward(self, batch_size):
        scale = pyro.sample("scale", dist.Gamma(2.0, 2.0).expand((batch_size,)))
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand((batch_size, *self.shape)).to_event(3))
        return z * scale[..., None, None, None]


def program(prior: type[Prior] | None = None, init_log_var: float = -2.0):
    """Model and guide of one ragged batch as programs without arguments, and the local parameters."""
    model = tiny_model()
    if prior is not None:
        model = LatentThoughtModel(model.decoder, prior(model.decoder.thought_shape))
    guide, batch = LocalNormal(model, init_log_var=init_log_var), ragged_batch(5, 3, 0)
    local = guide.init_local(batch, SequenceGenerator(batch.keys, 0))
    return (lambda: model(batch)), (lambda: guide(batch, local)), local


def gradients(loss: torch.Tensor, local: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(local.values())))


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("prior", [None, GammaScaled])
def test_the_total_equals_pyros_mean_field_elbo_for_the_same_seed(prior, particles):
    model, guide, local = program(prior)
    settings = {"vectorize_particles": True, "max_plate_nesting": 1} if particles > 1 else {}
    peer = TraceMeanField_ELBO(particles, **settings)
    pyro.set_rng_seed(3)
    expected = peer.differentiable_loss(model, guide)
    pyro.set_rng_seed(3)
    actual = SequenceELBO(particles).differentiable_loss(model, guide)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)  # a float32 sum of about a hundred terms
    for a, b in zip(gradients(actual, local), gradients(expected, local), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


class TransformedGuide(Guide):
    """The local normal through an identity transform that torch does not see through: no closed-form KL."""

    def init_local(self, batch, generator=None):
        return {"mu": torch.full((len(batch), 2, 2, 8), 0.3, requires_grad=True)}

    def forward(self, batch, local):
        with pyro.plate("sequences", len(batch), dim=-1):
            normal = dist.Normal(local["mu"], 0.5).to_event(3)
            identity = torch.distributions.transforms.AffineTransform(0.0, 1.0, event_dim=3)
            pyro.sample("z", dist.TransformedDistribution(normal, [identity]))


@pytest.mark.parametrize("particles", [1, 4])
def test_without_a_closed_form_the_total_equals_pyros_sampled_elbo(particles):
    model, guide, batch = tiny_model(), TransformedGuide(), ragged_batch(5, 3, 0)
    local = guide.init_local(batch)
    run = (lambda: model(batch)), (lambda: guide(batch, local))
    settings = {"vectorize_particles": True, "max_plate_nesting": 1} if particles > 1 else {}
    pyro.set_rng_seed(3)
    expected = Trace_ELBO(particles, **settings).differentiable_loss(*run)
    pyro.set_rng_seed(3)
    actual = SequenceELBO(particles).differentiable_loss(*run)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradients(actual, local), gradients(expected, local), atol=1e-5, rtol=1e-4)


def test_terms_of_the_sequences_sum_to_the_total_and_each_is_its_own():
    model, guide, _ = program()
    pyro.set_rng_seed(3)
    terms = SequenceELBO(3).terms(model, guide)
    pyro.set_rng_seed(3)
    loss = SequenceELBO(3).loss(model, guide)
    assert terms.log_likelihood.shape == terms.kl.shape == terms.elbo.shape == (3,)
    assert float(-terms.elbo.detach().sum()) == pytest.approx(loss, rel=1e-5)
    assert terms.log_likelihood[2] == 0  # the empty sequence
    assert (terms.kl > 0).all()
    assert (terms.log_likelihood[:2] < 0).all()


def test_particles_average_the_single_draws_they_are_made_of():
    model, guide, _ = program()
    noise = SequenceGenerator(ragged_batch(5, 3, 0).keys, 1).normal((2, 2, 8), particles=(5,))

    class given_noise(pyro.poutine.messenger.Messenger):
        def __init__(self, noise):
            super().__init__()
            self.noise = noise

        def _pyro_sample(self, msg):
            if msg["name"] == "z" and msg["value"] is None:
                msg["value"] = msg["fn"].mean + msg["fn"].stddev * self.noise

    with given_noise(noise):
        together = SequenceELBO(5).terms(model, guide)
    singles = []
    for s in range(5):
        with given_noise(noise[s]):
            singles.append(SequenceELBO().terms(model, guide))
    mean = torch.stack([t.log_likelihood for t in singles]).mean(0)
    torch.testing.assert_close(together.log_likelihood, mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.kl, singles[0].kl)
    assert torch.stack([t.log_likelihood for t in singles]).std(0)[0] > 0.01


def test_loss_and_grads_fills_gradients_and_returns_the_loss():
    model, guide, local = program()
    pyro.set_rng_seed(3)
    expected = gradients(SequenceELBO().differentiable_loss(model, guide), local)
    pyro.set_rng_seed(3)
    loss = SequenceELBO().loss_and_grads(model, guide)
    pyro.set_rng_seed(3)
    assert loss == SequenceELBO().loss(model, guide)
    torch.testing.assert_close([v.grad for v in local.values()], expected)


def test_terms_are_put_end_to_end_and_detached():
    model, guide, _ = program()
    a, b = SequenceELBO().terms(model, guide), SequenceELBO().terms(model, guide)
    both = ELBOTerms.cat([a, b]).detach()
    assert torch.equal(both.elbo, torch.cat([a.elbo, b.elbo]))
    assert not both.kl.requires_grad


# Two Gaussian sites: a ~ N(0, 1), b | a ~ N(a, 1), one observation y of b with unit noise.
Y = torch.tensor([0.7, -1.2])
SETTINGS = {"mean_b": 0.4, "sd_b": 0.6, "slope": 0.5, "offset": -0.1, "sd_a": 0.8}


def two_site_model():
    with pyro.plate("sequences", 2, dim=-1):
        a = pyro.sample("a", dist.Normal(0.0, 1.0).expand((2,)))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("y", dist.Normal(b, 1.0), obs=Y)


def backward_guide():
    """q(b) q(a | b): the other order."""
    s = SETTINGS
    with pyro.plate("sequences", 2, dim=-1):
        b = pyro.sample("b", dist.Normal(s["mean_b"], s["sd_b"]).expand((2,)))
        pyro.sample("a", dist.Normal(s["offset"] + s["slope"] * b, s["sd_a"]))


def forward_guide():
    """q(a) q(b | a): the model's order."""
    s = SETTINGS
    with pyro.plate("sequences", 2, dim=-1):
        a = pyro.sample("a", dist.Normal(s["mean_b"], s["sd_b"]).expand((2,)))
        pyro.sample("b", dist.Normal(s["offset"] + s["slope"] * a, s["sd_a"]))


def exact_two_site_terms(order: str) -> tuple[torch.Tensor, float]:
    """Expected log-likelihood of each observation, and the KL of the two bivariate normals."""
    s = SETTINGS
    first = torch.tensor([s["mean_b"], s["offset"] + s["slope"] * s["mean_b"]])
    variance = s["sd_b"] ** 2
    covariance = torch.tensor(
        [[variance, s["slope"] * variance], [s["slope"] * variance, s["slope"] ** 2 * variance + s["sd_a"] ** 2]]
    )
    if order == "backward":  # the first of the guide is b: put a first
        first, covariance = first.flip(0), covariance.flip(0, 1)
    q = torch.distributions.MultivariateNormal(first, covariance)
    p = torch.distributions.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 1.0], [1.0, 2.0]]))
    log_likelihood = -0.5 * math.log(2 * math.pi) - 0.5 * ((Y - first[1]) ** 2 + covariance[1, 1])
    return log_likelihood, float(torch.distributions.kl_divergence(q, p))


@pytest.mark.parametrize(("guide", "order"), [(backward_guide, "backward"), (forward_guide, "forward")])
def test_dependent_sites_are_estimated_without_bias_in_either_order(guide, order):
    log_likelihood, kl = exact_two_site_terms(order)
    blocks = [SequenceELBO(2000).terms(two_site_model, guide) for _ in range(20)]
    for actual, expected in (
        (torch.stack([t.log_likelihood for t in blocks]), log_likelihood),
        (torch.stack([t.kl for t in blocks]), torch.full((2,), kl)),
    ):
        error = actual.std(0) / math.sqrt(20)
        assert ((actual.mean(0) - expected).abs() < 5 * error).all()  # five standard errors
        assert error.max() < 0.02


class OneSite(Guide):
    """Guides ``scale`` alone."""

    def init_local(self, batch, generator=None):
        return {"mu": torch.zeros(len(batch), requires_grad=True)}

    def forward(self, batch, local):
        with pyro.plate("sequences", len(batch), dim=-1):
            pyro.sample("scale", dist.LogNormal(local["mu"], 1.0))


class Discrete(Guide):
    """Guides ``z`` by a distribution without a reparameterised draw."""

    def init_local(self, batch, generator=None):
        return {"mu": torch.ones(len(batch), 2, 2, 8, requires_grad=True)}

    def forward(self, batch, local):
        with pyro.plate("sequences", len(batch), dim=-1):
            pyro.sample("z", dist.Poisson(local["mu"]).to_event(3))


def test_a_guide_that_lacks_a_site_is_refused_by_name():
    decoder = tiny_decoder()
    model = LatentThoughtModel(decoder, GammaScaled(decoder.thought_shape))
    with pytest.raises(LTMError, match="'z'"):
        FastSlowSVI(model, OneSite(), fast=FastConfig(steps=1)).infer(ragged_batch(3))


def test_a_guide_without_reparameterised_draws_is_refused_by_name():
    with pytest.raises(LTMError, match=r"'z'.*Independent|'z'.*Poisson"):
        FastSlowSVI(tiny_model(), Discrete(), fast=FastConfig(steps=1)).infer(ragged_batch(3))


class MaskedKinds(Prior):
    """Thoughts of one of three kinds, which count for some sequences alone."""

    counts: torch.Tensor | bool = True

    def forward(self, batch_size):
        kinds = dist.Categorical(torch.ones(batch_size, 3) / 3)
        kind = pyro.sample("kind", kinds, infer={"enumerate": "parallel"})
        with pyro.poutine.mask(mask=self.counts):
            return pyro.sample("z", dist.Normal(kind[..., None, None, None] * torch.ones(self.shape), 1.0).to_event(3))


@pytest.mark.parametrize("particles", [1, 3])
def test_a_masked_site_below_an_enumerated_one_has_no_divergence(particles, monkeypatch):
    model, guide, _ = program(MaskedKinds)

    def terms(counts):
        monkeypatch.setattr(MaskedKinds, "counts", counts)
        pyro.set_rng_seed(3)
        return SequenceELBO(particles).terms(model, guide)

    whole, part = terms(True), terms(torch.tensor([True, False, True]))
    torch.testing.assert_close(part.kl, whole.kl * torch.tensor([1.0, 0.0, 1.0]), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(part.log_likelihood, whole.log_likelihood)


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (lambda model: pyro.poutine.scale(model, scale=0.5), "'kind' has a scale"),
        (lambda model: pyro.poutine.mask(model, mask=torch.tensor([True, False, True])), "'kind' is enumerated under"),
    ],
)
def test_what_a_sum_over_values_would_not_keep_is_refused_by_the_sites_name(handler, words):
    model, guide, _ = program(MaskedKinds)
    with pytest.raises(LTMError, match=words):
        SequenceELBO().terms(handler(model), guide)


def loss_on_fixed_noise(model, guide, batch, local, elbo=None):
    with sequence_noise(SequenceGenerator(batch.keys, 7)):
        return (elbo or SequenceELBO(2)).differentiable_loss(lambda: model(batch), lambda: guide(batch, local))


def test_gradients_for_local_parameters_agree_with_finite_differences(float64):
    model, batch = tiny_model(thought_width=3), ragged_batch(4, 2)
    guide = LocalNormal(model, init_log_var=-1.0, init_mu_spread=1.0)
    local = guide.init_local(batch, SequenceGenerator(batch.keys, 0))
    names = list(local)
    assert torch.autograd.gradcheck(
        lambda *values: loss_on_fixed_noise(model, guide, batch, dict(zip(names, values, strict=True))),
        tuple(local.values()),
    )


def test_gradients_for_decoder_weights_agree_with_finite_differences(float64):
    model, batch = tiny_model(thought_width=3), ragged_batch(6, 2)
    guide = LocalNormal(model, init_log_var=-1.0, init_mu_spread=1.0)
    local = guide.init_local(batch, SequenceGenerator(batch.keys, 0))
    loss_on_fixed_noise(model, guide, batch, local).backward()
    step = 1e-5
    for name, weight in model.named_parameters():
        direction = torch.randn_like(weight)
        values = []
        with torch.no_grad():
            for move in (step, -2 * step):
                weight.add_(direction, alpha=move)
                values.append(float(loss_on_fixed_noise(model, guide, batch, local)))
            weight.add_(direction, alpha=step)
        expected = (values[0] - values[1]) / (2 * step)
        actual = float((weight.grad * direction).sum())
        # Rotary angles are float32 constants of both; central differences err by their step squared.
        assert actual == pytest.approx(expected, rel=1e-5, abs=1e-6), name
        assert expected != 0, name
