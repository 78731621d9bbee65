"""The fault matrix: what each test injected and what came of it, as a table and, with --faults-report, a file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_data, write_corpus

from ltm_pyro.data import Data

COLUMNS = ("fault", "injected", "exact", "refused", "lost")
ABOUT = {
    "injected": "faults",
    "exact": "after which everything was as without the fault, bit for bit",
    "refused": "that one line named, with its cause, and that changed nothing",
    "lost": "after which anything older than the last checkpoint was gone, or a wrong number was taken for a right one",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--faults-report", metavar="FILE", help="write the fault matrix to FILE.json and FILE.md")
    group.addoption("--fault-kills", metavar="N", type=int, help="kills of each kind (default: 50)")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--fault-kills", default=None) or 50)


@pytest.fixture
def tally(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """Adds to the matrix what a test injected: ``tally("kill -9 …", injected=50, exact=50)``."""

    def add(fault: str, *, injected: int, exact: int = 0, refused: int = 0) -> None:
        lost = injected - exact - refused
        record_property(
            "fault", {"fault": fault, "injected": injected, "exact": exact, "refused": refused, "lost": lost}
        )
        assert lost == 0, f"{fault}: of {injected} faults, {exact} left all exact and {refused} were refused by name"

    return add


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows: dict[str, dict[str, Any]] = {}
    failed = [report.nodeid for report in terminalreporter.stats.get("failed", []) if "tests/faults" in report.nodeid]
    for report in [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]:
        for name, value in getattr(report, "user_properties", []):
            if name == "fault" and report.when == "call":
                row = rows.setdefault(value["fault"], dict.fromkeys(COLUMNS, 0) | {"fault": value["fault"]})
                for column in COLUMNS[1:]:
                    row[column] += value[column]
    if not rows:
        return
    terminalreporter.section("fault matrix")
    for line in table(list(rows.values())):
        terminalreporter.line(line)
    if path := config.getoption("--faults-report", default=None):
        write(Path(path), list(rows.values()), failed)


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " + "| ---: " * (len(COLUMNS) - 1) + "|"]
    return lines + ["| " + " | ".join(str(row[column]) for column in COLUMNS) + " |" for row in rows]


def write(path: Path, rows: list[dict[str, Any]], failed: list[str]) -> None:
    about = {"python": platform.python_version(), "torch": str(torch.__version__), "system": platform.system()}
    report = {"command": "just test-faults", "cores": os.cpu_count(), **about, "failed": failed, "columns": ABOUT}
    path.with_suffix(".json").write_text(json.dumps(report | {"faults": rows}, indent=1) + "\n", encoding="utf-8")
    legend = [f"- {name}: {words}" for name, words in ABOUT.items()]
    head = ["# The fault matrix", "", f"By `{report['command']}`; torch {about['torch']}, {os.cpu_count()} cores.", ""]
    verdict = f"Failed: {', '.join(failed)}." if failed else "Every test passed."
    path.with_suffix(".md").write_text("\n".join([*head, *table(rows), "", *legend, "", verdict, ""]), encoding="utf-8")


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTM_PYRO_CACHE", str(tmp_path_factory.getbasetemp() / "ltm-pyro-cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return tiny_data(tmp_path_factory.mktemp("corpus"), layout="documents")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus.txt")


@pytest.fixture
def torchrun() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts ``ltm-pyro`` as two ranks under torchrun."""
    started: list[subprocess.Popen] = []

    def run(*arguments: Any) -> subprocess.Popen:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([*launcher, "-m", "ltm_pyro.cli", *(str(a) for a in arguments)], **pipes))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.terminate()  # which takes its ranks along; a kill would leave them at work
        process.communicate()
