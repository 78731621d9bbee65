"""Fast-slow inference: each sequence on its own, the decoder constant in the fast loop, the slow gradient as stated."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from tiny_models import ragged_batch, tiny_decoder, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import GUIDES, LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI, SequenceELBO
from ltm_pyro.likelihood import TokenSequence
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import PRIORS, GaussianPrior

LENGTHS = (6, 3, 0, 5, 1)


def engine(fast: FastConfig | None = None, *, model=None, lr: float = 0.0, **settings) -> FastSlowSVI:
    """Fast-slow inference of a tiny model whose slow optimiser shows gradients and, at lr 0, moves nothing."""
    model = model or tiny_model()
    guide = LocalNormal(model, init_log_var=-2.0, init_mu_spread=0.1)
    slow = torch.optim.SGD(model.parameters(), lr=lr)
    return FastSlowSVI(model, guide, fast=fast or FastConfig(steps=8, lr=0.1), slow=slow, **settings)


def wider(batch: TokenBatch, by: int, pad: int) -> TokenBatch:
    """The same sequences under more padding, and with other tokens in it."""
    tokens = torch.nn.functional.pad(torch.where(batch.real, batch.tokens, pad), (0, by), value=pad)
    return TokenBatch(tokens, batch.lengths, batch.start)


def assert_same_local(actual, expected, rows, tolerance: float) -> None:
    for name, value in actual.local.items():
        torch.testing.assert_close(value, expected.local[name][rows], atol=tolerance, rtol=0)


FAST = {
    "fresh noise": FastConfig(steps=8, lr=0.1),
    "fixed noise": FastConfig(steps=8, lr=0.1, noise="fixed"),
    "early stop": FastConfig(steps=16, lr=0.3, tolerance=1.0),  # these sequences stop after 10 to 14 steps
}
WAYS = {
    "alone": lambda b: (b[[1]], [1]),
    "in part": lambda b: (b[1:4], [1, 2, 3]),
    "reordered": lambda b: (b[[4, 1, 3, 0, 2]], [4, 1, 3, 0, 2]),
    "padded": lambda b: (wider(b, 3, 9), [0, 1, 2, 3, 4]),
    "repeated": lambda b: (b[[3, 3]], [3, 3]),
}


@pytest.mark.parametrize("fast", FAST)
def test_posterior_of_a_sequence_does_not_depend_on_its_batch_in_double(float64, fast):
    svi, batch = engine(FAST[fast]), ragged_batch(*LENGTHS)
    whole = svi.infer(batch, seed=5)
    for way in WAYS.values():
        part, rows = way(batch)
        # Rounding alone, which Adam may amplify where a gradient is near 0.
        assert_same_local(svi.infer(part, seed=5), whole, rows, 1e-8)


@pytest.mark.parametrize("fast", ["fresh noise", "early stop"])
def test_posterior_of_a_sequence_does_not_depend_on_its_batch_in_single(fast):
    svi, batch = engine(FAST[fast]), ragged_batch(*LENGTHS)
    whole = svi.infer(batch, seed=5)
    for way in WAYS.values():
        part, rows = way(batch)
        # Adam divides a gradient by its own size: float32 rounding of a small one moves a parameter by far more.
        assert_same_local(svi.infer(part, seed=5), whole, rows, 1e-5)


def test_draws_and_terms_of_a_sequence_do_not_depend_on_its_batch():
    svi, batch = engine(), ragged_batch(*LENGTHS)
    whole, part = svi.infer(batch, seed=5), svi.infer(batch[[3, 1]], seed=5)
    torch.testing.assert_close(part.sample(3), whole.sample(3)[:, [3, 1]], atol=1e-5, rtol=0)
    torch.testing.assert_close(part.terms.elbo, whole.terms.elbo[[3, 1]], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(part.mean, whole.mean[[3, 1]], atol=1e-5, rtol=0)


TRAJECTORIES = {
    "trajectory": FastConfig(steps=6, lr=0.1, slow_gradient="trajectory"),
    "trajectory with early stop": FastConfig(steps=16, lr=0.3, tolerance=1.0, slow_gradient="trajectory"),
}


@pytest.mark.parametrize(
    ("fast", "size"), [*((fast, 2) for fast in FAST | TRAJECTORIES), ("fresh noise", 1), ("fresh noise", 5)]
)
def test_a_micro_batched_step_equals_the_step_of_the_whole_batch(fast, size):
    config, batch, results = (FAST | TRAJECTORIES)[fast], ragged_batch(*LENGTHS), []
    for micro in (None, size):
        svi = engine(config, lr=0.1)
        info = svi.step(batch, micro_batch_size=micro, seed=5)
        results.append((info, dict(svi.model.named_parameters())))
    (whole, expected), (parts, actual) = results
    assert [len(p) for p in parts.posteriors] == [len(batch[i : i + size]) for i in range(0, 5, size)]
    torch.testing.assert_close(parts.loss, whole.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.gradient_norm, whole.gradient_norm, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(parts.terms.elbo, whole.terms.elbo, atol=1e-4, rtol=1e-5)
    for name, weight in expected.items():
        # Gradients are added up in another order.
        torch.testing.assert_close(actual[name], weight, atol=1e-5, rtol=1e-5)


class Recording(LatentThoughtModel):
    """Remembers what every evaluation saw: thoughts, whether weights asked for gradients, whether a stem was given."""

    def __init__(self, **settings):
        decoder = tiny_decoder(**settings)
        super().__init__(decoder, GaussianPrior(decoder.thought_shape))
        self.seen = []

    def likelihood(self, thoughts, batch, stem):
        learned = [p.requires_grad for p in self.parameters()]
        self.seen.append({"thoughts": thoughts.detach().clone(), "learned": any(learned), "stem": stem is not None})
        return super().likelihood(thoughts, batch, stem)


class RecordingGuide(LocalNormal):
    """Remembers the local parameters of every evaluation."""

    def __init__(self, model, **settings):
        super().__init__(model, **settings)
        self.seen = []

    def forward(self, batch, local):
        self.seen.append({name: value.detach().clone() for name, value in local.items()})
        super().forward(batch, local)


def recorded(fast: FastConfig, **settings):
    model = Recording()
    guide = RecordingGuide(model, init_log_var=-2.0)
    slow = torch.optim.SGD(model.parameters(), lr=0.0)
    return FastSlowSVI(model, guide, fast=fast, slow=slow, **settings)


def noise_met(svi: FastSlowSVI) -> list[torch.Tensor]:
    """ε = (z - μ) / σ of every evaluation."""
    return [
        (m["thoughts"] - g["z.mu"]) / (0.5 * g["z.log_var"]).exp()
        for m, g in zip(svi.model.seen, svi.guide.seen, strict=True)
    ]


def test_fixed_noise_is_one_draw_for_the_loop_and_the_slow_step():
    svi = recorded(FastConfig(steps=4, lr=0.1, noise="fixed"))
    svi.step(ragged_batch(4, 2), seed=1)
    first, *others = noise_met(svi)
    assert len(others) == 4
    for noise in others:
        # ε is recovered by a subtraction and a division in float32.
        torch.testing.assert_close(noise, first, atol=1e-4, rtol=0)
    assert not torch.allclose(svi.guide.seen[0]["z.mu"], svi.guide.seen[-1]["z.mu"], atol=1e-2)


def test_fresh_noise_is_a_new_draw_at_every_evaluation():
    svi = recorded(FastConfig(steps=4, lr=0.1))
    svi.step(ragged_batch(4, 2), seed=1)
    noise = noise_met(svi)
    assert len(noise) == 5
    for i in range(5):
        for j in range(i):
            assert (noise[i] - noise[j]).abs().mean() > 0.5
    assert abs(torch.stack(noise).std() - 1) < 0.2


@pytest.mark.parametrize("noise", ["fresh", "fixed"])
@pytest.mark.parametrize("slow_gradient", ["final", "trajectory"])
def test_the_slow_gradient_is_the_sum_over_the_evaluations_it_names(noise, slow_gradient):
    svi = recorded(FastConfig(steps=3, lr=0.1, noise=noise, slow_gradient=slow_gradient))
    batch = ragged_batch(4, 2)
    svi.step(batch, seed=1)
    met = [seen["thoughts"] for seen in svi.model.seen]
    assert len(met) == 4
    decoder = tiny_decoder()
    for z in met if slow_gradient == "trajectory" else met[-1:]:
        # The prior has no weights, so log p(x | z) at each draw is all that they see.
        (-TokenSequence(decoder, z, batch).log_prob(batch.tokens).sum() / 6).backward()
    for (name, actual), expected in zip(svi.model.decoder.named_parameters(), decoder.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_the_fast_loop_is_adam_on_the_negative_elbo_with_a_cosine_step_size():
    fast = FastConfig(steps=5, lr=0.2, lr_decay=0.25, betas=(0.8, 0.9), eps=1e-3)
    svi, batch = recorded(fast), ragged_batch(4, 2)
    posterior = svi.infer(batch, seed=1)
    decoder, noise = svi.model.decoder, noise_met(svi)
    mu, log_var = (svi.guide.seen[0][name].clone() for name in ("z.mu", "z.log_var"))
    state = [[torch.zeros_like(p), torch.zeros_like(p)] for p in (mu, log_var)]
    for t in range(5):
        mu.requires_grad_(), log_var.requires_grad_()
        z = mu + (0.5 * log_var).exp() * noise[t]
        kl = 0.5 * (mu**2 + log_var.exp() - log_var - 1).sum()
        loss = kl - TokenSequence(decoder, z, batch).log_prob(batch.tokens).sum()
        gradients = torch.autograd.grad(loss, [mu, log_var])
        lr = 0.05 + 0.15 * (1 + math.cos(math.pi * t / 4)) / 2
        moved = []
        for p, g, (m, v) in zip((mu, log_var), gradients, state, strict=True):
            m.mul_(0.8).add_(0.2 * g)
            v.mul_(0.9).add_(0.1 * g**2)
            moved.append(p.detach() - lr * (m / (1 - 0.8 ** (t + 1))) / ((v / (1 - 0.9 ** (t + 1))).sqrt() + 1e-3))
        mu, log_var = moved
    # float32 gradients, and noise recovered from recorded draws.
    torch.testing.assert_close(posterior.local["z.mu"], mu, atol=1e-3, rtol=0)
    torch.testing.assert_close(posterior.local["z.log_var"], log_var, atol=1e-3, rtol=0)
    assert posterior.steps_taken == 5
    assert not posterior.local["z.mu"].requires_grad


def test_the_step_sizes_run_from_lr_to_lr_times_decay():
    fast = FastConfig(lr_decay=0.1)
    rates = [fast.lr_at(t, 16, 0.3) for t in range(16)]
    assert rates[0] == pytest.approx(0.3)
    assert rates[-1] == pytest.approx(0.03)
    assert (rates[7] + rates[8]) / 2 == pytest.approx(0.165)
    assert rates == sorted(rates, reverse=True)
    assert fast.lr_at(0, 1, 0.3) == pytest.approx(0.3)


def test_steps_and_step_size_of_a_call_go_before_the_configured_ones():
    svi, batch = engine(FastConfig(steps=3, lr=0.1)), ragged_batch(4, 2)
    assert svi.infer(batch, steps=5, seed=1).steps_taken == 5
    assert svi.infer(batch, seed=1).steps_taken == 3
    start, end = svi.infer(batch, steps=0, seed=1), svi.infer(batch, steps=1, seed=1, lr=0.02)
    # Adam's first step is its step size along the sign of the gradient.
    moved = (end.local["z.mu"] - start.local["z.mu"]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.02), atol=1e-4, rtol=0)


def test_equal_seeds_repeat_and_none_draws_from_the_global_stream():
    svi, batch = engine(), ragged_batch(4, 2)

    def run(seed, manual):
        torch.manual_seed(manual)
        return svi.infer(batch, seed=seed).local["z.mu"]

    assert torch.equal(run(5, 1), run(5, 2))
    assert not torch.equal(run(5, 1), run(6, 1))
    assert torch.equal(run(None, 1), run(None, 1))
    assert not torch.equal(run(None, 1), run(None, 2))


def test_inference_leaves_weights_as_they_were_without_gradients():
    model = Recording()
    model.decoder.norm.weight.requires_grad_(False)
    svi = engine(model=model, lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    svi.infer(ragged_batch(4, 2), seed=1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad == (name != "decoder.norm.weight")
    assert not any(seen["learned"] for seen in model.seen)
    assert all(seen["stem"] for seen in model.seen)


def test_weights_ask_for_gradients_again_after_an_exception():
    class Failing(Recording):
        def likelihood(self, thoughts, batch, stem):
            raise ZeroDivisionError

    svi = engine(model=Failing())
    for call in (svi.infer, svi.step):
        with pytest.raises(ZeroDivisionError):
            call(ragged_batch(4, 2))
        assert all(p.requires_grad for p in svi.model.parameters())


def test_weight_gradients_are_computed_once_a_step_and_never_in_the_fast_loop():
    svi, calls = engine(FastConfig(steps=5, lr=0.1)), []
    for name, parameter in svi.model.named_parameters():
        parameter.register_hook(lambda grad, name=name: calls.append(name))
    batch = ragged_batch(4, 2)
    svi.infer(batch)
    assert calls == []
    svi.step(batch)
    assert sorted(calls) == sorted(name for name, _ in svi.model.named_parameters())


def test_weights_ask_for_gradients_at_the_slow_evaluation_alone():
    for slow_gradient, expected in (("final", [False, False, True]), ("trajectory", [True, True, True])):
        svi = recorded(FastConfig(steps=2, lr=0.1, slow_gradient=slow_gradient))
        svi.step(ragged_batch(4, 2))
        assert [seen["learned"] for seen in svi.model.seen] == expected


def test_a_step_moves_the_weights_by_the_slow_optimiser_alone():
    svi, batch = engine(lr=0.5), ragged_batch(4, 2)
    before = {name: p.detach().clone() for name, p in svi.model.named_parameters()}
    info = svi.step(batch, seed=1)
    squares = 0.0
    for name, parameter in svi.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.5 * parameter.grad)
        squares += float(parameter.grad.square().sum())
    assert float(info.gradient_norm) == pytest.approx(math.sqrt(squares), rel=1e-4)
    assert float(info.loss) == pytest.approx(float(-info.terms.elbo.sum() / 6), rel=1e-5)
    assert info.num_scored.tolist() == [4, 2]


def test_gradients_do_not_pile_up_over_steps():
    svi, batch = engine(lr=0.0), ragged_batch(4, 2)
    first, second = svi.step(batch, seed=1), svi.step(batch, seed=1)
    assert first.gradient_norm > 0
    torch.testing.assert_close(second.gradient_norm, first.gradient_norm)


def test_the_slow_gradient_is_clipped_to_the_norm_asked_for():
    free, clipped = engine(), engine(clip_norm=1e-3)
    batch = ragged_batch(4, 2)
    a, b = free.step(batch, seed=1), clipped.step(batch, seed=1)
    torch.testing.assert_close(a.gradient_norm, b.gradient_norm)
    for x, y in zip(free.model.parameters(), clipped.model.parameters(), strict=True):
        torch.testing.assert_close(y.grad, x.grad * 1e-3 / a.gradient_norm, atol=1e-8, rtol=1e-3)


def test_frozen_weights_stay_frozen_under_a_trajectory_gradient():
    model = tiny_model()
    model.decoder.embedding.weight.requires_grad_(False)
    svi = engine(FastConfig(steps=2, lr=0.1, slow_gradient="trajectory"), model=model, lr=0.1)
    before = model.decoder.embedding.weight.clone()
    svi.step(ragged_batch(4, 2), seed=1)
    assert torch.equal(model.decoder.embedding.weight, before)
    assert model.decoder.norm.weight.grad is not None


@pytest.mark.parametrize("peer", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("slow_gradient", ["final", "trajectory"])
def test_a_pyro_elbo_takes_the_place_of_the_default(peer, slow_gradient):
    batch, fast = ragged_batch(4, 2), FastConfig(steps=4, lr=0.1, slow_gradient=slow_gradient)
    ours, theirs = engine(fast), engine(fast, elbo=peer())
    a, b = ours.step(batch, seed=1), theirs.step(batch, seed=1)
    assert b.terms is None
    if peer is TraceMeanField_ELBO:  # the same estimator
        torch.testing.assert_close(b.loss, a.loss, atol=1e-4, rtol=1e-4)
        for x, y in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            torch.testing.assert_close(y.grad, x.grad, atol=1e-4, rtol=1e-3)
    else:
        assert b.loss.isfinite()
        assert (a.loss - b.loss).abs() > 1e-4


def test_a_step_without_a_slow_optimiser_is_refused():
    model = tiny_model()
    svi = FastSlowSVI(model, LocalNormal(model))
    with pytest.raises(LTMError, match="slow"):
        svi.step(ragged_batch(3))


def test_a_tolerance_with_an_elbo_that_knows_only_the_total_is_refused():
    with pytest.raises(LTMError, match="tolerance"):
        engine(FastConfig(tolerance=0.1), elbo=Trace_ELBO())


def test_every_sequence_stops_on_its_own_and_is_held_from_then_on():
    batch = ragged_batch(6, 3, 1)
    free = engine(FastConfig(steps=20, lr=0.3)).infer(batch, seed=1)
    svi = engine(FastConfig(steps=20, lr=0.3, tolerance=1.0))
    together = svi.infer(batch, seed=1)
    alone = [svi.infer(batch[[b]], seed=1).steps_taken for b in range(3)]
    assert 8 <= min(alone) < max(alone) < 20
    assert together.steps_taken == max(alone)
    for b in range(3):
        assert not torch.allclose(together.local["z.mu"][b], free.local["z.mu"][b], atol=1e-3)


def test_a_vanishing_tolerance_takes_the_steps_of_none_until_the_elbo_falls():
    svi, batch = recorded(FastConfig(steps=7, lr=0.1, tolerance=1e-9)), ragged_batch(4, 2)
    # Fewer than eight evaluations are no evidence of anything.
    assert svi.infer(batch, seed=1).steps_taken == 7


def test_the_early_stop_of_training_judges_what_training_climbs():
    # Under a KL of no weight the ELBO falls from the start, while what the loop climbs still rises.
    svi = engine(FastConfig(steps=40, lr=0.3, lr_decay=1.0, tolerance=0.01))
    info = svi.step(ragged_batch(6, 4, 8), seed=0, kl_weight=0.0)
    assert info.posteriors[0].steps_taken > 20


def test_particles_of_the_elbo_are_used_in_the_fast_loop():
    svi = recorded(FastConfig(steps=2, lr=0.1), elbo=SequenceELBO(3))
    svi.infer(ragged_batch(4, 2), seed=1)
    assert [tuple(m["thoughts"].shape) for m in svi.model.seen] == [(3, 2, 2, 2, 8)] * 2


def test_bfloat16_autocast_changes_the_fit_within_its_rounding():
    batch = ragged_batch(4, 2)
    exact = engine(FastConfig(steps=4, lr=0.01)).infer(batch, seed=1)
    rough = engine(FastConfig(steps=4, lr=0.01), autocast=torch.bfloat16).infer(batch, seed=1)
    assert rough.local["z.mu"].dtype == torch.float32
    assert not torch.equal(rough.local["z.mu"], exact.local["z.mu"])
    # bfloat16 keeps 8 bits of log-probabilities of size 10.
    torch.testing.assert_close(rough.terms.log_likelihood, exact.terms.log_likelihood, atol=0.3, rtol=0.02)


@pytest.mark.parametrize("guide", list(GUIDES))
@pytest.mark.parametrize("prior", ["gaussian", "hierarchical", "markov", "mixture", "vamp"])
def test_autocast_is_for_the_decoder_and_leaves_the_densities_of_the_thoughts(prior, guide):
    if PRIORS[prior].refusal(GUIDES[guide]):
        pytest.skip("the prior refuses the guide")
    model, batch = tiny_model(), ragged_batch(5, 3)
    model.prior = PRIORS[prior](model.prior.shape)
    svi = FastSlowSVI(model, GUIDES[guide](model), fast=FastConfig(steps=1, lr=0.5), autocast=torch.bfloat16)
    rough = svi.infer(batch, seed=1)
    exact = replace(rough, autocast=None)
    torch.testing.assert_close(rough.kl, exact.kl, rtol=1e-6, atol=1e-6)
    assert not torch.equal(rough.terms.log_likelihood, exact.terms.log_likelihood)


SYNCHRONISING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")


class Synchronisations(TorchDispatchMode):
    """Counts operations that would wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        boolean_index = func._schema.name == "aten::index" and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if boolean_index or func._schema.name.removeprefix("aten::") in SYNCHRONISING:
            # Adam keeps its step counter on the host whatever the device.
            frame, in_adam = sys._getframe(1), False
            while frame is not None and not in_adam:
                in_adam = frame.f_code.co_filename.endswith("optim/adam.py")
                frame = frame.f_back
            self.count += not in_adam
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("noise", ["fresh", "fixed"])
@pytest.mark.parametrize("particles", [1, 2])
def test_further_fast_steps_wait_for_the_device_no_more_often(noise, particles):
    counts = {}
    for steps in (2, 10):
        svi = engine(FastConfig(steps=steps, lr=0.1, noise=noise), elbo=SequenceELBO(particles))
        with Synchronisations() as seen:
            svi.infer(ragged_batch(4, 2), seed=1)
        counts[steps] = (seen.count, seen.operations)
    assert counts[10][0] == counts[2][0]
    assert counts[10][1] > counts[2][1] + 100  # the mode saw the loop


