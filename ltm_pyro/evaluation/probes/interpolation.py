"""From one document's thoughts to another's: both documents' likelihood on the way, and a text at each point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.probes.fitted import FittedThoughts
from ltm_pyro.evaluation.protocols import finite, ratio

__all__ = ["PATHS", "Interpolation", "interpolate", "linear", "spherical"]


@dataclass(frozen=True, eq=False)
class Interpolation:
    """P pairs of documents (a, b) along a path from a's posterior mean, at t = 0, to b's, at t = 1.

    Args:
        path: ``linear`` or ``spherical``.
        t: (T,) points of the path.
        pairs: (P, 2) the documents' numbers.
        nats: (T, P, 2) -log p(x | z(t)) of a and of b: no bound, for z(t) is a point.
        num_scored: (P, 2) scored tokens of a and of b.
        texts: for each point, a text from every pair's z(t) as token ids; None where they were not asked for.
        fast_steps: T_fast of the fits.
        seed: of the fits.
    """

    path: str
    t: Float[Tensor, " point"]
    pairs: Int[Tensor, "pair two"]
    nats: Float[Tensor, "point pair two"]
    num_scored: Int[Tensor, "pair two"]
    texts: Sequence[Sequence[Sequence[int]]] | None
    fast_steps: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values: nats per token of ``a`` and ``b`` at every point, with standard errors over pairs."""
        points = []
        for t, nats in zip(self.t.tolist(), self.nats, strict=True):
            point: dict[str, Any] = {"t": t}
            for name, values, counts in zip("ab", nats.unbind(-1), self.num_scored.unbind(-1), strict=True):
                value, error = ratio(values, counts)
                point |= {name: value, f"{name}_se": finite(error)}
            points.append(point)
        return {
            "path": self.path,
            "points": points,
            "pairs": self.pairs.tolist(),
            "fast_steps": self.fast_steps,
            "seed": self.seed,
        }


def interpolate(
    fitted: FittedThoughts, *, path: str = "linear", steps: int = 5, pairs: int | None = None, max_tokens: int = 0
) -> Interpolation:
    """Goes from each document's posterior mean to that of the next; the last one's next is the first.

    Args:
        fitted: the documents, two or more.
        path: `linear` or `spherical`.
        steps: points of the path, both ends among them.
        pairs: how many pairs, the first ones; None takes all.
        max_tokens: most tokens of the text at each point; 0 writes none.

    Raises:
        LTMError: there are fewer than two documents or points, or there is no such path.
    """
    if path not in PATHS:
        raise LTMError(f"no path {path!r}: use {' or '.join(PATHS)}")
    if steps < 2 or len(fitted) < 2:
        raise LTMError(
            f"an interpolation needs two documents and two points or more, got {len(fitted)} documents, {steps} points"
        )
    if pairs is not None and pairs < 1:
        raise LTMError(f"pairs must be 1 or more, got {pairs}: leave it out to take all")
    first = torch.arange(len(fitted))[:pairs]
    second = (first + 1) % len(fitted)
    a, b = fitted.mean[first], fitted.mean[second]
    t = torch.linspace(0, 1, steps, dtype=torch.float64)
    nats, texts = [], []
    for at in t.tolist():
        z = PATHS[path](a, b, at)
        nats.append(torch.stack([-fitted.score(z, documents).log_likelihood for documents in (first, second)], -1))
        texts.append(fitted.write(z, max_tokens) if max_tokens else [])
    chosen = torch.stack([first, second], -1)
    return Interpolation(
        path,
        t,
        chosen,
        torch.stack(nats),
        fitted.batch.num_scored.cpu()[chosen],
        texts if max_tokens else None,
        fitted.fast_steps,
        fitted.seed,
    )


def linear(a: Float[Tensor, "row *event"], b: Float[Tensor, "row *event"], t: float) -> Float[Tensor, "row *event"]:
    """(1 - t) a + t b."""
    return (1 - t) * a + t * b


def spherical(a: Float[Tensor, "row *event"], b: Float[Tensor, "row *event"], t: float) -> Float[Tensor, "row *event"]:
    r"""Along the arc between a and b, each row one vector, at constant angular speed.

    .. math:: \frac{\sin((1 - t) \Omega)}{\sin \Omega} a + \frac{\sin(t \Omega)}{\sin \Omega} b,
        \qquad \cos \Omega = \frac{a \cdot b}{\|a\| \|b\|}

    Between vectors of one norm that norm is kept, as draws of a standard normal in many dimensions have nearly one.
    Where the directions are the same, opposite or undefined there is no one arc, and the path is linear.

    References: Shoemake (1985), Animating Rotation with Quaternion Curves.
    """
    left, right = a.flatten(1).double(), b.flatten(1).double()
    cosine = (left * right).sum(-1) / (left.norm(dim=-1) * right.norm(dim=-1))
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    arc = torch.isfinite(cosine) & (sine > 1e-6)
    weights = [torch.where(arc, (s * angle).sin() / sine, s)[:, None] for s in (1 - t, t)]
    return (weights[0] * left + weights[1] * right).to(a.dtype).view_as(a)


PATHS: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {"linear": linear, "spherical": spherical}
"""Ways from the first of two rows of thoughts, at 0, to the second, at 1."""
