"""The recipe `honest-likelihood`: a run of seconds, and the share of the gap by hand."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra dev)")

from benchmarks.reproduce import honest_likelihood
from ltm_pyro.training import load_run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("honest")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["benchmarks.reproduce", "honest-likelihood", "--smoke"])
        honest_likelihood.main(["--smoke", "--device", "cpu", "--out", str(folder), "--runs", str(folder / "runs")])
    return folder


def test_every_model_is_scored_and_none_but_the_budgets_and_the_ingredient_differ(smoke):
    result = json.loads((smoke / "honest-likelihood.json").read_text(encoding="utf-8"))
    models = dict.fromkeys(row["model"] for row in result["rows"])
    assert list(models) == ["AR, same window", "LTM", honest_likelihood.EQUAL_FLOPS, *honest_likelihood.BESIDE]
    first = {name: next(row for row in result["rows"] if row["model"] == name) for name in models}
    ltm, ar = first["LTM"], first["AR, same window"]
    assert ar["training_tokens"] == ltm["training_tokens"]
    assert first["AR, same window, equal FLOPs"]["training_flops"] <= ltm["training_flops"]
    # The baseline widens its gates in steps of 32, which is much of so small a network.
    assert abs(ar["parameters"] - ltm["parameters"]) < 0.04 * ltm["parameters"]
    changed = load_run(smoke / "runs" / "LTM-without-zero-gain-0", device="cpu").settings
    assert changed.updated({"decoder.thought_gain": 0.0}) == load_run(smoke / "runs" / "LTM-0", device="cpu").settings
    table = (smoke / "honest-likelihood.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in table for name in models)
    assert str(smoke) not in table
    assert first["LTM"]["plan"] == {}  # texts of 64 tokens are no whole fables
    assert "plan" not in ar


def test_the_share_of_the_gap_is_zero_at_the_autoregressive_model_and_one_at_the_entropy():
    reference = {"scores": {"likelihood": {"value": 0.5}}, "generator_entropy": 0.3}
    for value, share in ((0.5, 0.0), (0.4, 0.5), (0.3, 1.0), (0.6, -0.5)):
        row = {"scores": {"iwae": {"value": value}}, "generator_entropy": 0.3}
        assert honest_likelihood.closed([row], [reference], "iwae") == pytest.approx([share])


def test_thoughts_that_do_not_divide_over_the_layers_are_refused_before_anything_is_trained(tmp_path):
    arguments = [
        "--preset",
        "ltm-s",
        "--also",
        "LTM, 8 thoughts",
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path),
    ]
    with pytest.raises(SystemExit, match="'LTM, 8 thoughts': so many thoughts do not divide over 3 layers"):
        honest_likelihood.main(arguments)
    assert not (tmp_path / "runs").exists()


def test_variables_are_named_with_the_thought_that_they_explain_best():
    plan = {
        "name": {"thought": 3, "share": 0.9, "shuffled": 0.1},
        "friend_kind": {"thought": 3, "share": 0.3, "shuffled": 0.2},
        "place": {"thought": 1, "share": 0.2, "shuffled": 0.1},
        "twist": {"thought": 1, "share": 0.3, "shuffled": 0.4},
    }
    row = honest_likelihood._plans([{"model": "LTM", "seed": 0, "plan": plan}])[3]
    assert row == "| LTM | 0 | name 0.90 (0.10), 3; friend kind 0.30 (0.20), 3 |"
