"""Hostile runs, settings and text at the command line: exit code 2 and one line, nothing read or written elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import Run


def test_resume_writes_through_no_link(cli: Run, copy: Path, tmp_path: Path):
    (copy / "checkpoints").rename(tmp_path / "elsewhere")
    (copy / "checkpoints").symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    cli("train", "--resume", "--out", copy, "--steps", 7).refused("checkpoints is a symbolic link", "put the real one")
    assert sorted(tmp_path.rglob("*")) == before


def test_resume_refuses_sizes_that_no_checkpoint_bears_out(cli: Run, copy: Path):
    about = json.loads((copy / "config.json").read_text())
    about["settings"]["decoder"] |= {"hidden": 8192, "heads": 1}
    (copy / "config.json").write_text(json.dumps(about))
    cli("train", "--resume", "--out", copy, "--steps", 7).refused("a larger model than its checkpoint holds")


def test_a_folder_becomes_no_cache_because_a_run_says_so(cli: Run, copy: Path, tmp_path: Path):
    about = json.loads((copy / "config.json").read_text())
    about["settings"]["data"]["cache_dir"] = str(tmp_path / "mine")
    (copy / "config.json").write_text(json.dumps(about))
    (tmp_path / "mine").mkdir()
    for arguments in (["eval", copy, "--max-sequences", 1], ["train", "--resume", "--out", copy, "--steps", 7]):
        result = cli(*arguments)
        assert result.code == 0, result.err
        assert "is no cache here: using your own" in result.err
    assert list((tmp_path / "mine").iterdir()) == []
    (tmp_path / "mine" / "shards").mkdir()
    assert cli("eval", copy, "--max-sequences", 1).err == ""
    assert list((tmp_path / "mine" / "shards").iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "decoder.hidden=1000000000"], ["decoder.hidden must be 1048576 or less"]),
        (["--set", "decoder.hidden=1048576"], ["decoder of the settings describes takes", "GiB, this machine has"]),
        (["--set", "training.batch_size=" + "9" * 30], ["training.batch_size must be 1048576 or less"]),
        (["--set", "training.slow_lr=" + "9" * 400], ["training.slow_lr must be a number", "too large"]),
        (["--set", "inference.fast_steps=" + "9" * 5000], ["inference.fast_steps must be a whole number"]),
        (["--prior", "x" * 9000], ["unknown prior 'xxx"]),
        (["--prior", "\x1b[31mred"], [r"unknown prior '\x1b[31mred'"]),
        (["--data", "~nobody-has-this-name/x.txt"], ["no such file or folder"]),
        (["--data", "x" * 5000], ["no such file or folder"]),
        (["--tokenizer", "~nobody-has-this-name/"], ["no such file or folder"]),
        (["--config", "x" * 5000], ["cannot read the settings file"]),
        (["--set", "training.init_from=" + "x" * 5000], ["there is no run at"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_train_refuses_sizes_and_names_that_cannot_be(train: Run, tmp_path: Path, options: list[str], words: list[str]):
    result = train("--out", tmp_path / "out", *options)
    result.refused(*words)
    assert len(result.err) < 7000
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["a = " + "[" * 5000, "[training]\nsteps = 0x" + "f" * 5000, "x" * (1 << 21)])
def test_train_refuses_a_settings_file_that_is_deep_or_large(cli: Run, tmp_path: Path, content: str):
    (tmp_path / "my.toml").write_text(content)
    cli("train", "--config", tmp_path / "my.toml", "--out", tmp_path / "out").refused()


@pytest.mark.parametrize("command", ["info", "sample"])
def test_a_deep_config_is_one_line(cli: Run, copy: Path, command: str):
    (copy / "config.json").write_text('{"format": 1, "settings": ' + "[" * 100_000)
    cli(command, copy).refused("config.json is damaged")


def test_info_and_plot_show_a_run_whose_metrics_are_garbage(cli: Run, copy: Path, tmp_path: Path):
    rows = [
        '{"step": 1, "split": "validation"}',
        '{"step": 2, "split": "validation", "elbo": "x", "elbo_se": []}',
        '{"step": 3, "split": "train", "loss": 1.0, "training_tokens": 1, "training_flops": "x"}',
        '{"step": 3, "split": "validation", "elbo": 1.0, "elbo_se": -925}',
        "[" * 9999,
    ]
    with (copy / "metrics.jsonl").open("a") as file:
        file.write("\n".join(rows))
    for arguments in (["info", copy], ["info", copy, "--json"], ["plot", copy, "--out", tmp_path / "a.svg"]):
        assert cli(*arguments).code == 0


def test_settings_that_steer_a_terminal_are_shown_written_out(cli: Run, copy: Path):
    about = json.loads((copy / "config.json").read_text())
    about["settings"]["data"]["source"] = "\x1b]0;owned\x07 \ud800"
    (copy / "config.json").write_text(json.dumps(about))
    result = cli("info", copy)
    assert result.code == 0
    assert "\x1b" not in result.out
    assert r"\x1b]0;owned\x07 \ud800" in result.out


@pytest.mark.slow
def test_a_terminal_that_lacks_the_letters_gets_them_written_out(
    process: Callable[..., subprocess.Popen], tmp_path: Path
):
    surroundings = os.environ | {"PYTHONIOENCODING": "ascii"}
    started = process("info", tmp_path / "\U0001f469", env=surroundings)
    _, err = started.communicate(timeout=120)
    assert started.returncode == 2
    assert err.startswith("Error: there is no run at")
    assert sys.executable
