"""Bytes counted from sizes are those that autograd saves and that the meter sees alive at once."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import ragged_batch, tiny_model

from ltm_pyro.baselines import BASELINES, Baseline, TransformerShape
from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder import ThoughtDecoder, token_loss
from ltm_pyro.decoder.linear import Linear, held
from ltm_pyro.flops import DecoderSize, TransformerSize
from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.infer.constant import constant
from ltm_pyro.infer.posterior import autocasting
from ltm_pyro.likelihood import TokenSequence
from ltm_pyro.memory import (
    TrainingShape,
    after_stem_kept,
    decoder_weights,
    held_weights,
    slow_step_memory,
    stem_kept,
    transformer_step_memory,
)
from ltm_pyro.memory_meter import measured_peak
from ltm_pyro.memory_parts import loss_kept

BIG = {"hidden": 32, "heads": 2, "vocab_size": 60, "window": 64, "max_length": 64}
DECODERS: dict[str, dict[str, Any]] = {
    "two layers": {},
    "one layer": {"layers": 1},
    "beyond the window": {"window": 4},
    "three layers, narrow thoughts": {"layers": 3, "thoughts_per_layer": 3, "thought_width": 5},
    "large vocabulary": {"vocab_size": 3000},
    "addresses": {"thoughts_per_layer": 5, "thought_width": 8, "thought_addresses": True},
}
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def full_batch(size: int, length: int, vocab_size: int) -> TokenBatch:
    return ragged_batch(*[length] * size, vocab_size=vocab_size)


def shape_of(batch: TokenBatch, autocast: torch.dtype | None, checkpointing: bool, heads: int = 2) -> TrainingShape:
    rows, length = batch.tokens.shape
    return TrainingShape(
        batch=rows,
        length=length,
        scored=len(batch.scored_index),
        heads=heads,
        autocast=autocast is not None,
        checkpointing=checkpointing,
    )


def held_tensors(decoder: ThoughtDecoder) -> list[torch.Tensor]:
    """What `held` keeps, apart from the weights themselves."""
    kept = [decoder.held_memory, decoder.held_embedding]
    kept += [part.held for part in decoder.modules() if isinstance(part, Linear)]
    weights = {weight.untyped_storage().data_ptr() for weight in decoder.parameters()}
    return [t for t in kept if t is not None and t.untyped_storage().data_ptr() not in weights]


def saved_bytes(decoder: ThoughtDecoder, batch: TokenBatch, autocast: torch.dtype | None, *, fast: bool) -> int:
    """Bytes of the distinct tensors that autograd saves for log p(x | z), weights and thoughts themselves aside."""
    thoughts = torch.randn(len(batch), *decoder.thought_shape, requires_grad=fast)
    known = {t.untyped_storage().data_ptr() for t in (*decoder.parameters(), thoughts, batch.tokens)}
    saved: dict[int, int] = {}
    alive = []  # so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage()
        if place.data_ptr() not in known:
            saved[place.data_ptr()] = place.nbytes()
        alive.append(tensor)
        return tensor

    with ExitStack() as stack:
        stack.enter_context(autocasting(batch.device, autocast))
        stem = None
        if fast:
            stack.enter_context(constant(decoder))
            stack.enter_context(held(decoder, autocast))
            with torch.no_grad():
                stem = decoder.stem(batch.inputs)
            known |= {t.untyped_storage().data_ptr() for t in (*stem, *held_tensors(decoder))}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            log_prob = TokenSequence(decoder, thoughts, batch, stem=stem).log_prob(batch.tokens)
        assert log_prob.requires_grad
    return sum(saved.values())


@pytest.mark.parametrize("autocast", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("batch", [ragged_batch(9, 3, 7, vocab_size=60), full_batch(4, 8, 60)], ids=["padded", "full"])
def test_bytes_kept_for_the_backward_pass_are_those_that_autograd_saves(
    decoder: dict[str, Any], batch: TokenBatch, autocast: torch.dtype | None
):
    network = tiny_model(**(BIG | decoder)).decoder
    size, shape = DecoderSize.of(network), shape_of(batch, autocast, checkpointing=False)
    loss = loss_kept(shape, size.hidden, size.vocab_size)
    after = after_stem_kept(size, shape) + loss
    inputs = 8 * shape.tokens  # that the embedding saves
    assert saved_bytes(network, batch, autocast, fast=False) == stem_kept(size, shape).slow + after.slow + inputs
    assert saved_bytes(network, batch, autocast, fast=True) == after.fast


@pytest.mark.parametrize("autocast", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_bytes_held_for_the_fast_loop_are_those_of_the_copies(decoder: dict[str, Any], autocast: torch.dtype | None):
    network = tiny_model(**(BIG | decoder)).decoder
    shape = TrainingShape(batch=1, length=1, autocast=autocast is not None)
    with held(network, autocast):
        copies = sum(t.nbytes for t in held_tensors(network))
    assert held_weights(DecoderSize.of(network), shape) == copies


def svi_of(checkpointing: bool, autocast: torch.dtype | None, **shape: Any) -> FastSlowSVI:
    model = tiny_model(**(BIG | shape))
    model.decoder.checkpointing = checkpointing
    slow = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return FastSlowSVI(model, LocalNormal(model), fast=FastConfig(steps=2), slow=slow, autocast=autocast, clip_norm=1.0)


def alive_before(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Weights and, after a first step, their moments."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    return [*weights, *(value for state in optimizer.state.values() for value in state.values())]


def peak_of_step(svi: FastSlowSVI, batch: TokenBatch, **options: Any) -> int:
    svi.step(batch, seed=0, **options)
    assert svi.slow is not None
    return measured_peak(lambda: svi.step(batch, seed=0, **options), alive_before(svi.slow))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("autocast", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("size", [1, 8])
def test_peak_of_a_slow_step_is_what_the_meter_sees(
    decoder: dict[str, Any], size: int, autocast: torch.dtype | None, checkpointing: bool
):
    svi = svi_of(checkpointing, autocast, **decoder)
    batch = full_batch(size, 48, 60)
    counted = slow_step_memory(DecoderSize.of(svi.model.decoder), shape_of(batch, autocast, checkpointing)).peak
    assert counted == pytest.approx(peak_of_step(svi, batch), rel=0.1)


@pytest.mark.parametrize("autocast", PRECISIONS.values(), ids=PRECISIONS)
def test_peak_of_a_loss_in_several_chunks_is_what_the_meter_sees(
    autocast: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(token_loss, "_rows_at_once", lambda weight, **_: 2**17 // weight.shape[0])
    svi = svi_of(False, autocast, vocab_size=1024)
    batch = full_batch(8, 48, 1024)
    shape = replace(shape_of(batch, autocast, False), logits_at_once=2**17, logits_again=2**17)
    counted = slow_step_memory(DecoderSize.of(svi.model.decoder), shape).peak
    assert counted == pytest.approx(peak_of_step(svi, batch), rel=0.03)


@pytest.mark.parametrize("width", [64, 128])
def test_peak_of_a_wider_decoder_is_what_the_meter_sees(width: int):
    svi = svi_of(False, None, hidden=width, heads=4, vocab_size=500)
    batch = full_batch(6, 64, 500)
    counted = slow_step_memory(DecoderSize.of(svi.model.decoder), shape_of(batch, None, False, heads=4)).peak
    assert counted == pytest.approx(peak_of_step(svi, batch), rel=0.03)


def test_peak_of_micro_batches_has_their_summed_gradients_and_posteriors():
    svi = svi_of(False, None, thoughts_per_layer=16)
    batch = full_batch(12, 16, 60)
    shape = replace(shape_of(batch[:4], None, False), accumulated=12)
    counted = slow_step_memory(DecoderSize.of(svi.model.decoder), shape).peak
    assert counted == pytest.approx(peak_of_step(svi, batch, micro_batch_size=4), rel=0.1)


def baseline(kind: str, checkpointing: bool, autocast: torch.dtype | None = None, window: int = 64) -> Baseline:
    torch.manual_seed(0)
    shape = TransformerShape(vocab_size=60, layers=3, hidden=32, heads=2, feed_forward=96, window=window, max_length=64)
    model = BASELINES[kind](shape, autocast=autocast)
    model.network.checkpointing = checkpointing
    return model


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("autocast", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize(("kind", "window"), [("ar", 64), ("ar", 8), ("mdlm", 64)])
def test_peak_of_a_baselines_step_is_what_the_meter_sees(
    kind: str, window: int, autocast: torch.dtype | None, checkpointing: bool
):
    model = baseline(kind, checkpointing, autocast, window)
    batch = full_batch(8, 48, 60)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        model.sequence_loss(batch, seed=0).sum().backward()
        optimizer.step()

    step()
    shape = shape_of(batch, autocast, checkpointing)
    if kind == "mdlm":
        shape = replace(shape, length=shape.length + 1)
    counted = transformer_step_memory(TransformerSize.of(model.network), shape).peak
    assert counted == pytest.approx(measured_peak(step, alive_before(optimizer)), rel=0.1)


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_weights_are_counted_one_by_one(decoder: dict[str, Any]):
    network = tiny_model(**(BIG | decoder)).decoder
    assert decoder_weights(DecoderSize.of(network)) == sum(p.numel() for p in network.parameters())
    plain = baseline("ar", False).network
    assert decoder_weights(TransformerSize.of(plain)) == sum(p.numel() for p in plain.parameters())


def test_memory_grows_with_the_batch_and_shrinks_with_checkpointing_and_bfloat16():
    size = DecoderSize(layers=3, hidden=512, vocab_size=50_257, window=256, thoughts_per_layer=8)
    shape = TrainingShape(batch=8, length=1024, heads=8)
    base = slow_step_memory(size, shape).peak
    assert slow_step_memory(size, replace(shape, batch=9)).peak > base
    assert slow_step_memory(size, replace(shape, autocast=True)).peak < base
    assert slow_step_memory(size, replace(shape, checkpointing=True)).peak < 0.6 * base


def test_meter_counts_a_storage_while_anything_holds_it():
    def run() -> None:
        a = torch.zeros(1000)
        b = a + 1  # two of 4000 bytes
        view = b[:10]
        del a, b
        c = view + 1  # the view holds all of its storage
        del view
        c.mul_(2)

    assert measured_peak(run) == 8000
    assert measured_peak(lambda: None, [torch.zeros(10), torch.zeros(5, dtype=torch.int64)]) == 80
    weight = torch.zeros(10)
    assert measured_peak(lambda: weight + 1, [weight, weight[:5]]) == 80
