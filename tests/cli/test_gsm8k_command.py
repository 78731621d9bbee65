"""``ltm-pyro gsm8k``, and finetuning from the weights of another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_runs import SETTINGS, Run

from ltm_pyro.training import RunDirectory


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gsm8k") / "problems.jsonl"
    rows = [{"question": f"{n} ?", "answer": f"#### {n}"} for n in range(8)]
    rows.append({"question": "the cat sat on a mat " * 9, "answer": "so\n#### 1,000"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory, trained: Path, problems: Path) -> Path:
    from cli_runs import call

    path = tmp_path_factory.mktemp("finetuned") / "run"
    options = ["--set", r"data.column=Question: {question}\nAnswer: {answer}", "--set", "data.sequence_length=48"]
    options += ["--set", "data.layout=documents", "--set", "data.cache_dir=" + str(path.parent / "cache")]
    options += ["--tokenizer", trained / "tokenizer.json", "--set", f"training.init_from={trained}"]
    result = call("train", "--data", problems, *SETTINGS, *options, "--out", path)
    assert result.code == 0, result.err
    return path


def test_json_is_one_document_with_all_that_settles_it(cli: Run, finetuned: Path, problems: Path):
    options = ["--data", problems, "--examples", problems, "--shots", 1, "--shots", 0, "--samples", 3, "--k", 2]
    options += ["--max-tokens", 5, "--temperature", 0.7, "--top-k", 9, "--top-p", 0.9, "--seed", 4, "--fast-steps", 1]
    result = cli("gsm8k", finetuned, *options, "--json")
    assert (result.code, result.err) == (0, ""), result.err
    found = json.loads(result.out)
    results = found.pop("results")
    assert found == {
        "run": str(finetuned),
        "step": 6,
        "model": "ltm",
        "data": str(problems),
        "examples": str(problems),
        "samples": 3,
        "k": [2],
        "fast_steps": 1,
        "seed": 4,
        "temperature": 0.7,
        "top_k": 9,
        "top_p": 0.9,
        "max_tokens": 5,
    }
    assert [row["shots"] for row in results] == [0, 1]
    for row in results:
        assert (row["problems"], row["too_long"], row["draws"]) == (9, 1, 24)
        assert row["strict"].keys() == row["flexible"].keys() == {"pass@2", "pass@2_se", "pass@2_chance"}
        assert 0 <= row["strict"]["pass@2"] <= row["flexible"]["pass@2"] <= 1
    assert json.loads(cli("gsm8k", finetuned, *options, "--json").out)["results"] == results


def test_texts_are_kept_in_a_file(cli: Run, finetuned: Path, problems: Path, tmp_path: Path):
    options = ["--data", problems, "--examples", problems, "--shots", 0, "--shots", 1, "--samples", 2, "--json"]
    result = cli("gsm8k", finetuned, *options, "--max-tokens", 3, "--texts", tmp_path / "texts.jsonl")
    assert (result.code, result.err) == (0, "")
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["shots"] for row in rows] == [0] * 9 + [1] * 9
    assert (rows[3]["question"], rows[3]["solution"], rows[3]["fitted"]) == ("3 ?", "#### 3", 0)
    assert (rows[8]["fitted"], rows[8]["texts"], rows[8]["strict"]) == (None, [], 0)
    assert all(len(row["texts"]) == 2 for row in rows if row["fitted"] is not None)
    solved = sum(row["flexible"] for row in rows[:9])
    assert json.loads(result.out)["results"][0]["flexible"]["pass@1"] == pytest.approx(solved / 2 / 9)
    missing = tmp_path / "no" / "texts.jsonl"
    cli("gsm8k", finetuned, *options, "--max-problems", 1, "--texts", missing).refused(str(missing), "--texts")


def test_the_table_says_what_each_number_is(cli: Run, finetuned: Path, problems: Path, monkeypatch: pytest.MonkeyPatch):
    few = ["--max-problems", 2, "--max-tokens", 3, "--top-k", 5]
    result = cli("gsm8k", finetuned, "--data", problems, *few)
    assert (result.code, result.err) == (0, "")
    for words in ("shots", "fitted", "too", "strict", "flexible", "chance", "pass@1", "pass@5", "0 of 10"):
        assert words in result.out
    assert "2 problems, 5 draws each, T_fast = 2, seed 0, temperature 1, top-k 5," in result.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shots", 2], ["--shots needs --examples"]),
        (["--k", 6], ["--k 6 needs --samples 6 or more, got 5"]),
        (["--temperature", -1], ["temperature must be 0 or more"]),
        (["--top-p", 2], ["top-p must be above 0"]),
        (["--samples", 0], ["--samples", "see ltm-pyro gsm8k --help"]),
        (["--examples", "missing.jsonl", "--shots", 2], ["missing.jsonl", "no such file"]),
    ],
)
def test_bad_options_are_refused(cli: Run, finetuned: Path, problems: Path, options: list[Any], words: list[str]):
    cli("gsm8k", finetuned, "--data", problems, *options).refused(*words)


def test_data_that_are_no_problems_are_refused(cli: Run, finetuned: Path, corpus: Path, tmp_path: Path):
    cli("gsm8k", finetuned, "--data", "missing.jsonl").refused("missing.jsonl", "no such file")
    cli("gsm8k", finetuned, "--data", "fables").refused("fables", "no GSM8K problems")
    cli("gsm8k", finetuned, "--data", corpus).refused("row 1", "must end in ####")
    cli("gsm8k", tmp_path, "--data", "fables").refused("not a run directory")


def test_finetuning_starts_from_the_other_runs_weights(finetuned: Path, trained: Path):
    run, base = RunDirectory.open(finetuned), RunDirectory.open(trained)
    assert run.settings.training.init_from == str(trained)
    assert run.tokenizer.digest == base.tokenizer.digest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "training.init_from=missing"], ["there is no run at missing"]),
        (
            ["--set", "training.init_from={trained}", "--tokenizer", "{trained}", "--prior", "mixture"],
            ["model.prior.", "is missing in that run", "ltm-pyro info"],
        ),
        (["--set", "training.init_from={trained}"], ["--tokenizer {trained}/tokenizer.json"]),
        (
            ["--set", "training.init_from={trained}", "--tokenizer", "{trained}", "--set", "decoder.hidden=32"],
            ["that run has decoder.hidden = 16, the new one 32"],
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_leave_no_run(
    train: Run, trained: Path, tmp_path: Path, options: list[str], words: list[str]
):
    filled = [option.format(trained=trained) for option in options]
    train("--out", tmp_path / "out", *filled).refused(*(word.format(trained=trained) for word in words))
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_keeps_where_it_came_from(cli: Run, copy: Path, trained: Path):
    options = ["--resume", "--out", copy, "--set", f"training.init_from={trained}"]
    cli("train", *options).refused("training.init_from cannot change when a run is resumed")
