"""Random subsets of each sequence's scored tokens, for fast steps that score some of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.infer.fast_config import FastConfig
from ltm_pyro.noise import SequenceGenerator

__all__ = ["FastStep", "TokenSubset", "TokenSubsets", "planned_steps"]


class FastStep(NamedTuple):
    """What one fast step ran on: sequences, padded to the batch's length, and scored tokens of all of them."""

    sequences: int
    tokens: int


class TokenSubset(NamedTuple):
    """A batch that scores some of its tokens, and (B,) what each sequence's likelihood counts for."""

    batch: TokenBatch
    scale: Float[Tensor, " batch"]


class TokenSubsets:
    r"""A random k_b of each sequence's N_b scored tokens, without replacement, anew at every call of `draw`.

    .. math:: E\Big[\frac{N_b}{k_b} \sum_{n \in S_b} \log p(x_n \mid z, x_{<n})\Big] = \log p(x_b \mid z), \qquad
        k_b = \max(1, \lceil f N_b \rceil)

    That is Pyro's plate over a sequence's tokens with ``subsample_size`` k_b. The subset is a function of the seed, the
    sequence and the number of the call: neither of its batch nor of its padding. How many tokens are chosen in all is
    known on the host, so nothing waits for the device.

    Args:
        batch: the sequences.
        fraction: f, above 0 and at most 1.
        seed: of the sequences' streams.

    References: Hoffman et al. (2013), Stochastic Variational Inference.
    """

    def __init__(self, batch: TokenBatch, fraction: float, seed: int):
        self.batch = batch
        self.generator = SequenceGenerator(batch.keys, seed, "subset")
        self.counts = [chosen(count, fraction) for count in batch.scored_counts]
        width, device = batch.tokens.shape[1], batch.device
        scale = [whole / part if part else 1.0 for whole, part in zip(batch.scored_counts, self.counts, strict=True)]
        self.scale = torch.tensor(scale, dtype=torch.get_default_dtype()).to(device, non_blocking=True)
        # Places of the first k_b entries of each row in the flattened (B · N).
        places = [row * width + rank for row, count in enumerate(self.counts) for rank in range(count)]
        self._places = torch.tensor(places, dtype=torch.int64).to(device, non_blocking=True)
        starts = [row * width for row, count in enumerate(self.counts) for _ in range(count)]
        self._starts = torch.tensor(starts, dtype=torch.int64).to(device, non_blocking=True)

    def draw(self) -> TokenSubset:
        """The next subset."""
        words = self.generator.words(self.batch.tokens.shape[1])
        order = torch.where(self.batch.mask, words, torch.iinfo(words.dtype).max).argsort(-1)
        return TokenSubset(self.batch.scoring(self._starts + order.flatten()[self._places]), self.scale)


def chosen(count: int, fraction: float) -> int:
    """k_b of N_b tokens: no fewer than one, where there is one."""
    return min(count, max(1, math.ceil(fraction * count - 1e-9)))  # 0.1 * 30 is a little more than 3


def planned_steps(batch: TokenBatch, fast: FastConfig, steps: int) -> tuple[FastStep, ...]:
    """The fast steps of a loop on the batch that no tolerance ends early."""
    whole = FastStep(len(batch), len(batch.scored_index))
    full = steps if fast.token_fraction == 1 else min(fast.full_final_steps, steps)
    if full == steps:
        return (whole,) * steps
    part = FastStep(len(batch), sum(chosen(count, fast.token_fraction) for count in batch.scored_counts))
    return (part,) * (steps - full) + (whole,) * full
