"""Trainings forked from a process that has imported everything: a life costs no more than what it trains."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

CHILDREN = """
import json, os, sys, traceback
from ltm_pyro.cli import train
from ltm_pyro.cli.main import main
import ltm_pyro.data, ltm_pyro.evaluation, ltm_pyro.generate, ltm_pyro.presets, ltm_pyro.ranks, ltm_pyro.training
import ltm_pyro.cli.render

def live(order):
    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(order["environment"])
    code = 1
    try:
        main(order["arguments"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)

print("ready", flush=True)
while line := sys.stdin.readline():
    order = json.loads(line)
    if "arguments" in order:
        child = os.fork()
        if child == 0:
            live(order)
        print(child, flush=True)
    else:
        child, status = os.waitpid(order["poll"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if child else None), flush=True)
"""


class Nursery:
    """Starts ``ltm-pyro`` commands, each as one process or as several ranks.

    Args:
        folder: for what they print.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.jobs: list[Job] = []
        self._names = count()
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._parent = subprocess.Popen([sys.executable, "-c", CHILDREN], **pipes)
        assert self._parent.stdout is not None
        assert self._parent.stdout.readline() == "ready\n"

    def start(self, *arguments: Any, ranks: int = 1) -> Job:
        """Begins a command."""
        together: dict[str, str] = {}
        if ranks > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                together = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
            together["WORLD_SIZE"] = str(ranks)
        job = Job(self, [], [])
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            place = self.folder / f"{next(self._names)}"
            order = {"arguments": [str(a) for a in arguments], "environment": together | own}
            job.pids.append(self.ask(order | {"out": f"{place}.out", "err": f"{place}.err"}))
            job.places.append(place)
        self.jobs.append(job)
        return job

    def ask(self, order: dict[str, Any]) -> Any:
        """The parent's answer."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        return json.loads(self._parent.stdout.readline())

    def close(self) -> None:
        """Ends everything."""
        for job in self.jobs:
            job.send(signal.SIGKILL)
        self._parent.communicate("")


class Job:
    """A command at work: its processes, one for each rank, and where they print."""

    def __init__(self, nursery: Nursery, pids: list[int], places: list[Path]):
        self.nursery = nursery
        self.pids = pids
        self.places = places
        self.codes: dict[int, int] = {}

    def poll(self) -> list[int] | None:
        """The ranks' exit codes; None while any of them lives."""
        for pid in self.pids:
            if pid not in self.codes and (code := self.nursery.ask({"poll": pid})) is not None:
                self.codes[pid] = code
        return [self.codes[pid] for pid in self.pids] if len(self.codes) == len(self.pids) else None

    def wait(self, seconds: float) -> list[int]:
        """The ranks' exit codes, once all have ended."""
        deadline = time.monotonic() + seconds
        while (codes := self.poll()) is None:
            assert time.monotonic() < deadline, f"it did not end within {seconds} s: {self.printed()}"
            time.sleep(0.01)
        return codes

    def send(self, number: signal.Signals, rank: int | None = None) -> None:
        """Sends a signal to one rank, or to all."""
        self.poll()
        for pid in self.pids if rank is None else [self.pids[rank]]:
            if pid not in self.codes:
                os.kill(pid, number)

    def printed(self) -> tuple[str, str]:
        """What the ranks wrote on standard output and on standard error."""
        texts = [
            [Path(f"{place}.{kind}").read_text(encoding="utf-8") for place in self.places] for kind in ("out", "err")
        ]
        return "".join(texts[0]), "".join(texts[1])
