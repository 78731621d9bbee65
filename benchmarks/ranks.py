"""Data parallelism: a slow step of two ranks pinned to a core each, beside one rank on one core with half the batch."""

from __future__ import annotations

import multiprocessing
import os
import socket
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.measure import Comparison, seconds_of, write_result
from benchmarks.workload import GPT2_VOCABULARY, Workload, options_of, parser_of, plain
from ltm_pyro.ranks import Ranks, joined_ranks

SMOKE = {"preset": "tiny", "vocabulary": 300, "batch": 2, "tokens": 32, "fast_steps": 2, "rounds": 1}
ALONE, APART, TOGETHER = "one rank, half of the batch", "two at once, no sums", "two ranks"


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/ranks.json."""
    work = {"preset": "ltm-s", "vocabulary": GPT2_VOCABULARY, "batch": 8, "tokens": 256, "fast_steps": 16}
    parser = parser_of("ranks", __doc__, rounds=3, **work, dtype="float32")
    options = options_of(parser, arguments, SMOKE)
    options.threads = 1
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    ranks = [
        context.Process(target=_rank, args=(rank, port, pipe, plain(options)), daemon=True)
        for rank, (_, pipe) in enumerate(pipes)
    ]
    for rank in ranks:
        rank.start()
    ours = [pipe for pipe, _ in pipes]
    seconds: dict[str, list[float]] = {ALONE: [], APART: [], TOGETHER: []}
    for turn in range(options.rounds + 1):
        for name in (ALONE, APART, TOGETHER)[:: 1 if turn % 2 else -1]:
            taken = _ask(ours[:1] if name == ALONE else ours, name == TOGETHER)
            if turn:  # the first round warms up
                seconds[name].append(max(taken))
    for pipe in ours:
        pipe.send(None)
    for rank in ranks:
        rank.join(60)
    compared = Comparison(seconds, ALONE)
    path = write_result(options.out, {"options": plain(options), **compared.summary()}, options.folder)
    print(compared.table())
    print(f"written to {path}")


def _ask(pipes: list[Connection], together: bool) -> list[float]:
    """Seconds of a slow step on each of the ranks, all at once."""
    for pipe in pipes:
        pipe.send(together)
    return [pipe.recv() for pipe in pipes]


def _rank(rank: int, port: int, pipe: Connection, options: dict[str, Any]) -> None:
    """Takes a slow step on half of the batch whenever it is asked, with sums over the ranks or without."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with joined_ranks() as ranks:
        torch.manual_seed(0)
        work = Workload.of(**options | {"batch": options["batch"] // ranks.size})
        while (together := pipe.recv()) is not None:
            work.svi.ranks = ranks if together else Ranks()
            pipe.send(seconds_of(work.step))
