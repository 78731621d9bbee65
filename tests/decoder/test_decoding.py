"""Cached decoding against recomputation of the whole sequence at every token."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import random_thoughts, tiny_decoder

from ltm_pyro.decoder import Sampling, decode
from ltm_pyro.errors import LTMError

ATOL = 1e-5  # float32 rounding: cached and recomputed attention sum in different orders


def recomputed(decoder, prefix: list[int], thoughts: torch.Tensor) -> torch.Tensor:
    """Hidden state of the last token of one unpadded sequence, everything computed anew."""
    with torch.no_grad():
        return decoder(decoder.stem(torch.tensor([prefix])), thoughts[None])[0, -1]


def padded(prompts: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(p) for p in prompts)
    rows = [p + [pad] * (width - len(p)) for p in prompts]
    return torch.tensor(rows), torch.tensor([len(p) for p in prompts])


@pytest.mark.parametrize("addresses", [False, True])
@pytest.mark.parametrize("window", [1, 4, 64])
@pytest.mark.parametrize("layers", [1, 3])
def test_cached_hidden_states_equal_recomputed_ones(window, layers, addresses):
    # 9 + 8 tokens pass the window of 4, wrap its ring buffer twice, and pass max_length.
    decoder = tiny_decoder(layers=layers, window=window, max_length=12, thought_addresses=addresses)
    prompts = [torch.randint(11, (n,)).tolist() for n in (1, 3, 4, 5, 9)]
    thoughts = random_thoughts(decoder, len(prompts))
    inputs, lengths = padded(prompts, pad=7)
    met = []
    with torch.no_grad():
        hidden, cache = decoder.prefill(inputs, lengths, thoughts)
        for token in torch.randint(11, (8, len(prompts))):
            met.append(hidden)
            for prompt, t in zip(prompts, token.tolist(), strict=True):
                prompt.append(t)
            hidden = decoder.step(token, cache)
        met.append(hidden)
        for b, prompt in enumerate(prompts):
            whole = decoder(decoder.stem(torch.tensor([prompt])), thoughts[b : b + 1])[0]
            cached = torch.stack([hidden[b] for hidden in met])
            torch.testing.assert_close(cached, whole[-9:], atol=ATOL, rtol=ATOL)


def test_the_cache_never_grows_beyond_the_window():
    decoder = tiny_decoder(window=4)
    with torch.no_grad():
        _, cache = decoder.prefill(torch.randint(11, (2, 9)), torch.tensor([9, 2]), random_thoughts(decoder, 2))
        for _ in range(6):
            decoder.step(torch.randint(11, (2,)), cache)
            assert cache.slots.positions.shape == (2, 4)
    assert cache.slots.positions.sort(-1).values.tolist() == [[11, 12, 13, 14], [4, 5, 6, 7]]


def test_greedy_decoding_equals_greedy_recomputation():
    decoder = tiny_decoder(window=3, max_length=8)
    prompts = [torch.randint(11, (n,)).tolist() for n in (1, 2, 6)]
    thoughts = random_thoughts(decoder, 3)
    inputs, lengths = padded(prompts, pad=0)
    drawn = decode(decoder, thoughts, inputs, lengths, 10, sampling=Sampling(temperature=0.0))
    for b, prompt in enumerate(prompts):
        text = list(prompt)
        for _ in range(10):
            text.append(int(decoder.logits(recomputed(decoder, text, thoughts[b])).argmax()))
        assert drawn.tokens[b].tolist() == text[len(prompt) :]
    assert drawn.lengths.tolist() == [10, 10, 10]


def test_a_stop_token_ends_its_row_alone_and_is_not_counted():
    decoder = tiny_decoder()
    inputs, lengths = torch.randint(11, (4, 3)), torch.full((4,), 3)
    thoughts = random_thoughts(decoder, 4)
    free = decode(decoder, thoughts, inputs, lengths, 8, sampling=Sampling(temperature=0.0)).tokens
    stop = int(free[0, 3])
    stopped = decode(decoder, thoughts, inputs, lengths, 8, sampling=Sampling(temperature=0.0), stop=stop)
    ends = []
    for b in range(4):
        row = free[b].tolist()
        end = row.index(stop) if stop in row else 8
        ends.append(end)
        assert stopped.tokens[b].tolist() == row[:end] + [0] * (8 - end)
    assert stopped.lengths.tolist() == ends
    assert ends[0] <= 3


def test_the_numbers_given_settle_the_draws_and_the_global_stream_does_where_there_are_none():
    decoder = tiny_decoder()
    arguments = (decoder, random_thoughts(decoder, 2), torch.zeros(2, 1, dtype=torch.int64), torch.ones(2).long(), 12)
    numbers = [torch.rand(2, 12, dtype=torch.float64) for _ in range(2)]
    a, b, c = (decode(*arguments, uniforms=numbers[i]).tokens for i in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(decode(*arguments).tokens)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_greedy_decoding_leaves_the_global_stream_where_it_is():
    decoder = tiny_decoder()
    before = torch.get_rng_state()
    inputs, lengths = torch.randint(11, (2, 3), generator=torch.Generator().manual_seed(0)), torch.full((2,), 3)
    decode(decoder, random_thoughts(decoder, 2), inputs, lengths, 4, sampling=Sampling(temperature=0))
    assert torch.equal(torch.get_rng_state(), before)


def reference_probabilities(logits: list[float], sampling: Sampling) -> list[float]:
    if sampling.temperature == 0:
        best = max(range(len(logits)), key=lambda i: logits[i])
        return [float(i == best) for i in range(len(logits))]
    weights = [math.exp(x / sampling.temperature) for x in logits]
    ranked = sorted(range(len(logits)), key=lambda i: -weights[i])
    if sampling.top_k is not None:
        ranked = ranked[: sampling.top_k]
    if sampling.top_p is not None:
        mass, kept = 0.0, []
        total = sum(weights[i] for i in ranked)
        for i in ranked:
            if mass >= sampling.top_p:
                break
            kept.append(i)
            mass += weights[i] / total
        ranked = kept
    total = sum(weights[i] for i in ranked)
    return [weights[i] / total if i in ranked else 0.0 for i in range(len(logits))]


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 4, 100])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.8, 1.0])
def test_sampling_probabilities_equal_a_written_out_reference(temperature, top_k, top_p):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = 2 * torch.randn(5, 9)
    expected = torch.tensor([reference_probabilities(row, sampling) for row in logits.tolist()])
    actual = sampling.probabilities(logits)
    assert torch.equal(actual > 0, expected > 0)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)  # float32 softmax


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_k": -3},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
    ],
)
def test_sampling_values_out_of_range_are_refused(bad):
    with pytest.raises(LTMError, match=r"temperature|top-k|top-p"):
        Sampling(**bad)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cached_decoding_on_cuda_equals_that_on_cpu():
    decoder = tiny_decoder(window=3, max_length=8)
    inputs, lengths = torch.randint(11, (3, 5)), torch.tensor([1, 5, 3])
    thoughts = random_thoughts(decoder, 3)
    greedy = Sampling(temperature=0.0)
    on_cpu = decode(decoder, thoughts, inputs, lengths, 12, sampling=greedy).tokens
    arguments = (decoder.cuda(), thoughts.cuda(), inputs.cuda(), lengths.cuda(), 12)
    assert torch.equal(decode(*arguments, sampling=greedy).tokens.cpu(), on_cpu)


def test_a_temperature_close_to_zero_takes_the_most_probable_token():
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.5, -1.0, -2.0]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(Sampling(temperature=1e-39).probabilities(logits), expected)