def test_a_tolerance_reads_one_number_from_the_device_per_step_once_it_can_end_a_loop():
    counts = {}
    for steps in (2, 7, 12):
        with Synchronisations() as seen:
            engine(FastConfig(steps=steps, lr=0.1, tolerance=1e-9)).infer(ragged_batch(4, 2), seed=1)
        counts[steps] = seen.count
    assert counts[7] == counts[2]
    assert counts[12] - counts[7] == 5


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": -1},
        {"lr": 0.0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"lr_decay": -0.1},
        {"lr_decay": 1.5},
        {"tolerance": 0.0},
        {"tolerance": float("nan")},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"eps": 0.0},
    ],
)
def test_fast_settings_out_of_range_are_refused(bad):
    with pytest.raises(LTMError, match=r"must"):
        FastConfig(**bad)


def test_the_defaults_are_the_papers():
    fast = FastConfig()
    assert (fast.steps, fast.lr, fast.lr_decay, fast.betas, fast.eps) == (16, 0.3, 0.1, (0.9, 0.999), 1e-8)
    assert (fast.noise, fast.slow_gradient, fast.tolerance) == ("fresh", "final", None)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_fast_loop_never_waits_for_a_cuda_device():
    svi, batch = engine(), ragged_batch(*LENGTHS)
    on_cpu = svi.infer(batch, seed=5)
    svi.model.cuda()
    batch = batch.to("cuda")
    svi.infer(batch, seed=5)  # the batch's index of scored tokens is made here, on the host
    torch.cuda.set_sync_debug_mode("error")
    try:
        posterior = svi.infer(batch, seed=5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Kernels sum in another order, and Adam amplifies small gradients' rounding.
    assert (posterior.local["z.mu"].cpu() - on_cpu.local["z.mu"]).abs().median() < 1e-3


def test_negative_free_bits_are_refused():
    model = tiny_model()
    with pytest.raises(LTMError, match="free_bits must be 0 or more"):
        FastSlowSVI(model, LocalNormal(model), free_bits=-1.0)
