"""The generative program: its sites, its shapes, and where its parts are swapped."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from tiny_models import ragged_batch, tiny_decoder, tiny_model

from ltm_pyro.errors import LTMError
from ltm_pyro.likelihood import TokenSequence
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import GaussianPrior


def test_the_joint_is_the_prior_times_the_likelihood_in_one_plate():
    model, batch = tiny_model(), ragged_batch(4, 2, 0)
    trace = poutine.trace(model).get_trace(batch)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    assert z.shape == (3, *model.decoder.thought_shape)
    torch.testing.assert_close(
        trace.nodes["z"]["log_prob"], torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((-1, -2, -3))
    )
    torch.testing.assert_close(
        trace.nodes["tokens"]["log_prob"], TokenSequence(model.decoder, z, batch).log_prob(batch.tokens)
    )
    assert trace.nodes["tokens"]["is_observed"]
    for name in ("z", "tokens"):
        assert [f.name for f in trace.nodes[name]["cond_indep_stack"]] == ["sequences"]
        # Sequences are not a sample of a larger set: nothing is scaled.
        assert trace.nodes[name]["scale"] == 1.0


def test_a_stem_made_beforehand_changes_nothing():
    model, batch = tiny_model(), ragged_batch(4, 2)
    z = torch.randn(2, *model.decoder.thought_shape)
    conditioned = poutine.condition(model, data={"z": z})
    without = poutine.trace(conditioned).get_trace(batch).log_prob_sum()
    given = poutine.trace(conditioned).get_trace(batch, stem=model.stem(batch)).log_prob_sum()
    torch.testing.assert_close(given, without)


def test_unobserved_tokens_are_sampled_within_their_lengths():
    model, batch = tiny_model(), ragged_batch(6, 2)
    trace = poutine.trace(model).get_trace(batch, observed=False)
    tokens = trace.nodes["tokens"]["value"]
    assert not trace.nodes["tokens"]["is_observed"]
    assert tokens.shape == (2, 6)
    assert (tokens[1, 2:] == 0).all()
    draws = Predictive(model, num_samples=20)(batch, observed=False)["tokens"]
    assert len(draws[:, 0].reshape(20, 6).unique(dim=0)) > 10


def test_prior_samples_are_standard_normal_thoughts_from_pyros_seed():
    model = tiny_model()
    torch.manual_seed(3)
    draws = model.sample_prior(500)
    torch.manual_seed(3)
    assert torch.equal(model.sample_prior(500), draws)
    assert draws.shape == (500, *model.decoder.thought_shape)
    assert not draws.requires_grad
    n = draws.numel()
    assert abs(draws.mean()) < 5 / n**0.5  # five standard errors
    assert abs(draws.var() - 1) < 5 * (2 / n) ** 0.5


@pytest.mark.parametrize("shape", [(2, 2, 9), (1, 2, 8), (2, 3, 8)])
def test_a_prior_of_another_shape_is_refused(shape):
    with pytest.raises(LTMError, match=r"decoder\.thought_shape"):
        LatentThoughtModel(tiny_decoder(), GaussianPrior(shape))


def test_a_subclass_swaps_the_likelihood_and_keeps_the_rest():
    class Silent(LatentThoughtModel):
        def likelihood(self, thoughts, batch, stem):
            return dist.Delta(batch.tokens, event_dim=1)

    decoder, batch = tiny_decoder(), ragged_batch(3, 2)
    trace = poutine.trace(Silent(decoder, GaussianPrior(decoder.thought_shape))).get_trace(batch)
    trace.compute_log_prob()
    assert trace.nodes["tokens"]["log_prob"].tolist() == [0.0, 0.0]
    assert trace.nodes["z"]["value"].shape == (2, *decoder.thought_shape)
