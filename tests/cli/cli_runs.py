"""``ltm-pyro`` run in this process, and what it printed."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from ltm_pyro.cli.main import main
from tiny_runs import TINY

SETTINGS = [f"--set={address}={value}" for address, value in TINY.items()]
"""`TINY` as options of ``ltm-pyro train``."""


@dataclass(frozen=True)
class Result:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    def refused(self, *words: str) -> None:
        """Asserts exit code 2 and one line on standard error that holds the words."""
        assert self.code == 2, f"{self.code}\n{self.out}\n{self.err}"
        assert self.err.startswith("Error: ")
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        assert "Traceback" not in self.err + self.out
        for word in words:
            assert word in self.err, self.err


Run = Callable[..., Result]


def call(*arguments: Any) -> Result:
    """Runs the command in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return Result(code, out.getvalue(), err.getvalue())
