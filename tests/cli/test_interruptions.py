"""Signals: Ctrl-C saves and says how to go on. Kills are in tests/faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import SETTINGS

from ltm_pyro.training import RunDirectory

Start = Callable[..., subprocess.Popen]

QUIET = ["--set=training.eval_every=100000", "--set=training.checkpoint_every=100000"]


def wait_for_rows(process: subprocess.Popen, run: Path, number: int) -> None:
    """Waits until the run has so many rows of metrics, or the process has ended."""
    path = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= number):
        assert time.monotonic() < deadline, "the run made no progress in two minutes"
        time.sleep(0.005)


def stop(start: Start, corpus: Path, out: Path, number: signal.Signals) -> str:
    """Starts a run of 60 steps, sends it the signal after a few, and returns the command that it prints."""
    process = start("train", "--data", corpus, *SETTINGS, *QUIET, "--steps", 60, "--out", out)
    wait_for_rows(process, out, 4)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    (line,) = (text for text in printed.splitlines() if "--resume" in text)
    step = RunDirectory.open(out).store().latest().step
    assert 3 <= step < 60
    assert f"Stopped after step {step}, saved. Go on with:" in printed
    return line.strip()


def run_as_printed(command: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, shell=True, capture_output=True, text=True, env=os.environ | {"PATH": path})


def test_ctrl_c_finishes_the_step_saves_and_prints_a_command_that_goes_on(process: Start, corpus: Path, tmp_path: Path):
    out = tmp_path / "my run"
    done = run_as_printed(stop(process, corpus, out, signal.SIGINT))
    assert done.returncode == 0, done.stderr
    assert "step 60/60" in done.stdout
    assert RunDirectory.open(out).store().latest().step == 60


@pytest.mark.slow
def test_sigterm_does_the_same(process: Start, corpus: Path, tmp_path: Path):
    out = tmp_path / "run"
    done = run_as_printed(stop(process, corpus, out, signal.SIGTERM))
    assert done.returncode == 0, done.stderr
    assert RunDirectory.open(out).store().latest().step == 60


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_long_step_at_once(process: Start, corpus: Path, tmp_path: Path):
    long = ["--set", "inference.fast_steps=1000000", "--set", "training.eval_sequences=1"]
    first = process("train", "--data", corpus, *SETTINGS, "--steps", 1, "--fast-steps", 0, "--out", tmp_path / "run")
    assert first.wait(timeout=60) == 0
    # Going on from step 1 there is no validation before the first step, which now takes hours.
    second = process("train", "--resume", "--out", tmp_path / "run", "--steps", 5, *long)
    while "Going on after step 1." not in second.stdout.readline():
        pass
    time.sleep(1)
    second.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert second.poll() is None  # the first asks, and the step goes on
    second.send_signal(signal.SIGINT)
    _, errors = second.communicate(timeout=30)
    assert second.returncode != 0
    assert "Traceback" not in errors
    assert RunDirectory.open(tmp_path / "run").store().latest().step == 1


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ltm", "ar"])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_compiled_decoder_trains_to_the_same_losses(
    process: Start, corpus: Path, tmp_path: Path, checkpointing: str, model: str
):
    options = ["--data", corpus, *SETTINGS, f"--set=model.name={model}", "--set=training.eval_every=100", "--steps", 3]
    losses = {}
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        how = [f"--set=decoder.compile={compiled}", f"--set=decoder.checkpointing={checkpointing}"]
        run = process("train", *options, *how, "--out", tmp_path / name)
        _, errors = run.communicate(timeout=500)
        assert run.returncode == 0, errors
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [row["loss"] for row in rows if row["split"] == "train"]
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-4)
