"""LatentThoughtModel: p(z) p_β(x | z) for a plate of sequences."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pyro
import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ltm_pyro.batch import TokenBatch
from ltm_pyro.decoder.transformer import Stem, ThoughtDecoder
from ltm_pyro.errors import LTMError
from ltm_pyro.likelihood import TokenSequence
from ltm_pyro.priors.base import Prior

__all__ = ["LatentThoughtModel"]


class LatentThoughtModel(nn.Module):
    r"""The generative program of a Latent Thought Language Model.

    .. math:: z_b \sim p(z), \qquad x_b \mid z_b \sim \prod_n p_\beta(x_{bn} \mid z_b, x_{b,<n}), \qquad b = 1 \dots B

    Sites: those of the prior, and ``tokens`` with event shape (N,), all in the plate ``sequences`` (dim -1).

    Args:
        decoder: network of the likelihood.
        prior: p(z), over thoughts of ``decoder.thought_shape``.

    Raises:
        LTMError: the prior's thoughts have another shape than the decoder's.
    """

    def __init__(self, decoder: ThoughtDecoder, prior: Prior):
        super().__init__()
        if tuple(prior.shape) != tuple(decoder.thought_shape):
            raise LTMError(
                f"the prior makes thoughts of shape {tuple(prior.shape)} but the decoder reads "
                f"{decoder.thought_shape}: build the prior with shape = decoder.thought_shape"
            )
        self.decoder = decoder
        self.prior = prior

    def forward(
        self,
        batch: TokenBatch,
        *,
        observed: bool = True,
        stem: Stem | None = None,
        scale: Float[Tensor, " batch"] | None = None,
    ) -> Tensor:
        """Runs the program; returns the tokens (…, B, N).

        Args:
            batch: sequences to condition on, or whose lengths and start tokens a sample takes.
            observed: whether ``batch.tokens`` are the data; False samples them.
            stem: what `stem` returned for this batch, where the caller has it already.
            scale: what each sequence's likelihood counts for: N_b / k_b where a random k_b of N_b tokens are scored.
        """
        with pyro.plate("sequences", len(batch), dim=-1):
            thoughts = self.thoughts(batch)
            likelihood = self.likelihood(thoughts, batch, stem)
            with nullcontext() if scale is None else _scaled(scale):
                tokens: Tensor = pyro.sample("tokens", likelihood, obs=batch.tokens if observed else None)
        return tokens

    def thoughts(self, batch: TokenBatch) -> Float[Tensor, "*particles batch layer slot width"]:
        """Runs the prior for the batch, inside the plate; a prior that takes labels gets the batch's.

        Never under autocast, which is for the decoder.
        """
        prior = partial(self.prior, labels=batch.labels) if self.prior.takes_labels else self.prior
        with torch.autocast(batch.device.type, enabled=False):
            return prior(len(batch))  # type: ignore[no-any-return]

    def likelihood(
        self, thoughts: Float[Tensor, "*particles batch layer slot width"], batch: TokenBatch, stem: Stem | None
    ) -> TorchDistribution:
        """p(x | z) for the batch; a subclass that overrides this one swaps the likelihood and keeps all else.

        Whatever the likelihood, it is that of the tokens of ``batch.mask`` alone.
        """
        return TokenSequence(self.decoder, thoughts, batch, stem=stem)

    def stem(self, batch: TokenBatch) -> Stem | None:
        """The likelihood's work that does not depend on the thoughts, done once per fast loop."""
        return self.decoder.stem(batch.inputs)

    def require_labels(self) -> None:
        """Nothing, where the prior takes labels.

        Raises:
            LTMError: it does not.
        """
        if not self.prior.takes_labels:
            raise LTMError(f"{type(self.prior).__name__} has no classes: leave the label out")

    @torch.no_grad()
    def sample_prior(
        self, num: int, labels: Int[Tensor, " num"] | None = None
    ) -> Float[Tensor, "num layer slot width"]:
        """``num`` sets of thoughts z ~ p(z), from Pyro's seeded global stream.

        Args:
            num: how many.
            labels: the class of each, for a prior that takes labels.

        Raises:
            LTMError: labels for a prior that has no classes.
        """
        if labels is not None:
            self.require_labels()
        prior = self.prior if labels is None else partial(self.prior, labels=labels)
        with pyro.plate("sequences", num, dim=-1):
            thoughts: Tensor = prior(num)
        return thoughts


def _scaled(scale: Tensor) -> AbstractContextManager[Any]:
    with pyro.validation_enabled(False):  # of a scale above 0, which would wait for the device
        return pyro.poutine.scale(scale=scale)
