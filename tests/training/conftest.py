"""Shared by the training tests: one tiny corpus, a cache of the session's own, and no threads."""

from __future__ import annotations

import pytest
from tiny_runs import tiny_data

from ltm_pyro.data import Data


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTM_PYRO_CACHE", str(tmp_path_factory.getbasetemp() / "ltm-pyro-cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return tiny_data(tmp_path_factory.mktemp("corpus"), layout="documents")  # of many lengths
