"""The benchmark `fables-labels`: its agreement measure, its labels, and a run of seconds."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra dev)")

from benchmarks import fables_labels
from ltm_pyro.data.fables import PLAN_VARIABLES


def test_labels_that_are_the_values_under_other_names_agree_fully():
    draw = random.Random(0)
    values = [draw.choice(["past", "present", "future"]) for _ in range(120)]
    labels = [{"past": 2, "present": 0, "future": 1}[value] for value in values]
    found = fables_labels.agreement(labels, values, shuffles=20)
    assert found["ami"] == pytest.approx(1.0)
    assert found["null_max"] < 0.2


def test_labels_that_know_nothing_of_the_values_agree_no_better_than_shuffled_ones():
    draw = random.Random(0)
    values = [draw.choice("abcd") for _ in range(400)]
    labels = [draw.randrange(4) for _ in range(400)]
    found = fables_labels.agreement(labels, values, shuffles=50)
    assert abs(found["ami"]) < 0.03
    assert abs(found["null_mean"]) < 0.01  # adjusted for chance, whatever the numbers of labels and values


def test_one_label_for_all_agrees_with_nothing():
    assert fables_labels.agreement([0] * 30, ["a", "b", "c"] * 10, shuffles=2)["ami"] == pytest.approx(0.0)


def test_agreement_is_the_mutual_information_above_its_expectation_under_shuffles():
    values, labels = list("aaaabbbbcc"), [0, 0, 0, 1, 1, 1, 1, 0, 2, 2]
    draw = random.Random(0)
    expected = sum(_mutual_information(values, draw.sample(labels, 10)) for _ in range(20_000)) / 20_000
    most = (_entropy(values) + _entropy(labels)) / 2
    by_hand = (_mutual_information(values, labels) - expected) / (most - expected)
    assert fables_labels.agreement(labels, values, shuffles=1)["ami"] == pytest.approx(by_hand, abs=0.01)


def _entropy(values: list) -> float:
    shares = [values.count(value) / len(values) for value in set(values)]
    return -sum(p * math.log(p) for p in shares)


def _mutual_information(left: list, right: list) -> float:
    return _entropy(left) + _entropy(right) - _entropy(list(zip(left, right, strict=True)))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    cache = f"data.cache_dir={folder / 'cache'}"
    fables_labels.main(["--smoke", "--seeds", "2", "--shuffles", "3", "--set", cache, "--out", str(folder)])
    return folder


@pytest.mark.slow
def test_smoke_run_writes_agreement_of_every_variable_and_seed_with_its_chance_level(written):
    result = json.loads((written / "fables-labels.json").read_text())
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    assert result["machine"]["torch"] == str(torch.__version__)
    for run in result["runs"]:
        assert run["agreement"].keys() == PLAN_VARIABLES.keys()
        assert all(row.keys() == {"ami", "null_mean", "null_max"} for row in run["agreement"].values())
        assert sum(run["components"]) == run["documents"] == 20
        assert all(sum(map(sum, table.values())) == 20 for table in run["tables"].values())


@pytest.mark.slow
def test_smoke_run_writes_a_table_row_per_variable_and_a_picture(written):
    table = (written / "fables-labels.md").read_text()
    assert all(f"| {name} | {count} |" in table for name, count in PLAN_VARIABLES.items())
    assert (written / "fables-labels.png").read_bytes().startswith(b"\x89PNG")
