"""Bad input ends in exit code 2 and one line that names it and the mend; nothing is lost."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import Run

ON_CPU = not torch.cuda.is_available()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a run would go; nothing may be there after a refusal."""
    yield tmp_path / "out"
    assert not (tmp_path / "out").exists()


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "tinny"], ["unknown preset 'tinny'", "did you mean 'tiny'"]),
        (["--data", "missing.txt"], ["missing.txt", "no such file", "fables"]),
        (["--prior", "gausian"], ["unknown prior 'gausian'", "did you mean 'gaussian'"]),
        (["--guide", "x"], ["unknown guide 'x'", "local-normal", "package.module:Class"]),
        (["--prior", "no_such_module:P"], ["cannot import prior", "Python path"]),
        (["--prior", ":P"], ["':P'", "package.module:Class"]),
        (["--set", "prior.scale=2"], ["prior 'gaussian' has no option 'scale'"]),
        (["--set", "training.stps=2"], ["training.stps", "did you mean 'steps'"]),
        (["--set", "trainig.steps=2"], ["'trainig'", "did you mean 'training'"]),
        (["--set", "training.steps"], ["training.steps", "section.key=value"]),
        (["--set", "steps=2"], ["'steps'", "section.key"]),
        (["--set", "training.steps=two"], ["training.steps must be a whole number", "'two'"]),
        (["--set", "decoder.heads=3"], ["decoder.hidden = 16", "2 * decoder.heads = 6"]),
        (["--set", "training.beta1=1"], ["training.beta1 must be below 1"]),
        (["--steps", "0"], ["training.steps must be 1 or more, got 0"]),
        (["--steps", "-3"], ["training.steps must be 1 or more, got -3"]),
        (["--fast-steps", "-1"], ["inference.fast_steps must be 0 or more"]),
        (["--seed", "-1"], ["training.seed must lie in 0"]),
        (["--seed", str(10**30)], ["training.seed must lie in 0"]),
        (["--dtype", "float16"], ["training.dtype must be one of float32, bfloat16"]),
        (["--device", "gpu"], ["unknown device 'gpu'", "auto, cpu, cuda"]),
        (["--config", "missing.toml"], ["missing.toml", "No such file"]),
        (["--tokenizer", "missing/tokenizer.json"], ["missing/tokenizer.json", "no such file"]),
        (["--set", "data.sequence_length=100000"], ["fewer than one sequence", "sequence_length"]),
        (["--set", "data.validation_fraction=1"], ["validation_fraction", "between 0 and 1"]),
        (
            ["--set", "data.label_column=topic"],
            [".txt", "label_column='topic'", "no classes", "leave label_column out"],
        ),
        (["--set", "data.labelled_fraction=2"], ["data.labelled_fraction must lie in 0"]),
        (["--data", "fables", "--set", "data.label_column=knid"], ["no plan variable", "did you mean 'kind'"]),
        (
            ["--set", "data.label_column=y", "--set", "data.layout=packed"],
            ["layout=packed", "layout=documents or auto"],
        ),
        (["--set", "data.validation_fraction=0.0000001"], ["validation split is empty", "validation_fraction"]),
        pytest.param(
            ["--device", "cuda"],
            ["'cuda' is not there (0 CUDA devices found)", "--device cpu"],
            marks=pytest.mark.skipif(not ON_CPU, reason="this machine has a GPU"),
        ),
    ],
)
def test_train_refuses_what_it_cannot_do_and_leaves_no_run(train: Run, out: Path, options: list[str], words: list[str]):
    train("--out", out, *options).refused(*words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", "", ["empty.txt", "no documents"]),
        ("blank.txt", " \n\n \n", ["blank.txt", "no documents"]),
        ("latin.txt", b"caf\xe9 au lait\n\nand more\n", ["latin.txt, line 1, byte 3", "not UTF-8", "iconv"]),
        ("rows.jsonl", '{"story": "a"}\n', ["rows.jsonl, line 1", "no column 'text'", "there is story"]),
        ("bad.jsonl", "{]\n", ["bad.jsonl, line 1", "not valid JSON"]),
        ("cut.txt.gz", b"\x1f\x8b\x08\x00", ["cut.txt.gz", "damaged or cut short"]),
        ("image.png", "x", ["image.png", "unknown kind of file"]),
    ],
)
def test_train_refuses_text_that_it_cannot_read(
    train: Run, tmp_path: Path, out: Path, name: str, content: str | bytes, words: list[str]
):
    train("--out", out, "--data", write(tmp_path / name, content)).refused(*words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a", "y": "b"}\n{"text": "a", "y": ["b"]}\n', ["line 2", "column 'y' holds list, not a class"]),
        ('{"text": "a", "y": 0.5}\n', ["line 1", "column 'y' holds 0.5, not a class", "`label_column`"]),
        (
            '{"text": "a", "y": null}\n' + '{"text": "b"}\n' * 2 + '{"text": "c", "y": ""}\n',
            ["rows.jsonl", "no training document has a class in 'y'"],
        ),
    ],
)
def test_train_refuses_labels_that_name_no_class(train: Run, tmp_path: Path, out: Path, content: str, words: list[str]):
    options = ["--set", "data.label_column=y", "--set", "data.validation_fraction=0.2"]
    train("--out", out, *options, "--data", write(tmp_path / "rows.jsonl", content)).refused(*words)


