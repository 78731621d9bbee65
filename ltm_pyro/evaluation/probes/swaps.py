"""Thoughts of one document with the tokens of another, and texts from the thoughts of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.probes.facts import Facts, read_fable
from ltm_pyro.evaluation.probes.fitted import FittedThoughts
from ltm_pyro.evaluation.protocols import finite, ratio

__all__ = ["MixedText", "SwapMatrix", "agreement", "mixed_texts", "swap_thoughts"]


@dataclass(frozen=True, eq=False)
class SwapMatrix:
    r"""Every one of M documents under the thoughts of every one.

    .. math:: \text{nats}_{ab} = -E_{q(z \mid x_a)}[\log p(x_b \mid z)]

    The diagonal is the protocol ``reconstruction``; the KL is left out of all of it.

    Args:
        nats: (M, M) thoughts of a, tokens of b; the mean over S draws.
        num_scored: (M,) scored tokens of each document.
        samples: S, draws per document.
        fast_steps: T_fast of the fits.
        seed: of the fits and draws.
    """

    nats: Float[Tensor, "source document"]
    num_scored: Int[Tensor, " document"]
    samples: int
    fast_steps: int
    seed: int

    @property
    def swapped(self) -> Float[Tensor, " document"]:
        """(M,) nats of each document under another's thoughts, the mean over the others."""
        return (self.nats.sum(0) - self.nats.diagonal()) / (len(self.nats) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: nats per token of ``own`` and ``swapped`` thoughts and their ``gap``, and the matrix in nats.

        Standard errors are over documents as tokens: thoughts that documents share are not in them.
        """
        own = self.nats.diagonal()
        row: dict[str, Any] = {}
        for name, values in {"own": own, "swapped": self.swapped, "gap": self.swapped - own}.items():
            value, error = ratio(values, self.num_scored)
            row |= {name: value, f"{name}_se": finite(error)}
        return row | {
            "nats": self.nats.tolist(),
            "document_tokens": self.num_scored.tolist(),
            "documents": len(self.num_scored),
            "samples": self.samples,
            "fast_steps": self.fast_steps,
            "seed": self.seed,
        }


def swap_thoughts(fitted: FittedThoughts) -> SwapMatrix:
    """Scores every document under S draws of every document's thoughts.

    Raises:
        LTMError: there is only one document.
    """
    _require_two(fitted)
    samples, count = fitted.samples, len(fitted)
    source, document = (index.flatten() for index in torch.meshgrid(2 * [torch.arange(count)], indexing="ij"))
    nats = torch.zeros(count * count, dtype=torch.float64)
    for draw in fitted.draws:
        nats -= fitted.score(draw[source.to(draw.device)], document).log_likelihood / samples
    return SwapMatrix(nats.view(count, count), fitted.batch.num_scored.cpu(), samples, fitted.fast_steps, fitted.seed)


class MixedText(NamedTuple):
    """A text from layers 1 … ``layers`` of document ``a``'s thoughts and the rest of ``b``'s, as token ids."""

    a: int
    b: int
    layers: int
    tokens: list[int]


def mixed_texts(fitted: FittedThoughts, *, max_tokens: int) -> list[MixedText]:
    """Greedy texts from the thoughts of each document a and the next b, for l = 0 … L layers of a's.

    One draw of each document's thoughts serves all of its texts. The last document's next one is the first.

    Raises:
        LTMError: there is only one document, or no token to write.
    """
    _require_two(fitted)
    count, layers = len(fitted), fitted.layers
    of_a = fitted.draws[0]
    of_b = of_a.roll(-1, 0)
    kept = torch.ones(layers + 1, layers, device=of_a.device).tril(-1).bool()
    thoughts = torch.where(kept[:, None, :, None, None], of_a, of_b)  # (l, document, layer, slot, width)
    texts = fitted.write(thoughts.flatten(0, 1), max_tokens)
    return [MixedText(i % count, (i + 1) % count, i // count, text) for i, text in enumerate(texts)]


def agreement(
    texts: Sequence[MixedText],
    documents: Sequence[Facts],
    decode: Callable[[Sequence[int]], str],
    read: Callable[[str], Facts | None] = read_fable,
) -> dict[str, Any]:
    """What mixed texts say, held against the documents a and b whose thoughts they come from.

    Args:
        texts: of `mixed_texts`.
        documents: what each document says.
        decode: token ids to text.
        read: what a text says, None where that cannot be told.

    Returns:
        ``chance``, the share of facts on which two different documents agree, the mean over all pairs; and ``layers``,
        for each number l of a's layers: ``texts``; those that say something, ``read``, and the facts that each of them
        says, ``said``; the shares of these that agree with document ``a``, with ``b`` and with all ``others``; of the
        facts in which a and b differ, the shares that agree with either, ``a_apart`` and ``b_apart``, and the same for
        each under ``facts``, with the number of texts that say it. A share of nothing is None.
    """
    chance = [_share(documents[i], documents[j]) for i, j in permutations(range(len(documents)), 2)]
    said = [(text, read(decode(text.tokens)) or {}) for text in texts]
    rows = []
    for layers in sorted({text.layers for text in texts}):
        chosen = [(text, facts) for text, facts in said if text.layers == layers]
        known = [(text, facts) for text, facts in chosen if facts]
        others = [
            _share(facts, document)
            for text, facts in known
            for i, document in enumerate(documents)
            if i not in (text.a, text.b)
        ]
        row = {
            "layers": layers,
            "texts": len(chosen),
            "read": len(known),
            "said": _mean([len(facts) for _, facts in known]),
            "a": _mean([_share(facts, documents[text.a]) for text, facts in known]),
            "b": _mean([_share(facts, documents[text.b]) for text, facts in known]),
            "others": _mean(others),
        }
        rows.append(row | _apart([(facts, documents[text.a], documents[text.b]) for text, facts in known]))
    return {"chance": _mean(chance), "layers": rows}


def _apart(said: Sequence[tuple[Facts, Facts, Facts]]) -> dict[str, Any]:
    """Shares of the facts that agree with a text's documents a and b where these two differ, in all and by name."""
    found: dict[str, list[tuple[bool, bool]]] = {}
    for facts, a, b in said:
        for name in facts.keys() & a.keys() & b.keys():
            if a[name] != b[name]:
                found.setdefault(name, []).append((facts[name] == a[name], facts[name] == b[name]))

    def shares(pairs: Sequence[tuple[bool, bool]]) -> tuple[float | None, float | None]:
        return _mean([x for x, _ in pairs]), _mean([y for _, y in pairs])

    of_a, of_b = shares([pair for pairs in found.values() for pair in pairs])
    by_name = {name: (*shares(found[name]), len(found[name])) for name in sorted(found)}
    return {
        "a_apart": of_a,
        "b_apart": of_b,
        "facts": {name: {"a": x, "b": y, "texts": count} for name, (x, y, count) in by_name.items()},
    }


def _share(left: Facts, right: Facts) -> float:
    """Share of the facts of both that are the same."""
    names = left.keys() & right.keys()
    return sum(left[name] == right[name] for name in names) / len(names) if names else math.nan


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else None


def _require_two(fitted: FittedThoughts) -> None:
    if len(fitted) < 2:
        raise LTMError("swapping thoughts needs two documents or more, got 1: take more sequences")
