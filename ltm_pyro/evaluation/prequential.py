"""Sequential prediction: each block of tokens is scored under thoughts inferred from the tokens before it alone."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.errors import LTMError
from ltm_pyro.infer.fast_slow import FastSlowSVI
from ltm_pyro.infer.posterior import autocasting
from ltm_pyro.noise import fixed_global_stream

__all__ = ["block_log_probs"]


def block_log_probs(
    svi: FastSlowSVI,
    batch: TokenBatch,
    *,
    samples: int = 1,
    block_size: int = 32,
    steps: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    chunk_size: int = 64,
) -> Float[Tensor, "batch block"]:
    r"""Log-probability of every block of every sequence given the blocks before it, 0 where nothing is scored.

    .. math:: \log \frac{1}{S} \sum_s p_\beta(x_b \mid x_{<b}, z_s), \qquad z_s \sim q(z \mid x_{<b})

    The first block's :math:`z_s` are draws of the prior, S for all sequences. Every other block's q is fitted anew to
    the tokens before it, and draws from the stream of that prefix. All depends on seed and prefix alone, so the values
    of a sequence are, for any S, the log of one distribution over texts.

    Args:
        svi: the model, its guide and the settings of the fast loop.
        batch: B sequences; labels stay unseen.
        samples: S; probabilities are averaged over the draws, not their logs.
        block_size: tokens of a block; the last may be shorter.
        steps: T_fast of every fit; None takes the configured number.
        lr: η_fast; None takes the configured one.
        seed: of fits and draws.
        chunk_size: draws that are scored at once; bounds the memory, and changes no number but for rounding.

    Raises:
        LTMError: a number is below 1.

    References: Dawid (1984), Statistical Theory: The Prequential Approach.
    """
    for name, number in (("samples", samples), ("block_size", block_size), ("chunk_size", chunk_size)):
        if number < 1:
            raise LTMError(f"{name} must be 1 or more, got {number}")
    batch = batch.unlabelled()
    starts = range(0, batch.tokens.shape[1], block_size)
    result = torch.zeros(len(batch), len(starts), dtype=torch.float64, device=batch.device)
    for number, start in enumerate(starts):
        rows = batch.mask[:, start : start + block_size].any(1).nonzero()[:, 0]
        if not len(rows):
            continue
        reached = batch[rows]
        thoughts = _thoughts(svi, reached.prefix(start), samples, steps, lr, seed)
        result[rows, number] = _log_mean_prob(svi, _block(reached, start, block_size), thoughts, chunk_size)
    return result


def _thoughts(
    svi: FastSlowSVI, prefix: TokenBatch, samples: int, steps: int | None, lr: float | None, seed: int
) -> Float[Tensor, "draw batch layer slot width"]:
    """S draws from q(z | prefix), from the prior where the prefix is empty."""
    if not prefix.tokens.shape[1]:
        with fixed_global_stream(seed, prefix.device):
            thoughts = svi.model.sample_prior(samples)
        return thoughts[:, None].expand(-1, len(prefix), -1, -1, -1)
    return svi.infer(prefix, steps=steps, seed=seed, lr=lr).sample(samples)


def _block(batch: TokenBatch, start: int, size: int) -> TokenBatch:
    """The sequences up to the block's end, of which the block alone is scored."""
    block = batch.prefix(start + size)
    positions = torch.arange(block.tokens.shape[1], device=block.device)
    return replace(block, scored=block.mask & (positions >= start))


@torch.no_grad()
def _log_mean_prob(
    svi: FastSlowSVI, block: TokenBatch, thoughts: Float[Tensor, "draw batch layer slot width"], chunk_size: int
) -> Float[Tensor, " batch"]:
    """(B,) log of the block's probability, averaged over the draws of the thoughts."""
    with autocasting(block.device, svi.autocast):
        stem = svi.model.stem(block)
        parts = [svi.model.likelihood(z, block, stem).log_prob(block.tokens) for z in thoughts.split(chunk_size)]
    log_probs = torch.cat(parts).double()
    return log_probs.logsumexp(0) - math.log(len(log_probs))
