"""Many prompts at once: the texts of each are those that it has alone, whatever shares its batch."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from tiny_models import tiny_model

import ltm_pyro.decoder.prompts as prompts_module
from ltm_pyro.baselines import BASELINES, TransformerShape
from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder import Sampling
from ltm_pyro.errors import LTMError
from ltm_pyro.generate import generate, generate_batch
from ltm_pyro.guides import LocalNormal
from ltm_pyro.infer import FastConfig, FastSlowSVI
from ltm_pyro.language_model import LanguageModel, ThoughtLanguageModel
from ltm_pyro.priors import MixturePrior

PROMPTS = [[3, 1, 4, 1, 5], [2], [], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7], [2, 7]]


@pytest.fixture
def svi() -> FastSlowSVI:
    model = tiny_model()
    return FastSlowSVI(model, LocalNormal(model, init_log_var=-2.0), fast=FastConfig(steps=4, lr=0.3))


def baseline(kind: str) -> LanguageModel:
    sizes = {"vocab_size": 11, "layers": 2, "hidden": 8, "heads": 2, "feed_forward": 16, "window": 4, "max_length": 16}
    model = BASELINES[kind](TransformerShape(**sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


@pytest.mark.parametrize("kind", ["ltm", "ar", "mdlm"])
def test_texts_of_a_prompt_are_those_that_it_has_alone_and_in_any_order(svi: FastSlowSVI, kind: str):
    model = ThoughtLanguageModel(svi) if kind == "ltm" else baseline(kind)
    options = {"start": 0, "num": 3, "max_tokens": 4, "seed": 5}
    together = model.generate_batch(PROMPTS, **options)
    assert together == [model.generate(prompt=prompt, **options) for prompt in PROMPTS]
    assert model.generate_batch(PROMPTS[::-1], **options) == together[::-1]
    assert [[len(text) for text in texts] for texts in together] == [[4, 4, 4]] * 5


def test_parts_and_chunks_of_rows_change_no_text(svi: FastSlowSVI, monkeypatch: pytest.MonkeyPatch):
    whole = generate_batch(svi, PROMPTS, start=0, num=3, max_tokens=9)
    monkeypatch.setattr(prompts_module, "_PART_TOKENS", 4)
    monkeypatch.setattr(prompts_module, "_DECODING_BYTES", 1)  # one row at a time
    assert generate_batch(svi, PROMPTS, start=0, num=3, max_tokens=9) == whole


def test_first_texts_and_first_tokens_do_not_depend_on_how_many_are_asked_for(svi: FastSlowSVI):
    for prompt in PROMPTS:
        many = generate(svi, start=0, prompt=prompt, num=6, max_tokens=9)
        few = generate(svi, start=0, prompt=prompt, num=2, max_tokens=5)
        assert few == [text[:5] for text in many[:2]]


def test_equal_prompts_have_the_texts_of_one_that_is_asked_for_all(svi: FastSlowSVI):
    first, other, second = generate_batch(svi, [[2, 7], [3], [2, 7]], start=0, num=2, max_tokens=6)
    assert first + second == generate(svi, start=0, prompt=[2, 7], num=4, max_tokens=6)
    assert len({tuple(text) for text in first + second}) == 4
    assert other == generate(svi, start=0, prompt=[3], num=2, max_tokens=6)


def test_each_prompt_may_have_a_start_token_of_its_own(svi: FastSlowSVI):
    texts = generate_batch(svi, [[2, 7], [2, 7], []], start=[1, 4, 1], max_tokens=8)
    assert texts == [generate(svi, start=s, prompt=p, max_tokens=8) for s, p in ((1, [2, 7]), (4, [2, 7]), (1, []))]
    assert texts[0] != texts[1]
    with pytest.raises(LTMError, match="2 prompts need one start token for each, got 1"):
        generate_batch(svi, [[1], [2]], start=[0])


def test_all_prompts_are_fitted_in_one_inference_and_each_once(svi: FastSlowSVI, monkeypatch: pytest.MonkeyPatch):
    fitted: list[TokenBatch] = []
    real = svi.infer
    monkeypatch.setattr(svi, "infer", lambda batch, **options: fitted.append(batch) or real(batch, **options))
    generate_batch(svi, [*PROMPTS, [2]], start=0, num=2, max_tokens=2)
    (batch,) = fitted
    assert [batch.tokens[i, :n].tolist() for i, n in enumerate(batch.lengths)] == sorted(filter(None, PROMPTS), key=len)


def test_the_global_stream_goes_on_as_if_nothing_had_been_drawn(svi: FastSlowSVI):
    before = torch.get_rng_state()
    generate_batch(svi, PROMPTS, start=0, max_tokens=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_tokens_have_the_models_distribution_whatever_the_prompts(svi: FastSlowSVI, monkeypatch: pytest.MonkeyPatch):
    # With thoughts that change nothing, every first token comes from one distribution.
    for block in svi.model.decoder.blocks:
        torch.nn.init.zeros_(block.cross_attention.out.weight)
    sampling = Sampling(temperature=1.3, top_k=8, top_p=0.9)
    texts = generate_batch(svi, [[2], [3, 1]], start=0, num=4000, max_tokens=1, sampling=sampling, fast_steps=0)
    decoder = svi.model.decoder
    for prompt, drawn in zip(([2], [3, 1]), texts, strict=True):
        with torch.no_grad():
            hidden = decoder(decoder.stem(torch.tensor([[0, *prompt]])), torch.zeros(1, *decoder.thought_shape))[:, -1]
            expected = sampling.probabilities(decoder.logits(hidden))[0]
        seen = torch.tensor(drawn)[:, 0].bincount(minlength=11) / 4000
        assert bool((seen[expected == 0] == 0).all())
        # Five standard errors of each share.
        assert bool(((seen - expected).abs() <= 5 * (expected * (1 - expected) / 4000).sqrt()).all())


def test_a_text_ends_where_it_is_said_to_have_ended_and_others_go_on(svi: FastSlowSVI):
    free = generate_batch(svi, PROMPTS, start=0, num=4, max_tokens=40)
    asked: list[list[int]] = []

    def ended(tokens):
        asked.append(list(tokens))
        return 5 in tokens[:20]

    found = generate_batch(svi, PROMPTS, start=0, num=4, max_tokens=40, ended=ended)
    assert {len(tokens) for tokens in asked} == {16, 32}
    for long, short in zip(chain(*free), chain(*found), strict=True):
        end = 16 if 5 in long[:16] else 32 if 5 in long[:20] else 40
        assert short == long[:end]


def test_progress_counts_texts(svi: FastSlowSVI):
    told: list[int] = []
    generate_batch(svi, PROMPTS, start=0, num=2, max_tokens=1, progress=told.append)
    assert told == [2, 10]  # the prompt without tokens apart from the others


def test_prompts_are_refused_together_and_none_is_fine(svi: FastSlowSVI):
    assert generate_batch(svi, [], start=0) == []
    with pytest.raises(LTMError, match="the prompt has 13 tokens"):
        generate_batch(svi, [[1], [1] * 13], start=0)


def test_texts_of_a_prior_with_other_noise_are_the_seeds():
    model = tiny_model()
    model.prior = MixturePrior(model.decoder.thought_shape, components=3)
    svi = FastSlowSVI(model, LocalNormal(model), fast=FastConfig(steps=2))
    assert generate(svi, start=0, num=5, max_tokens=6, seed=1) == generate(svi, start=0, num=5, max_tokens=6, seed=1)


@pytest.mark.parametrize("kind", ["ltm", "ar", "mdlm"])
def test_texts_drawn_in_shares_are_those_drawn_at_once(svi: FastSlowSVI, kind: str):
    model = ThoughtLanguageModel(svi) if kind == "ltm" else baseline(kind)
    options: dict[str, Any] = {"start": 0, "max_tokens": 5, "seed": 3}
    whole = model.generate_batch(PROMPTS[:3], num=5, **options)
    shares = [model.generate_batch(PROMPTS[:3], num=2, first=first, **options) for first in (0, 2, 4)]
    for place, texts in enumerate(whole):
        assert [text for share in shares for text in share[place]][:5] == texts
        assert len({tuple(text) for text in texts}) > 1
    with pytest.raises(LTMError, match="number of the first text must be 0 or more, got -1"):
        model.generate_batch(PROMPTS, first=-1, **options)
