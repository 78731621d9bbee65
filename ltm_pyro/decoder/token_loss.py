"""Log-probabilities of target tokens under a tied output embedding, without ever holding all the logits.

`torch.nn.functional.linear_cross_entropy` has the same contract in recent releases of torch. The fast loop needs the
gradient for the hidden states alone, and taking it while a chunk of logits is at hand makes that loop's most expensive
product cheaper than the library's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ltm_pyro.decoder.linear import times_transposed

__all__ = ["target_log_prob"]


def target_log_prob(
    hidden: Float[Tensor, "row hidden"], weight: Float[Tensor, "vocab hidden"], targets: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Log softmax(hidden @ weight.T)[target] for each row, at least float32.

    Differentiable once in ``hidden`` and ``weight``. Under autocast the products run in autocast's type.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    weight = weight.to(hidden.dtype)
    with torch.autocast(device, enabled=False):
        result: Tensor = _TargetLogProb.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return result


def _rows_at_once(weight: Tensor, *, weight_gradient: bool = False) -> int:
    # Enough rows to saturate the product, few enough that a chunk of logits stays in the cache (16 MiB; GPU: 1 GiB).
    # The weight's gradient, as large as the weight, is written once per chunk, so its chunks are larger.
    entries = 2**28 if weight.is_cuda else 2**24 if weight_gradient else 2**22
    return max(1, entries // weight.shape[0])


class _TargetLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        # With constant weights the gradient is known up to a factor per row, so no logits need be made again.
        keep_gradient = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        gradient = torch.empty_like(hidden) if keep_gradient else None
        result = hidden.new_empty(hidden.shape[0], dtype=_wide(hidden))
        rows = _rows_at_once(weight)
        buffer = _buffer(hidden, weight, rows)
        for part in _parts(hidden, rows):
            result[part], probabilities = _softmax(hidden[part], weight, targets[part], buffer)
            if gradient is not None:
                mean = times_transposed(probabilities.to(weight.dtype), weight.T)
                torch.sub(weight[targets[part]], mean, out=gradient[part])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        else:
            ctx.save_for_backward(hidden, weight, targets)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if len(ctx.saved_tensors) == 1:
            (gradient,) = ctx.saved_tensors
            return gradient * grad[:, None].to(gradient.dtype), None, None
        hidden, weight, targets = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=grad.dtype)
        rows = _rows_at_once(weight, weight_gradient=True)
        buffer = _buffer(hidden, weight, rows)
        for part in _parts(hidden, rows):
            factor = grad[part, None]
            _, residual = _softmax(hidden[part], weight, targets[part], buffer)
            residual.mul_(-factor).scatter_add_(1, targets[part, None], factor)
            residual = residual.to(weight.dtype)
            if d_hidden is not None:
                d_hidden[part] = times_transposed(residual, weight.T)
            d_weight += times_transposed(residual.T, hidden[part].T)
        return d_hidden, d_weight.to(weight.dtype), None


def _parts(hidden: Tensor, rows: int) -> Iterator[slice]:
    return (slice(i, i + rows) for i in range(0, hidden.shape[0], rows))


def _buffer(hidden: Tensor, weight: Tensor, rows: int) -> Tensor:
    # One for all chunks: memory that is asked for anew has to be cleared by the system first.
    return hidden.new_empty(min(rows, hidden.shape[0]), weight.shape[0], dtype=_wide(hidden))


def _softmax(hidden: Tensor, weight: Tensor, targets: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's target, and in ``buffer`` the probabilities of the whole vocabulary."""
    scores = times_transposed(hidden, weight).to(_wide(hidden))
    chosen = scores.gather(1, targets[:, None])[:, 0] - scores.amax(-1)
    probabilities = torch.softmax(scores, -1, out=buffer[: len(hidden)])
    # The largest probability is never below 1 / V, so its logarithm is safe where the target's own might not be.
    return chosen + probabilities.amax(-1).log(), probabilities


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)
