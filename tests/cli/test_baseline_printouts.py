"""The commands on runs of baselines: each number under its own name, and nothing said of thoughts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import Result, Run

NAMES = {"ar": ("likelihood", "-log p(x)"), "mdlm": ("nelbo", "NELBO")}
KINDS = pytest.mark.parametrize("kind", list(NAMES))


def train_baseline(train: Run, path: Path, kind: str) -> Result:
    found = train("--model", kind, "--steps", 1, "--out", path)
    assert found.code == 0, found.err
    return found


@KINDS
def test_every_line_of_training_has_the_number_of_the_model(train: Run, tmp_path: Path, kind: str):
    printed = train_baseline(train, tmp_path / "run", kind).out
    name = NAMES[kind][1]
    assert f"validation at step 0: {name} " in printed
    assert f"step 1/1  {name} " in printed
    assert not any(word in printed for word in ("-ELBO", "KL", "thoughts drawn", "inference"))


@KINDS
def test_reports_name_bounds_and_draws_as_they_are(cli: Run, train: Run, tmp_path: Path, kind: str):
    run = tmp_path / "run"
    train_baseline(train, run, kind)
    shown = cli("eval", run, "--max-sequences", 2).out
    protocol = NAMES[kind][0]
    assert f": {protocol} {'≤ ' if kind == 'mdlm' else ''}" in shown
    assert ("the length given" in shown, "S = 1" in shown, "T_fast" in shown) == (kind == "mdlm", kind == "mdlm", False)


def test_info_names_the_next_commands_of_a_baseline(cli: Run, train: Run, tmp_path: Path):
    for kind, ending in (("ar", ""), ("mdlm", " --samples 16")):
        train_baseline(train, tmp_path / kind, kind)
        assert f"ltm-pyro eval {tmp_path / kind}{ending}\n" in cli("info", tmp_path / kind).out


def test_reports_of_all_commands_hold_the_kind_of_model(cli: Run, train: Run, tmp_path: Path):
    run = tmp_path / "run"
    train_baseline(train, run, "ar")
    (tmp_path / "ptb.txt").write_text("a line of text\n", encoding="utf-8")
    for command in (
        ("eval", run, "--max-sequences", 1),
        ("eval", run, "--suite", "zero-shot", "--data", tmp_path),
        ("generation", run, "--num", 1, "--max-tokens", 2),
    ):
        assert json.loads(cli(*command, "--json").out)["model"] == "ar"
