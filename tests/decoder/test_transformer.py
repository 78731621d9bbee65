"""The decoder against its equations written as loops, and what a token may and may not see."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from slow_reference import next_token_log_probs
from tiny_models import ragged_batch, random_thoughts, tiny_decoder

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder import ThoughtDecoder
from ltm_pyro.likelihood import TokenSequence

ATOL = 1e-5  # float32 rounding through two layers, against a reference in double


def random_scored(batch: TokenBatch, seed: int) -> TokenBatch:
    scored = torch.rand(batch.tokens.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    return TokenBatch(batch.tokens, batch.lengths, batch.start, scored)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 10), min_size=1, max_size=3),
    layers=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    per_layer=st.integers(1, 3),
    width=st.sampled_from([None, 3, 8, 12]),
    window=st.sampled_from([1, 2, 5, 10, 64]),
    max_length=st.integers(9, 24),
    padding=st.integers(0, 3),
    masked=st.booleans(),
    addresses=st.booleans(),
    seed=st.integers(0, 5),
)
@example([10, 7, 3], 2, 2, 2, 5, 3, 4, 2, True, False, 0)  # beyond the window and beyond max_length
@example([10, 7, 3], 2, 2, 3, 5, 3, 4, 2, True, True, 0)
@example([10, 0], 2, 1, 1, None, 10, 11, 0, False, False, 1)  # a window of exactly N tokens, an empty sequence
def test_token_log_probabilities_equal_the_written_out_equations(
    lengths, layers, heads, per_layer, width, window, max_length, padding, masked, addresses, seed
):
    decoder = tiny_decoder(
        seed=seed,
        layers=layers,
        heads=heads,
        thoughts_per_layer=per_layer,
        thought_width=width,
        window=window,
        max_length=max_length,
        thought_addresses=addresses,
    )
    batch = ragged_batch(*lengths, seed=seed)
    tokens = torch.nn.functional.pad(batch.tokens, (0, padding), value=7)
    batch = TokenBatch(tokens, batch.lengths, batch.start)
    if masked:
        batch = random_scored(batch, seed)
    thoughts = random_thoughts(decoder, len(lengths), seed=seed)

    expected = torch.zeros(tokens.shape, dtype=torch.float64)
    for b, length in enumerate(lengths):
        real = tokens[b, :length].tolist()
        if not real:
            continue
        log_probs = next_token_log_probs(decoder, [int(batch.start[b]), *real[:-1]], thoughts[b])
        for n, token in enumerate(real):
            if batch.scored is None or batch.scored[b, n]:
                expected[b, n] = log_probs[n, token]

    likelihood = TokenSequence(decoder, thoughts, batch)
    actual = likelihood.token_log_prob(tokens)
    torch.testing.assert_close(actual.double(), expected, atol=ATOL, rtol=ATOL)
    # One more factor of N for the sum over tokens.
    torch.testing.assert_close(likelihood.log_prob(tokens).double(), expected.sum(-1), atol=10 * ATOL, rtol=ATOL)


def final_hidden(decoder: ThoughtDecoder, inputs: torch.Tensor, thoughts: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return decoder(decoder.stem(inputs), thoughts)


def test_thoughts_stand_every_max_length_over_number_of_thoughts_tokens():
    # Spacing floor(max_length / 4) is 2 for 8 and 9, and 3 for 12.
    decoders = {m: tiny_decoder(max_length=m) for m in (8, 9, 12)}
    inputs, thoughts = torch.randint(11, (1, 8)), random_thoughts(decoders[8], 1)
    hidden = {m: final_hidden(d, inputs, thoughts) for m, d in decoders.items()}
    torch.testing.assert_close(hidden[8], hidden[9], rtol=0, atol=0)
    assert not torch.allclose(hidden[8], hidden[12], atol=1e-3)


def test_cross_attention_queries_beyond_max_length_stand_at_the_last_trained_position():
    # Same spacing, clamped at 7 and at 8: equal up to position 7, different after.
    short, long = tiny_decoder(max_length=8), tiny_decoder(max_length=9)
    inputs, thoughts = torch.randint(11, (1, 12)), random_thoughts(short, 1)
    a, b = final_hidden(short, inputs, thoughts), final_hidden(long, inputs, thoughts)
    torch.testing.assert_close(a[:, :8], b[:, :8], rtol=0, atol=0)
    assert ((a - b)[0, 8:].abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("window", [1, 3, 11, 20])
def test_a_token_sees_neither_the_future_nor_beyond_its_window(layers, window):
    decoder = tiny_decoder(layers=layers, window=window, max_length=24)
    inputs, thoughts = torch.randint(11, (1, 12)), random_thoughts(decoder, 1)
    before = final_hidden(decoder, inputs, thoughts)
    for j in (0, 4, 11):
        changed = inputs.clone()
        changed[0, j] = (changed[0, j] + 1) % 11
        moved = (final_hidden(decoder, changed, thoughts) - before)[0].abs().amax(-1)
        # A window of W tokens reaches W - 1 back in each layer.
        reach = min(j + layers * (window - 1), 11)
        # A masked key has weight exactly 0, but the products may be blocked differently: a few ulp.
        assert (moved[:j] < 1e-6).all()
        assert (moved[reach + 1 :] < 1e-6).all()
        assert (moved[[j, reach]] > 1e-5).all()


def test_every_layer_reads_its_own_thoughts():
    decoder = tiny_decoder(layers=3)
    inputs, thoughts = torch.randint(11, (1, 6)), random_thoughts(decoder, 1)
    before = final_hidden(decoder, inputs, thoughts)
    for layer in range(3):
        changed = thoughts.clone()
        changed[0, layer, 0] += 1
        assert (final_hidden(decoder, inputs, changed) - before).abs().max() > 1e-3


def test_the_stem_does_not_depend_on_thoughts_and_expands_particle_by_particle():
    decoder = tiny_decoder()
    inputs, thoughts = torch.randint(11, (2, 5)), random_thoughts(decoder, 3, 2)
    together = decoder(decoder.stem(inputs).expand(3), thoughts.flatten(0, 1))
    for s in range(3):
        # The same products in smaller blocks.
        torch.testing.assert_close(together[2 * s : 2 * s + 2], decoder(decoder.stem(inputs), thoughts[s]))


@pytest.mark.parametrize(("layers", "millions"), [(3, 38.4), (6, 51.0), (12, 76.3)])
def test_parameter_counts_are_those_of_the_paper(layers, millions):
    with torch.device("meta"):
        decoder = ThoughtDecoder(vocab_size=50_257, layers=layers, hidden=512, heads=8, thoughts_per_layer=24 // layers)
    total = sum(p.numel() for p in decoder.parameters())
    assert round(total / 1e6, 1) == millions


def test_initial_weights_have_the_stated_standard_deviations():
    decoder = ThoughtDecoder(vocab_size=500, layers=3, hidden=64, heads=4, thoughts_per_layer=2)
    residual = 0
    for name, parameter in decoder.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == 1).all(), name
            continue
        writes_residual = name.endswith(("out.weight", "down.weight"))
        residual += writes_residual
        expected = 0.02 / math.sqrt(6) if writes_residual else 0.02
        # Five standard errors of a standard deviation from n draws, 1 / sqrt(2 n) each.
        bound = 5 / math.sqrt(2 * parameter.numel())
        assert abs(parameter.std().item() / expected - 1) < bound, name
        assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel()), name
    assert residual == 9


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_log_probabilities_on_cuda_equal_those_on_cpu():
    decoder = tiny_decoder()
    batch, thoughts = ragged_batch(9, 4, 0), random_thoughts(decoder, 3)
    on_cpu = TokenSequence(decoder, thoughts, batch).token_log_prob(batch.tokens)
    batch, thoughts, decoder = batch.to("cuda"), thoughts.cuda(), decoder.cuda()
    on_cuda = TokenSequence(decoder, thoughts, batch).token_log_prob(batch.tokens)
    # Kernels sum in another order: float32 rounding through two layers.
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, atol=1e-4, rtol=1e-4)


def test_a_decoder_whose_cross_attention_starts_at_zero_reads_no_thoughts_until_it_learns_to():
    torch.manual_seed(0)
    shape = {"vocab_size": 11, "layers": 2, "hidden": 16, "heads": 2, "thoughts_per_layer": 2, "thought_width": 4}
    decoder = ThoughtDecoder(**shape, thought_gain=0)
    inputs = torch.tensor([[1, 2, 3, 4]])
    hidden = [decoder(decoder.stem(inputs), torch.randn(1, 2, 2, 4)) for _ in range(2)]
    torch.testing.assert_close(hidden[0], hidden[1])
    hidden[0].square().sum().backward()
    assert all(float(block.cross_attention.out.weight.grad.abs().max()) > 0 for block in decoder.blocks)
    torch.manual_seed(0)
    other = ThoughtDecoder(**shape)  # all else is drawn alike
    torch.testing.assert_close(other.embedding.weight, decoder.embedding.weight)


def test_the_gain_is_what_one_thought_adds_to_the_residual_stream_at_first():
    torch.manual_seed(0)
    decoder = ThoughtDecoder(
        vocab_size=11, layers=1, hidden=256, heads=2, thoughts_per_layer=1, thought_width=64, thought_gain=0.25
    )
    attention = decoder.blocks[0].cross_attention
    thoughts = torch.randn(400, 64)
    added = attention.out(attention.value(thoughts))
    # 400 thoughts of 64 entries through random maps: five standard errors of what 64 · 256 weights vary by are 0.03.
    assert abs(float(added.detach().std()) / 0.25 - 1) < 0.05


def test_thoughts_with_addresses_are_read_alike_wherever_the_token_stands():
    """One token, windows of one: with addresses all that a position could enter by is gone."""
    decoder = tiny_decoder(window=1, thought_addresses=True)
    thoughts = random_thoughts(decoder, 1)
    hidden = decoder(decoder.stem(torch.full((1, 9), 3)), thoughts)
    torch.testing.assert_close(hidden, hidden[:, :1].expand_as(hidden), atol=1e-6, rtol=1e-5)
    rotated = tiny_decoder(window=1)
    hidden = rotated(rotated.stem(torch.full((1, 9), 3)), thoughts)
    assert float((hidden - hidden[:, :1]).detach().abs().max()) > 1e-3


def test_equal_thoughts_are_told_apart_by_their_addresses_alone():
    decoder = tiny_decoder(layers=1, thoughts_per_layer=2, thought_addresses=True)
    thoughts = random_thoughts(decoder, 1)
    inputs = torch.tensor([[1, 2, 3]])
    swapped = [decoder(decoder.stem(inputs), z) for z in (thoughts, thoughts.flip(2))]
    assert float((swapped[0] - swapped[1]).detach().abs().max()) > 1e-3
    with torch.no_grad():
        decoder.blocks[0].cross_attention.address.zero_()
    swapped = [decoder(decoder.stem(inputs), z) for z in (thoughts, thoughts.flip(2))]
    torch.testing.assert_close(*swapped, atol=1e-6, rtol=1e-5)
