"""Shapes and weights that the tests of the baselines share."""

from __future__ import annotations

from itertools import product
from typing import Any, TypeVar

import torch
from torch import nn

from ltm_pyro.baselines import TransformerShape
from ltm_pyro.batch import TokenBatch

Network = TypeVar("Network", bound=nn.Module)


def tiny_shape(**changes: Any) -> TransformerShape:
    sizes = {"vocab_size": 3, "layers": 2, "hidden": 8, "heads": 2, "feed_forward": 16, "window": 4, "max_length": 8}
    return TransformerShape(**(sizes | changes))


def randomised(model: Network, seed: int = 1) -> Network:
    """Weights that are large enough for probabilities far from uniform, which the initial ones are not."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False)


def every_sequence(vocab_size: int, length: int, start: int = 0) -> TokenBatch:
    return TokenBatch.from_lists([list(x) for x in product(range(vocab_size), repeat=length)], start)
