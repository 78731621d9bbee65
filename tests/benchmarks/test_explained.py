"""Shares of a thought's variance, against the analysis of variance by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.reproduce.explained import plan_explained, variance_explained
from ltm_pyro import FastSlowSVI, GaussianPrior, LatentThoughtModel, LocalNormal, ThoughtDecoder
from ltm_pyro.data import build_data
from ltm_pyro.data.fables import plan_of


def test_a_thought_that_repeats_a_value_is_explained_whole_and_one_that_ignores_it_hardly():
    torch.manual_seed(0)
    values = [str(place % 4) for place in range(400)]
    codes = torch.randn(4, 3)
    said = codes[[int(value) for value in values]]
    noise = torch.randn(2, 400, 3)
    half = said + noise[1] * codes.var(0, correction=0).sqrt()
    thoughts = torch.stack([said, noise[0], half], 1)
    shares = variance_explained(thoughts, values)
    assert shares[0] == pytest.approx(1)
    assert shares[1] < 0.03  # (4 - 1) / (400 - 1) of pure noise
    assert shares[2] == pytest.approx(0.5, abs=0.06)


def test_the_share_is_the_ratio_of_sums_of_squares():
    thoughts = torch.tensor([[[1.0]], [[3.0]], [[5.0]], [[11.0]]])
    # Means 2 and 8 about 5: 2 · 9 + 2 · 9 between, of 16 + 4 + 0 + 36 in all.
    assert variance_explained(thoughts, ["a", "a", "b", "b"]).item() == pytest.approx(36 / 56)


def test_a_thought_that_never_moves_says_nothing():
    assert variance_explained(torch.ones(6, 1, 2), ["a", "b", None] * 2).item() == 0


def test_the_thought_that_holds_a_variable_is_found_with_it(tmp_path, monkeypatch):
    data = build_data(documents=400, validation_fraction=0.5, sequence_length=900, vocab_size=400, cache_dir=tmp_path)
    codes: dict[str, torch.Tensor] = {}

    def infer(batch, **how):
        """Two layers of two thoughts, of which the second of the second layer is the name alone."""
        means = torch.randn(len(batch), 2, 2, 8)
        for place, (tokens, length) in enumerate(zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)):
            name = plan_of(data.tokenizer.decode(tokens[: length - 1]))["name"]
            means[place, 1, 1] = codes.setdefault(name, torch.randn(8))
        return SimpleNamespace(mean=means, sample=lambda draws, purpose: means.expand(draws, *means.shape))

    torch.manual_seed(0)
    decoder = ThoughtDecoder(vocab_size=400, layers=2, hidden=16, heads=2, thoughts_per_layer=2, thought_width=8)
    model = LatentThoughtModel(decoder, GaussianPrior(decoder.thought_shape))
    svi = FastSlowSVI(model, LocalNormal(model))
    monkeypatch.setattr(svi, "infer", infer)
    run = SimpleNamespace(svi=svi, fast_lr=None, device="cpu")
    found = plan_explained(run, data, texts=1000, fast_steps=1)
    assert found["name"]["thought"] == 3
    assert found["name"]["share"] == pytest.approx(1)
    assert found["name"]["share"] > found["name"]["shuffled"]
    assert all(about["share"] < 0.999 for variable, about in found.items() if variable != "name")
