"""Generation: thoughts from the prior or from a prompt's posterior, then tokens by cached decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyro
import torch

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder.sampling import Sampling, decode, token_lists
from ltm_pyro.errors import LTMError
from ltm_pyro.infer.fast_slow import FastSlowSVI
from ltm_pyro.infer.posterior import autocasting
from ltm_pyro.noise import draw_seed

__all__ = ["generate"]


def generate(
    svi: FastSlowSVI,
    *,
    start: int,
    prompt: Sequence[int] = (),
    num: int = 1,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: int | None = None,
    fast_steps: int | None = None,
    fast_lr: float | None = None,
    label: int | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """Draws ``num`` texts as lists of token ids, the prompt left out.

    Without a prompt z ~ p(z); with one z ~ q(z | prompt), fitted by the fast loop on the prompt alone. Each text has a
    draw of z of its own. Decoding goes on past the training length: self-attention keeps its window.

    Args:
        svi: the model, its guide and the settings of the fast loop.
        start: the token before the first, end-of-text.
        prompt: token ids to continue.
        num: texts to draw.
        max_tokens: most tokens of each.
        sampling: how tokens are drawn; None is the model's own distribution.
        stop: token that ends a text; None decodes all.
        fast_steps: T_fast for the prompt; None takes the configured number.
        fast_lr: η_fast; None takes the configured one.
        label: class of the texts, for a prior that has classes; with a prompt, its known class. None leaves it open.
        seed: of thoughts and tokens.

    Raises:
        LTMError: the prompt is longer than the sequences that the model was trained on, a number is out of range, or
            there is a label and the prior has no classes.
    """
    decoder = svi.model.decoder
    if num < 1 or max_tokens < 1:
        raise LTMError(f"the number of texts and of tokens must be 1 or more, got {num} and {max_tokens}")
    if len(prompt) > decoder.max_length:
        raise LTMError(
            f"the prompt has {len(prompt)} tokens but the model was trained on at most {decoder.max_length}: shorten it"
        )
    if not 0 <= seed < 2**32:
        raise LTMError(f"the seed must lie in 0 … {2**32 - 1}, got {seed}")
    device = decoder.embedding.weight.device
    pyro.set_rng_seed(seed)
    if prompt:
        batch = TokenBatch.from_lists([list(prompt)], start)
        if label is not None:
            svi.model.require_labels()
            batch = replace(batch, labels=torch.tensor([label]))
        batch = batch.to(device)
        posterior = svi.infer(batch, steps=fast_steps, seed=seed, lr=fast_lr)
        thoughts = posterior.sample(num)[:, 0]
    else:
        labels = None if label is None else torch.full((num,), label, device=device)
        thoughts = svi.model.sample_prior(num, labels)
    inputs = torch.tensor([[start, *prompt]] * num, dtype=torch.int64, device=device)
    lengths = torch.full((num,), inputs.shape[1], dtype=torch.int64, device=device)
    # Not the seed itself: the thoughts have been drawn from that stream.
    generator = torch.Generator(device).manual_seed(draw_seed())
    with autocasting(device, svi.autocast):
        drawn = decode(
            decoder, thoughts, inputs, lengths, max_tokens, sampling=sampling, stop=stop, generator=generator
        )
    return token_lists(drawn)
