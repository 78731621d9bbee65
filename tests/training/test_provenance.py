"""sessions.jsonl: what it says of code and machine, what it never says, and what a kill or a full disk does to it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import new_trainer, reopened

import ltm_pyro
from ltm_pyro.data import Data
from ltm_pyro.errors import DivergenceError
from ltm_pyro.training.provenance import (
    _git_state,
    differences,
    environment,
    git_state,
    read_sessions,
    recorded_session,
    versions,
)

QUICK = {"training.steps": 4, "training.eval_every": 100, "training.checkpoint_every": 100}


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(
        ["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True, env=env
    ).stdout


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a checkout of its own."""
    folder = tmp_path / "checkout" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def test_every_start_and_resume_is_a_line_that_says_by_which_command_and_code(tmp_path: Path, data: Data):
    new_trainer(tmp_path / "run", data, QUICK).fit()
    reopened(tmp_path / "run", data, {"training.steps": 6}).fit()
    first, second = read_sessions(tmp_path / "run")
    assert (first["step"], first["end"]["step"], first["end"]["outcome"]) == (0, 4, "ended")
    assert (second["step"], second["end"]["step"], second["end"]["outcome"]) == (4, 6, "ended")
    assert shlex.split(first["command"]) == sys.orig_argv
    assert first["directory"] == os.getcwd()
    assert first["versions"]["ltm_pyro"] == ltm_pyro.__version__
    assert first["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert first["versions"].keys() == {
        *("ltm_pyro", "python", "torch", "pyro", "numpy", "safetensors", "tokenizers", "datasets")
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["at"])
    assert (first["world_size"], first["gpu"]) == (1, None)
    assert first["platform"]
    assert first["processor"]
    lines = (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["start", "end"] * 2


def test_a_finished_run_that_is_resumed_has_no_session_more(tmp_path: Path, data: Data):
    new_trainer(tmp_path / "run", data, QUICK).fit()
    assert reopened(tmp_path / "run", data).fit()
    assert len(read_sessions(tmp_path / "run")) == 1


def test_no_value_of_an_environment_variable_is_written(monkeypatch: pytest.MonkeyPatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "HF_HUB_TOKEN", "SOMETHING_ELSE", "GIT_DIR"):
        monkeypatch.setenv(name, f"the-value-of-{name}")
    _git_state.cache_clear()
    assert "the-value-of" not in json.dumps(environment())


def test_the_revision_is_that_of_the_checkout_which_keeps_the_package(package: Path):
    _git_state.cache_clear()
    assert git_state(package) == {"revision": git(package, "rev-parse", "HEAD").strip(), "dirty": False}
    (package / "__init__.py").write_text("changed = True\n")
    assert git_state(package)["dirty"] is False  # as of the start: that is what was imported
    _git_state.cache_clear()
    assert git_state(package)["dirty"] is True
    git(package, "checkout", "-q", "__init__.py")
    (package / "note.txt").write_text("not tracked")
    _git_state.cache_clear()
    assert git_state(package)["dirty"] is False


def test_a_package_installed_inside_somebodys_checkout_has_no_revision(package: Path):
    installed = package.parent / ".venv" / "site-packages" / "other"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert git_state(installed) is None


def test_without_git_there_is_no_revision_and_no_error(package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    _git_state.cache_clear()
    assert git_state(package) is None
    _git_state.cache_clear()


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules["ltm_pyro.training.provenance"]._PACKAGES, "datasets", "no-such-package-here")
    assert versions()["datasets"] is None


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (DivergenceError("the loss is not finite\nsecond line"), "diverged", "the loss is not finite"),
        (OSError("no network"), "failed", "no network"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
    ],
)
def test_the_end_says_what_it_was(tmp_path: Path, error: BaseException, outcome: str, reason: str):
    with pytest.raises(type(error)), recorded_session(tmp_path, lambda: 7):
        raise error
    (session,) = read_sessions(tmp_path)
    assert (session["end"]["outcome"], session["end"]["reason"], session["end"]["step"]) == (outcome, reason, 7)


def test_a_line_that_a_kill_has_cut_is_passed_over_and_the_next_stands_on_its_own(tmp_path: Path):
    with recorded_session(tmp_path, lambda: 1):
        pass
    path = tmp_path / "sessions.jsonl"
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        before = read_sessions(tmp_path)
        with recorded_session(tmp_path, lambda: 2):
            pass
        after = read_sessions(tmp_path)
        assert after[-1]["step"] == 2
        assert after[-1]["end"]["step"] == 2
        assert [s["step"] for s in after[:-1]] == [s["step"] for s in before]


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[1, 2]\n", b"null\n", b'{"event": "end"}\n', b"[" * 10**5 + b"\n"])
def test_what_is_no_session_is_passed_over(tmp_path: Path, damage: bytes):
    (tmp_path / "sessions.jsonl").write_bytes(damage)
    assert read_sessions(tmp_path) == []


def test_a_session_that_was_killed_has_no_end(tmp_path: Path):
    lines = [{"event": "start", "step": 0}, {"event": "start", "step": 5}, {"event": "end", "step": 6}]
    (tmp_path / "sessions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = read_sessions(tmp_path)
    assert first["end"] is None
    assert second["end"]["step"] == 6


def test_what_cannot_be_written_is_a_warning_and_training_goes_on(tmp_path: Path):
    done = []
    with (
        pytest.warns(UserWarning, match="sessions.jsonl.*training goes on"),
        recorded_session(tmp_path / "missing", lambda: 0),
    ):
        done.append(True)
    assert done


def test_differences_name_version_revision_and_torch():
    now = environment()
    assert differences(now) == []
    other = {**now, "versions": {**now["versions"], "torch": "1.0", "ltm_pyro": "0.0.1", "numpy": "1.0"}}
    there = differences(other)
    assert any(text.startswith("torch 1.0, here ") for text in there)
    assert f"ltm-pyro 0.0.1, here {ltm_pyro.__version__}" in there
    assert len(there) == 2
    assert differences({}) == []
    assert differences({"versions": "damaged", "git": 3}) == []
    if now["git"]:
        assert differences({**now, "git": {"revision": "0" * 40}})[0].startswith("revision 000000000000, here ")
