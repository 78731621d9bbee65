"""The evaluation protocols: per sequence, with standard errors, the same for every batch size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data.sequences import SequenceDataset
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.prequential import block_log_probs
from ltm_pyro.infer.fast_slow import FastSlowSVI
from ltm_pyro.infer.importance import importance_weights
from ltm_pyro.infer.posterior import Posterior

__all__ = ["PROTOCOLS", "REFUSED", "Protocol", "Report", "evaluate", "refuse_flattery"]

Protocol = Literal["elbo", "reconstruction", "iwae", "prequential", "likelihood", "nelbo"]
PROTOCOLS: tuple[Protocol, ...] = ("elbo", "reconstruction", "iwae", "prequential")
"""The protocols of a model with thoughts; ``likelihood`` and ``nelbo`` are those of the baselines."""
REFUSED = {
    "fitted-elbo": "it scores q on the noise that q was fitted to, which flatters it and bounds nothing. Take elbo, "
    "whose noise is drawn after the fit, or reconstruction, which says that the KL is left out; the released code's "
    "own number is the training loss under inference.noise = fixed",
}
"""What is not a protocol although it has been reported as one, and why."""
VALIDATION: tuple[Protocol, ...] = ("elbo", "reconstruction")
"""What one fit and S draws give: the validation of a training, and what `evaluate` computes unless told otherwise."""

_K_HAT_DRAWS = 21  # a fifth of them is five weights, the fewest that a Pareto shape is fitted to


@dataclass(frozen=True, eq=False)
class Report:
    r"""What the protocols say of a set of M sequences, in nats; per scored token once they are averaged.

    - ``elbo`` is :math:`-E_q[\log p(x \mid z)] + KL`, with noise drawn after the fit: an upper bound on
      :math:`-\log p(x)`.
    - ``reconstruction`` is its first term alone: it leaves the KL out, is no bound, and does not compare with an
      autoregressive model's loss. ``kl`` stands beside these two.
    - ``iwae`` is :math:`-\log \frac{1}{S} \sum_s p(x, z_s) / q(z_s \mid x)`, on the same kind of noise: a tighter upper
      bound.
    - ``prequential`` is :math:`-\sum_b \log \frac{1}{S} \sum_s p(x_b \mid x_{<b}, z_s)` over blocks b, with
      :math:`z_s \sim q(z \mid x_{<b})`: a probability that never saw what it scores, the one number that compares with
      an autoregressive model's.
    - ``likelihood`` is the exact :math:`-\log p(x)` of an autoregressive model, which has no thoughts.
    - ``nelbo`` is masked diffusion's negative ELBO, an upper bound on :math:`-\log p(x)`, by S draws of the masks.

    Args:
        values: (M,) nats of each sequence by name.
        num_scored: (M,) scored tokens of each.
        samples: S, draws per sequence.
        fast_steps: T_fast of the fits; None where there are no thoughts to fit.
        seed: of the fits and draws.
        protocols: what was asked for.
        bound: False where q is a point estimate: there is no ELBO, no KL and no ``iwae``, but a ``log_joint``,
            -log p(x, z) at the point, which is no bound and changes with the units of z.
        k_hat: (M,) Pareto shapes of the weights behind ``iwae`` (`ImportanceWeights.k_hat`).
        block_size: tokens of a block of ``prequential``.

    References: Burda et al. (2016), Importance Weighted Autoencoders; Dawid (1984), Statistical Theory: The Prequential
    Approach.
    """

    values: Mapping[str, Float[Tensor, " sequence"]]
    num_scored: Int[Tensor, " sequence"]
    samples: int
    fast_steps: int | None
    seed: int
    protocols: Sequence[Protocol] = VALIDATION
    bound: bool = True
    k_hat: Float[Tensor, " sequence"] | None = None
    block_size: int | None = None

    @staticmethod
    def joined(reports: Sequence[Report]) -> Report:
        """The report of all sequences from those of several sets of them, made by the same settings."""
        first = reports[0]
        return replace(
            first,
            values={name: torch.cat([report.values[name] for report in reports]) for name in first.values},
            num_scored=torch.cat([report.num_scored for report in reports]),
            k_hat=None
            if first.k_hat is None
            else torch.cat([report.k_hat for report in reports if report.k_hat is not None]),
        )

    def mean(self, name: str) -> tuple[float, float]:
        """Value per token of one of ``values``, and its standard error (NaN for one sequence).

        Raises:
            LTMError: a point estimate has none of it, or it was not asked for.
        """
        if name in self.values:
            return ratio(self.values[name], self.num_scored)
        found = " and ".join(self.values)
        if not self.bound and name in ("elbo", "kl", "iwae"):
            raise LTMError(f"a point estimate has no {name}: it reports {found}, and bounds nothing")
        raise LTMError(f"this report has no {name!r}, only {found}: name it in protocols")

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the names and units of metrics.jsonl; what there is none of is None.

        That is the standard error of a single sequence, the bounds and KL of a point estimate, and ``k_hat_…`` of
        draws that are too few to say.
        """
        row: dict[str, Any] = {}
        beside = [*(["kl"] if set(self.protocols) & set(VALIDATION) else []), *(["log_joint"] * (not self.bound))]
        for name in (*self.protocols, *beside):
            value, error = self.mean(name) if name in self.values else (None, None)
            row |= {name: value, f"{name}_se": finite(error)}
        if "iwae" in self.protocols:
            k_hat = self.k_hat if self.samples >= _K_HAT_DRAWS else None
            row["k_hat_median"] = None if k_hat is None else finite(float(k_hat.median()))
            row["k_hat_above_0.7"] = None if k_hat is None else float((k_hat > 0.7).double().mean())
        if "prequential" in self.protocols:
            row["block_size"] = self.block_size
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
    protocols: Sequence[str] = VALIDATION,
    samples: int = 1,
    block_size: int = 32,
    fast_steps: int | None = None,
    fast_lr: float | None = None,
    batch_size: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Report:
    """Fits each sequence's posterior and scores it on noise drawn afterwards; labels stay unseen.

    ``prequential`` fits one to every prefix that ends at a block's boundary.

    Args:
        svi: the model, its guide and the settings of the fast loop.
        data: where the sequences come from.
        indices: which of them.
        protocols: what to compute; nothing else is.
        samples: S, draws per sequence.
        block_size: tokens of a block of ``prequential``.
        fast_steps: T_fast; None takes the configured number.
        fast_lr: η_fast; None takes the configured one.
        batch_size: sequences at once; changes the time taken and nothing else.
        seed: of the noise.
        device: where the model lives.

    Raises:
        LTMError: there is nothing to score, no draw to score it with, or no such protocol or block.
    """
    for name, number in (("samples", samples), ("block_size", block_size)):
        if number < 1:
            raise LTMError(f"{name} must be 1 or more, got {number}")
    refuse_flattery(protocols)
    if not protocols or not set(protocols) <= set(PROTOCOLS):
        raise LTMError(f"protocols must be some of {', '.join(PROTOCOLS)}, got {', '.join(protocols) or 'none'}")
    if not indices:
        raise LTMError("there are no sequences to evaluate: choose another source or split")
    steps = svi.fast_steps(fast_steps)
    values: dict[str, Tensor] = {}
    if set(protocols) != {"prequential"}:
        # The terms take a sequence's draws all at once; weights need not, and are taken a few draws at a time.
        size = max(batch_size // samples, 1) if set(protocols) & set(VALIDATION) else batch_size
        fitted = (
            _score(
                svi.infer(batch.to(device), steps=steps, seed=seed, lr=fast_lr),
                protocols,
                samples,
                _chunk(batch_size, batch),
            )
            for batch in _unlabelled(data, indices, size)
        )
        values |= _cat(fitted)
    if "prequential" in protocols:
        predicted = (
            _predict(
                svi,
                batch.to(device),
                samples=samples,
                block_size=block_size,
                steps=steps,
                lr=fast_lr,
                seed=seed,
                chunk_size=_chunk(batch_size, batch),
            )
            for batch in _unlabelled(data, indices, batch_size)
        )
        values |= _cat(predicted)
    counts, k_hat = values.pop("num_scored"), values.pop("k_hat", None)
    return Report(
        {name: value.double() for name, value in values.items()},
        counts,
        samples,
        steps,
        seed,
        protocols=cast("tuple[Protocol, ...]", tuple(protocols)),
        bound=svi.guide.has_density,
        k_hat=k_hat,
        block_size=block_size if "prequential" in protocols else None,
    )


def refuse_flattery(protocols: Iterable[str]) -> None:
    """Nothing, where every name may be a protocol.

    Raises:
        LTMError: one of them is `REFUSED`.
    """
    for name in protocols:
        if name in REFUSED:
            raise LTMError(f"{name} is no protocol: {REFUSED[name]}")


def _score(posterior: Posterior, protocols: Sequence[str], samples: int, chunk_size: int) -> dict[str, Tensor]:
    """(B,) nats of each sequence by the protocols that score a posterior of the whole of it."""
    has_density = posterior.guide.has_density
    values = {"num_scored": posterior.batch.num_scored}
    if set(protocols) & set(VALIDATION):
        terms = posterior.elbo_terms(samples)
        log_likelihood, kl = terms.log_likelihood.double(), terms.kl.double()
        values |= {"reconstruction": -log_likelihood, "elbo" if has_density else "log_joint": kl - log_likelihood}
        values |= {"kl": kl} if has_density else {}
    if "iwae" in protocols and has_density:
        weights = importance_weights(posterior, samples, chunk_size=chunk_size)
        values |= {"iwae": -weights.log_evidence, "k_hat": weights.k_hat}
    return values


def _predict(svi: FastSlowSVI, batch: TokenBatch, **options: Any) -> dict[str, Tensor]:
    """(B,) nats of each sequence by sequential prediction."""
    return {"num_scored": batch.num_scored, "prequential": -block_log_probs(svi, batch, **options).sum(-1)}


def _chunk(batch_size: int, batch: TokenBatch) -> int:
    """Draws that can be scored at once for a batch, where ``batch_size`` sequences can."""
    return max(batch_size // len(batch), 1)


def _cat(batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Values of several batches, end to end, on the CPU."""
    rows = [{name: value.cpu() for name, value in row.items()} for row in batches]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _unlabelled(data: SequenceDataset, indices: Sequence[int], size: int) -> Iterator[TokenBatch]:
    return (batch.unlabelled() for batch in data.batches(indices, size))


def finite(value: float | None) -> float | None:
    """JSON has neither NaN nor infinity."""
    return None if value is None or not math.isfinite(value) else value


def ratio(values: Float[Tensor, " sequence"], counts: Int[Tensor, " sequence"]) -> tuple[float, float]:
    """Σ values / Σ counts, and the ratio estimator's standard error over sequences (Cochran 1977, section 6.4)."""
    value = values.sum() / counts.sum()
    residuals = values - value * counts
    n = len(values)
    variance = residuals.square().sum() / max(n - 1, 1) * n / counts.sum() ** 2
    return float(value), float(variance.sqrt()) if n > 1 else float("nan")
