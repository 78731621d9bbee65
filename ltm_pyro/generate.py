"""Generation: thoughts from the prior or from a prompt's posterior, then tokens by cached decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ltm_pyro.decoder.decoding import Ended
from ltm_pyro.decoder.prompts import Part, Prompts, continue_part
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.errors import LTMError
from ltm_pyro.infer.fast_slow import FastSlowSVI
from ltm_pyro.infer.posterior import autocasting
from ltm_pyro.noise import SequenceGenerator, fixed_global_stream, sequence_noise

__all__ = ["generate", "generate_batch"]


def generate(
    svi: FastSlowSVI,
    *,
    start: int,
    prompt: Sequence[int] = (),
    num: int = 1,
    first: int = 0,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: int | None = None,
    fast_steps: int | None = None,
    fast_lr: float | None = None,
    label: int | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """Draws ``num`` texts as lists of token ids, the prompt left out: `generate_batch` of one prompt."""
    (texts,) = generate_batch(
        svi,
        [prompt],
        start=start,
        num=num,
        first=first,
        max_tokens=max_tokens,
        sampling=sampling,
        stop=stop,
        fast_steps=fast_steps,
        fast_lr=fast_lr,
        label=label,
        seed=seed,
    )
    return texts


def generate_batch(
    svi: FastSlowSVI,
    prompts: Sequence[Sequence[int]],
    *,
    start: int | Sequence[int],
    num: int = 1,
    first: int = 0,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    stop: int | None = None,
    ended: Ended | None = None,
    fast_steps: int | None = None,
    fast_lr: float | None = None,
    label: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[list[list[int]]]:
    """Draws ``num`` texts for each prompt as lists of token ids, the prompt left out.

    Without tokens in the prompt z ~ p(z); with some z ~ q(z | prompt), fitted by the fast loop on the prompt alone.
    Each text has a draw of z of its own. Decoding goes on past the training length: self-attention keeps its window.

    A text depends on the seed, its prompt, and which of this prompt's texts it is, up to rounding; not on the other
    prompts. Equal prompts have different texts: the second's are those that the first would have had after its own.

    Args:
        svi: the model, its guide and the settings of the fast loop.
        prompts: token ids to continue, which may be none.
        start: the token before the first, end-of-text; one for all prompts or for each.
        num: texts to draw for each prompt.
        first: number of the first of them: those before it, which another call or rank draws, are left out.
        max_tokens: most tokens of each.
        sampling: how tokens are drawn; None is the model's own distribution.
        stop: token that ends a text; None decodes all.
        ended: told the tokens of a text after every 16, it ends the text where it returns True.
        fast_steps: T_fast for the prompts; None takes the configured number.
        fast_lr: η_fast; None takes the configured one.
        label: class of the texts, for a prior that has classes; with a prompt, its known class. None leaves it open.
        seed: of thoughts and tokens.
        progress: told how many texts are done, again and again.

    Raises:
        LTMError: a prompt is longer than the sequences that the model was trained on, a number is out of range, or
            there is a label and the prior has no classes.
    """
    decoder = svi.model.decoder
    check_prompts(prompts, num, max_tokens, decoder.max_length, first)
    if not 0 <= seed < 2**32:
        raise LTMError(f"the seed must lie in 0 … {2**32 - 1}, got {seed}")
    if label is not None:
        svi.model.require_labels()
    device = decoder.embedding.weight.device
    asked = Prompts(prompts, start, num, progress, first)
    for part in asked.parts():
        here = part.to(device)
        with fixed_global_stream(seed, device):
            thoughts = _thoughts(svi, here, fast_steps, fast_lr, label, seed)
        with autocasting(device, svi.autocast):
            texts = continue_part(
                decoder, here, thoughts, max_tokens, sampling=sampling, stop=stop, ended=ended, seed=seed
            )
        asked.keep(part, texts)
    return asked.texts()


def check_prompts(prompts: Sequence[Sequence[int]], num: int, max_tokens: int, longest: int, first: int = 0) -> None:
    """Nothing, where such texts can be drawn.

    Raises:
        LTMError: a prompt is too long, or a number is below 1.
    """
    if num < 1 or max_tokens < 1:
        raise LTMError(f"the number of texts and of tokens must be 1 or more, got {num} and {max_tokens}")
    if first < 0:
        raise LTMError(f"the number of the first text must be 0 or more, got {first}")
    for prompt in prompts:
        if len(prompt) > longest:
            raise LTMError(
                f"the prompt has {len(prompt)} tokens but the model was trained on at most {longest}: shorten it"
            )


def _thoughts(
    svi: FastSlowSVI, part: Part, fast_steps: int | None, fast_lr: float | None, label: int | None, seed: int
) -> Float[Tensor, "row layer slot width"]:
    """A draw of z for each row of a part, from the prior where the prompts have no tokens."""
    batch, rows = part.batch, len(part.prompt)
    if not part.batch.lengths.any():
        labels = None if label is None else torch.full((rows,), label, device=batch.device)
        with sequence_noise(SequenceGenerator(part.keys, seed, "prior")):
            return svi.model.sample_prior(rows, labels)
    if label is not None:
        batch = replace(batch, labels=torch.full((len(batch),), label, device=batch.device))
    posterior = svi.infer(batch, steps=fast_steps, seed=seed, lr=fast_lr)
    return posterior.sample(part.first + max(part.draws))[part.draw, part.prompt]
