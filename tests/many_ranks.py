"""Several ranks on this machine, each a process of its own that meets the others through gloo."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from ltm_pyro.ranks import Ranks, joined_ranks


def run_ranks(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``work(ranks, *arguments)`` gives on each rank; plain values or tensors on the CPU."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    processes = [
        context.Process(target=_rank, args=(rank, size, port, pipe, work, arguments))
        for rank, (_, pipe) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        answers = []
        for rank, (pipe, _) in enumerate(pipes):
            assert pipe.poll(300), f"rank {rank} of {size} did not answer"
            answers.append(pickle.loads(pipe.recv_bytes()))
        failures = [f"rank {rank} of {size}:\n{failure}" for rank, (failure, _) in enumerate(answers) if failure]
        # The others' is that the first is gone.
        assert not failures, min(failures, key=lambda text: "RankLost" in text)
        return [result for _, result in answers]
    finally:
        for process in processes:
            process.join(20)
            process.kill()


def _rank(
    rank: int, size: int, port: int, pipe: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    try:
        with joined_ranks(timeout=120) as ranks:
            assert ranks == Ranks(rank, size, rank)
            result = work(ranks, *arguments)
        outcome = (None, result)
    except BaseException:
        outcome = (traceback.format_exc(), None)
    pipe.send_bytes(pickle.dumps(outcome))  # by value: a shared tensor would be gone with this process
