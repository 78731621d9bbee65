"""One process for all hostile input of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fuzz_strategies import Checkpoints
from fuzz_worker import Worker


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    found = Worker(tmp_path_factory.mktemp("fuzz"))
    yield found
    found.stop()


@pytest.fixture(scope="session")
def sound(worker: Worker) -> Checkpoints:
    """The worker's own run, to be changed."""
    return Checkpoints(worker.folder / "run")
