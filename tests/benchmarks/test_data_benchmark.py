"""The benchmark of data at scale: a run of seconds, and that nothing is done twice or comes out otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import data


def test_smoke_run_measures_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(data.__file__).parents[1]))
    monkeypatch.setattr("sys.argv", ["benchmarks", "data", "--smoke"])
    data.main(["--smoke"])
    folder = tmp_path / "runs" / "bench"
    result = json.loads((folder / "data.json").read_text())
    assert [run["workers"] for run in result["tokenising"]] == [0, 1]
    first, second = result["tokenising"]
    assert [first[name] for name in ("tokens", "documents")] == [second[name] for name in ("tokens", "documents")]
    assert all(0 < run["peak_mib"] < 1024 for run in result["tokenising"])
    assert result["after_a_kill"]["same_bytes"]
    assert result["after_a_kill"]["made_twice"] == 0
    assert result["after_a_kill"]["chunks_before_the_kill"] > 0
    assert result["loader"]["tokens_per_s"] > result["loader"]["training_tokens_per_s"]
    assert "| NOT" not in (folder / "data.md").read_text()
    assert not (folder / "data-at-scale").exists()
