"""Steps through torch.compile: the same states, rows that end, and a machine without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import random_thoughts, tiny_decoder

from ltm_pyro.decoder import decode
from ltm_pyro.decoder.compiled import CompiledSteps


def arguments(decoder, device: str = "cpu"):
    inputs, lengths = torch.randint(11, (6, 5)), torch.arange(6) % 5 + 1
    uniforms = torch.rand(6, 20, dtype=torch.float64)
    given = (random_thoughts(decoder, 6), inputs, lengths)
    return (*(t.to(device) for t in given), 20), {"stop": 3, "uniforms": uniforms.to(device)}


def compiled_equals_eager(device: str) -> None:
    """In a process of its own: the shape checks of the tests cannot be compiled."""
    program = f"""
import torch
from test_compiled_steps import arguments
from tiny_models import tiny_decoder
from ltm_pyro.decoder import decode
from ltm_pyro.decoder.compiled import CompiledSteps
decoder = tiny_decoder(window=3, max_length=8)
given, options = arguments(decoder, {device!r})
decoder = decoder.to({device!r})
expected, found = decode(decoder, *given, **options), decode(compiled := CompiledSteps(decoder), *given, **options)
assert compiled._step != decoder.step, "fell back"
assert expected.lengths.min() < 20
assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.lengths, expected.lengths)
"""
    paths = [str(Path(__file__).parent), *sys.path]
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_steps_decode_the_same_tokens():
    compiled_equals_eager("cpu")


def test_without_a_compiler_decoding_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch):
    def compiled(function):
        def fails(*arguments):
            raise RuntimeError("no C++ compiler here\nand more")

        return fails

    monkeypatch.setattr(torch, "compile", compiled)
    decoder = tiny_decoder()
    given, options = arguments(decoder)
    with pytest.warns(UserWarning, match="goes on without it: no C\\+\\+ compiler here$"):
        found = decode(CompiledSteps(decoder), *given, **options)
    assert torch.equal(found.tokens, decode(decoder, *given, **options).tokens)


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_compiled_steps_decode_the_same_tokens_on_cuda():
    compiled_equals_eager("cuda")
