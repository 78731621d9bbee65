"""Shared by the command line's tests: a tiny corpus and run, and the command run in this process or another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_runs import SETTINGS, Run, call
from tiny_runs import write_corpus


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the session's own, no threads, and what ``main`` sets for a process put back."""
    monkeypatch.setenv("LTM_PYRO_CACHE", str(tmp_path_factory.getbasetemp() / "ltm-pyro-cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with warnings.catch_warnings():
        yield


@pytest.fixture
def cli() -> Run:
    return call


@pytest.fixture
def train(cli: Run, corpus: Path) -> Run:
    """``ltm-pyro train`` on the tiny corpus with tiny settings; later arguments win."""
    return lambda *arguments: cli("train", "--data", corpus, *SETTINGS, *arguments)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus.txt")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A finished run, not to be changed."""
    before = os.environ.get("LTM_PYRO_CACHE")
    os.environ["LTM_PYRO_CACHE"] = str(tmp_path_factory.getbasetemp() / "ltm-pyro-cache")
    path = tmp_path_factory.mktemp("runs") / "tiny"
    result = call("train", "--data", corpus, *SETTINGS, "--out", path)
    if before is None:
        del os.environ["LTM_PYRO_CACHE"]
    else:
        os.environ["LTM_PYRO_CACHE"] = before
    assert result.code == 0, result.err
    (path / "printed.txt").write_text(result.out, encoding="utf-8")
    return path


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def process(corpus: Path) -> Callable[..., subprocess.Popen]:
    """Starts ``python -m ltm_pyro.cli`` as a process of its own, its output to be read as text."""
    started: list[subprocess.Popen] = []

    def start(*arguments: Any, **options: Any) -> subprocess.Popen:
        command = [sys.executable, "-m", "ltm_pyro.cli", *(str(a) for a in arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, **{**pipes, **options}))
        return started[-1]

    yield start
    for one in started:
        if one.poll() is None:
            one.kill()
        one.wait()
        for pipe in (one.stdout, one.stderr):
            if pipe is not None:
                pipe.close()
