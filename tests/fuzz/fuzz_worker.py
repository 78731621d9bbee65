"""A process that hostile files are given to: with little memory, watched for time, started again when it dies.

Run as a program it answers one case a line; `Worker` is the other end.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

TESTS = Path(__file__).resolve().parents[1]
MEMORY = 2 << 30  # bytes of address space beyond what the imports take
CPU_SECONDS = 10  # of one case; time that the machine spends elsewhere does not count
WALL_SECONDS = 240  # for what waits rather than works


class Outcome(NamedTuple):
    """How a case ended: ``done``, ``refused`` (an LTMError, one line), or ``failed``, with what there is to say."""

    kind: str
    text: str


class Worker:
    """Hands cases to the process.

    Args:
        folder: its own; it makes a tiny run there, ``run``, when it starts.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.cases = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def run(
        self, task: str, files: dict[str, bytes] | None = None, *, cpu_seconds: int = CPU_SECONDS, **arguments: Any
    ) -> Outcome:
        """The outcome of a task of `fuzz_tasks` in a new folder that holds the files."""
        self.cases += 1
        coded = {name: base64.b64encode(content).decode() for name, content in (files or {}).items()}
        return self._ask({"task": task, "files": coded, "arguments": arguments, "cpu_seconds": cpu_seconds})

    def stop(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self.stop()
        surroundings = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "fuzz"), str(TESTS.parent)]),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "RAYON_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "LTM_PYRO_CACHE": str(self.folder / "cache"),
            "PYTHONWARNINGS": "ignore",
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=surroundings,
        )
        ready = self._ask(None)
        assert ready.kind == "done", ready

    def _ask(self, case: dict[str, Any] | None) -> Outcome:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if case is not None:
            self._process.stdin.write(json.dumps(case).encode() + b"\n")
            self._process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(WALL_SECONDS) else b""
        if line:
            return Outcome(*json.loads(line))
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        if case is not None:
            self._start()
        return Outcome("failed", f"the process died ({code}) or gave no answer")


def main(folder: Path) -> None:
    """Answers cases from standard input until it ends."""
    import resource
    import signal

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed is no answer
    import fuzz_tasks

    fuzz_tasks.prepare(folder)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    answers.write(json.dumps(["done", "ready"]) + "\n")
    answers.flush()
    for line in sys.stdin:
        case = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, case["cpu_seconds"])  # whose signal ends the process
        answer = fuzz_tasks.answer(case)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
