"""The recipes `steps`, `latents` and `size`: runs of seconds, their numbers against the models that they trained."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra dev)")

from benchmarks.reproduce import latents, size, steps
from benchmarks.reproduce.sweeps_report import difference, mean
from ltm_pyro.data import Data, build_data
from ltm_pyro.evaluation import information, prequential
from ltm_pyro.flops import DecoderSize, slow_step_flops
from ltm_pyro.training import LoadedRun, RunDirectory, load_run

SEQUENCES = 3  # of a smoke run


class Recipe:
    """A finished smoke run: its result, where it lies, and the runs that it trained."""

    def __init__(self, name: str, folder: Path):
        self.folder, self.runs = folder, folder / "runs"
        self.files = [folder / f"{name}.{ending}" for ending in ("json", "md", "svg")]
        self.result = json.loads(self.files[0].read_text(encoding="utf-8"))
        self.rows: list[dict[str, Any]] = self.result["rows"]
        self.table = self.files[1].read_text(encoding="utf-8")
        self.plot = self.files[2].read_text(encoding="utf-8")

    def row(self, **about: Any) -> dict[str, Any]:
        (row,) = [row for row in self.rows if about.items() <= row.items()]
        return row

    def load(self, name: str) -> tuple[LoadedRun, Data, list[int]]:
        run = load_run(self.runs / name, device="cpu")
        settings = run.settings.to_dict()["data"]
        data = build_data(**settings, seed=run.settings.training.seed)
        return run, data, [number * len(data.validation) // SEQUENCES for number in range(SEQUENCES)]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Callable[[str], Recipe]:
    done: dict[str, Recipe] = {}

    def run(name: str) -> Recipe:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", ["benchmarks.reproduce", name, "--smoke"])
                arguments = ["--smoke", "--device", "cpu", "--out", str(folder), "--runs", str(folder / "runs")]
                {"steps": steps, "latents": latents, "size": size}[name].main(arguments)
            done[name] = Recipe(name, folder)
        return done[name]

    return run


@pytest.mark.parametrize("name", ["steps", "latents", "size"])
def test_results_hold_command_machine_and_settings_but_no_path(smoke, name):
    recipe = smoke(name)
    assert recipe.result["command"] == f"just reproduce {name} --smoke"
    assert recipe.result["smoke"] is True
    assert recipe.result["settings"]["data"]["source"] == "fables"
    assert recipe.result["settings"]["inference"]["init_log_var"] == 0.0
    assert "At the paper's scale" in recipe.table
    for path in recipe.files:
        text = path.read_text(encoding="utf-8")
        assert str(recipe.folder) not in text
        assert str(Path(steps.__file__).parents[2]) not in text


def test_steps_hold_every_pair_of_fast_steps_and_the_released_arithmetic(smoke):
    recipe = smoke("steps")
    found = [(row["noise"], row.get("train_fast_steps"), row["eval_fast_steps"]) for row in recipe.rows]
    trainings = [("fresh", 1), ("fresh", 2), ("released", 2)]
    assert found == [("ar", None, None), *((*training, number) for training in trainings for number in (1, 3))]
    for place in found[1:]:
        assert f"| {' | '.join(map(str, place))} |" in recipe.table
    inference = RunDirectory.open(recipe.runs / "released-2-0").settings.inference
    assert (inference.noise, inference.slow_gradient, inference.init_log_var) == ("fixed", "trajectory", -5.0)
    assert RunDirectory.open(recipe.runs / "fresh-1-0").settings.inference.fast_steps == 1
    for title in ("reconstruction: leaves the KL out", "KL", "elbo", "prequential", "AR, same window (likelihood)"):
        assert title in recipe.plot


def test_elbo_of_a_cell_is_reconstruction_and_kl(smoke):
    for name in ("steps", "latents", "size"):
        for row in smoke(name).rows:
            if row["kind"] == "ltm":
                scores = {key: score["value"] for key, score in row["scores"].items()}
                assert scores["elbo"] == pytest.approx(scores["reconstruction"] + scores["kl"])


def test_scores_of_a_cell_are_those_of_the_run_that_it_trained(smoke):
    recipe = smoke("steps")
    row = recipe.row(noise="released", train_fast_steps=2, eval_fast_steps=3)
    run, data, indices = recipe.load("released-2-0")
    batch = data.validation.batch(indices)
    counts = batch.num_scored
    assert row["num_scored"] == counts.tolist()

    # The posterior's own terms, S = 2, and block by block prediction, without the evaluation's batches and averages.
    posterior = run.svi.infer(batch, steps=3, seed=0, lr=run.fast_lr)
    terms = posterior.elbo_terms(2)
    expected = {"reconstruction": -terms.log_likelihood, "kl": terms.kl}
    blocks = prequential.block_log_probs(run.svi, batch, samples=2, block_size=16, steps=3, lr=run.fast_lr)
    expected["prequential"] = -blocks.sum(-1)
    for name, nats in expected.items():
        assert row["scores"][name]["value"] == pytest.approx(float(nats.sum() / counts.sum()), rel=1e-5)
        assert row["nats"][name] == pytest.approx(nats.tolist(), abs=1e-3)


def test_autoregressive_reference_is_scored_on_the_same_tokens_exactly(smoke):
    recipe = smoke("latents")
    run, data, indices = recipe.load("0-0")
    batch = data.validation.batch(indices)
    row = recipe.row(kind="ar")
    nats = -run.language_model.predict(batch).log_prob
    assert row["scores"].keys() == {"likelihood"}
    assert row["nats"]["likelihood"] == pytest.approx(nats.tolist(), abs=1e-3)
    assert all(other["num_scored"] == row["num_scored"] for other in recipe.rows)


def test_latents_hold_every_number_of_thoughts_and_what_they_know(smoke):
    recipe = smoke("latents")
    assert [row["thoughts"] for row in recipe.rows] == [0, 2, 4]
    for number in (2, 4):
        row = recipe.row(thoughts=number)
        run, data, indices = recipe.load(f"{number}-0")
        assert run.svi.model.prior.shape == (2, number // 2, 8)
        told = information(run.svi, data.validation, indices, samples=2, fast_steps=2, fast_lr=run.fast_lr)
        assert row["information"]["active_units"] == told.active_units
        assert row["information"]["units"] == 8 * number
        assert row["information"]["mutual_information"] == pytest.approx(told.mutual_information, abs=1e-4)
        assert row["scores"].keys() == {"reconstruction", "kl", "elbo", "iwae", "prequential"}
        assert f"| {number} | " in recipe.table
    assert "active units" in recipe.table


def test_sizes_hold_both_models_with_as_many_parameters_and_the_flops_of_every_step(smoke):
    recipe = smoke("size")
    assert [(row["size"], row["model"], row["layers"]) for row in recipe.rows] == [
        (name, model, layers) for name, layers in (("S", 1), ("M", 2), ("L", 4)) for model in ("ltm", "ar")
    ]
    for name in "SML":
        ltm, ar = (recipe.row(size=name, model=model) for model in ("ltm", "ar"))
        assert abs(ltm["parameters"] - ar["parameters"]) <= ltm["layers"] * 3 * ltm["hidden"] / 2
        assert ltm["training_tokens"] == ar["training_tokens"]
        assert ltm["training_flops"] > ar["training_flops"]
    run, _, _ = recipe.load("L-ltm-0")
    rows = [row for row in RunDirectory.open(recipe.runs / "L-ltm-0").metrics.rows() if row["split"] == "train"]
    decoder = DecoderSize.of(run.svi.model.decoder)
    # Two steps on two full sequences of 64 tokens each.
    by_hand = 2 * slow_step_flops(decoder, 2, 64, 128, fast_steps=4, slow_gradient="final")
    assert rows[-1]["training_tokens"] == 256
    assert recipe.row(size="L", model="ltm")["training_flops"] == by_hand


def _rows(values: list[list[float]], counts: list[int], name: str) -> list[dict[str, Any]]:
    """Rows of several seeds with these nats."""
    return [
        {
            "seed": seed,
            "num_scored": counts,
            "nats": {name: nats},
            "scores": {name: {"value": sum(nats) / sum(counts), "se": 0.25 * (seed + 1)}},
        }
        for seed, nats in enumerate(values)
    ]


def test_mean_has_the_error_over_seeds_and_the_one_over_sequences():
    rows = _rows([[10.0, 20.0], [14.0, 28.0], [12.0, 18.0]], [5, 10], "elbo")
    means = [2.0, 2.8, 2.0]
    error = statistics.stdev(means) / math.sqrt(3)
    assert mean(rows, "elbo") == f"{statistics.mean(means):.3f} ± {error:.3f} (0.500)"
    assert mean(rows[:1], "elbo") == "2.000 (0.250)"


def test_difference_is_taken_sequence_by_sequence():
    ltm = _rows([[10.0, 24.0]], [5, 10], "prequential")
    ar = _rows([[9.0, 20.0]], [5, 10], "likelihood")
    # Residuals of the differences 1 and 4 to a third of 5 and 10 tokens: ∓ 2/3.
    error = math.sqrt(2 * (2 / 3) ** 2 * 2) / 15
    assert difference(ltm, ar, "prequential") == f"+0.333 ({error:.3f})"


def test_difference_refuses_other_sequences():
    with pytest.raises(AssertionError):
        difference(_rows([[1.0]], [5], "elbo"), _rows([[1.0]], [6], "likelihood"), "elbo")


def test_presets_and_real_text_replace_the_small_setting(tmp_path):
    from benchmarks.reproduce.recipe import options_of, parser_of
    from benchmarks.reproduce.sweeps import base_settings, options_of_sweeps

    parser = parser_of("steps", "")
    options_of_sweeps(parser, steps=7)
    named = ["--preset", "paper-ltm-m", "--data", "texts", "--tokenizer", "gpt2"]
    options = options_of(parser, [*named, "--out", str(tmp_path), "--runs", str(tmp_path)])
    settings = base_settings(options)
    assert (settings.decoder.layers, settings.training.batch_size, settings.training.steps) == (6, 512, 6000)
    assert (settings.data.source, settings.data.tokenizer) == ("texts", "gpt2")
    assert settings.inference.init_log_var == 0.0
    assert base_settings(options_of(parser, ["--runs", str(tmp_path)])).training.steps == 7
    assert torch.get_num_threads() == 1
