"""Tiny decoders, programs and batches that the tests share."""

from __future__ import annotations

import math
from typing import Any

import torch

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder import ThoughtDecoder
from ltm_pyro.model import LatentThoughtModel
from ltm_pyro.priors import GaussianPrior

SETTINGS: dict[str, Any] = {
    "vocab_size": 11,
    "layers": 2,
    "hidden": 8,
    "heads": 2,
    "thoughts_per_layer": 2,
    "window": 4,
    "max_length": 12,
}


def tiny_decoder(*, seed: int = 0, **settings: Any) -> ThoughtDecoder:
    """A decoder with random weights of the size of trained ones, so that every token and thought matters."""
    decoder = ThoughtDecoder(**(SETTINGS | settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
    return decoder


def tiny_model(**settings: Any) -> LatentThoughtModel:
    """The paper's program over a tiny decoder."""
    decoder = tiny_decoder(**settings)
    return LatentThoughtModel(decoder, GaussianPrior(decoder.thought_shape))


def ragged_batch(*lengths: int, vocab_size: int = 11, seed: int = 0) -> TokenBatch:
    """Sequences of the given lengths of random tokens, each with a start token of its own."""
    generator = torch.Generator().manual_seed(seed)
    sequences = [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in lengths]
    return TokenBatch.from_lists(sequences, torch.randint(vocab_size, (len(lengths),), generator=generator).tolist())


def random_thoughts(decoder: ThoughtDecoder, *shape: int, seed: int = 1) -> torch.Tensor:
    """Standard normal thoughts with the given batch shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, *decoder.thought_shape, generator=generator)
