"""Natural fast steps against the exact posteriors that they have to find."""

import pytest
import torch

from ltm_pyro import FastConfig, FastSlowSVI, GaussianPrior, LatentThoughtModel, LocalNormal, ThoughtDecoder, TokenBatch
from ltm_pyro.components import build_guide
from ltm_pyro.config import Settings
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import GUIDES
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


@pytest.mark.parametrize("weight", [0.05, 0.5])
def test_under_a_weight_of_the_kl_the_way_back_to_the_prior_is_as_much_shorter(weight):
    curvature, rate = torch.tensor([0.0, 0.5, 1.5]), 0.8
    local = {"z.mu": torch.tensor([0.2, 0.1, -0.1]), "z.log_var": torch.tensor([-0.4, 0.3, 0.1])}
    mu, precision = local["z.mu"].clone(), (-local["z.log_var"]).exp()
    leaves = [value.requires_grad_() for value in local.values()]
    natural = NaturalGradient(local, lr=rate)
    kl = quadratic_loss(*leaves, 0.0, 0.0)
    (quadratic_loss(*leaves, curvature, 1.0) - (1 - weight) * kl).backward()
    natural.step()
    after = (1 - rate * weight) * precision + rate * (weight + curvature)
    torch.testing.assert_close(local["z.log_var"].detach(), -after.log())
    torch.testing.assert_close(local["z.mu"].detach(), mu - rate * (curvature * (mu - 1.0) + weight * mu) / after)


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
    fast = FastConfig(steps=12, optimizer="natural", natural_lr=0.5, natural_delay=100, tolerance=tolerance)
    svi = FastSlowSVI(model, LocalNormal(model, init_log_var=0.0), fast=fast)
    together, alone = svi.infer(batch, seed=1), svi.infer(batch[[2]], seed=1)
    torch.testing.assert_close(together.mean[2], alone.mean[0], atol=1e-4, rtol=0)


def test_thoughts_that_the_decoder_does_not_read_return_to_the_prior(model):
    torch.nn.init.zeros_(model.decoder.blocks[0].cross_attention.out.weight)
    fast = FastConfig(steps=8, optimizer="natural", natural_lr=1.0, natural_delay=100)
    svi = FastSlowSVI(model, LocalNormal(model, init_log_var=-2.0), fast=fast)
    terms = svi.infer(TokenBatch.from_lists([[5, 8, 13]], start=0), seed=0).elbo_terms(1)
    assert float(terms.kl) < 1e-4  # Adam's steps of 0.3 leave some, and from far off they leave most


@pytest.mark.parametrize("name", [name for name in GUIDES if GUIDES[name].refined])
def test_all_guides_but_the_local_normal_keep_adam(model, name):
    """The same posterior under both settings, unless the guide is the normal one."""
    batch = TokenBatch.from_lists([[5, 8, 13]], start=0)
    means = []
    for optimizer in ("adam", "natural"):
        torch.manual_seed(0)
        guide = GUIDES[name](model)
        svi = FastSlowSVI(model, guide, fast=FastConfig(steps=3, optimizer=optimizer))
        means.append(svi.infer(batch, seed=1).local)
    if name == "local-normal":
        assert not torch.equal(means[0]["z.mu"], means[1]["z.mu"])
    else:
        torch.testing.assert_close(means[0], means[1], rtol=0, atol=0)


def test_that_natural_steps_fit_a_guide_is_not_inherited(model):
    class Own(LocalNormal):
        """A subclass whose q may be another."""

    class Said(LocalNormal):
        natural = True

    assert (LocalNormal.natural, Own.natural, Said.natural) == (True, False, True)


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"inference.fast_optimizer": "natural"}, -3.0),
        ({"inference.fast_optimizer": "adam"}, 0.5),
        ({"inference.fast_optimizer": "natural", "guide.name": "local-lowrank"}, 0.5),
        ({"inference.fast_optimizer": "natural", "inference.natural_init_log_var": None}, 0.5),
    ],
)
def test_natural_steps_have_a_start_of_their_own(model, changes, start):
    settings = Settings().updated({"inference.init_log_var": 0.5, "inference.natural_init_log_var": -3.0} | changes)
    assert build_guide(settings, model).init_log_var == start


def test_parameters_that_are_no_pairs_are_refused_by_name():
    with pytest.raises(LTMError, match=r"for guides with a mean and a log-variance, not z\.value"):
        NaturalGradient({"z.value": torch.zeros(2, requires_grad=True)}, lr=0.5)


def test_rates_fall_with_the_step_and_do_not_depend_on_how_many_follow():
    fast = FastConfig(optimizer="natural", natural_lr=0.8, natural_delay=4)
    assert [fast.natural_lr_at(t) for t in (0, 1, 4)] == pytest.approx([0.8, 0.64, 0.4])


def test_more_steps_average_the_noise_of_their_draws_out(model):
    with torch.no_grad():
        for weight in model.decoder.parameters():
            weight.mul_(6 if weight.dim() > 1 else 1)
    batch = TokenBatch.from_lists([[5, 8, 13, 21, 34, 3, 1, 4]], start=0)
    svi = FastSlowSVI(model, LocalNormal(model, init_log_var=0.0), fast=FastConfig(optimizer="natural"))
    spread = []
    for steps in (8, 128):
        means = torch.cat([svi.infer(batch, steps=steps, seed=seed).mean for seed in range(16)])
        spread.append(float(means.var(0).mean()))
    assert spread[1] < 0.5 * spread[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"natural_lr": 1.5}, "natural_lr must be above 0 and at most 1"),
        ({"natural_delay": 0}, "natural_delay must be above 0"),
        ({"cuda_graph": True}, "leave cuda_graph out"),
    ],
)
def test_rates_out_of_range_and_a_cuda_graph_are_refused(setting, message):
    with pytest.raises(LTMError, match=message):
        FastConfig(optimizer="natural", **setting)
