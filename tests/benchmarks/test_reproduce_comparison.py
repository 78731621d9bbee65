"""The recipes `fables`, `tokens`, `flops` and `corpora` at the size of seconds: files, rows, and numbers made again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra plot)")

from benchmarks.reproduce import corpora, fables, flops, tokens
from benchmarks.reproduce.comparison import MODELS, steps_within, training_flops
from ltm_pyro.config import Settings
from ltm_pyro.data import build_data
from ltm_pyro.data.fables import log_prob
from ltm_pyro.training import RunDirectory, load_run


@pytest.fixture(scope="module", autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one recipe's trainings are found again by the others."""
    return tmp_path_factory.mktemp("reproduce")


def options(place: Path, name: str) -> list[str]:
    return ["--smoke", "--runs", str(place / "runs"), "--out", str(place / name)]


def result(place: Path, name: str) -> dict:
    for suffix in (".md", ".svg"):
        assert (place / name / f"{name}{suffix}").stat().st_size > 500
    text = (place / name / f"{name}.json").read_text()
    assert str(place) not in json.loads(text)["settings"].__repr__()
    return json.loads(text)


@pytest.fixture(scope="module")
def compared(place: Path) -> dict:
    fables.main(options(place, "fables"))
    return result(place, "fables")


def test_every_model_is_scored_at_both_budgets(compared: dict):
    found = {(row["model"], row["budget"]): row for row in compared["rows"]}
    assert set(found) == {("ltm", "tokens")} | {(m, b) for m in MODELS if m != "ltm" for b in ("tokens", "flops")}
    assert set(found["ltm", "tokens"]["scores"]) == {"elbo", "reconstruction", "kl", "iwae", "prequential"}
    ltm = found["ltm", "tokens"]
    for (model, budget), row in found.items():
        assert all(math.isfinite(s["value"]) for s in row["scores"].values())
        assert row["generator_entropy"] == ltm["generator_entropy"]
        if budget == "tokens":
            assert row["training_tokens"] == ltm["training_tokens"]
        else:
            step = row["training_flops"] / row["steps"]
            assert ltm["training_flops"] - 2 * step < row["training_flops"] <= ltm["training_flops"] + step
        assert row["num_scored"] == ltm["num_scored"]
        if model != "mdlm":  # which has a mask embedding more
            assert abs(row["parameters"] - ltm["parameters"]) < 0.02 * ltm["parameters"]


def test_the_numbers_are_those_of_the_runs_themselves(compared: dict, place: Path):
    run = load_run(place / "runs" / "ar-flops-0", device="cpu")
    settings = RunDirectory(place / "runs" / "ar-flops-0").settings
    data = build_data(source="fables", documents=60, vocab_size=1000, sequence_length=512)
    assert settings.data.documents == 60
    batch = data.validation.batch([0, len(data.validation) // 2])
    nats = -run.language_model.token_log_prob(batch).sum(-1).detach()
    row = next(r for r in compared["rows"] if (r["model"], r["budget"]) == ("ar", "flops"))
    assert row["nats"]["likelihood"] == pytest.approx(nats.tolist(), rel=1e-4)
    assert row["scores"]["likelihood"]["value"] == pytest.approx(float(nats.sum() / batch.num_scored.sum()), rel=1e-4)
    texts = [
        data.tokenizer.decode(t[: n - 1]) for t, n in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)
    ]
    truth = -sum(log_prob(text) for text in texts) / int(batch.num_scored.sum())
    assert row["generator_entropy"] == pytest.approx(truth, rel=1e-6)


def test_the_table_has_each_number_with_its_error(compared: dict, place: Path):
    table = (place / "fables" / "fables.md").read_text()
    for row in compared["rows"]:
        for score in row["scores"].values():
            assert f"{score['value']:.4f} ± {score['se']:.4f}" in table
    assert "`reconstruction` leaves the KL out: it is no bound and no perplexity" in table


@pytest.mark.parametrize(("recipe", "name"), [(tokens, "tokens"), (flops, "flops")])
def test_curves_are_those_of_the_same_trainings(compared: dict, place: Path, recipe, name: str):
    before = {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("model.safetensors")}
    recipe.main(options(place, name))
    found = result(place, name)
    assert {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("model.safetensors")} == before
    for row in found["rows"]:
        same = next(r for r in compared["rows"] if r["model"] == row["model"] and r["budget"] in (name, "tokens"))
        if row["model"] != "ltm" and name == "flops":
            same = next(r for r in compared["rows"] if (r["model"], r["budget"]) == (row["model"], "flops"))
        assert row["curve"] == same["curve"]
    counts = found["flops_of_a_step"]
    assert all(counts[model]["formula"] == counts[model]["counter"] for model in ("ltm", "ar", "ar-full"))
    assert counts["mdlm"]["formula"] == pytest.approx(counts["mdlm"]["counter"], rel=0.3)  # its masks are random


def test_real_text_goes_the_same_way(place: Path):
    corpora.main(["--smoke", "--runs", str(place / "corpora-runs"), "--out", str(place / "corpora")])
    found = json.loads((place / "corpora" / "corpora.json").read_text())
    assert len(found["rows"]) == 7
    assert found["rows"][0]["generator_entropy"] is None


def test_equal_operations_are_as_many_steps_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LTM_PYRO_CACHE", str(tmp_path))
    settings = Settings().updated({"data.documents": 30, "data.vocab_size": 300, "data.sequence_length": 512})
    settings = settings.updated(
        {"training.steps": 4, "training.batch_size": 2, "decoder.hidden": 16, "decoder.heads": 2}
    )
    data = build_data(source="fables", documents=30, vocab_size=300, sequence_length=512)
    ar = settings.updated({"model.name": "ar"})
    budget = training_flops(settings, data)
    steps = steps_within(ar, data, budget)
    assert training_flops(ar.updated({"training.steps": steps}), data) <= budget
    assert training_flops(ar.updated({"training.steps": steps + 1}), data) > budget
