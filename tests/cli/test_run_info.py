"""``ltm-pyro info``: state, curves, sessions and the next commands, for people and as JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import SETTINGS, Run
from ltm_pyro.cli import render
from ltm_pyro.cli.run_info import duration

import ltm_pyro


def test_info_draws_the_curves_and_says_where_the_run_stands(cli: Run, trained: Path):
    printed = cli("info", trained).out
    for words in (
        "loss, nats/token (line: training; o: validation, -ELBO)",
        "KL(q || p), nats/token (line: training; o: validation)",
        "state: finished\n",
        "steps: 6 of 6\n",
        "steps/s without validations and checkpoints\n",
        " FLOPs\n",
        "checkpoints: step-00000006, step-00000004, step-00000002; the newest is ",
        f"  what it is worth, in nats per token:\n    ltm-pyro eval {trained} --samples 4\n",
    ):
        assert words in printed.replace("●", "o")
    order = ["training   ", "loss, nats/token", "validation, nats/token", "sessions", "state: ", "Next:"]
    places = [printed.index(word) for word in order]
    assert places == sorted(places)  # the nearest at the end
    assert "trained with other code" not in printed


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_curves_are_braille_on_a_utf8_terminal_and_ascii_elsewhere(
    cli: Run, trained: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(type(render.console), "encoding", property(lambda self: encoding))
    printed = cli("info", trained).out
    shown = printed[printed.index("loss, nats") :]
    assert shown.isascii() == (encoding == "ascii")
    assert max(map(len, shown[: shown.index("Next:")].splitlines())) <= 120


def test_a_terminal_without_the_characters_ends_nothing(process: Callable[..., subprocess.Popen], trained: Path):
    ended = process("info", trained, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    printed, errors = ended.communicate(timeout=60)
    assert (ended.returncode, errors) == (0, "")
    assert "state: finished\n" in printed
    assert "?" not in printed  # it knew


def test_json_has_all_of_it_with_the_curves_as_numbers(cli: Run, trained: Path):
    result = cli("info", trained, "--json")
    found = json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (result.code, result.err) == (0, "")
    assert (found["state"], found["unsaved"], found["run"]) == ("finished", 0, str(trained))
    assert found["sessions"][0]["versions"]["ltm_pyro"] == ltm_pyro.__version__
    assert found["training_tokens"] > 0
    assert found["steps_per_second"] > 0
    loss = next(curve for curve in found["curves"] if (curve["split"], curve["quantity"]) == ("train", "loss"))
    assert loss["x"] == [1, 2, 3, 4, 5, 6]
    assert [one["command"].split()[1] for one in found["next"]] == ["sample", "eval"]


def test_a_killed_run_is_told_what_is_lost_and_how_to_go_on(cli: Run, copy: Path):
    shutil.rmtree(copy / "checkpoints" / "step-00000006")
    session = json.loads((copy / "sessions.jsonl").read_text().splitlines()[0])
    session["versions"]["torch"] = "1.0"
    (copy / "sessions.jsonl").write_text(json.dumps(session) + '\n{"event": "en')
    printed = cli("info", copy).out
    assert "state: stopped\nsteps: 4 of 6 (67%)\n" in printed
    assert "2 more are lost with it, and trained again by a resume\n" in printed
    assert " left\n" in printed
    assert "trained with other code than is installed: torch 1.0, here " in printed
    assert f"  go on:\n    ltm-pyro train --resume --out {copy}\n" in printed
    assert cli("train", "--resume", "--out", copy).code == 0
    assert "state: finished\n" in cli("info", copy).out


def test_info_of_a_run_of_an_older_version_leaves_out_what_is_not_there(cli: Run, copy: Path):
    (copy / "sessions.jsonl").unlink()
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith("training_")} for row in rows]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    result = cli("info", copy)
    assert (result.code, result.err) == (0, "")
    assert "state: finished\n" in result.out
    assert not any(word in result.out for word in ("speed: ", "spent: ", "sessions\n"))


def test_info_before_the_first_row(cli: Run, copy: Path):
    shutil.rmtree(copy / "checkpoints")
    for name in ("metrics.jsonl", "sessions.jsonl"):
        (copy / name).unlink()
    printed = cli("info", copy).out
    assert "state: never started\nsteps: 0 of 6 (0%)\ncheckpoints: none yet\n" in printed
    assert f"  start again from the first step:\n    ltm-pyro train --resume --out {copy}\n" in printed
    found = json.loads(cli("info", copy, "--json").out)
    assert (found["curves"], found["state"], found["train"]) == ([], "never started", None)


def test_info_of_a_baseline_draws_its_own_number(cli: Run, corpus: Path, tmp_path: Path):
    settings = [text for text in SETTINGS if "thought" not in text and "inference" not in text]
    assert cli("train", "--data", corpus, *settings, "--model", "ar", "--out", tmp_path / "ar").code == 0
    printed = cli("info", tmp_path / "ar").out
    assert "validation, -log p(x))" in printed
    assert "KL(q" not in printed
    assert f"    ltm-pyro eval {tmp_path / 'ar'}\n" in printed


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (100, "2 min"), (5399, "90 min"), (7265, "2 h 01 min"), (200_000, "2.3 days")],
)
def test_durations_in_words(seconds: float, words: str):
    assert duration(seconds) == words
