"""Structured priors against dense normal densities written out entry by entry."""

from __future__ import annotations

import pyro
import pytest
import torch
from dense_normals import chain_covariance
from pyro import poutine
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from ltm_pyro.errors import LTMError
from ltm_pyro.priors import HierarchicalPrior, LearnedGaussianPrior, MarkovPrior, MixturePrior, Prior
from ltm_pyro.priors.markov import GaussianChain

SHAPE = (3, 2, 2)
SIZE = 12
pytestmark = pytest.mark.usefixtures("float64")


def shaken(prior: Prior, scale: float = 0.4) -> Prior:
    """The prior with every slow parameter moved off its start."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return prior


def traced(prior: Prior, batch_size: int, values: dict[str, torch.Tensor] | None = None):
    def program():
        with pyro.plate("sequences", batch_size, dim=-1):
            return prior(batch_size)

    trace = poutine.trace(poutine.condition(program, values or {})).get_trace()
    trace.compute_log_prob()
    return trace


def log_density(prior: Prior, values: dict[str, torch.Tensor]) -> torch.Tensor:
    trace = traced(prior, len(next(iter(values.values()))), values)
    return sum(trace.nodes[name]["log_prob"] for name in values)


def test_a_learned_gaussians_density_is_its_normals():
    prior = shaken(LearnedGaussianPrior(SHAPE))
    z = torch.randn(5, *SHAPE)
    expected = MultivariateNormal(
        prior.mu.detach().flatten(), torch.diag((2 * prior.log_scale.detach()).exp().flatten())
    )
    torch.testing.assert_close(log_density(prior, {"z": z}), expected.log_prob(z.flatten(1)))


def test_a_chains_density_and_draws_are_those_of_the_dense_normal():
    prior = shaken(MarkovPrior(SHAPE))
    dense = MultivariateNormal(torch.zeros(SIZE), chain_covariance(prior))
    z = torch.randn(5, *SHAPE)
    torch.testing.assert_close(log_density(prior, {"z": z}), dense.log_prob(z.flatten(1)))
    draws = traced(prior, 100_000).nodes["z"]["value"].detach().flatten(1)
    # The standard error of a covariance of 100 000 draws of variances up to about 10 is below 0.05.
    assert (torch.cov(draws.T) - dense.covariance_matrix).abs().max() < 0.25
    assert draws.mean(0).abs().max() < 0.05


def test_a_chains_closed_form_kl_is_the_dense_normals():
    prior = shaken(MarkovPrior(SHAPE))
    mu, scale = torch.randn(4, *SHAPE), torch.rand(4, *SHAPE) + 0.3
    q = Independent(Normal(mu, scale), 3)
    p = GaussianChain(prior.A, prior.log_s, (4,), SHAPE[1])
    dense = MultivariateNormal(torch.zeros(SIZE), chain_covariance(prior))
    expected = kl_divergence(MultivariateNormal(mu.flatten(1), torch.diag_embed(scale.flatten(1).square())), dense)
    torch.testing.assert_close(kl_divergence(q, p), expected)


def test_a_chain_of_one_layer_is_the_standard_normal():
    prior, z = MarkovPrior((1, 2, 3)), torch.randn(4, 1, 2, 3)
    torch.testing.assert_close(log_density(prior, {"z": z}), Normal(0.0, 1.0).log_prob(z).sum((1, 2, 3)))


def test_every_entry_of_a_chain_starts_with_the_variance_of_the_standard_normal():
    torch.testing.assert_close(chain_covariance(MarkovPrior(SHAPE)).diag(), torch.ones(SIZE))


def test_every_entry_below_many_topics_starts_with_the_variance_of_the_standard_normal():
    prior = HierarchicalPrior(SHAPE, topics=300)
    variance = prior.weight.square().sum(-1) + (2 * prior.log_scale).exp()
    # A sum of 300 squares of N(0, 1/600): standard error 0.04.
    torch.testing.assert_close(variance.detach(), torch.ones(SHAPE), atol=0.2, rtol=0)


@pytest.mark.parametrize("centred", [True, False])
def test_a_hierarchical_priors_thoughts_have_the_covariance_of_shared_topics(centred):
    prior = shaken(HierarchicalPrior(SHAPE, topics=3, centred=centred))
    weight, scale = prior.weight.detach().reshape(SIZE, 3), prior.log_scale.detach().exp().flatten()
    expected = weight @ weight.T + torch.diag(scale.square())
    thoughts = traced(prior, 100_000).nodes["_RETURN"]["value"].detach().flatten(1)
    assert (torch.cov(thoughts.T) - expected).abs().max() < 0.1  # standard errors are below 0.02
    assert (thoughts.mean(0) - prior.bias.detach().flatten()).abs().max() < 0.05


def test_a_hierarchical_priors_joint_density_is_the_dense_normals():
    prior = shaken(HierarchicalPrior(SHAPE, topics=3))
    weight, scale = prior.weight.detach().reshape(SIZE, 3), prior.log_scale.detach().exp().flatten()
    topic, z = torch.randn(5, 3), torch.randn(5, *SHAPE)
    covariance = torch.zeros(SIZE + 3, SIZE + 3)
    covariance[:3, :3] = torch.eye(3)
    covariance[3:, :3], covariance[:3, 3:] = weight, weight.T
    covariance[3:, 3:] = weight @ weight.T + torch.diag(scale.square())
    dense = MultivariateNormal(torch.cat([torch.zeros(3), prior.bias.detach().flatten()]), covariance)
    expected = dense.log_prob(torch.cat([topic, z.flatten(1)], dim=1))
    torch.testing.assert_close(log_density(prior, {"topic": topic, "z": z}), expected)


def test_a_mixtures_density_and_responsibilities_follow_bayes():
    prior = shaken(MixturePrior(SHAPE, components=3))
    z = torch.randn(5, *SHAPE)
    joint = torch.stack(
        [
            prior.logits.detach().log_softmax(0)[k]
            + MultivariateNormal(
                prior.mu.detach()[k].flatten(), torch.diag((2 * prior.log_scale.detach()[k]).exp().flatten())
            ).log_prob(z.flatten(1))
            for k in range(3)
        ],
        dim=1,
    )
    torch.testing.assert_close(log_density(prior, {"z": z}), joint.logsumexp(1))
    torch.testing.assert_close(prior.responsibilities(z).detach(), joint.softmax(1))


def test_a_mixtures_scale_stays_where_it_is_not_learned():
    prior = MixturePrior(SHAPE, components=3, scale=0.5, learned_scale=False)
    assert [name for name, p in prior.named_parameters() if p.requires_grad] == ["logits", "mu"]
    assert prior.state_dict().keys() == MixturePrior(SHAPE, components=3).state_dict().keys()
    assert prior.log_scale.exp() == pytest.approx(0.5 * torch.ones(3, *SHAPE))


def test_a_mixture_draws_each_component_as_often_as_its_weight():
    prior = MixturePrior((1, 1, 1), components=2)
    with torch.no_grad():
        prior.mu.copy_(torch.tensor([-50.0, 50.0])[:, None, None, None])
        prior.logits.copy_(torch.tensor([0.2, 0.8]).log())
    above = (traced(prior, 20_000).nodes["z"]["value"] > 0).double().mean()
    assert abs(above - 0.8) < 4 * (0.8 * 0.2 / 20_000) ** 0.5


@pytest.mark.parametrize(("build", "words"), [
    (lambda: MixturePrior(SHAPE, components=0), "1 component or more"),
    (lambda: MixturePrior(SHAPE, scale=0.0), "above 0, got scale = 0.0"),
    (lambda: HierarchicalPrior(SHAPE, topics=0), "1 topic entry or more"),
])  # fmt: skip
def test_a_prior_of_nothing_is_refused(build, words):
    with pytest.raises(LTMError, match=words):
        build()
