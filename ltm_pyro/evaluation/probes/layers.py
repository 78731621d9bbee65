"""Which layers' thoughts hold the text: reconstruction from the thoughts of some layers, the others' from the prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ltm_pyro.evaluation.probes.fitted import FittedThoughts
from ltm_pyro.evaluation.protocols import finite, ratio

__all__ = ["LayerProbe", "probe_layers"]


@dataclass(frozen=True, eq=False)
class LayerProbe:
    r"""Reconstruction of M sequences from some layers' thoughts, for R choices of the layers that are kept.

    Row l of the first L + 1 keeps :math:`z_1 \dots z_l`, row L + l keeps :math:`z_l` alone:

    .. math:: z'_k = z_k \sim q(z \mid x) \text{ for a kept layer } k, \qquad z'_k \sim p(z) \text{ for another}

    Row 0 keeps none: the decoder with prior thoughts. All rows put the same draws in the place of a layer.

    - ``nats`` is :math:`-E[\log p(x \mid z')]`. With all layers kept it is the protocol ``reconstruction``: the KL is
      left out, and so it is no bound and no perplexity.
    - ``accuracy`` is teacher-forced: the share of scored tokens that are the most probable one given z' and the
      document's own tokens before them. A decoder without thoughts has some of it, too.
    - ``free_accuracy`` is free-running: the share of the document's tokens that greedy decoding from z' puts in their
      places, reading what it wrote itself; of the first draw alone.

    Args:
        kept: (R, L) the layers that are kept.
        nats: (R, M) nats of each sequence, the mean over S draws.
        right: (R, M) tokens that are right with teacher forcing, the mean over S draws.
        reproduced: (R, M) tokens that are right in free running; None where that was not asked for.
        num_scored: (M,) scored tokens of each.
        samples: S, draws per sequence.
        fast_steps: T_fast of the fits.
        seed: of the fits and draws.

    References: Kong et al. (2025), Scalable Language Models with Posterior Inference of Latent Thought Vectors.
    """

    kept: Bool[Tensor, "row layer"]
    nats: Float[Tensor, "row sequence"]
    right: Float[Tensor, "row sequence"]
    reproduced: Float[Tensor, "row sequence"] | None
    num_scored: Int[Tensor, " sequence"]
    samples: int
    fast_steps: int
    seed: int

    @property
    def first(self) -> slice:
        """The rows that keep the layers 1 … l, for l = 0 … L."""
        return slice(0, self.kept.shape[1] + 1)

    @property
    def single(self) -> slice:
        """The rows that keep one layer l alone, for l = 1 … L."""
        return slice(self.kept.shape[1] + 1, None)

    def rows(self, which: slice) -> list[dict[str, Any]]:
        """Plain values per token with their standard errors over sequences, None for those of a single sequence."""
        columns: Mapping[str, Tensor | None] = {
            "nats": self.nats,
            "accuracy": self.right,
            "free_accuracy": self.reproduced,
        }
        found = []
        for row in range(*which.indices(len(self.kept))):
            values: dict[str, Any] = {"kept": [int(layer) + 1 for layer in self.kept[row].nonzero()]}
            for name, column in columns.items():
                if column is not None:
                    value, error = ratio(column[row], self.num_scored)
                    values |= {name: value, f"{name}_se": finite(error)}
            found.append(values)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``first`` and ``single``, the rows, and what settles them."""
        return {
            "first": self.rows(self.first),
            "single": self.rows(self.single),
            "sequences": len(self.num_scored),
            "tokens": int(self.num_scored.sum()),
            "samples": self.samples,
            "fast_steps": self.fast_steps,
            "seed": self.seed,
        }


def probe_layers(fitted: FittedThoughts, *, free_running: bool = True) -> LayerProbe:
    """Reconstruction from the thoughts of layers 1 … l, l = 0 … L, and from each layer's alone.

    Args:
        fitted: the sequences and their thoughts.
        free_running: whether to decode each document anew for every row, which takes most of the time.
    """
    layers, samples, count = fitted.layers, fitted.samples, len(fitted)
    kept = torch.cat([torch.ones(layers + 1, layers).tril(-1), torch.eye(layers)]).bool()
    documents = torch.arange(count).repeat(samples)
    nats, right, reproduced = [], [], []
    for row in kept.to(fitted.draws.device):
        thoughts = torch.where(row[:, None, None], fitted.draws, fitted.prior_draws)
        scores = fitted.score(thoughts.flatten(0, 1), documents)
        nats.append(-scores.log_likelihood.view(samples, count).mean(0))
        right.append(scores.right.view(samples, count).mean(0))
        if free_running:
            reproduced.append(fitted.reproduced(thoughts[0], documents[:count]))
    return LayerProbe(
        kept,
        torch.stack(nats),
        torch.stack(right),
        torch.stack(reproduced) if free_running else None,
        fitted.batch.num_scored.cpu(),
        samples,
        fitted.fast_steps,
        fitted.seed,
    )
