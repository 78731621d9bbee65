"""The amortised guide: an encoder that learns the exact posterior by the ELBO's gradient, and takes no fast step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from linear_gaussian import LinearGaussianModel
from pyro.infer import Trace_ELBO
from tiny_models import ragged_batch, tiny_model
from tiny_runs import new_trainer, tiny_data

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import evaluate
from ltm_pyro.guides import Amortized
from ltm_pyro.infer import FastSlowSVI, SequenceELBO
from ltm_pyro.noise import SequenceGenerator
from ltm_pyro.training import load_run, read_checkpoint

SMALL = {"width": 16, "layers": 1, "heads": 2}


def engine(model=None, *, lr: float = 0.0, **settings) -> FastSlowSVI:
    """Amortised inference whose slow optimiser has the encoder alone, and at lr 0 moves nothing."""
    model = model or LinearGaussianModel(orthogonal=False)
    guide = Amortized(model, init_log_var=-1.0, **SMALL)
    return FastSlowSVI(model, guide, slow=torch.optim.SGD(guide.parameters(), lr=lr), **settings)


def encoder_gradients(svi: FastSlowSVI, batch: TokenBatch, **settings) -> list[torch.Tensor]:
    svi.step(batch, seed=3, **settings)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in svi.guide.parameters()]


def written_out(svi: FastSlowSVI, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) log-likelihood and KL of a linear-Gaussian model by their formulas, on the slow step's noise of seed 3."""
    local = svi.guide.init_local(batch)
    mu, log_var = local["z.mu"].flatten(1), local["z.log_var"].flatten(1)
    noise = SequenceGenerator(batch.keys, 3, "slow").normal((1, 2, 2)).flatten(1)
    z = mu + (0.5 * log_var).exp() * noise
    error = svi.model.table[batch.tokens].flatten(1) - z @ svi.model.matrix.T
    scale = svi.model.scale
    log_likelihood = -0.5 * (error / scale).square().sum(1) - 8 * math.log(scale * math.sqrt(2 * math.pi))
    return log_likelihood, 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(1)


def test_slow_steps_on_the_encoder_alone_find_the_exact_posterior():
    model, batch = LinearGaussianModel(orthogonal=True), ragged_batch(4, 4, 4)
    guide = Amortized(model, init_log_var=-1.0, **SMALL)
    slow = torch.optim.Adam(guide.parameters(), lr=0.01)
    svi = FastSlowSVI(model, guide, slow=slow, elbo=SequenceELBO(512))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(250):
        slow.param_groups[0]["lr"] = 0.01 * (1 - step / 250)
        svi.step(batch, seed=step)
    posterior = svi.infer(batch)
    mean, precision = model.exact_posterior(batch)
    mu, variance = posterior.local["z.mu"].flatten(1), posterior.local["z.log_var"].flatten(1).exp()
    assert ((mu - mean) * precision.diag().sqrt()).abs().max() < 0.05
    assert (variance * precision.diag() - 1).abs().max() < 0.05
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_encoders_gradient_is_that_of_the_elbo_on_the_same_noise(float64):
    svi, batch = engine(), ragged_batch(4, 4, 4)
    found = encoder_gradients(svi, batch)
    log_likelihood, kl = written_out(svi, batch)
    loss = (kl - log_likelihood).sum() / 12
    expected = torch.autograd.grad(loss, list(svi.guide.parameters()), allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)

    # And of differences of the reported loss along a direction.
    direction = [torch.randn_like(p) for p in svi.guide.parameters()]
    losses = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for parameter, part in zip(svi.guide.parameters(), direction, strict=True):
                parameter.add_(step * part)
        losses.append(float(svi.step(batch, seed=3).loss))
    slope = sum(float((a * b).sum()) for a, b in zip(found, direction, strict=True))
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_no_fast_steps_are_taken_and_inference_leaves_no_trace():
    svi, batch = engine(), ragged_batch(4, 4)
    before = [p.clone() for p in (*svi.model.parameters(), *svi.guide.parameters())]
    posterior = svi.infer(batch, steps=7)
    assert posterior.steps_taken == 0
    assert not any(value.requires_grad for value in posterior.local.values())
    after = [*svi.model.parameters(), *svi.guide.parameters()]
    assert all(p.grad is None and p.requires_grad and torch.equal(p, old) for p, old in zip(after, before, strict=True))
    (posterior,) = svi.step(batch).posteriors
    assert posterior.steps_taken == 0
    assert torch.equal(posterior.local["z.mu"], svi.infer(batch, seed=9).local["z.mu"])  # nothing in it is random


@pytest.mark.parametrize("training", [True, False])  # torch's encoder layers have a path of their own for inference
def test_neither_padding_nor_batch_mates_matter(training: bool):
    model = tiny_model()
    svi, batch = engine(model), ragged_batch(4, 7, 0, 2)
    svi.guide.train(training)
    with torch.no_grad():
        for parameter in svi.guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    whole = svi.infer(batch, seed=1)
    junk = torch.where(batch.real, batch.tokens, 9)
    wider = TokenBatch(torch.nn.functional.pad(junk, (0, 3), value=7), batch.lengths, batch.start)
    own = TokenBatch.from_lists([batch.tokens[3, :2].tolist()], int(batch.start[3]))
    parts = [(batch[[1]], [1]), (batch[[3, 0]], [3, 0]), (wider, [0, 1, 2, 3]), (own, [3])]
    for part, rows in parts:
        found = svi.infer(part, seed=1)
        for name, value in found.local.items():
            torch.testing.assert_close(value, whole.local[name][rows], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.terms.elbo, whole.terms.elbo[rows], atol=1e-4, rtol=1e-5)
    # Texts that differ, in a token or in the token before the first, do not share a posterior.
    other = TokenBatch(batch.tokens.clone(), batch.lengths, (batch.start + 1) % 11)
    assert (svi.infer(other).local["z.mu"] - whole.local["z.mu"]).abs().amax((1, 2, 3)).min() > 1e-3


