"""Discrete sites summed out exactly: against the marginal program, brute force over their values, and Pyro's own."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from tiny_models import ragged_batch, tiny_decoder
from torch.distributions import Normal

from ltm_pyro.guides import LocalDelta, LocalFlow, LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI, Posterior, SequenceELBO
from ltm_pyro.infer.density import log_joint, trace_model
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.noise import SequenceGenerator, sequence_noise
from ltm_pyro.priors import MixturePrior, Prior

PARALLEL = {"enumerate": "parallel"}
pytestmark = pytest.mark.usefixtures("float64")


class ChainPrior(Prior):
    """Topic, tone, thoughts: two enumerated sites, each of the last two depending on the one before."""

    def __init__(self, shape):
        super().__init__(shape)
        self.topic = torch.nn.Parameter(torch.randn(2))
        self.tone = torch.nn.Parameter(torch.randn(2, 3))
        self.mu = torch.nn.Parameter(torch.randn(3, *shape))

    def forward(self, batch_size):
        topic = pyro.sample("topic", dist.Categorical(logits=self.topic).expand((batch_size,)), infer=PARALLEL)
        tone = pyro.sample("tone", dist.Categorical(logits=self.tone[topic]), infer=PARALLEL)
        return pyro.sample("z", dist.Normal(self.mu[tone], 1.0).to_event(3))

    def values(self):
        """Every (topic, tone) with its log-probability and a function from z to log p(z | topic, tone)."""
        for i, j in itertools.product(range(2), range(3)):
            weight = self.topic.log_softmax(0)[i] + self.tone.log_softmax(1)[i, j]
            yield (i, j), weight, self.mu[j]


class ShiftedPrior(Prior):
    """The thoughts themselves depend on the kind: z = m_k + s_k · noise, and the noise is the latent site."""

    def __init__(self, shape):
        super().__init__(shape)
        self.logits = torch.nn.Parameter(torch.randn(3))
        self.mu = torch.nn.Parameter(torch.randn(3, *shape))
        self.scale = torch.tensor([0.5, 1.0, 2.0])

    def forward(self, batch_size):
        kind = pyro.sample("kind", dist.Categorical(logits=self.logits).expand((batch_size,)), infer=PARALLEL)
        noise = pyro.sample("noise", dist.Normal(torch.zeros(batch_size, *self.shape), 1.0).to_event(3))
        return self.mu[kind] + self.scale[kind][..., None, None, None] * noise

    def of_kind(self, k: int, noise: torch.Tensor) -> torch.Tensor:
        return self.mu[k] + self.scale[k] * noise


def model_of(prior: type[Prior]) -> LatentThoughtModel:
    decoder = tiny_decoder()
    return LatentThoughtModel(decoder, prior(decoder.thought_shape))


def fitted(model: LatentThoughtModel, batch, guide=LocalNormal, steps: int = 5) -> Posterior:
    fast = FastConfig(steps=steps, lr=0.1)
    return FastSlowSVI(model, guide(model, init_log_var=-1.0), fast=fast).infer(batch, seed=0)


def terms_of(model, posterior: Posterior, particles: int):
    """Differentiable terms on the noise of seed 7, and the gradients of their sum."""
    local = {name: value.clone().requires_grad_() for name, value in posterior.local.items()}
    with sequence_noise(SequenceGenerator(posterior.batch.keys, 7)):
        terms = SequenceELBO(particles).terms(
            lambda: model(posterior.batch), lambda: posterior.guide(posterior.batch, local)
        )
    weights = [*local.values(), *model.parameters()]
    return terms, torch.autograd.grad(terms.elbo.sum(), weights, allow_unused=True)


def mixtures() -> tuple[LatentThoughtModel, LatentThoughtModel]:
    """The same mixture with the kind summed out by the density, and by enumeration."""
    decoder = tiny_decoder()
    plain = MixturePrior(decoder.thought_shape, components=3, spread=1.0)
    with torch.no_grad():
        plain.logits.normal_()
        plain.log_scale.normal_(std=0.3)
    enumerated = MixturePrior(decoder.thought_shape, components=3, enumerated=True)
    enumerated.load_state_dict(plain.state_dict())
    return LatentThoughtModel(decoder, plain), LatentThoughtModel(decoder, enumerated)


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("guide", [LocalNormal, LocalFlow])
def test_a_mixture_has_the_same_terms_and_gradients_draw_by_draw_with_its_kind_as_a_site(guide, particles):
    plain, enumerated = mixtures()
    posterior = fitted(plain, ragged_batch(5, 3, 0), guide)
    (terms, gradients), (marginal, expected) = (terms_of(m, posterior, particles) for m in (enumerated, plain))
    torch.testing.assert_close(terms.log_likelihood, marginal.log_likelihood)
    torch.testing.assert_close(terms.kl, marginal.kl)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_mixture_is_fitted_the_same_and_tells_its_kinds_where_they_are_a_site():
    plain, enumerated = mixtures()
    batch = ragged_batch(5, 3, 0)
    posteriors = [fitted(m, batch) for m in (plain, enumerated)]
    for name, value in posteriors[0].local.items():
        torch.testing.assert_close(posteriors[1].local[name], value, atol=1e-8, rtol=0)
    # Draws of z settle the kind: Bayes' rule says how far.
    expected = plain.prior.responsibilities(posteriors[0].sample(6)).mean(0)
    torch.testing.assert_close(posteriors[1].discrete(6)["kind"], expected.detach())
    assert posteriors[0].discrete(6) == {}


@pytest.mark.parametrize("particles", [1, 4])
def test_a_chain_of_two_discrete_sites_is_summed_over_every_pair(particles):
    model, batch = model_of(ChainPrior), ragged_batch(5, 3, 0)
    posterior = fitted(model, batch)
    terms, gradients = terms_of(model, posterior, particles)
    local = {name: value.clone().requires_grad_() for name, value in posterior.local.items()}
    noise = SequenceGenerator(batch.keys, 7).normal(
        tuple(model.prior.shape), particles=() if particles == 1 else (particles,)
    )
    q = Normal(local["z.mu"], (0.5 * local["z.log_var"]).exp())
    z = q.loc + q.scale * noise
    pairs = [w + Normal(mean, 1.0).log_prob(z).sum((-3, -2, -1)) for _, w, mean in model.prior.values()]
    kl = q.log_prob(z).sum((-3, -2, -1)) - torch.stack(pairs).logsumexp(0)
    log_likelihood = model.likelihood(z, batch, None).log_prob(batch.tokens)
    if particles > 1:
        kl, log_likelihood = kl.mean(0), log_likelihood.mean(0)
    torch.testing.assert_close(terms.kl, kl)
    torch.testing.assert_close(terms.log_likelihood, log_likelihood)
    weights = [*local.values(), *model.parameters()]
    expected = torch.autograd.grad((log_likelihood - kl).sum(), weights, allow_unused=True)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_each_site_of_a_chain_has_its_own_marginal():
    model, batch = model_of(ChainPrior), ragged_batch(5, 3)
    posterior = fitted(model, batch)
    z = posterior.sample(4)
    table = torch.zeros(2, 3, 4, 2)
    for (i, j), weight, mean in model.prior.values():
        table[i, j] = (weight + Normal(mean, 1.0).log_prob(z).sum((-3, -2, -1))).detach()
    joint = table.flatten(0, 1).softmax(0).view_as(table).mean(2)  # (topic, tone, B), averaged over the draws
    found = posterior.discrete(4)
    torch.testing.assert_close(found["topic"], joint.sum(1).T)
    torch.testing.assert_close(found["tone"], joint.sum(0).T)


def shifted_joint(model, batch, noise: torch.Tensor) -> torch.Tensor:
    """(K, …, B) log p(x, noise, k), one kind at a time."""
    prior = model.prior
    rows = []
    for k in range(3):
        likelihood = model.likelihood(prior.of_kind(k, noise), batch, None).log_prob(batch.tokens)
        rows.append(prior.logits.log_softmax(0)[k] + likelihood + Normal(0.0, 1.0).log_prob(noise).sum((-3, -2, -1)))
    return torch.stack(rows)


@pytest.mark.parametrize("particles", [1, 4])
def test_thoughts_that_depend_on_the_kind_are_run_through_the_likelihood_for_each(particles):
    model, batch = model_of(ShiftedPrior), ragged_batch(5, 3, 0)
    posterior = fitted(model, batch)
    terms, gradients = terms_of(model, posterior, particles)
    local = {name: value.clone().requires_grad_() for name, value in posterior.local.items()}
    draws = SequenceGenerator(batch.keys, 7).normal(
        tuple(model.prior.shape), particles=() if particles == 1 else (particles,)
    )
    q = Normal(local["noise.mu"], (0.5 * local["noise.log_var"]).exp())
    noise = q.loc + q.scale * draws
    log_prior = Normal(0.0, 1.0).log_prob(noise).sum((-3, -2, -1))
    log_likelihood = shifted_joint(model, batch, noise).logsumexp(0) - log_prior
    exact = 0.5 * (q.loc.square() + q.scale.square() - 1 - 2 * q.scale.log()).sum((1, 2, 3))
    if particles > 1:
        log_likelihood = log_likelihood.mean(0)
    torch.testing.assert_close(terms.log_likelihood, log_likelihood)
    torch.testing.assert_close(terms.kl, exact)
    weights = [*local.values(), *model.parameters()]
    expected = torch.autograd.grad((log_likelihood - exact).sum(), weights, allow_unused=True)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_joint_density_of_a_trace_is_the_sum_over_kinds():
    model, batch = model_of(ShiftedPrior), ragged_batch(5, 3, 0)
    noise = torch.randn(4, 3, *model.prior.shape)
    trace = trace_model(pyro.condition(pyro.plate("particles", 4, dim=-2)(lambda: model(batch)), {"noise": noise}))
    # Conditioned, the noise is data to Pyro: the total is what there is to compare.
    torch.testing.assert_close(log_joint(trace).total, shifted_joint(model, batch, noise).logsumexp(0))


def test_a_posterior_weighs_the_kinds_by_the_text():
    model, batch = model_of(ShiftedPrior), ragged_batch(5, 3, 0)
    posterior = fitted(model, batch)
    noise = posterior.sites(7)["noise"]
    weights = shifted_joint(model, batch, noise).softmax(0).detach()
    torch.testing.assert_close(posterior.discrete(7)["kind"], weights.mean(1).T)

    centre = posterior.local["noise.mu"]
    at_centre = shifted_joint(model, batch, centre).softmax(0).detach()
    thoughts = torch.stack([model.prior.of_kind(k, centre) for k in range(3)]).detach()
    torch.testing.assert_close(posterior.mean, (at_centre[..., None, None, None] * thoughts).sum(0))


def test_draws_of_thoughts_take_each_kind_as_often_as_the_text_says():
    model, batch = model_of(ShiftedPrior), ragged_batch(5, 3)
    posterior = fitted(model, batch)
    num = 2000
    noise, thoughts = posterior.sites(num)["noise"], posterior.sample(num)
    each = torch.stack([model.prior.of_kind(k, noise) for k in range(3)]).detach()
    # Every draw is the thoughts of one kind at that draw's noise.
    distance = (each - thoughts).abs().amax((-3, -2, -1))
    chosen = distance.argmin(0)
    assert distance.amin(0).max() < 1e-10
    weights = shifted_joint(model, batch, noise).softmax(0).detach().mean(1)
    shares = torch.stack([(chosen == k).double().mean(0) for k in range(3)])
    assert ((shares - weights).abs() < 5 * (weights * (1 - weights) / num).sqrt() + 1e-3).all()
    torch.testing.assert_close(posterior.sample(3), thoughts[:3])  # the first draws do not depend on their number


def test_draws_and_weights_do_not_depend_on_the_batch():
    model, batch = model_of(ShiftedPrior), ragged_batch(5, 3, 0)
    whole, alone = fitted(model, batch), fitted(model, batch[[1]])
    torch.testing.assert_close(alone.sample(5)[:, 0], whole.sample(5)[:, 1], atol=1e-7, rtol=0)
    torch.testing.assert_close(alone.mean[0], whole.mean[1], atol=1e-7, rtol=0)
    torch.testing.assert_close(alone.discrete()["kind"][0], whole.discrete()["kind"][1], atol=1e-7, rtol=0)


@pytest.mark.parametrize("particles", [1, 3])
def test_the_total_and_its_gradients_are_pyros_own_enumerated_elbo(particles):
    model, batch = model_of(ChainPrior), ragged_batch(5, 3, 0)
    posterior = fitted(model, batch)
    results = []
    peer = TraceEnum_ELBO(particles, max_plate_nesting=1, vectorize_particles=particles > 1)
    for elbo in (SequenceELBO(particles), peer):
        local = {name: value.clone().requires_grad_() for name, value in posterior.local.items()}
        with sequence_noise(SequenceGenerator(batch.keys, 7)):
            loss = elbo.differentiable_loss(lambda: model(batch), lambda p=local: posterior.guide(batch, p))
        weights = [*local.values(), *model.parameters()]
        results.append((loss.detach(), torch.autograd.grad(loss, weights, allow_unused=True)))
    torch.testing.assert_close(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b)


def test_thoughts_that_depend_on_the_kind_have_pyros_elbo_in_expectation():
    model, batch = model_of(ShiftedPrior), ragged_batch(4)
    posterior = fitted(model, batch)
    own = float(posterior.elbo_terms(5000).elbo)
    pyro.set_rng_seed(1)
    peer = TraceEnum_ELBO(5000, max_plate_nesting=1, vectorize_particles=True)
    with torch.no_grad():
        theirs = -peer.loss(lambda: model(batch), lambda: posterior.guide(batch, posterior.local))
    assert own == pytest.approx(theirs, abs=0.3)  # standard errors of 5000 draws that scatter by a few nats


@pytest.mark.parametrize("prior", [ChainPrior, ShiftedPrior])
def test_slow_steps_learn_through_discrete_sites(prior):
    model, batch = model_of(prior), ragged_batch(5, 3)
    slow = torch.optim.Adam(model.prior.parameters(), lr=0.05)
    svi = FastSlowSVI(model, LocalNormal(model, init_log_var=-1.0), fast=FastConfig(steps=3), slow=slow)
    losses = [float(svi.step(batch, seed=0).loss) for _ in range(15)]
    assert losses[-1] < losses[0] - 0.1
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.prior.parameters())


class LabelledPrior(Prior):
    """Thoughts moved by a class that is given, and by a kind that is not."""

    takes_labels = True

    def __init__(self, shape):
        super().__init__(shape)
        self.mu = torch.nn.Parameter(torch.randn(2, *shape))

    def forward(self, batch_size, labels=None):
        weights = torch.tensor([0.3, 0.7]).expand(batch_size, 2)
        kind = pyro.sample("kind", dist.Categorical(weights), infer=PARALLEL)
        noise = pyro.sample("noise", dist.Normal(torch.zeros(batch_size, *self.shape), 1.0).to_event(3))
        shift = torch.zeros(batch_size) if labels is None else 100.0 * labels
        return self.mu[kind] + shift[:, None, None, None] + noise


def test_thoughts_of_a_posterior_are_those_of_the_batchs_labels():
    model, batch = model_of(LabelledPrior), replace(ragged_batch(4, 3), labels=torch.tensor([0, 1]))
    posterior = fitted(model, batch)
    for thoughts in (posterior.mean, posterior.sample(20).mean(0)):
        assert (thoughts[0].abs() < 50).all()
        assert (thoughts[1] > 50).all()


def test_a_point_is_scored_under_every_kind():
    model, batch = model_of(ShiftedPrior), ragged_batch(5, 3)
    svi = FastSlowSVI(model, LocalDelta(model), fast=FastConfig(steps=5, lr=0.1))
    posterior = svi.infer(batch, seed=0)
    noise = posterior.local["noise.point"]
    torch.testing.assert_close(
        posterior.terms.elbo, shifted_joint(model, batch, noise).logsumexp(0).detach(), atol=1e-8, rtol=0
    )
