"""Generation: thoughts from the prior or the prompt's posterior, stop tokens, seeds, length."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model

import ltm_pyro.decoder.prompts
from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder import Sampling
from ltm_pyro.errors import LTMError
from ltm_pyro.generate import generate
from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI

GREEDY = Sampling(temperature=0)


@pytest.fixture
def svi() -> FastSlowSVI:
    model = tiny_model()
    return FastSlowSVI(model, LocalNormal(model, init_log_var=-2.0), fast=FastConfig(steps=6, lr=0.3))


@pytest.fixture
def thoughts(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The thoughts of every decoding."""
    seen: list[torch.Tensor] = []
    real = ltm_pyro.decoder.prompts.decode

    def spy(decoder, z, *arguments, **options):
        seen.append(z)
        return real(decoder, z, *arguments, **options)

    monkeypatch.setattr(ltm_pyro.decoder.prompts, "decode", spy)
    return seen


def test_every_text_has_as_many_tokens_as_asked_for(svi: FastSlowSVI):
    texts = generate(svi, start=0, num=3, max_tokens=7)
    assert [len(text) for text in texts] == [7, 7, 7]
    assert all(0 <= token < 11 for text in texts for token in text)


def test_every_text_has_thoughts_of_its_own(svi: FastSlowSVI, thoughts: list[torch.Tensor]):
    for prompt in ([], [1, 2, 3]):
        generate(svi, start=0, prompt=prompt, num=4, max_tokens=2)
        flat = thoughts[-1].flatten(1)
        assert len(flat) == 4
        assert torch.pdist(flat).min() > 1e-3


def test_without_a_prompt_thoughts_are_standard_normal(svi: FastSlowSVI, thoughts: list[torch.Tensor]):
    generate(svi, start=0, num=400, max_tokens=1)
    z = thoughts[0]
    # 400 · 32 draws: the mean is known to 1/√12800 = 0.009, the variance to 0.0125; four of each.
    assert abs(float(z.mean())) < 0.036
    assert float(z.var()) == pytest.approx(1, abs=0.05)


def test_a_prompts_thoughts_are_draws_of_its_posterior(svi: FastSlowSVI, thoughts: list[torch.Tensor]):
    prompt = [3, 1, 4, 1, 5]
    generate(svi, start=0, prompt=prompt, num=300, max_tokens=1, seed=2, fast_steps=30)
    posterior = svi.infer(TokenBatch.from_lists([prompt], 0), steps=30, seed=2)
    mean, drawn = posterior.mean[0], thoughts[0]
    deviation = drawn.std(0)
    # 300 draws know each mean to σ/√300; five of these for 32 entries.
    assert bool(((drawn.mean(0) - mean).abs() < 5 * deviation / 300**0.5).all())
    assert drawn.mean(0).abs().max() > 0.3  # draws of the prior would have means within 5/√300 = 0.29


def test_the_fast_steps_and_rate_given_are_those_used(svi: FastSlowSVI, thoughts: list[torch.Tensor]):
    options = {"start": 0, "prompt": [1, 2, 3], "max_tokens": 1, "seed": 0}
    for more in ({}, {"fast_steps": 6, "fast_lr": 0.3}, {"fast_steps": 1}, {"fast_lr": 0.01}):
        generate(svi, **options, **more)
    assert torch.equal(thoughts[0], thoughts[1])  # the configured ones
    assert not torch.allclose(thoughts[0], thoughts[2])
    assert not torch.allclose(thoughts[0], thoughts[3])


def test_the_continuation_follows_the_prompt(svi: FastSlowSVI, thoughts: list[torch.Tensor]):
    prompt = [3, 1, 4, 1]
    (text,) = generate(svi, start=0, prompt=prompt, max_tokens=4, sampling=GREEDY, seed=1)
    z = thoughts[0]
    for n in range(4):  # each token is the most probable after start, prompt and the tokens before it
        inputs = torch.tensor([[0, *prompt, *text[:n]]])
        decoder = svi.model.decoder
        hidden = decoder(decoder.stem(inputs), z)[:, -1]
        assert int(decoder.logits(hidden).argmax()) == text[n]


def test_the_same_seed_gives_the_same_texts_and_another_gives_others(svi: FastSlowSVI):
    for prompt in ([], [1, 2, 3, 4]):
        options = {"start": 0, "prompt": prompt, "num": 3, "max_tokens": 8}
        first = generate(svi, **options, seed=4)
        torch.manual_seed(99)
        assert generate(svi, **options, seed=4) == first
        assert generate(svi, **options, seed=5) != first


def test_greedy_texts_of_one_prompt_depend_on_the_seed_through_z_alone(svi: FastSlowSVI, thoughts: list[torch.Tensor]):
    first = generate(svi, start=0, num=2, max_tokens=6, sampling=GREEDY, seed=1)
    assert generate(svi, start=0, num=2, max_tokens=6, sampling=GREEDY, seed=1) == first
    assert torch.equal(thoughts[0], thoughts[1])


def test_a_text_ends_before_the_stop_token(svi: FastSlowSVI):
    free = generate(svi, start=0, num=20, max_tokens=10, seed=0)
    stopped = generate(svi, start=0, num=20, max_tokens=10, seed=0, stop=5)
    assert any(5 in text for text in free)
    for long, short in zip(free, stopped, strict=True):
        cut = long.index(5) if 5 in long else 10
        assert short == long[:cut]


def test_texts_go_on_past_the_training_length(svi: FastSlowSVI):
    assert svi.model.decoder.max_length == 12
    texts = generate(svi, start=0, prompt=[1] * 10, num=2, max_tokens=40)
    assert [len(text) for text in texts] == [40, 40]


def test_a_prompt_of_the_training_length_is_taken_and_a_longer_one_refused(svi: FastSlowSVI):
    assert len(generate(svi, start=0, prompt=[1] * 12, max_tokens=3)[0]) == 3
    with pytest.raises(LTMError, match="the prompt has 13 tokens but the model was trained on at most 12: shorten it"):
        generate(svi, start=0, prompt=[1] * 13)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num": 0}, "must be 1 or more, got 0 and 256"),
        ({"max_tokens": 0}, "must be 1 or more, got 1 and 0"),
        ({"seed": -1}, "seed must lie in 0 … 4294967295, got -1"),
        ({"seed": 2**32}, "seed must lie in"),
    ],
)
def test_numbers_out_of_range_are_refused(svi: FastSlowSVI, options: dict, words: str):
    with pytest.raises(LTMError, match=words):
        generate(svi, start=0, **options)


def test_the_greatest_seed_is_taken(svi: FastSlowSVI):
    assert generate(svi, start=0, prompt=[1, 2], max_tokens=2, seed=2**32 - 1)
