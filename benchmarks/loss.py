"""The token loss and its gradient against the size of the vocabulary: seconds, their floor, and memory.

The gradient for the hidden states alone is what every fast step takes; that for the weights, too, is the slow step's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.floor import Floor
from benchmarks.measure import compare, peak_bytes, show, spread, table, write_result
from benchmarks.workload import options_of, parser_of, plain
from ltm_pyro.decoder.token_loss import target_log_prob

SMOKE = {"vocabulary": [50, 300], "rows": 8, "hidden": 16, "rounds": 2}
REFERENCE = "library, hidden states"

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/loss.json."""
    vocabularies, types = [2048, 16384, 50257], ["float32", "bfloat16"]
    parser = parser_of("loss", __doc__, rounds=3, vocabulary=vocabularies, dtype=types)
    parser.add_argument("--rows", type=int, default=1024, help="tokens that are scored (default: 1024)")
    parser.add_argument("--hidden", type=int, default=512)
    options = options_of(parser, arguments, SMOKE)

    floor = Floor.measure(options.device, quick=options.smoke)
    print(floor.line())
    rows = []
    for name in options.dtype:
        for vocabulary in options.vocabulary:
            found = _measure(getattr(torch, name), vocabulary, floor, options.rows, options.hidden, options)
            rows += [{"dtype": name, "vocabulary": vocabulary} | row for row in found]
            print(f"\n{name}, V = {vocabulary}")
            print(table(["", "ms", f"/ {REFERENCE}", "times the floor", "peak MiB"], [_line(row) for row in found]))
    result = {"options": plain(options), "reference": REFERENCE, "floor": floor.to_dict(), "rows": rows}
    print(f"written to {write_result(options.out, result, options.folder)}")


def losses() -> dict[str, Loss]:
    """By name, what gives the summed loss of hidden states, weights and targets."""
    found: dict[str, Loss] = {"library": lambda h, w, y: -target_log_prob(h, w, y).sum(), "full logits": _full_logits}
    fused, chunks = getattr(F, "linear_cross_entropy", None), getattr(nn, "LinearCrossEntropyOptions", None)
    if fused is not None and chunks is not None:  # recent releases of torch; without options it makes all logits
        found["linear_cross_entropy"] = lambda h, w, y: fused(h, w, y, reduction="sum", options=chunks())
    return found


def _full_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    # Log-probabilities at least float32, as the library's.
    logits = hidden @ weight.T
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")


def _measure(
    dtype: torch.dtype, vocabulary: int, floor: Floor, rows: int, hidden: int, options: Any
) -> list[dict[str, Any]]:
    scale = hidden**-0.5  # logits of order one
    states = torch.randn(rows, hidden, device=options.device).to(dtype).requires_grad_()
    constant = (scale * torch.randn(vocabulary, hidden, device=options.device)).to(dtype)
    targets = torch.randint(vocabulary, (rows,), device=options.device)
    functions, flops = {}, {}
    for name, loss in losses().items():
        for taken, weight, products in (
            ("hidden states", constant, 2),
            ("hidden states and weights", constant.clone().requires_grad_(), 3),
        ):
            functions[f"{name}, {taken}"] = partial(_value_and_gradient, loss, states, weight, targets)
            flops[f"{name}, {taken}"] = products * 2 * rows * hidden * vocabulary
    compared = compare(functions, rounds=options.rounds, reference=REFERENCE)
    return [
        {
            "way": name,
            "seconds": spread(compared.seconds[name]),
            "ratio": spread(compared.ratios(name)),
            "floor_flops": flops[name],
            "times_floor": spread([s / floor.seconds(flops[name], dtype) for s in compared.seconds[name]]),
            "peak_bytes": peak_bytes(function, options.device),
        }
        for name, function in functions.items()
    ]


def _value_and_gradient(loss: Loss, states: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    value = loss(states, weight, targets)
    return value, *torch.autograd.grad(value, [t for t in (states, weight) if t.requires_grad])


def _line(row: dict[str, Any]) -> list[str]:
    peak = f"{row['peak_bytes'] / 2**20:.1f}"
    return [row["way"], show(row["seconds"], 1e3), show(row["ratio"]), show(row["times_floor"]), peak]
