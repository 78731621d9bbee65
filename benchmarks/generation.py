"""Speed of generation: tokens per second with the cache, without it, and where memory bandwidth would be the limit.

Three measurements of decoders with random weights, which cost what trained ones do: every size, type and number of
rows beside its floor; the cached loop against one that reads the whole prefix again at each token; the time of a token
along a long text.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import write_result
from benchmarks.plain import plain_preset
from benchmarks.workload import GPT2_VOCABULARY
from ltm_pyro.components import build_model
from ltm_pyro.decoder import Sampling, ThoughtDecoder, decode
from ltm_pyro.decoder.cache import DecoderCache
from ltm_pyro.decoder.sampling import TokenDraws
from ltm_pyro.infer.posterior import autocasting

DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/generation-speed.json."""
    parser = argparse.ArgumentParser(prog="just bench generation", description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["ltm-s", "ltm-m", "ltm-l"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--vocabulary", type=int, default=GPT2_VOCABULARY)
    parser.add_argument("--steps", type=int, default=64, help="tokens of each row of the table, after a full window")
    parser.add_argument("--tokens", type=int, default=512, help="of the comparison with no cache")
    parser.add_argument(
        "--every", type=int, default=64, help="tokens between two that are decoded without a cache, too"
    )
    parser.add_argument("--long", type=int, default=2048, help="tokens of the long text")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default="generation-speed", help="name of the JSON file under benchmarks/results/")
    parser.add_argument("--smoke", action="store_true", help="a few seconds; prints, and writes nothing")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.presets, options.rows, options.vocabulary = ["tiny"], [1, 3], 300
        options.steps, options.tokens, options.every, options.long = 4, 16, 4, 80
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    bandwidth = copy_bandwidth(options.device, 2**20 if options.smoke else 2**26)
    print(f"copying: {bandwidth / 1e9:.1f} GB/s, read and written; {options.threads} threads, {options.device}")
    table = []
    for name in options.presets:
        decoder = random_decoder(name, options)
        for dtype in options.dtypes:
            for rows in options.rows:
                row = {"preset": name, "dtype": dtype, **throughput(decoder, rows, dtype, options, bandwidth)}
                table.append(row)
                print(
                    f"{name:6} {dtype:9} {rows:3} rows  {1e3 * row['step_s']:7.2f} ms a step  "
                    f"{row['tokens_per_s']:8.1f} tokens/s  floor {1e3 * row['floor_s']:6.2f} ms  "
                    f"{row['step_s'] / row['floor_s']:5.1f} times it"
                )
    decoder = random_decoder(options.presets[0], options)
    compared = [compare_cache(decoder, rows, options) for rows in options.rows]
    for row in compared:
        print(
            f"{options.tokens} tokens, {row['rows']} rows: {row['cached_tokens_per_s']:.1f} tokens/s with the cache, "
            f"{row['uncached_tokens_per_s']:.1f} without, {row['ratio']:.1f} times; "
            f"{row['equal_draws']} of {row['draws']} draws equal"
        )
    long = flatness(decoder, options)
    print(
        f"{options.long} tokens: {1e3 * long['first_eighth_s']:.2f} ms a token in the first eighth, "
        f"{1e3 * long['last_eighth_s']:.2f} in the last, {long['ratio']:.2f} times"
    )
    if not options.smoke:
        settings = {name: value for name, value in vars(options).items() if name not in ("out", "smoke")}
        result = {"settings": settings, "copy_bytes_per_s": bandwidth, "throughput": table}
        path = write_result(options.out, {**result, "against_no_cache": compared, "long_text": long})
        print(f"written to {path}")


def random_decoder(name: str, options: argparse.Namespace) -> ThoughtDecoder:
    """A preset's decoder with random weights."""
    return build_model(plain_preset(name), options.vocabulary).decoder.to(options.device)


class Timed:
    """A decoder that notes when each of its steps begins."""

    def __init__(self, decoder: ThoughtDecoder):
        self.decoder = decoder
        self.marks: list[float] = []

    def prefill(self, inputs: Tensor, lengths: Tensor, thoughts: Tensor, max_tokens: int | None = None) -> Any:
        """The decoder's own."""
        return self.decoder.prefill(inputs, lengths, thoughts, max_tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """The decoder's own."""
        return self.decoder.logits(hidden)

    def modules(self) -> Iterator[nn.Module]:
        """The decoder's own."""
        return self.decoder.modules()

    def step(self, inputs: Tensor, cache: DecoderCache) -> Tensor:
        """The decoder's own."""
        if inputs.is_cuda:
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())
        return self.decoder.step(inputs, cache)

    @property
    def seconds(self) -> list[float]:
        """From each step's beginning to the next one's: the step, the logits and the draw."""
        return [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]


def throughput(
    decoder: ThoughtDecoder, rows: int, dtype: str, options: argparse.Namespace, bandwidth: float
) -> dict[str, Any]:
    """The median step of a batch whose windows are full, and the time in which what it must read could be copied."""
    timed = Timed(decoder)
    prompt = torch.randint(decoder.vocab_size, (rows, decoder.window), device=options.device)
    _decode(timed, prompt, options.steps, dtype)
    step = statistics.median(timed.seconds)
    size = 4 if DTYPES[dtype] is None else 2
    read = size * (step_weights(decoder) + rows * cache_numbers(decoder))
    return {
        "rows": rows,
        "step_s": step,
        "tokens_per_s": rows / step,
        "bytes_read": read,
        "floor_s": read / bandwidth,
    }


def compare_cache(decoder: ThoughtDecoder, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Decodes with the cache, then draws each ``every``-th token again from its whole prefix, from the same numbers."""
    start = torch.randint(decoder.vocab_size, (rows, 1), device=options.device)
    timed = Timed(decoder)
    thoughts, uniforms, tokens = _decode(timed, start, options.tokens, "float32")
    draws, inputs = TokenDraws(Sampling()), torch.cat([start, tokens], 1)
    seconds, equal = [], 0
    with torch.no_grad():
        for n in range(options.every - 1, options.tokens, options.every):
            began = _now(options.device)
            hidden = decoder(decoder.stem(inputs[:, : n + 1]), thoughts)[:, -1]
            drawn = draws(decoder.logits(hidden), uniforms[:, n])
            seconds.append(_now(options.device) - began)
            equal += int((drawn == tokens[:, n]).sum())
    cached, uncached = statistics.fmean(timed.seconds), statistics.fmean(seconds)
    return {
        "preset": options.presets[0],
        "rows": rows,
        "cached_tokens_per_s": rows / cached,
        "uncached_tokens_per_s": rows / uncached,
        "ratio": uncached / cached,
        "equal_draws": equal,
        "draws": rows * len(seconds),
    }


def flatness(decoder: ThoughtDecoder, options: argparse.Namespace) -> dict[str, Any]:
    """The median step in the first and in the last eighth of one long text."""
    timed = Timed(decoder)
    _decode(timed, torch.zeros(1, 1, dtype=torch.int64, device=options.device), options.long, "float32")
    eighth = len(timed.seconds) // 8
    first, last = (statistics.median(part) for part in (timed.seconds[:eighth], timed.seconds[-eighth:]))
    return {
        "preset": options.presets[0],
        "tokens": options.long,
        "first_eighth_s": first,
        "last_eighth_s": last,
        "ratio": last / first,
    }


def step_weights(decoder: ThoughtDecoder) -> int:
    """Numbers of the weights that a step reads: all but the thoughts' key and value maps, which the prompt has read."""
    return sum(
        parameter.numel()
        for name, parameter in decoder.named_parameters()
        if not name.endswith(("cross_attention.key.weight", "cross_attention.value.weight", "cross_attention.address"))
    )


def cache_numbers(decoder: ThoughtDecoder) -> int:
    """Numbers of the keys and values that a step reads of one row."""
    layers, per_layer, _ = decoder.thought_shape
    return 2 * layers * decoder.embedding.embedding_dim * (decoder.window + per_layer)


def copy_bandwidth(device: str, numbers: int) -> float:
    """Bytes read and written per second by a copy of float32 numbers."""
    source = torch.zeros(numbers, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        began = _now(device)
        target.copy_(source)
        seconds.append(_now(device) - began)
    return 8 * numbers / statistics.median(seconds)


def _decode(timed: Timed, prompt: Tensor, tokens: int, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """The thoughts, the numbers behind the draws, and the tokens."""
    rows = len(prompt)
    thoughts = torch.randn(rows, *timed.decoder.thought_shape, device=prompt.device)
    uniforms = torch.rand(rows, tokens, dtype=torch.float64, device=prompt.device)
    lengths = torch.full((rows,), prompt.shape[1], device=prompt.device)
    with autocasting(prompt.device, DTYPES[dtype]):
        drawn = decode(timed, thoughts, prompt, lengths, tokens, uniforms=uniforms)
    return thoughts, uniforms, drawn.tokens


def _now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()