def test_a_sequence_of_no_tokens_is_read_by_its_start_token():
    svi, batch = engine(tiny_model()), ragged_batch(0, 0, 3)
    info = svi.step(batch, seed=0)
    assert torch.isfinite(info.loss)
    assert torch.isfinite(info.gradient_norm)
    assert (info.terms.log_likelihood[:2] == 0).all()
    assert (svi.infer(batch).kl > 0).all()


def test_a_checkpoint_holds_the_decoders_embedding_once_and_comes_back_whole(tmp_path: Path):
    data = tiny_data(tmp_path, layout="documents")
    guide = {"guide.name": "amortized", "guide.width": 16, "guide.heads": 2, "training.steps": 3}
    trainer = new_trainer(tmp_path / "run", data, guide)
    trainer.fit()
    embedding = trainer.learner.model.decoder.embedding
    assert trainer.learner.guide.embedding is embedding
    stored = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000003").model
    assert [n for n, value in stored.items() if value.shape == embedding.weight.shape] == [
        "model.decoder.embedding.weight"
    ]
    run = load_run(tmp_path / "run", device="cpu")
    assert run.svi.guide.embedding is run.svi.model.decoder.embedding
    trainer.learner.model.eval()
    trainer.learner.guide.eval()
    batch = data.validation.batch(range(4))
    expected, found = trainer.learner.svi.infer(batch, seed=0), run.svi.infer(batch, seed=0)
    assert torch.equal(found.sample(3), expected.sample(3))
    assert torch.equal(found.terms.elbo, expected.terms.elbo)
    assert evaluate(run.svi, data.validation, range(2), fast_steps=9).fast_steps == 0  # none were taken


def test_the_slow_step_scores_the_posterior_that_inference_gives_in_bfloat16_too():
    svi, batch = engine(tiny_model(), autocast=torch.bfloat16), ragged_batch(4, 7)
    info = svi.step(batch, seed=3)
    torch.testing.assert_close(info.terms.kl, svi.infer(batch).kl, rtol=1e-5, atol=0)


def test_a_weight_on_the_kl_scales_its_gradient_and_not_the_report(float64):
    svi, batch = engine(), ragged_batch(4, 4, 4)
    weights = list(svi.guide.parameters())
    for weight in (0.0, 0.3, 1.0):
        found = encoder_gradients(svi, batch, kl_weight=weight)
        log_likelihood, kl = written_out(svi, batch)
        loss = (weight * kl - log_likelihood).sum() / 12
        expected = torch.autograd.grad(loss, weights, allow_unused=True)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)
        info = svi.step(batch, seed=3, kl_weight=weight)
        torch.testing.assert_close(info.loss, (kl - log_likelihood).sum() / 12)
        torch.testing.assert_close(info.terms.kl, kl.detach())


def test_free_bits_leave_a_small_kl_alone_sequence_by_sequence(float64):
    svi, batch = engine(), ragged_batch(4, 4, 4)
    with torch.no_grad():
        for parameter in svi.guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    low, middle, high = written_out(svi, batch)[1].sort().values.tolist()
    weights = list(svi.guide.parameters())
    for bits in (0.5 * low, 0.5 * (low + middle), 2 * high):
        engine_of_bits = FastSlowSVI(svi.model, svi.guide, slow=svi.slow, free_bits=bits)
        found = encoder_gradients(engine_of_bits, batch)
        log_likelihood, kl = written_out(svi, batch)
        loss = (kl[kl > bits].sum() - log_likelihood.sum()) / 12
        expected = torch.autograd.grad(loss, weights, allow_unused=True)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)
        torch.testing.assert_close(engine_of_bits.step(batch, seed=3).loss, (kl - log_likelihood).sum() / 12)
        # What inference reports is the ELBO, too.
        torch.testing.assert_close(engine_of_bits.infer(batch, seed=3).kl, kl.detach())


def test_what_needs_the_kl_apart_is_refused_with_an_elbo_that_gives_none():
    svi, batch = engine(elbo=Trace_ELBO()), ragged_batch(4)
    svi.step(batch)
    with pytest.raises(LTMError, match="a kl_weight needs each sequence's own ELBO: leave elbo out"):
        svi.step(batch, kl_weight=0.5)
    with pytest.raises(LTMError, match="free_bits needs each sequence's own ELBO: leave elbo out"):
        engine(elbo=Trace_ELBO(), free_bits=1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 6, "heads": 2}, r"a multiple of 2 \* heads, got width = 6"),
        ({"layers": 0}, "1 layer or more"),
        ({"init_log_var": 3.0}, "must lie between -10 and 2, got 3"),
    ],
)
def test_encoders_that_cannot_be_are_refused(options, words):
    with pytest.raises(LTMError, match=words):
        Amortized(tiny_model(), **(SMALL | options))
