"""Labelled text on the command line: a run whose classes can be asked for by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import SETTINGS, Run, call

ROWS = [
    {"text": f"{'the cat sat on a mat' if i % 2 else 'one dog ran up the hill'} number {i}", "topic": topic}
    for i, topic in enumerate(["dogs", "cats", None] * 20)
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def trained(rows: Path, out: Path, *options: object):
    label = "--set=data.label_column=topic"
    return call("train", "--data", rows, *SETTINGS, label, "--steps", 2, *options, "--out", out)


def test_texts_of_a_class_are_drawn_by_its_name(cli: Run, rows: Path, tmp_path: Path):
    result = trained(rows, tmp_path / "run", "--prior", "supervised", "--set=prior.spread=5", "--steps", 12)
    assert result.code == 0, result.err
    texts = {}
    for label in ("cats", "dogs", None):
        asked = [] if label is None else ["--label", label]
        found = cli("sample", tmp_path / "run", *asked, "--num", 3, "--max-tokens", 8, "--json")
        assert (found.code, found.err) == (0, "")
        about = json.loads(found.out)
        assert about["label"] == label
        texts[label] = [sample["text"] for sample in about["samples"]]
        assert len(texts[label]) == 3
    assert texts["cats"] != texts["dogs"]
    prompted = cli("sample", tmp_path / "run", "--label", "cats", "--prompt", "the cat", "--max-tokens", 4)
    assert (prompted.code, prompted.err) == (0, "")
    scored = cli("eval", tmp_path / "run", "--json")
    assert json.loads(scored.out)["elbo"] > 0


def test_a_class_that_the_run_does_not_know_is_one_line(cli: Run, rows: Path, tmp_path: Path, trained_plain: Path):
    assert trained(rows, tmp_path / "run", "--prior", "supervised").code == 0
    cli("sample", tmp_path / "run", "--label", "birds").refused("no class 'birds'", "known are cats, dogs")
    cli("sample", trained_plain, "--label", "cats").refused("no class 'cats'", "trained without labels")


@pytest.fixture
def trained_plain(request: pytest.FixtureRequest) -> Path:
    """The session's run without labels, under a name that does not hide this module's function."""
    return request.getfixturevalue("trained")


def test_a_class_under_a_prior_that_has_none_is_one_line(cli: Run, rows: Path, tmp_path: Path):
    assert trained(rows, tmp_path / "run").code == 0
    for prompt in ([], ["--prompt", "the cat"]):
        cli("sample", tmp_path / "run", "--label", "cats", *prompt).refused("GaussianPrior has no classes")


def test_data_of_more_classes_than_the_priors_are_one_line_with_the_mend(rows: Path, tmp_path: Path):
    result = trained(rows, tmp_path / "run", "--prior", "supervised", "--set=prior.classes=1")
    result.refused("the data have 2 classes (cats, dogs)", "set prior.classes=2")
    assert not (tmp_path / "run" / "config.json").exists()
