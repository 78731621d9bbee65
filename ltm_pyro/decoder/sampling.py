"""How the next token is drawn: temperature, top-k and nucleus sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ltm_pyro.errors import LTMError

__all__ = ["Sampling", "TokenDraws"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn.

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep the k most probable tokens; None keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches this; None keeps all.

    Raises:
        LTMError: a value out of range.

    References: Holtzman et al. (2020), The Curious Case of Neural Text Degeneration (nucleus sampling).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise LTMError(f"temperature must be 0 or more, got {self.temperature}: 0 is greedy, 1 is the model's own")
        if self.top_k is not None and self.top_k < 1:
            raise LTMError(f"top-k must be 1 or more, got {self.top_k}: leave it out to keep every token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise LTMError(f"top-p must be above 0 and at most 1, got {self.top_p}: leave it out to keep every token")

    def probabilities(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        """The distribution that the next token is drawn from."""
        if self.temperature == 0:
            best = logits.argmax(-1, keepdim=True)
            return torch.zeros_like(logits).scatter(-1, best, 1.0)
        # The largest first becomes 0, which no temperature can make overflow.
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        probabilities = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            ranked, order = probabilities.sort(dim=-1, descending=True)
            before = ranked.cumsum(-1) - ranked
            ranked = ranked.masked_fill(before >= self.top_p, 0.0)
            probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        return probabilities


class TokenDraws:
    r"""Next tokens from uniform numbers, by the inverse of the distribution function.

    .. math:: x = \min \{ v : F(v) > u F(V) \}, \qquad F(v) = \sum_{w \le v} p_w

    The distribution is that of `Sampling.probabilities`, and the token of a row depends on its own logits and number
    alone. Memory is kept from call to call.

    Args:
        sampling: how tokens are drawn.
    """

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self._weights = self._cumulative = torch.empty(0)

    def __call__(
        self, logits: Float[Tensor, "batch vocab"], uniforms: Float[Tensor, " batch"]
    ) -> Int[Tensor, " batch"]:
        """The token of each row for its number in [0, 1), which at temperature 0 changes nothing."""
        sampling = self.sampling
        if sampling.temperature == 0:
            return logits.argmax(-1)
        if self._weights.shape != logits.shape or self._weights.device != logits.device:
            self._weights = torch.empty_like(logits, dtype=torch.float32)
            # A token may be rarer than float32 can add to a sum of others.
            self._cumulative = torch.empty_like(logits, dtype=torch.float64)
        weights = self._weights.copy_(logits)
        weights.sub_(weights.amax(-1, keepdim=True)).div_(sampling.temperature)
        if sampling.top_k is not None and sampling.top_k < weights.shape[-1]:
            weights.masked_fill_(weights < weights.topk(sampling.top_k, dim=-1).values[:, -1:], -torch.inf)
        weights.exp_()
        if sampling.top_p is None or sampling.top_p == 1:
            return _inverse(torch.cumsum(weights, -1, dtype=torch.float64, out=self._cumulative), uniforms)
        ranked, order = self._nucleus(weights, sampling.top_p)
        return order.gather(1, _inverse(ranked.cumsum(-1, dtype=torch.float64), uniforms)[:, None])[:, 0]

    def _nucleus(self, weights: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
        """Weights from the largest down, 0 beyond the nucleus, and their tokens; as few as the host can see suffice."""
        mass, vocab = top_p * weights.sum(-1, keepdim=True, dtype=torch.float64), weights.shape[-1]
        # A device would have to be waited for, and sorts fast.
        count = min(256, vocab) if weights.device.type == "cpu" else vocab
        while True:
            ranked, order = weights.topk(count, dim=-1)
            before = ranked.cumsum(-1, dtype=torch.float64) - ranked
            if count == vocab or bool((before[:, -1:] >= mass).all()):
                return ranked.masked_fill(before >= mass, 0.0), order
            count = min(16 * count, vocab)


def _inverse(cumulative: Float[Tensor, "batch vocab"], uniforms: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """The first entry of each row whose cumulative weight is above the number times the whole."""
    whole = cumulative[:, -1:]
    # Rounding must not reach the whole, above which there is no entry.
    below = torch.minimum(uniforms[:, None] * whole, whole * (1 - 2.0**-53))
    return torch.searchsorted(cumulative, below, right=True)[:, 0]
