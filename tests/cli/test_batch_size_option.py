"""``--batch-size auto`` and ``training.micro_batch_size=auto``: what is found is kept, what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Run

from ltm_pyro.training import batch_size


def kept(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text())["settings"]["training"]


@pytest.fixture
def five_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "formula_bytes", lambda settings, data, size: size)
    monkeypatch.setattr(batch_size, "available_memory", lambda: 5 / batch_size.MARGIN)


@pytest.mark.usefixtures("five_fit")
def test_batch_that_fits_is_said_in_a_line_kept_and_used_again_on_resume(train: Run, cli: Run, tmp_path: Path):
    out = tmp_path / "run"
    options = ["--out", out, "--steps", "2", "--set", "training.micro_batch_size=none"]
    result = train(*options, "--batch-size", "auto")
    assert result.code == 0, result.err
    assert "training.batch_size = 5: by formula" in result.out
    assert "batch_size=5" in result.out.split("training ", 1)[1]
    assert (kept(out)["batch_size"], kept(out)["micro_batch_size"]) == (5, None)
    resumed = cli("train", "--resume", "--out", out, "--steps", "3", "--batch-size", "auto")
    assert resumed.code == 0, resumed.err
    assert kept(out)["batch_size"] == 5


@pytest.mark.usefixtures("five_fit")
def test_micro_batch_that_fits_leaves_the_batch_as_it_is(train: Run, tmp_path: Path):
    for size, expected in ((8, 5), (3, 3)):
        out = tmp_path / f"run-{size}"
        changes = ["--batch-size", size, "--set", "training.micro_batch_size=auto"]
        result = train("--out", out, "--steps", "1", *changes)
        assert result.code == 0, result.err
        assert (kept(out)["batch_size"], kept(out)["micro_batch_size"]) == (size, expected)


def test_auto_may_stand_in_a_settings_file(train: Run, tmp_path: Path, five_fit: None):
    config = tmp_path / "settings.toml"
    config.write_text('[training]\nmicro_batch_size = "auto"\n')
    result = train("--out", tmp_path / "run", "--steps", "1", "--config", config)
    assert result.code == 0, result.err
    assert kept(tmp_path / "run")["micro_batch_size"] == 4  # all of the batch


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch-size", "0"], ["training.batch_size must be 1 or more, got 0"]),
        (["--batch-size", "many"], ["training.batch_size must be a whole number", "'many'"]),
        (["--batch-size", "2.5"], ["training.batch_size must be a whole number"]),
        (
            ["--batch-size", "auto", "--set", "training.micro_batch_size=2"],
            ["training.batch_size=auto", "training.micro_batch_size", "leave that out"],
        ),
        (["--batch-size", "auto", "--set", "training.micro_batch_size=auto"], ["leave that out"]),
        (["--set", "decoder.checkpointing=perhaps"], ["decoder.checkpointing must be true or false"]),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(train: Run, tmp_path: Path, options: list[str], words: list[str]):
    train("--out", tmp_path / "out", *options).refused(*words)
    assert not (tmp_path / "out").exists()


def test_memory_too_small_for_one_sequence_is_refused_and_leaves_no_run(train: Run, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(batch_size, "available_memory", lambda: 1000)
    train("--out", tmp_path / "out", "--batch-size", "auto").refused("does not fit", "decoder.checkpointing=true")
    assert not (tmp_path / "out").exists()


def test_checkpointing_may_change_when_a_run_is_resumed(cli: Run, copy: Path):
    result = cli("train", "--resume", "--out", copy, "--steps", "7", "--set", "decoder.checkpointing=true")
    assert result.code == 0, result.err
    assert json.loads((copy / "config.json").read_text())["settings"]["decoder"]["checkpointing"] is True
