"""The protocols ``elbo`` and ``reconstruction``: per sequence, with standard errors, the same for every batch size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data.sequences import SequenceDataset
from ltm_pyro.errors import LTMError
from ltm_pyro.infer.elbo import ELBOTerms
from ltm_pyro.infer.fast_slow import FastSlowSVI

__all__ = ["PROTOCOLS", "Protocol", "Report", "evaluate"]

Protocol = Literal["elbo", "reconstruction"]
PROTOCOLS: tuple[Protocol, ...] = ("elbo", "reconstruction")


@dataclass(frozen=True)
class Report:
    r"""What the protocols say of a set of sequences, all in nats per scored token.

    ``elbo`` is :math:`(-E_q[\log p(x \mid z)] + KL) / N`, with noise drawn after the fit: an upper bound on
    :math:`-\log p(x) / N`. ``reconstruction`` is its first term alone: it leaves the KL out, is no bound, and does not
    compare with an autoregressive model's loss.

    Args:
        terms: (M,) ELBO terms of each sequence.
        num_scored: (M,) scored tokens of each.
        samples: S, draws per sequence.
        fast_steps: T_fast of the fits.
        seed: of the fits and draws.
        bound: False where q is a point estimate: there is no ELBO and no KL, but a ``log_joint``, -log p(x, z) / N at
            the point, which is no bound and changes with the units of z.
    """

    terms: ELBOTerms
    num_scored: Int[Tensor, " sequence"]
    samples: int
    fast_steps: int
    seed: int
    bound: bool = True

    def mean(self, name: str) -> tuple[float, float]:
        """Value per token of ``elbo``, ``reconstruction`` or ``kl``, and its standard error (NaN for one sequence).

        A point estimate has ``reconstruction`` and ``log_joint``.

        Raises:
            LTMError: ``elbo`` or ``kl`` of a point estimate.
        """
        values = {"reconstruction": -self.terms.log_likelihood}
        if self.bound:
            values |= {"elbo": -self.terms.elbo, "kl": self.terms.kl}
        else:
            values["log_joint"] = -self.terms.elbo
        if name not in values:
            raise LTMError(f"a point estimate has no {name}: it reports {' and '.join(values)}, and bounds nothing")
        return _ratio(values[name], self.num_scored)

    def to_dict(self, protocols: Sequence[Protocol] = PROTOCOLS) -> dict[str, Any]:
        """Plain values under the names and units of metrics.jsonl; what there is none of is None.

        That is the standard error of a single sequence, and the ELBO and KL of a point estimate.
        """
        row: dict[str, Any] = {}
        for name in (*protocols, "kl"):
            if not self.bound and name in ("elbo", "kl"):
                row[name] = row[f"{name}_se"] = None
                continue
            row[name], error = self.mean(name)
            row[f"{name}_se"] = None if math.isnan(error) else error
        if not self.bound:
            row["log_joint"], error = self.mean("log_joint")
            row["log_joint_se"] = None if math.isnan(error) else error
        return row | {
            "sequences": len(self.num_scored),
            "tokens": int(self.num_scored.sum()),
            "samples": self.samples,
            "fast_steps": self.fast_steps,
            "seed": self.seed,
        }


def evaluate(
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
) -> Report:
    """Fits each sequence's posterior and scores it on noise drawn afterwards; labels stay unseen.

    Args:
        svi: the model, its guide and the settings of the fast loop.
        data: where the sequences come from.
        indices: which of them.
        samples: S, draws per sequence.
        fast_steps: T_fast; None takes the configured number.
        fast_lr: η_fast; None takes the configured one.
        batch_size: sequences at once; changes the time taken and nothing else.
        seed: of the noise.
        device: where the model lives.

    Raises:
        LTMError: there is nothing to score, or no draw to score it with.
    """
    if samples < 1:
        raise LTMError(f"samples must be 1 or more, got {samples}")
    if not indices:
        raise LTMError("there are no sequences to evaluate: choose another source or split")
    steps = svi.fast.steps if fast_steps is None else fast_steps
    if not svi.guide.refined:
        steps = 0
    parts, counts = [], []
    for batch in _batches(data, indices, max(batch_size // samples, 1)):
        posterior = svi.infer(batch.to(device), steps=steps, seed=seed, lr=fast_lr)
        terms = posterior.elbo_terms(samples)
        parts.append(ELBOTerms(terms.log_likelihood.double().cpu(), terms.kl.double().cpu()))
        counts.append(batch.num_scored)
    return Report(ELBOTerms.cat(parts), torch.cat(counts), samples, steps, seed, svi.guide.has_density)


def _batches(data: SequenceDataset, indices: Sequence[int], size: int) -> Iterator[TokenBatch]:
    for start in range(0, len(indices), size):
        yield data.batch(indices[start : start + size]).unlabelled()


def _ratio(values: Float[Tensor, " sequence"], counts: Int[Tensor, " sequence"]) -> tuple[float, float]:
    """Σ values / Σ counts, and the ratio estimator's standard error over sequences (Cochran 1977, section 6.4)."""
    ratio = values.sum() / counts.sum()
    residuals = values - ratio * counts
    n = len(values)
    variance = residuals.square().sum() / max(n - 1, 1) * n / counts.sum() ** 2
    return float(ratio), float(variance.sqrt()) if n > 1 else float("nan")
