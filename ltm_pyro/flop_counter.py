"""Floating point operations as torch's counter sees them: for what has no formula, and to check the formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ltm_pyro.flops import attention_cost, linear_cost

__all__ = ["measured_flops"]


def measured_flops(run: Callable[[], Any]) -> int:
    """What torch's counter sees while ``run`` is called.

    With formulas of our own for what it would miss: attention and oneDNN's products on the CPU, and the product that is
    added in place.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_MISSED)
    # Its attribution to modules hooks into their inputs' gradients, which `torch.autograd.grad` for leaves forbids.
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        run()
    return int(counter.get_total_flops())


class _NoModules(nullcontext[None]):
    """In place of the counter's tracker of modules: all belongs to one."""

    parents = frozenset({"Global"})


def _sdpa(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    batch, heads, num_queries, head_dim = query
    return attention_cost(batch * num_queries * key[-2], heads * head_dim).forward


def _sdpa_backward(grad: Sequence[int], query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    batch, heads, num_queries, head_dim = query
    return attention_cost(batch * num_queries * key[-2], heads * head_dim).inputs


def _addmm(total: Sequence[int], left: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
    return linear_cost(left[0], left[1], right[1]).forward


def _linear(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return linear_cost(x[0], x[1], weight[0]).forward


_aten = torch.ops.aten
_MISSED = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _sdpa,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
    _aten.addmm_: _addmm,
}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _MISSED[torch.ops.mkldnn._linear_pointwise] = _linear
