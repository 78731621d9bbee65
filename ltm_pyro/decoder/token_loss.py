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


def _rows_at_once(weight: Tensor) -> int:
    # Enough rows to saturate the product, few enough that a chunk of logits stays small (32 MiB, 1 GiB on a GPU).
    return max(1, (2**28 if weight.is_cuda else 2**23) // weight.shape[0])


class _TargetLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        # With constant weights the gradient is known up to a factor per row, so no logits need be made again.
        keep_gradient = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        gradient = torch.empty_like(hidden) if keep_gradient else None
        result = hidden.new_empty(hidden.shape[0], dtype=_wide(hidden))
        for part, log_prob, residual in _chunks(hidden, weight, targets, residuals=keep_gradient):
            result[part] = log_prob
            if gradient is not None and residual is not None:
                gradient[part] = residual.to(weight.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        else:
            ctx.save_for_backward(hidden, weight, targets)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if len(ctx.saved_tensors) == 1:
            (gradient,) = ctx.saved_tensors
            return gradient * grad[:, None].to(gradient.dtype), None, None
        hidden, weight, targets = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=grad.dtype)
        for part, _, residual in _chunks(hidden, weight, targets, residuals=True):
            if residual is None:
                continue
            residual = residual.mul_(grad[part, None]).to(weight.dtype)
            if d_hidden is not None:
                d_hidden[part] = residual @ weight
            if d_weight.dtype == residual.dtype:
                d_weight.addmm_(residual.T, hidden[part])
            else:
                d_weight += residual.T @ hidden[part]
        return d_hidden, d_weight.to(weight.dtype), None


def _chunks(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, residuals: bool
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Rows at a time: their slice, log-probabilities, and the gradients of these for the logits.

    The gradient is one_hot(target) - softmax. The logits become it in place, in one buffer for all chunks.
    """
    rows = _rows_at_once(weight)
    buffer = hidden.new_empty(min(rows, hidden.shape[0]), weight.shape[0])
    for i in range(0, hidden.shape[0], rows):
        part = slice(i, i + rows)
        target = targets[part, None]
        scores = torch.mm(hidden[part], weight.T, out=buffer[: len(target)]).to(_wide(hidden))
        top = scores.amax(-1, keepdim=True)
        chosen = scores.gather(1, target) - top
        scores = scores.sub_(top).exp_()
        total = scores.sum(-1, keepdim=True)
        residual = None
        if residuals:
            residual = scores.div_(-total).scatter_add_(1, target, torch.ones_like(total))
        yield part, (chosen - total.log())[:, 0], residual


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)
