"""Natural fast steps against the exact posteriors that they have to find."""

import pytest
import torch

from ltm_pyro import FastConfig, FastSlowSVI, GaussianPrior, LatentThoughtModel, LocalNormal, ThoughtDecoder, TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import LocalDelta
from ltm_pyro.infer.natural import NaturalGradient


def quadratic_loss(mu, log_var, curvature, optimum):
    """E_q of ½ h (z - c)² + KL(q ‖ N(0, 1)), exact."""
    var = log_var.exp()
    fit = 0.5 * curvature * ((mu - optimum).square() + var)
    return (fit + 0.5 * (var + mu.square() - 1 - log_var)).sum()


def test_one_full_step_finds_the_posterior_of_a_linear_gaussian_model():
    curvature, optimum = torch.tensor([0.0, 0.5, 1.5]), torch.tensor([1.0, -0.4, 0.7])
    local = {"z.mu": torch.tensor([0.2, 0.0, -0.1]), "z.log_var": torch.tensor([0.0, 0.3, 0.1])}
    leaves = [value.requires_grad_() for value in local.values()]
    natural = NaturalGradient(local, lr=1.0)
    quadratic_loss(*leaves, curvature, optimum).backward()
    natural.step()
    torch.testing.assert_close(local["z.log_var"].detach(), -torch.log1p(curvature))
    torch.testing.assert_close(local["z.mu"].detach(), curvature * optimum / (1 + curvature))


def test_steps_are_bounded_whatever_the_gradient():
    local = {"z.mu": torch.zeros(2, requires_grad=True), "z.log_var": torch.zeros(2, requires_grad=True)}
    natural = NaturalGradient(local, lr=1.0)
    local["z.mu"].grad, local["z.log_var"].grad = torch.tensor([1e6, -1e6]), torch.tensor([1e6, -1e6])
    natural.step()
    torch.testing.assert_close(local["z.mu"].detach(), torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(local["z.log_var"].detach().exp(), torch.tensor([1 / 3, 2.0]))


@pytest.fixture
def model():
    torch.manual_seed(0)
    decoder = ThoughtDecoder(vocab_size=40, layers=1, hidden=16, heads=2, thoughts_per_layer=2, thought_width=4)
    return LatentThoughtModel(decoder, GaussianPrior(decoder.thought_shape))


@pytest.mark.parametrize("tolerance", [None, 1e-3])
def test_a_posterior_of_natural_steps_does_not_depend_on_its_batch(model, tolerance):
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(8 if weight.dim() > 1 else 1)
    batch = TokenBatch.from_lists([[5, 8, 13, 21, 34], [3, 1, 4, 1], [2, 7, 1, 8, 2]], start=0)
    fast = FastConfig(steps=12, optimizer="natural", lr=0.5, tolerance=tolerance)
    svi = FastSlowSVI(model, LocalNormal(model, init_log_var=0.0), fast=fast)
    together, alone = svi.infer(batch, seed=1), svi.infer(batch[[2]], seed=1)
    torch.testing.assert_close(together.mean[2], alone.mean[0], atol=1e-4, rtol=0)


def test_thoughts_that_the_decoder_does_not_read_return_to_the_prior(model):
    torch.nn.init.zeros_(model.decoder.blocks[0].cross_attention.out.weight)
    fast = FastConfig(steps=8, optimizer="natural", lr=1.0, lr_decay=1.0)
    svi = FastSlowSVI(model, LocalNormal(model, init_log_var=-2.0), fast=fast)
    terms = svi.infer(TokenBatch.from_lists([[5, 8, 13]], start=0), seed=0).elbo_terms(1)
    assert float(terms.kl) < 1e-4  # Adam's steps of 0.3 leave some, and from far off they leave most


def test_a_point_guide_has_no_natural_steps(model):
    svi = FastSlowSVI(model, LocalDelta(model), fast=FastConfig(optimizer="natural", lr=0.5))
    with pytest.raises(LTMError, match="fast_optimizer = adam"):
        svi.infer(TokenBatch.from_lists([[5, 8, 13]], start=0))


def test_a_rate_above_one_or_a_cuda_graph_is_refused():
    with pytest.raises(LTMError, match="at most 1"):
        FastConfig(optimizer="natural", lr=1.5)
    with pytest.raises(LTMError, match="no cuda_graph"):
        FastConfig(optimizer="natural", lr=0.5, cuda_graph=True)
