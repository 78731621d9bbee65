"""One slow step beside a hand-written loop, the released code's arithmetic, and the machine's floor."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.by_hand import HandWritten
from benchmarks.floor import Floor
from benchmarks.measure import compare, show, spread, table, write_result
from benchmarks.released import ReleasedAlgorithm
from benchmarks.workload import GPT2_VOCABULARY, Workload, options_of, parser_of, plain
from ltm_pyro.decoder.linear import product
from ltm_pyro.flops import DecoderSize, slow_step_flops

SMOKE = {"preset": "tiny", "vocabulary": 300, "batch": 2, "tokens": 80, "fast_steps": 2, "rounds": 2}

LIBRARY, HAND, RELEASED, SAME_PRODUCTS = "library", "by hand", "released", "released, library's products"


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/fast-loop.json."""
    work: dict[str, Any] = {"preset": "ltm-m", "vocabulary": GPT2_VOCABULARY, "batch": 2, "tokens": 512}
    parser = parser_of("fast-loop", __doc__, rounds=3, **work, fast_steps=16, dtype=["float32", "bfloat16"])
    options = options_of(parser, arguments, SMOKE)
    floor = Floor.measure(options.device, quick=options.smoke)
    about = plain(options)
    functions, steps = {}, {}
    for dtype in options.dtype:
        work = about | {"dtype": dtype}
        for way in (LIBRARY, HAND, RELEASED, SAME_PRODUCTS):
            step = _step(way, Workload.of(**work))
            functions[_key(way, dtype)] = step
            steps[_key(way, dtype)] = step
    reference = _key(RELEASED, options.dtype[0])
    compared = compare(functions, rounds=options.rounds, reference=reference)

    tokens = options.batch * options.tokens
    size = DecoderSize.of(Workload.of(**about | {"dtype": options.dtype[0]}).svi.model.decoder, dense=False)
    flops = slow_step_flops(size, options.batch, options.tokens, tokens, fast_steps=options.fast_steps)
    rows = []
    for dtype in options.dtype:
        least = floor.seconds(flops, getattr(torch, dtype))
        for way in (LIBRARY, HAND, RELEASED, SAME_PRODUCTS):
            key = _key(way, dtype)
            seconds = spread(compared.seconds[key])
            row = {"way": way, "dtype": dtype, "seconds": seconds, "tokens_per_second": tokens / seconds["median"]}
            row["released_over_this"] = spread(compared.ratios(_key(RELEASED, dtype), to=key))
            row[f"released_{options.dtype[0]}_over_this"] = spread(compared.ratios(reference, to=key))
            row["this_over_by_hand"] = spread(compared.ratios(key, to=_key(HAND, dtype)))
            row["floor_share"] = least / seconds["median"]
            rows.append(row)
    result = {"options": about, "floor": floor.to_dict(), "flops_per_token": flops / tokens, "rows": rows}
    path = write_result(options.out, result, options.folder)
    head = ["", "", "s a step", "tokens / s", "faster than released", f"than released {options.dtype[0]}", "/ by hand"]
    print(floor.line())
    print(table([*head, "of the floor"], [_line(row, options.dtype[0]) for row in rows]))
    print(f"written to {path}")


def _step(way: str, work: Workload) -> Any:
    svi, log_var = work.svi, work.settings.inference.init_log_var
    if way == LIBRARY:
        return work.step
    if way == HAND:
        by_hand = HandWritten(svi, log_var)
        return lambda: by_hand.step(work.batch)
    assert svi.slow is not None
    linear = {"linear": product} if way == SAME_PRODUCTS else {}
    released = ReleasedAlgorithm(
        svi.model.decoder, svi.fast, svi.slow, init_log_var=log_var, autocast=svi.autocast, **linear
    )
    return lambda: released.step(work.batch)


def _key(way: str, dtype: str) -> str:
    return f"{way}, {dtype}"


def _line(row: dict[str, Any], first: str) -> list[str]:
    return [
        row["way"],
        row["dtype"],
        show(row["seconds"]),
        f"{row['tokens_per_second']:.0f}",
        show(row["released_over_this"]),
        show(row[f"released_{first}_over_this"]),
        show(row["this_over_by_hand"]),
        f"{row['floor_share']:.0%}",
    ]
