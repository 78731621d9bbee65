"""FittedThoughts: sequences with draws of their posteriors, to be scored and continued under whatever thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data.sequences import SequenceDataset
from ltm_pyro.decoder.decoding import Continuation, decode, token_lists
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.errors import LTMError
from ltm_pyro.infer.fast_slow import FastSlowSVI
from ltm_pyro.infer.posterior import autocasting
from ltm_pyro.noise import SequenceGenerator, fixed_global_stream

__all__ = ["FittedThoughts", "Scores", "fit_thoughts"]


class Scores(NamedTuple):
    """Of R sequences (R,), each under thoughts of its own: log p(x | z) in nats, and right tokens.

    A scored token is right where it is the most probable one given z and the document's own tokens before it.
    """

    log_likelihood: Float[Tensor, " row"]
    right: Float[Tensor, " row"]


@dataclass(frozen=True, eq=False)
class FittedThoughts:
    """M sequences, S draws of each one's thoughts made after the fit, and the means of the posteriors.

    Whatever is asked of them is a function of the seed and does not depend on ``batch_size``, but for rounding.

    Args:
        svi: the model that they were inferred under.
        batch: the sequences, without labels.
        draws: (S, M, L, n, width) z ~ q(z | x), those that `evaluate` scores.
        mean: (M, L, n, width) `Posterior.mean`.
        start: the token before a text of its own, end-of-text.
        fast_steps: T_fast of the fits.
        seed: of the fits and draws.
        batch_size: sequences scored or continued at once.
    """

    svi: FastSlowSVI
    batch: TokenBatch
    draws: Float[Tensor, "draw sequence layer slot width"]
    mean: Float[Tensor, "sequence layer slot width"]
    start: int
    fast_steps: int
    seed: int
    batch_size: int = 8

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def samples(self) -> int:
        """S."""
        return len(self.draws)

    @property
    def layers(self) -> int:
        """L."""
        return self.draws.shape[2]

    @cached_property
    def prior_draws(self) -> Float[Tensor, "draw sequence layer slot width"]:
        """(S, M, L, n, width) z ~ p(z), every sequence's own, from streams that no posterior draws from.

        A structured prior's draws are whole ones, its layers tied to one another as it ties them.
        """
        seeds = SequenceGenerator(self.batch.keys, self.seed, "prior").seeds()
        drawn = []
        for seed in seeds:
            with fixed_global_stream(seed, self.batch.device):
                drawn.append(self.svi.model.sample_prior(self.samples))
        return torch.stack(drawn, dim=1)

    @torch.no_grad()
    def score(self, thoughts: Float[Tensor, "row layer slot width"], documents: Int[Tensor, " row"]) -> Scores:
        """Scores document ``documents[r]`` under ``thoughts[r]``, for every row r."""
        parts = [
            self._score(z, self._rows(index))
            for z, index in zip(thoughts.split(self.batch_size), documents.split(self.batch_size), strict=True)
        ]
        return Scores(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))

    def reproduced(
        self, thoughts: Float[Tensor, "row layer slot width"], documents: Int[Tensor, " row"]
    ) -> Float[Tensor, " row"]:
        """(R,) tokens of document ``documents[r]`` that greedy decoding from ``thoughts[r]`` puts in their places.

        From the token before the document on, the decoder reads its own tokens alone, so that one token too many or too
        few makes nearly all that follow wrong.
        """
        counts = []
        for z, index in zip(thoughts.split(self.batch_size), documents.split(self.batch_size), strict=True):
            batch = self._rows(index)
            written = self._decode(z, batch.start, batch.tokens.shape[1], None).tokens
            counts.append(((written == batch.tokens) & batch.mask).sum(-1).double().cpu())
        return torch.cat(counts)

    def write(self, thoughts: Float[Tensor, "row layer slot width"], max_tokens: int) -> list[list[int]]:
        """A text from each row's thoughts by greedy decoding from end-of-text on, as token ids.

        Raises:
            LTMError: there is no token to write.
        """
        if max_tokens < 1:
            raise LTMError(f"max_tokens must be 1 or more, got {max_tokens}")
        texts: list[list[int]] = []
        for z in thoughts.split(self.batch_size):
            start = torch.full((len(z),), self.start, device=z.device)
            texts += token_lists(self._decode(z, start, max_tokens, self.start))
        return texts

    def _rows(self, documents: Int[Tensor, " row"]) -> TokenBatch:
        batch = self.batch[documents.to(self.batch.device)]
        return batch.prefix(max(int(batch.lengths.max()), 1))

    def _score(self, thoughts: Tensor, batch: TokenBatch) -> Scores:
        decoder, scored = self.svi.model.decoder, batch.scored_index
        targets = batch.tokens.flatten()[scored]
        with autocasting(batch.device, self.svi.autocast):
            hidden = decoder(decoder.stem(batch.inputs), thoughts).flatten(0, 1)[scored]
            log_prob = decoder.token_log_prob(hidden, targets).double()
        rows = max(2**23 // decoder.vocab_size, 1)  # so many logits at once
        best = torch.cat([decoder.logits(h).argmax(-1) for h in hidden.split(rows)])
        values = torch.stack([log_prob, (best == targets).double()])
        by_place = values.new_zeros(2, batch.tokens.numel()).index_copy(1, scored, values)
        return Scores(*by_place.view(2, *batch.tokens.shape).sum(-1))

    def _decode(
        self,
        thoughts: Float[Tensor, "row layer slot width"],
        start: Int[Tensor, " row"],
        max_tokens: int,
        stop: int | None,
    ) -> Continuation:
        with autocasting(start.device, self.svi.autocast):
            return decode(
                self.svi.model.decoder,
                thoughts,
                start[:, None],
                torch.ones_like(start),
                max_tokens,
                sampling=Sampling(temperature=0),
                stop=stop,
            )


def fit_thoughts(
    svi: FastSlowSVI,
    data: SequenceDataset,
    indices: Sequence[int],
    *,
    samples: int = 1,
    fast_steps: int | None = None,
    fast_lr: float | None = None,
    batch_size: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> FittedThoughts:
    """Fits each sequence's posterior and draws from it afterwards; labels stay unseen.

    Args:
        svi: the model, its guide and the settings of the fast loop.
        data: where the sequences come from.
        indices: which M of them; their thoughts are held at once.
        samples: S, draws per sequence.
        fast_steps: T_fast; None takes the configured number.
        fast_lr: η_fast; None takes the configured one.
        batch_size: sequences at once; changes the time taken and nothing else.
        seed: of the noise.
        device: where the model lives.

    Raises:
        LTMError: there is no sequence or no draw.
    """
    if samples < 1 or batch_size < 1:
        raise LTMError(f"samples and batch_size must be 1 or more, got {samples} and {batch_size}")
    if not indices:
        raise LTMError("there are no sequences to probe: choose another source or split")
    draws, means = [], []
    for part in data.batches(indices, batch_size):
        posterior = svi.infer(part.unlabelled().to(device), steps=fast_steps, seed=seed, lr=fast_lr)
        draws.append(posterior.sample(samples, purpose="score"))
        means.append(posterior.mean)
    return FittedThoughts(
        svi,
        data.batch(indices).unlabelled().to(device),
        torch.cat(draws, dim=1),
        torch.cat(means),
        data.end_of_text,
        svi.fast_steps(fast_steps),
        seed,
        batch_size,
    )
