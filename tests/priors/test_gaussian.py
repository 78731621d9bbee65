"""The standard normal prior, and the contract of every prior that is known by name."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from tiny_models import tiny_decoder

from ltm_pyro.guides import Amortized, LocalNormal
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import PRIORS, GaussianPrior, Prior

SHAPE = (2, 3, 4)


def run(prior: Prior, batch_size: int, particles: int | None = None):
    def program():
        with pyro.plate("sequences", batch_size, dim=-1):
            return prior(batch_size)

    if particles is not None:
        program = pyro.plate("particles", particles, dim=-2)(program)
    return poutine.trace(program).get_trace()


def test_thoughts_have_the_standard_normal_density():
    trace = run(GaussianPrior(SHAPE), 5)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    expected = -0.5 * (z**2).sum((-1, -2, -3)) - 12 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], expected)


def test_the_gaussian_prior_has_nothing_to_learn_or_to_store():
    prior = GaussianPrior(SHAPE)
    assert list(prior.parameters()) == []
    assert prior.state_dict() == {}


def test_the_gaussian_prior_follows_its_modules_type():
    assert run(GaussianPrior(SHAPE).double(), 2).nodes["z"]["value"].dtype == torch.float64


@pytest.mark.parametrize("name", PRIORS)
def test_every_named_prior_returns_thoughts_of_its_shape_inside_the_plate(name):
    prior = PRIORS[name](SHAPE)
    assert isinstance(prior, Prior)
    if prior.refusal(LocalNormal):  # it is run with a guide that has an encoder
        Amortized(LatentThoughtModel(tiny_decoder(thoughts_per_layer=3, thought_width=4), prior), width=16, heads=2)
    for particles, leading in ((None, (5,)), (3, (3, 5))):
        trace = run(prior, 5, particles)
        assert trace.nodes["_RETURN"]["value"].shape == (*leading, *SHAPE)
        sites = [n for n, s in trace.nodes.items() if s["type"] == "sample" and not n.startswith(("seq", "part"))]
        assert sites
        for site in sites:
            assert trace.nodes[site]["fn"].batch_shape == leading
