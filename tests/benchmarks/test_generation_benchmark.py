"""The benchmark `generation`: its count of bytes, and a run of seconds."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_decoder

from benchmarks import generation


def test_bytes_of_a_step_are_those_of_the_tensors_that_it_reads():
    decoder = tiny_decoder(window=4)
    with torch.no_grad():
        _, cache = decoder.prefill(torch.randint(11, (1, 6)), torch.tensor([6]), torch.zeros(1, *decoder.thought_shape))
    kept = [t for layer in cache.layers for t in layer._kv] + [t for pair in cache.memory for t in pair]
    assert generation.cache_numbers(decoder) == sum(t.numel() for t in kept)
    unread = sum(
        2 * block.cross_attention.key.weight.numel() for block in decoder.blocks
    )  # the thoughts' keys and values
    assert generation.step_weights(decoder) == sum(p.numel() for p in decoder.parameters()) - unread


def test_without_a_cache_the_draws_are_the_same():
    decoder = tiny_decoder(window=4)
    options = SimpleNamespace(device="cpu", tokens=20, every=1, presets=["tiny"])
    row = generation.compare_cache(decoder, 3, options)
    assert row["equal_draws"] == row["draws"] == 60


def test_smoke_run_prints_all_three_measurements(capsys: pytest.CaptureFixture[str]):
    threads = torch.get_num_threads()
    generation.main(["--smoke"])
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert len(re.findall(r"tokens/s  floor", out)) == 4
    assert len(re.findall(r"(\d+) of \1 draws equal", out)) == 2
    assert "in the first eighth" in out
