"""Fast steps on some of the tokens: unbiased, scaled as Pyro's subsampling plate scales, each sequence on its own."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from tiny_models import ragged_batch, tiny_model

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.guides import GUIDES, LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI, SequenceELBO
from ltm_pyro.infer.fast_loop import FastLoop
from ltm_pyro.infer.subsampling import FastStep, TokenSubsets, planned_steps
from ltm_pyro.noise import SequenceGenerator
from ltm_pyro.priors import PRIORS, Prior

LENGTHS = (11, 4, 0, 7, 1)


def engine(*, model=None, elbo=None, **fast) -> FastSlowSVI:
    model = model or tiny_model()
    guide = LocalNormal(model, init_log_var=-2.0, init_mu_spread=0.1)
    config = FastConfig(**{"steps": 6, "lr": 0.1} | fast)
    return FastSlowSVI(model, guide, fast=config, slow=torch.optim.SGD(model.parameters(), lr=0.0), elbo=elbo)


def wider(batch: TokenBatch, by: int) -> TokenBatch:
    tokens = torch.nn.functional.pad(torch.where(batch.real, batch.tokens, 9), (0, by), value=9)
    scored = None if batch.scored is None else torch.nn.functional.pad(batch.scored, (0, by), value=True)
    return TokenBatch(tokens, batch.lengths, batch.start, scored)


def every_second(batch: TokenBatch) -> TokenBatch:
    scored = (torch.arange(batch.tokens.shape[1]) % 2 == 0).expand(len(batch), -1)
    return TokenBatch(batch.tokens, batch.lengths, batch.start, scored)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("part", [lambda b: b, every_second])
def test_a_subset_has_its_share_of_each_sequences_scored_tokens_each_as_often_as_the_others(fraction, part):
    batch = part(ragged_batch(*LENGTHS))
    subsets, met = TokenSubsets(batch, fraction, seed=3), torch.zeros(batch.tokens.shape)
    share = [max(1, math.ceil(fraction * n)) if n else 0 for n in batch.num_scored.tolist()]
    for _ in range(2000):
        chosen, scale = subsets.draw()
        assert chosen.num_scored.tolist() == share
        assert not (chosen.mask & ~batch.mask).any()
        assert torch.equal(chosen.scored_index.sort().values, chosen.mask.flatten().nonzero()[:, 0])
        met += chosen.mask
    expected = batch.mask * (torch.tensor(share) / batch.num_scored.clamp(min=1))[:, None]
    # Standard error of a frequency among 2000: at most 0.0112.
    assert (met / 2000 - expected).abs().max() < 4.5 * 0.0112
    torch.testing.assert_close(
        scale, batch.num_scored / torch.tensor(share).clamp(min=1) + 1.0 * (batch.num_scored == 0)
    )


def test_a_round_share_is_not_rounded_up_for_its_last_bit():
    assert TokenSubsets(ragged_batch(30), 0.1, seed=0).counts == [3]  # 0.1 * 30 > 3


def test_a_subset_depends_on_the_seed_the_sequence_and_the_call_alone():
    batch = ragged_batch(*LENGTHS)
    whole = [TokenSubsets(batch, 0.5, seed=3).draw().batch.mask]
    second = TokenSubsets(batch, 0.5, seed=3)
    whole += [second.draw().batch.mask, second.draw().batch.mask]
    assert torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[1], whole[2])
    assert not torch.equal(TokenSubsets(batch, 0.5, seed=4).draw().batch.mask, whole[0])
    for rows in ([3], [4, 0, 3]):
        assert torch.equal(TokenSubsets(batch[rows], 0.5, seed=3).draw().batch.mask, whole[0][rows])
    padded = TokenSubsets(wider(batch, 5), 0.5, seed=3).draw().batch.mask
    assert torch.equal(padded[:, :11], whole[0])
    assert not padded[:, 11:].any()


@pytest.mark.parametrize("elbo", [SequenceELBO(), Trace_ELBO()])
def test_elbo_and_gradient_of_a_subset_are_those_of_all_tokens_on_average(float64, elbo):
    batch = ragged_batch(9, 4, 1)
    svi = engine(elbo=elbo)
    loop = FastLoop(svi.model, svi.guide, svi.fast, svi.elbo)
    local = svi.guide.init_local(batch, SequenceGenerator(batch.keys, 1))
    subsets = TokenSubsets(batch, 0.4, seed=2)

    def estimate(subset) -> torch.Tensor:
        generator = SequenceGenerator(batch.keys, 5)  # one ε for all
        loss, terms = loop.evaluate(batch, local, generator, None, subset)
        gradients = torch.autograd.grad(loss, list(local.values()))
        parts = [loss.detach()[None], *(g.flatten() for g in gradients)]
        if terms is not None:
            assert torch.equal(terms.kl, exact_kl)
            parts.append(terms.elbo.detach())
        return torch.cat(parts)

    exact_kl = SequenceELBO().terms(lambda: svi.model(batch), lambda: svi.guide(batch, local)).kl
    full = estimate(None)
    draws = torch.stack([estimate(subsets.draw()) for _ in range(200)])
    error = draws.std(0) / 200**0.5
    z = (draws.mean(0) - full) / error.clamp(min=1e-12)
    assert (error > 1e-6).float().mean() > 0.6  # the last sequence has one token, and so nothing to leave out
    assert z[error > 1e-9].abs().max() < 4.5  # 200 numbers
    torch.testing.assert_close(draws.mean(0)[error < 1e-9], full[error < 1e-9])


def test_the_scale_is_that_of_pyros_plate_over_tokens():
    batch, model = ragged_batch(9), tiny_model()
    guide = LocalNormal(model, init_log_var=-2.0)
    local = guide.init_local(batch, SequenceGenerator(batch.keys, 1))
    subset = TokenSubsets(batch, 0.4, seed=2).draw()
    index = subset.batch.scored_index
    assert len(index) == 4

    def naive() -> None:
        """Token by token, for one sequence."""
        with pyro.plate("sequences", 1):
            z = pyro.sample(
                "z", dist.Normal(torch.zeros(model.prior.shape), 1.0).expand((1, *model.prior.shape)).to_event(3)
            )
        logits = model.decoder.logits(model.decoder(model.decoder.stem(batch.inputs), z))[0]
        with pyro.plate("positions", 9, subsample=index):
            pyro.sample("x", dist.Categorical(logits=logits[index]), obs=batch.tokens[0, index])

    losses, gradients = [], []
    for program in (naive, lambda: model(subset.batch, scale=subset.scale)):
        torch.manual_seed(7)  # the same z
        loss = Trace_ELBO().differentiable_loss(program, lambda: guide(batch, local))
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, list(local.values())))
    torch.testing.assert_close(losses[1], losses[0])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fast", [{}, {"noise": "fixed"}, {"slow_gradient": "trajectory"}])
def test_a_fraction_of_one_is_the_loop_without_subsets_bit_by_bit(fast):
    batch = ragged_batch(*LENGTHS)
    plain, whole = engine(**fast), engine(token_fraction=1.0, full_final_steps=0, **fast)
    a, b = plain.step(batch, seed=1), whole.step(batch, seed=1)
    for name, value in a.posteriors[0].local.items():
        assert torch.equal(b.posteriors[0].local[name], value)
    for x, y in zip(plain.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("fast", [{}, {"noise": "fixed"}, {"slow_gradient": "trajectory"}])
def test_posterior_of_a_sequence_does_not_depend_on_its_batch(float64, fast):
    svi, batch = engine(token_fraction=0.4, **fast), ragged_batch(*LENGTHS)
    whole = svi.infer(batch, seed=5)
    for part, rows in ((batch[[1]], [1]), (batch[[4, 0, 3]], [4, 0, 3]), (wider(batch, 3), [0, 1, 2, 3, 4])):
        for name, value in svi.infer(part, seed=5).local.items():
            torch.testing.assert_close(value, whole.local[name][rows], atol=1e-8, rtol=0)
    step = [engine(token_fraction=0.4, **fast).step(batch, micro_batch_size=m, seed=5) for m in (None, 2)]
    torch.testing.assert_close(step[1].gradient_norm, step[0].gradient_norm)
    torch.testing.assert_close(step[1].terms.elbo, step[0].terms.elbo)


def recorded(monkeypatch, **fast):
    """The scored tokens of every evaluation of a step."""
    seen, likelihood = [], type(tiny_model()).likelihood

    def recording(self, thoughts, batch, stem):
        seen.append((batch.mask, thoughts.detach()))
        return likelihood(self, thoughts, batch, stem)

    monkeypatch.setattr(type(tiny_model()), "likelihood", recording)
    engine(**fast).step(ragged_batch(9, 5), seed=1)
    return seen


@pytest.mark.parametrize("slow_gradient", ["final", "trajectory"])
@pytest.mark.parametrize(("full", "expected"), [(0, [5] * 4 + [14]), (1, [5, 5, 5, 14, 14]), (9, [14] * 5)])
def test_the_last_fast_steps_and_the_slow_step_score_all_tokens(monkeypatch, slow_gradient, full, expected):
    how = {"steps": 4, "token_fraction": 0.3, "full_final_steps": full, "slow_gradient": slow_gradient}
    assert [int(mask.sum()) for mask, _ in recorded(monkeypatch, **how)] == expected


def test_under_fixed_noise_every_fast_step_still_scores_another_subset(monkeypatch):
    seen = recorded(monkeypatch, steps=5, token_fraction=0.3, full_final_steps=0, noise="fixed", lr=1e-9)
    *masks, whole = [mask for mask, _ in seen]
    assert whole.sum() == 14
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 5
    for _, z in seen:
        torch.testing.assert_close(z, seen[0][1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("prior", [name for name in PRIORS if name != "vamp"])
@pytest.mark.parametrize("guide", ["local-normal", "local-lowrank", "local-flow", "local-delta", "semi-amortized"])
def test_every_prior_and_guide_takes_fast_steps_on_subsets(prior, guide):
    model, batch = tiny_model(), ragged_batch(7, 3)
    model.prior = PRIORS[prior](model.prior.shape)
    svi = FastSlowSVI(model, GUIDES[guide](model), fast=FastConfig(steps=3, lr=0.1, token_fraction=0.5))
    posterior = svi.infer(batch, seed=1)
    assert posterior.fast_steps == (FastStep(2, 6), FastStep(2, 6), FastStep(2, 10))
    assert all(value.isfinite().all() for value in posterior.local.values())


class KnownInsideTheLogarithm(Prior):
    """Thoughts that depend on an enumerated component directly."""

    def forward(self, batch_size):
        kind = pyro.sample("kind", dist.Categorical(torch.ones(batch_size, 2)), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(torch.zeros(batch_size, *self.shape), 1.0).to_event(3))
        return z + kind[..., None, None, None]


def test_a_program_whose_likelihood_is_summed_inside_a_logarithm_is_refused():
    model = tiny_model()
    model.prior = KnownInsideTheLogarithm(model.prior.shape)
    engine(model=model).infer(ragged_batch(5))
    with pytest.raises(LTMError, match="'tokens' has a scale, and depends on enumerated values"):
        engine(model=model, token_fraction=0.5).infer(ragged_batch(5))


def test_the_steps_of_a_loop_are_known_before_it_is_run():
    svi, batch = engine(token_fraction=0.4), ragged_batch(9, 4, 6)
    planned = planned_steps(batch, svi.fast, svi.fast.steps)
    assert planned == svi.infer(batch, seed=1).fast_steps == (FastStep(3, 9),) * 5 + (FastStep(3, 19),)
    assert planned_steps(batch, FastConfig(), 3) == (FastStep(3, 19),) * 3
    assert planned_steps(batch, svi.fast, 1) == (FastStep(3, 19),)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"token_fraction": 0.0}, "token_fraction must be above 0"),
        ({"token_fraction": 1.1}, "token_fraction must be above 0"),
        ({"token_fraction": float("nan")}, "token_fraction must be above 0"),
        ({"full_final_steps": -1}, "full_final_steps must be 0 or more"),
        ({"token_fraction": 0.5, "tolerance": 0.1}, "leave one of the two out"),
    ],
)
def test_settings_that_make_no_sense_are_refused(bad, said):
    with pytest.raises(LTMError, match=said):
        FastConfig(**bad)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_subsets_never_wait_for_a_cuda_device_and_are_those_of_the_host():
    svi, batch = engine(token_fraction=0.5), ragged_batch(*LENGTHS)
    host = TokenSubsets(batch, 0.5, seed=5).draw().batch.mask
    svi.model.cuda()
    batch = batch.to("cuda")
    assert torch.equal(TokenSubsets(batch, 0.5, seed=5).draw().batch.mask.cpu(), host)
    svi.infer(batch, seed=5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        svi.infer(batch, seed=5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
