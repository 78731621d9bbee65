"""Windowed self-attention, forward and backward, per token against the length of the sequence.

Three ways, run in turn: the library's, a dense mask of the window, and causal attention that sees all that came before
(other values, and the price of having no window).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from benchmarks.floor import Floor
from benchmarks.measure import compare, show, spread, table, write_result
from benchmarks.workload import options_of, parser_of, plain
from ltm_pyro.decoder import attention
from ltm_pyro.decoder.attention import window_mask
from ltm_pyro.flops import TransformerSize, attention_cost

SMOKE = {"tokens": [16, 32], "window": 16, "hidden": 16, "heads": 2, "rounds": 2}
WAYS = ("library", "dense mask", "causal, no window")

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/attention.json."""
    lengths = [256, 512, 1024, 2048, 4096]
    parser = parser_of("attention", __doc__, rounds=5, batch=2, tokens=lengths, dtype="float32")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    options = options_of(parser, arguments, SMOKE)

    dtype = getattr(torch, options.dtype)
    floor = Floor.measure(options.device, quick=options.smoke)
    functions: dict[str, Callable[[], object]] = {}
    for tokens in options.tokens:
        shape = (options.batch, tokens, 3 * options.hidden)
        q, k, v = _inputs(shape, options.heads, dtype, options.device)
        for way in WAYS:
            attend = _attend(way, tokens, options.window, options.device)
            functions[_key(way, tokens)] = partial(_forward_and_backward, attend, q, k, v)
    compared = compare(functions, rounds=options.rounds)

    base = 512 if 512 in options.tokens else min(options.tokens)
    rows = []
    for way in WAYS:
        for tokens in options.tokens:
            key, count = _key(way, tokens), options.batch * tokens
            per_token = base / tokens  # seconds / seconds of the base length, both per token
            flops = _flops_per_token(way, tokens, options.window, options.hidden)
            seconds = spread(compared.seconds[key])
            row = {
                "way": way,
                "tokens": tokens,
                "seconds": seconds,
                "seconds_per_token": seconds["median"] / count,
                f"ratio_per_token_to_{base}": spread([per_token * r for r in compared.ratios(key, _key(way, base))]),
                "ratio_to_dense_mask": spread(compared.ratios(key, _key("dense mask", tokens))),
                "ratio_to_no_window": spread(compared.ratios(key, _key("causal, no window", tokens))),
                "flops_per_token": flops,
                "floor_share": floor.seconds(flops * count, dtype) / seconds["median"],
            }
            rows.append(row)
    result = {"options": plain(options), "base_tokens": base, "floor": floor.to_dict(), "rows": rows}
    path = write_result(options.out, result, options.folder)
    head = ["", "N", "µs / token", f"/ N = {base}", "/ dense mask", "/ no window", "of the floor"]
    print(floor.line())
    print(table(head, [_line(row, base, options.batch) for row in rows]))
    print(f"written to {path}")


def library_attention(tokens: int, window: int, device: str) -> Attend:
    """What the decoder calls, for sequences of so many tokens."""
    windowed = getattr(attention, "windowed_attention", None)
    if windowed is not None:
        return lambda q, k, v: windowed(q, k, v, window)
    return _masked(window_mask(tokens, window, device))


def _attend(way: str, tokens: int, window: int, device: str) -> Attend:
    if way == "library":
        return library_attention(tokens, window, device)
    return _masked(window_mask(tokens, window, device) if way == "dense mask" else None)


def _masked(mask: Tensor | None) -> Attend:
    return partial(F.scaled_dot_product_attention, attn_mask=mask, is_causal=mask is None)


def _inputs(shape: tuple[int, int, int], heads: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """q, k and v as one projection of the decoder leaves them."""
    projected = torch.randn(shape, device=device).to(dtype)
    parts = rearrange(projected, "b n (three h d) -> three b h n d", three=3, h=heads)
    return tuple(part.detach().requires_grad_() for part in parts)


def _forward_and_backward(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    y = attend(q, k, v)
    return torch.autograd.grad(y, (q, k, v), torch.ones_like(y))


def _flops_per_token(way: str, tokens: int, window: int, hidden: int) -> float:
    """Of the pairs that are seen, whatever a way computes besides."""
    seen = None if way == "causal, no window" else window
    size = TransformerSize(layers=1, hidden=hidden, vocab_size=1, window=seen, dense=False)
    return attention_cost(size.pairs(tokens), hidden).total / tokens


def _key(way: str, tokens: int) -> str:
    return f"{way}, N = {tokens}"


def _line(row: dict[str, Any], base: int, batch: int) -> list[str]:
    ratios = (show(row[name]) for name in (f"ratio_per_token_to_{base}", "ratio_to_dense_mask", "ratio_to_no_window"))
    microseconds = show(row["seconds"], 1e6 / (batch * row["tokens"]))
    return [row["way"], str(row["tokens"]), microseconds, *ratios, f"{row['floor_share']:.0%}"]
