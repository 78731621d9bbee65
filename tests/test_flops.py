"""Operations counted from sizes are those that torch's counter sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from tiny_models import ragged_batch, tiny_model
from tiny_runs import tiny_settings

from ltm_pyro.baselines.autoregressive import Autoregressive
from ltm_pyro.baselines.transformer import PlainTransformer, TransformerShape
from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder import token_loss
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation import block_log_probs
from ltm_pyro.flop_counter import measured_flops
from ltm_pyro.flops import (
    DecoderSize,
    TransformerSize,
    infer_flops,
    prequential_flops,
    score_flops,
    slow_step_flops,
    transformer_flops,
    transformer_step_flops,
)
from ltm_pyro.guides import LocalDelta, LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI, importance_weights
from ltm_pyro.infer.subsampling import planned_steps

BATCHES: dict[str, TokenBatch] = {
    "within the window": ragged_batch(4, 4, 4),
    "beyond the window": ragged_batch(9, 9),
    "padded": ragged_batch(10, 3, 7),
    "one sequence": ragged_batch(6),
}
DECODERS: dict[str, dict[str, Any]] = {
    "one layer": {"layers": 1},
    "two layers": {},
    "three layers, narrow thoughts": {"layers": 3, "thoughts_per_layer": 3, "thought_width": 5},
}


def program(fast_steps: int, *, guide: type = LocalNormal, shape: dict[str, Any] | None = None, **fast: Any):
    model = tiny_model(**(shape or {}))
    slow = torch.optim.AdamW(model.parameters(), lr=1e-3)
    svi = FastSlowSVI(model, guide(model), fast=FastConfig(steps=fast_steps, **fast), slow=slow)
    return svi, DecoderSize.of(model.decoder)


def sizes(batch: TokenBatch) -> tuple[int, int, int]:
    return len(batch), batch.tokens.shape[1], len(batch.scored_index)


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_slow_step_is_what_the_counter_sees(decoder: dict[str, Any], batch: TokenBatch):
    for fast_steps in (0, 1, 3):
        svi, size = program(fast_steps, shape=decoder)
        seen = measured_flops(lambda svi=svi: svi.step(batch))
        assert slow_step_flops(size, *sizes(batch), fast_steps=fast_steps) == seen


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_slow_gradient_along_the_trajectory_is_what_the_counter_sees(batch: TokenBatch):
    svi, size = program(2, slow_gradient="trajectory")
    seen = measured_flops(lambda: svi.step(batch))
    assert slow_step_flops(size, *sizes(batch), fast_steps=2, slow_gradient="trajectory") == seen


@pytest.mark.parametrize("guide", [LocalNormal, LocalDelta])
def test_fast_loop_of_a_guide_without_products_is_what_the_counter_sees(guide: type):
    svi, size = program(3, guide=guide)
    batch = BATCHES["padded"]
    assert infer_flops(size, *sizes(batch), fast_steps=3) == measured_flops(lambda: svi.infer(batch))


def test_micro_batches_add_up():
    svi, size = program(2)
    batch = BATCHES["padded"]
    seen = measured_flops(lambda: svi.step(batch, micro_batch_size=2))
    parts = [batch[:2], batch[2:]]
    assert sum(slow_step_flops(size, *sizes(part), fast_steps=2) for part in parts) == seen


def test_early_stop_is_counted_by_the_steps_taken():
    svi, size = program(20, tolerance=5.0)
    batch = BATCHES["padded"]
    info = svi.step(batch, seed=0)
    taken = info.posteriors[0].fast_steps
    assert len(taken) < 20
    assert taken[-1].sequences < taken[0].sequences == 3
    assert slow_step_flops(size, *sizes(batch), fast_steps=taken) == measured_flops(lambda: svi.step(batch, seed=0))


@pytest.mark.parametrize("slow_gradient", ["final", "trajectory"])
def test_fast_steps_on_some_of_the_tokens_are_counted_by_those(slow_gradient: Literal["final", "trajectory"]):
    svi, size = program(4, token_fraction=0.4, slow_gradient=slow_gradient)
    batch = BATCHES["padded"]
    planned = planned_steps(batch, svi.fast, 4)
    assert planned[0].tokens < planned[-1].tokens == 20
    assert infer_flops(size, *sizes(batch), fast_steps=planned) == measured_flops(lambda: svi.infer(batch))
    counted = slow_step_flops(size, *sizes(batch), fast_steps=planned, slow_gradient=slow_gradient)
    assert counted == measured_flops(lambda: svi.step(batch))


def test_unscored_tokens_meet_no_vocabulary():
    svi, size = program(1)
    batch = replace(BATCHES["padded"], scored=torch.arange(10) % 3 == 0 + torch.zeros(3, 1))
    assert len(batch.scored_index) < len(BATCHES["padded"].scored_index)
    assert slow_step_flops(size, *sizes(batch), fast_steps=1) == measured_flops(lambda: svi.step(batch))


@pytest.mark.parametrize("samples", [1, 3])
def test_scoring_a_posterior_is_what_the_counter_sees(samples: int):
    svi, size = program(2)
    batch = BATCHES["padded"]
    expected = score_flops(size, *sizes(batch), fast_steps=2, samples=samples)
    assert measured_flops(lambda: svi.infer(batch).elbo_terms(samples)) == expected
    assert measured_flops(lambda: importance_weights(svi.infer(batch), samples, chunk_size=2)) == expected


@pytest.mark.parametrize("lengths", [(9, 9), (10, 3, 7), (4, 4)])
@pytest.mark.parametrize("block_size", [3, 4, 12])
def test_prequential_is_what_the_counter_sees(lengths: tuple[int, ...], block_size: int):
    svi, size = program(2)
    seen = measured_flops(lambda: block_log_probs(svi, ragged_batch(*lengths), samples=3, block_size=block_size))
    assert prequential_flops(size, lengths, fast_steps=2, samples=3, block_size=block_size) == seen


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("same_parameters", [False, True])
def test_autoregressive_model_is_what_the_counter_sees(batch: TokenBatch, same_parameters: bool):
    settings = tiny_settings({"decoder.layers": 2, "decoder.window": 4}).decoder
    model = Autoregressive(TransformerShape.matching(settings, 11, 12, same_parameters=same_parameters))
    size = TransformerSize.of(model.network)

    @torch.no_grad()
    def score() -> None:
        model.sequence_loss(batch)

    assert transformer_flops(size, *sizes(batch)) == measured_flops(score)
    step = measured_flops(lambda: model.sequence_loss(batch).sum().backward())
    assert transformer_step_flops(size, *sizes(batch)) == step


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_transformer_that_sees_both_ways_is_what_the_counter_sees(batch: TokenBatch):
    shape = TransformerShape.matching(tiny_settings().decoder, 11, 12)
    network = PlainTransformer(shape, causal=False)

    def step() -> None:
        hidden = network(batch.tokens, batch.real).flatten(0, 1)[batch.scored_index]
        network.token_log_prob(hidden, batch.tokens.flatten()[batch.scored_index]).sum().backward()

    assert transformer_step_flops(TransformerSize.of(network), *sizes(batch)) == measured_flops(step)


@pytest.mark.parametrize("window", [1, 3, 6, 7, 100, None])
@pytest.mark.parametrize("causal", [False, True])
def test_pairs_of_an_ideal_kernel_are_those_that_the_mask_lets_see(window: int | None, causal: bool):
    size = TransformerSize(layers=1, hidden=2, vocab_size=3, window=window, causal=causal, dense=False)
    distance = torch.arange(6)[:, None] - torch.arange(6)
    seen = (distance if causal else distance.abs()) < (window or 6)
    if causal:
        seen &= distance >= 0
    assert size.pairs(6) == int(seen.sum())
    assert replace(size, dense=True).pairs(6) == 36


def test_width_of_the_feed_forward_layer_may_be_chosen():
    narrow, wide = (TransformerSize(layers=1, hidden=4, vocab_size=3, feed_forward=f) for f in (8, 10))
    assert wide.swiglu(2, 3).forward - narrow.swiglu(2, 3).forward == 6 * 2 * 3 * 4 * 2


def test_operations_do_not_depend_on_the_token_losss_chunks(monkeypatch: pytest.MonkeyPatch):
    svi, size = program(1)
    batch = BATCHES["padded"]
    monkeypatch.setattr(token_loss, "_rows_at_once", lambda _, **__: 3)
    assert slow_step_flops(size, *sizes(batch), fast_steps=1) == measured_flops(lambda: svi.step(batch))


def test_a_prequential_score_of_nothing_is_refused():
    size = DecoderSize(layers=1, hidden=2, vocab_size=3, thoughts_per_layer=1)
    with pytest.raises(LTMError, match="block_size must be 1 or more, got 0"):
        prequential_flops(size, [3], fast_steps=1, block_size=0)
    assert prequential_flops(size, [], fast_steps=1) == 0
