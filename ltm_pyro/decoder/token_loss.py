"""Log-probabilities of target tokens under a tied output embedding, without ever holding all the logits.

`torch.nn.functional.linear_cross_entropy` has the same contract in recent releases of torch. The fast loop needs the
gradient for the hidden states alone, and taking it while a chunk of logits is at hand makes that loop's most expensive
product cheaper than the library's.
"""

from __future__ import annotations

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
        rows = _rows_at_once(weight)
        # With constant weights the gradient is known up to a factor per row, so no logits need be made again.
        keep_gradient = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        gradient = torch.empty_like(hidden) if keep_gradient else None
        wide = torch.promote_types(hidden.dtype, torch.float32)
        result = hidden.new_empty(hidden.shape[0], dtype=wide)
        for i in range(0, hidden.shape[0], rows):
            part = slice(i, i + rows)
            target = targets[part, None]
            log_prob = _log_softmax(hidden[part], weight, wide)
            result[part] = log_prob.gather(1, target)[:, 0]
            if gradient is not None:
                gradient[part] = _residual(log_prob, target).to(weight.dtype) @ weight
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
        rows = _rows_at_once(weight)
        for i in range(0, hidden.shape[0], rows):
            part = slice(i, i + rows)
            log_prob = _log_softmax(hidden[part], weight, grad.dtype)
            residual = (_residual(log_prob, targets[part, None]) * grad[part, None]).to(weight.dtype)
            if d_hidden is not None:
                d_hidden[part] = residual @ weight
            if d_weight.dtype == residual.dtype:
                d_weight.addmm_(residual.T, hidden[part])
            else:
                d_weight += residual.T @ hidden[part]
        return d_hidden, d_weight.to(weight.dtype), None


def _log_softmax(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    logits = (hidden @ weight.T).to(dtype)
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def _residual(log_prob: Tensor, target: Tensor) -> Tensor:
    """one_hot(target) - softmax, in place: the gradient of the target's log-probability for the logits."""
    residual = log_prob.exp_().neg_()
    return residual.scatter_add_(1, target, torch.ones_like(target, dtype=residual.dtype))