def test_train_refuses_an_empty_folder(train: Run, tmp_path: Path, out: Path):
    (tmp_path / "folder").mkdir()
    train("--out", out, "--data", tmp_path / "folder").refused("folder", "no text files")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[training\n", ["my.toml", "not valid TOML"]),
        (b"\xff", ["my.toml", "not valid TOML"]),
        ("steps = 3\n", ["steps", "my.toml", "[training]"]),
        ("[training]\nsteps = 'many'\n", ["training.steps must be a whole number"]),
        ("[training]\nspeed = 3\n", ["unknown setting training.speed"]),
        ("[trainin]\nsteps = 3\n", ["unknown section 'trainin'"]),
        ("preset = 'huge'\n", ["unknown preset 'huge'"]),
    ],
)
def test_train_refuses_a_bad_settings_file(cli: Run, tmp_path: Path, out: Path, content: Any, words: list[str]):
    cli("train", "--config", write(tmp_path / "my.toml", content), "--out", out).refused(*words)


def test_train_does_not_overwrite_a_run(train: Run, trained: Path):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    result = train("--out", trained)
    result.refused(str(trained), "already holds a run", "--resume", "another --out")
    assert result.out == ""  # said at once, before the data are prepared
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_train_refuses_a_place_under_a_file(train: Run, tmp_path: Path):
    write(tmp_path / "file", "x")
    train("--out", tmp_path / "file" / "run").refused("cannot write the run directory", "another --out")
    train("--out", tmp_path / "file").refused("cannot write the run directory", "another --out")


def test_after_a_refused_device_the_same_out_can_be_used(train: Run, tmp_path: Path):
    train("--out", tmp_path / "run", "--device", "tpu").refused("tpu")
    assert train("--out", tmp_path / "run", "--steps", 1).code == 0


def test_a_full_disk_is_one_line_and_the_run_can_go_on(train: Run, cli: Run, tmp_path: Path, monkeypatch):
    real = os.fsync

    def full(descriptor: int) -> None:
        if list((tmp_path / "run" / "checkpoints").glob(".step-00000004.*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    result = train("--out", tmp_path / "run")
    result.refused("cannot write the checkpoint", "step-00000004", "No space left on device", "free some space")
    monkeypatch.setattr(os, "fsync", real)
    result = cli("train", "--resume", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "Going on after step 2." in result.out


def test_a_disk_full_from_the_start_is_one_line(train: Run, tmp_path: Path, monkeypatch):
    assert train("--out", tmp_path / "first", "--steps", 1).code == 0  # the cache is filled

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    train("--out", tmp_path / "run").refused("cannot write", "No space left on device")


def test_a_full_cache_is_one_line(train: Run, out: Path, tmp_path: Path, monkeypatch):
    write(tmp_path / "file", "x")
    monkeypatch.setenv("LTM_PYRO_CACHE", str(tmp_path / "file" / "cache"))
    train("--out", out).refused("the cache cannot be written", "$LTM_PYRO_CACHE")


def test_resume_needs_a_run(cli: Run, tmp_path: Path):
    cli("train", "--resume").refused("--resume needs --out DIR")
    cli("train", "--resume", "--out", tmp_path / "none").refused("there is no run at", "none")
    cli("train", "--resume", "--out", tmp_path).refused("is not a run directory", "config.json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "decoder.hidden=32"], ["decoder.hidden cannot change", "another --out"]),
        (["--prior", "x:Y"], ["prior.name cannot change"]),
        (["--set", "guide.init_log_var=1"], ["guide.init_log_var cannot change"]),
        (["--data", "other.txt"], ["data.source cannot change"]),
        (["--preset", "tiny"], ["--preset cannot change"]),
        (["--seed", "5"], ["seed"]),
    ],
)
def test_resume_refuses_what_would_make_another_model(cli: Run, copy: Path, options: list[str], words: list[str]):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    cli("train", "--resume", "--out", copy, *options).refused(*words)
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("command", ["sample", "eval", "info"])
def test_commands_refuse_what_is_no_run(cli: Run, tmp_path: Path, command: str):
    cli(command, tmp_path / "none").refused("there is no run at", str(tmp_path / "none"))
    cli(command, tmp_path).refused(str(tmp_path), "is not a run directory")
    cli(command, write(tmp_path / "file.txt", "x")).refused("file.txt", "is not a run directory")
    (tmp_path / "config.json").write_text("{")
    cli(command, tmp_path).refused("config.json is damaged")


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_commands_refuse_runs_without_a_whole_checkpoint(cli: Run, copy: Path, command: str):
    for path in (copy / "checkpoints").iterdir():
        (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-1])
    cli(command, copy).refused("no whole checkpoint", "model.safetensors is truncated or changed")
    cli(command, copy / "checkpoints" / "step-00000004").refused("step-00000004 is damaged: model.safetensors")
    cli(command, copy / "checkpoints" / "step-00000099").refused("step-00000099", "cannot read state.json")
    cli("train", "--resume", "--out", copy).refused("no whole checkpoint")


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_commands_refuse_files_of_another_version(cli: Run, copy: Path, command: str):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"format": 7}))
    cli(command, copy).refused("config.json has format 7, this version of ltm-pyro reads 1")


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_commands_refuse_a_run_without_its_tokenizer(cli: Run, copy: Path, command: str):
    (copy / "tokenizer.json").write_text("{}")
    cli(command, copy).refused("tokenizer.json", "not a sound tokenizer")
    (copy / "tokenizer.json").unlink()
    cli(command, copy).refused("tokenizer.json", "no such file")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", ""], ["the prompt is empty", "leave it out"]),
        (["--prompt", " \n"], ["the prompt is empty"]),
        (["--prompt", "cat " * 200], ["the prompt has", "at most 32", "shorten it"]),
        (["--prompt", "a", "--prompt-file", "b"], ["--prompt and --prompt-file are both given", "one of them"]),
        (["--prompt-file", "missing.txt"], ["missing.txt", "No such file"]),
        (["--prompt-file", "."], ["cannot read the prompt file .", "Is a directory"]),
        (["--temperature", "-1"], ["temperature must be 0 or more, got -1"]),
        (["--temperature", "nan"], ["temperature must be 0 or more"]),
        (["--top-k", "0"], ["top-k must be 1 or more"]),
        (["--top-p", "1.5"], ["top-p must be above 0 and at most 1"]),
        (["--device", "tpu"], ["unknown device 'tpu'"]),
    ],
)
def test_sample_refuses_bad_options(cli: Run, trained: Path, options: list[str], words: list[str]):
    cli("sample", trained, *options).refused(*words)


