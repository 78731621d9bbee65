"""Shared by the evaluation tests: one tiny corpus, a model of it, a cache of the session's own, and no threads."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_runs import new_trainer, tiny_data

from ltm_pyro.batch import TokenBatch
from ltm_pyro.data import Data
from ltm_pyro.infer import FastSlowSVI, Posterior
from ltm_pyro.training import load_run


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTM_PYRO_CACHE", str(tmp_path_factory.getbasetemp() / "ltm-pyro-cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return tiny_data(tmp_path_factory.mktemp("corpus"), layout="documents")  # of many lengths


@pytest.fixture
def inferred(monkeypatch: pytest.MonkeyPatch) -> list[TokenBatch]:
    """Every batch that is handed to `FastSlowSVI.infer` from now on."""
    seen: list[TokenBatch] = []
    infer = FastSlowSVI.infer

    def watched(self: FastSlowSVI, batch: TokenBatch, **options: Any) -> Posterior:
        seen.append(batch)
        return infer(self, batch, **options)

    monkeypatch.setattr(FastSlowSVI, "infer", watched)
    return seen


@pytest.fixture(scope="session")
def svi(tmp_path_factory: pytest.TempPathFactory, data: Data) -> FastSlowSVI:
    path = tmp_path_factory.mktemp("trained") / "run"
    new_trainer(path, data, {"training.steps": 12, "training.slow_lr": 0.05, "inference.fast_steps": 3}).fit()
    return load_run(path, device="cpu").svi
