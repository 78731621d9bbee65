"""The benchmark `memory`: a run of seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import memory


def test_smoke_run_writes_every_case_counted_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    memory.main(["--smoke", "--device", "cpu"])
    result = json.loads((tmp_path / "runs" / "memory.json").read_text())
    assert result["machine"]["torch"] == str(torch.__version__)
    assert len(result["cases"]) == len(memory.SMOKE)
    for case in result["cases"]:
        assert case["counted_peak"] == max(case["counted"].values())
        assert case["ratio"] == pytest.approx(1.0, abs=0.1)
    table = (tmp_path / "runs" / "memory.md").read_text()
    assert table.count("\n") == 2 + len(memory.SMOKE)
    assert table.count("| yes |") == 2