def test_sample_refuses_a_prompt_file_that_is_not_utf8(cli: Run, trained: Path, tmp_path: Path):
    path = write(tmp_path / "prompt.txt", b"caf\xe9")
    cli("sample", trained, "--prompt-file", path).refused("prompt.txt is not UTF-8 (byte 3)")
    path = write(tmp_path / "empty.txt", b"")
    cli("sample", trained, "--prompt-file", path).refused("the prompt is empty")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "missing.txt"], ["missing.txt", "no such file"]),
        (["--data", ""], ["data source is empty"]),
        (["--device", "tpu"], ["unknown device 'tpu'"]),
    ],
)
def test_eval_refuses_bad_options(cli: Run, trained: Path, options: list[str], words: list[str]):
    cli("eval", trained, *options).refused(*words)


def test_eval_refuses_empty_text_and_wrong_columns(cli: Run, trained: Path, tmp_path: Path):
    cli("eval", trained, "--data", write(tmp_path / "e.txt", "")).refused("e.txt", "no documents")
    rows = write(tmp_path / "rows.jsonl", '{"a": "b"}\n')
    cli("eval", trained, "--data", rows).refused("rows.jsonl, line 1: no column 'text'; there is a")
    cli("eval", trained, "--data", rows, "--column", "c").refused("no column 'c'")
    cli("eval", trained, "--column", "a").refused("column 'a'", "give --data, too")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample"], "Missing argument 'RUN'"),
        (["sampel"], "No such command 'sampel'"),
        (["train", "--stepz", "3"], "No such option"),
        (["train", "--steps", "many"], "'--steps'"),
        (["sample", "x", "--num", "0"], "'--num'"),
        (["sample", "x", "--seed", str(2**32)], "'--seed'"),
        (["eval", "x", "--protocol", "iwae-x"], "'--protocol'"),
        (["eval", "x", "--block-size", "0"], "'--block-size'"),
    ],
)
def test_what_is_no_command_line_at_all_is_one_line_that_points_to_help(cli: Run, arguments: list[str], words: str):
    cli(*arguments).refused(words, "(see ltm-pyro", "--help)")


def test_without_a_command_the_help_is_shown(cli: Run):
    result = cli()
    assert result.code == 2
    assert result.err.startswith("Usage: ltm-pyro")
    assert all(command in result.err for command in ("train", "sample", "eval", "info"))
