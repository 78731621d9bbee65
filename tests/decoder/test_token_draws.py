"""Draws by the inverse distribution function against the probabilities themselves; rows that are dropped; weights."""

from __future__ import annotations

import pytest
import torch
from tiny_models import random_thoughts, tiny_decoder
from torch.utils._python_dispatch import TorchDispatchMode

from ltm_pyro.decoder import Sampling, decode
from ltm_pyro.decoder.sampling import TokenDraws

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.4),
    Sampling(temperature=2.0, top_k=3),
    Sampling(top_p=0.7),
    Sampling(temperature=1.5, top_k=20, top_p=0.95),
    Sampling(top_k=1),
    Sampling(top_p=1e-6),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=repr)
def test_evenly_spread_numbers_draw_each_token_as_often_as_its_probability(sampling: Sampling):
    logits = 2 * torch.randn(1, 40)
    count = 20_000
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = TokenDraws(sampling)(logits.expand(count, -1), uniforms)
    shares = drawn.bincount(minlength=40) / count
    # An interval of length p holds p · count numbers up to one; float32 rounds p itself.
    torch.testing.assert_close(shares, sampling.probabilities(logits)[0], atol=1.1 / count + 1e-6, rtol=0)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=repr)
def test_the_ends_of_the_unit_interval_draw_tokens_that_have_a_probability(sampling: Sampling):
    logits = torch.randn(2, 3000).masked_fill(torch.arange(3000) % 7 == 0, -torch.inf)
    logits[:, -5:] = logits[:, :5] = -torch.inf
    possible = sampling.probabilities(logits) > 0
    for number in (0.0, 1 - 2.0**-53):
        drawn = TokenDraws(sampling)(logits, torch.full((2,), number, dtype=torch.float64))
        assert bool(possible.gather(1, drawn[:, None]).all())


def test_a_nucleus_of_more_tokens_than_are_first_looked_at_is_whole():
    logits = 0.01 * torch.randn(1, 3000)
    sampling, count = Sampling(top_p=0.6), 6000
    drawn = TokenDraws(sampling)(logits.expand(count, -1), (torch.arange(count, dtype=torch.float64) + 0.5) / count)
    expected = sampling.probabilities(logits)[0]
    assert 1700 < int((expected > 0).sum()) < 1900
    torch.testing.assert_close(drawn.bincount(minlength=3000) / count, expected, atol=1.1 / count + 1e-6, rtol=0)


def test_a_draw_leaves_the_logits_and_depends_on_its_row_alone():
    logits, uniforms, draws = torch.randn(5, 30), torch.rand(5, dtype=torch.float64), TokenDraws(Sampling(top_k=9))
    before = logits.clone()
    together = draws(logits, uniforms)
    assert torch.equal(logits, before)
    assert together.tolist() == [int(draws(logits[i : i + 1], uniforms[i : i + 1])) for i in range(5)]


def test_rows_that_end_are_dropped_and_the_others_have_the_tokens_that_they_would_have_had():
    decoder, rows = tiny_decoder(window=3, max_length=8), 12
    sizes: list[int] = []
    step = decoder.step
    decoder.step = lambda inputs, cache: sizes.append(len(inputs)) or step(inputs, cache)
    lengths = torch.arange(rows) % 5 + 1
    inputs, uniforms = torch.randint(11, (rows, 5)), torch.rand(rows, 30, dtype=torch.float64)
    thoughts = random_thoughts(decoder, rows)
    free = decode(decoder, thoughts, inputs, lengths, 30, uniforms=uniforms).tokens
    assert set(sizes) == {rows}
    sizes.clear()
    stopped = decode(decoder, thoughts, inputs, lengths, 30, uniforms=uniforms, stop=4)
    for row, tokens, length in zip(free.tolist(), stopped.tokens.tolist(), stopped.lengths.tolist(), strict=True):
        end = row.index(4) if 4 in row else 30
        assert length == end
        assert tokens == row[:end] + [0] * (30 - end)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < rows / 2


def test_a_cache_for_few_tokens_is_small_and_gives_the_same_states():
    decoder = tiny_decoder(window=64)
    inputs, lengths, thoughts = torch.randint(11, (2, 5)), torch.tensor([5, 2]), random_thoughts(decoder, 2)
    with torch.no_grad():
        (_, small), (_, whole) = (decoder.prefill(inputs, lengths, thoughts, most) for most in (4, None))
        assert (small.slots.window, whole.slots.window) == (9, 64)
        for token in torch.randint(11, (4, 2)):
            torch.testing.assert_close(decoder.step(token, small), decoder.step(token, whole))


class Casts(TorchDispatchMode):
    """Counts copies of tensors of a shape into another type."""

    def __init__(self, shape: torch.Size):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is torch.ops.aten._to_copy.default and arguments[0].shape == self.shape:
            self.count += 1
        return function(*arguments, **(options or {}))


def test_a_weight_is_cast_once_for_all_tokens():
    decoder = tiny_decoder(vocab_size=37)
    inputs, lengths = torch.randint(37, (1, 1)), torch.ones(1, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16), Casts(decoder.embedding.weight.shape) as casts:
        decode(decoder, random_thoughts(decoder, 1), inputs, lengths, 12)
    assert casts.count == 1


def test_cached_states_in_bfloat16_are_those_of_the_whole_sequence_up_to_its_rounding():
    decoder = tiny_decoder(hidden=32, window=8, max_length=16)
    tokens, thoughts = torch.randint(11, (2, 20)), random_thoughts(decoder, 2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, cache = decoder.prefill(tokens[:, :4], torch.full((2,), 4), thoughts)
        states = [hidden, *(decoder.step(tokens[:, n], cache) for n in range(4, 20))]
        whole = decoder(decoder.stem(tokens), thoughts)[:, 3:]
    # Eight bits of every product of two layers.
    torch.testing.assert_close(torch.stack(states, 1).float(), whole.float(), atol=0.1, rtol=0.1)
