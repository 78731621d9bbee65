"""``ltm-pyro prepare``: what it makes is what train takes, and it says so."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ltm_pyro.cli.main import main
from tiny_runs import TINY, write_corpus

from ltm_pyro.data.chunks import ChunkStore

SETTINGS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTM_PYRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code in (0, None)


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_train_starts_at_once_with_what_was_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, streaming: str
) -> None:
    corpus = str(write_corpus(tmp_path / "corpus.txt"))
    settings = [*SETTINGS, "--data", corpus, "--set", f"data.streaming={streaming}"]
    run("prepare", *settings, "--json")
    shown = json.loads(capsys.readouterr().out)
    assert shown["source"] == corpus
    assert shown["train"]["documents"] + shown["validation"]["documents"] == 40
    for name in ("train", "validation"):
        folder = Path(shown[name]["folder"])
        if "tokens_sha256" in shown[name]:
            assert shown[name]["tokens_sha256"] == hashlib.sha256((folder / "tokens.bin").read_bytes()).hexdigest()
        else:
            assert ChunkStore(folder).count() == shown[name]["chunks"] == 1

    def again(*_: Any) -> None:
        pytest.fail("tokenised again")

    monkeypatch.setattr("ltm_pyro.data.tokenizer.Tokenizer.encode_batch", again)
    run("train", *settings, "--out", "run")
    assert "step 6/6" in capsys.readouterr().out


def test_the_manifest_is_a_table_for_the_eye(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("prepare", *SETTINGS, "--data", str(write_corpus(tmp_path / "corpus.txt")), "--workers", "0")
    shown = capsys.readouterr().out
    for word in ("train", "validation", "documents", "tokens_sha256", "folder", "tokenizer", "vocab_size"):
        assert word in shown


def test_a_stream_resumes_bit_for_bit_and_an_error_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SETTINGS, "--data", str(write_corpus(tmp_path / "corpus.txt")), "--set", "data.streaming=true"]
    run("train", *settings, "--out", "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/step-00000006")
    shutil.rmtree(tmp_path / "cache/chunks")
    run("train", "--resume", "--out", "parts", "--set", "data.workers=0", "--set", "data.prefetch=0")
    left, right = (tmp_path / name / "checkpoints/step-00000006/model.safetensors" for name in ("whole", "parts"))
    assert left.read_bytes() == right.read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, "--out", "auto", "--batch-size", "auto"])
    assert end.value.code == 2
    assert "the training text is a stream" in capsys.readouterr().err
