"""``ltm-pyro probe`` on a run of a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_runs import SETTINGS, Result, Run

from ltm_pyro.evaluation import evaluate, validation_data
from ltm_pyro.training import load_run


def document(result: Result) -> dict[str, Any]:
    """The one JSON document on standard output."""
    assert (result.code, result.err) == (0, ""), result.err
    return json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


FEW = ["--max-sequences", 3, "--max-tokens", 8]


def test_probe_json_holds_every_probe_and_reconstruction_is_that_of_eval(cli: Run, trained: Path):
    found = document(cli("probe", trained, *FEW, "--samples", 2, "--seed", 4, "--json"))
    assert set(found) == {"run", "step", "model", "data", "layers", "swap", "linear", "spherical"}
    run = load_run(trained, device="cpu")
    data = validation_data(run.settings, run.tokenizer)
    own = evaluate(run.svi, data, range(3), samples=2, seed=4, fast_lr=run.fast_lr).to_dict()
    layers, swap = found["layers"], found["swap"]
    assert [row["kept"] for row in layers["first"]] == [[], [1]]  # the run has one layer
    assert layers["first"][1]["nats"] == pytest.approx(own["reconstruction"], rel=1e-5)
    assert swap["own"] == pytest.approx(own["reconstruction"], rel=1e-5)
    assert (layers["sequences"], layers["samples"], layers["fast_steps"], layers["seed"]) == (3, 2, 2, 4)
    assert len(swap["nats"]) == len(swap["nats"][0]) == 3
    assert [point["t"] for point in found["linear"]["points"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert "texts" not in swap  # not asked for
    assert "agreement" not in swap  # no fables


def test_probe_prints_tables_and_texts(cli: Run, trained: Path):
    result = cli("probe", trained, *FEW, "--points", 2, "--show-texts")
    assert (result.code, result.err) == (0, "")
    for words in ("free-running", "no bound", "another's", "1 layers of document 0", "spherical, t = 1.00"):
        assert words in result.out
    assert "Facts" not in result.out
    found = document(cli("probe", trained, *FEW, "--points", 2, "--show-texts", "--json"))
    assert f"{found['layers']['first'][1]['nats']:.4f}" in result.out
    assert [(text["a"], text["b"], text["layers"]) for text in found["swap"]["texts"][:4]] == [
        (0, 1, 0),
        (1, 2, 0),
        (2, 0, 0),
        (0, 1, 1),
    ]
    assert [len(point) for point in found["linear"]["texts"]] == [3, 3]


def test_one_probe_alone_and_the_batch_size_changes_nothing(cli: Run, trained: Path):
    few = [*FEW, "--probe", "layers", "--no-free", "--json"]
    found, batched = (document(cli("probe", trained, *few, "--batch-size", size)) for size in (8, 1))
    assert set(found) == {"run", "step", "model", "data", "layers"}
    assert "free_accuracy" not in found["layers"]["first"][0]
    for row, other in zip(found["layers"]["first"], batched["layers"]["first"], strict=True):
        assert other["nats"] == pytest.approx(row["nats"], rel=1e-5)


def test_plot_draws_accuracy_against_layers(cli: Run, trained: Path, tmp_path: Path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra dev)")
    picture = tmp_path / "layers.png"
    assert cli("probe", trained, *FEW, "--probe", "layers", "--plot", picture).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    few = [trained, *FEW, "--probe", "layers", "--no-free", "--plot"]
    cli("probe", *few, tmp_path / "layers.text").refused("cannot draw", "layers.text")
    cli("probe", *few, tmp_path / "none" / "layers.png").refused("cannot draw", "none")


def test_probes_of_fables_say_whose_facts_the_texts_tell(cli: Run, tmp_path: Path):
    run = tmp_path / "fables"
    settings = ["data.documents=15", "data.sequence_length=1024", "training.steps=1", "training.batch_size=1"]
    cli("train", "--data", "fables", *SETTINGS, *(f"--set={text}" for text in settings), "--out", run)
    found = document(cli("probe", run, "--probe", "swap", *FEW, "--json"))
    for name in ("agreement", "mentions"):
        assert 0 < found["swap"][name]["chance"] < 1
        assert [(row["layers"], row["texts"]) for row in found["swap"][name]["layers"]] == [(0, 3), (1, 3)]
    table = cli("probe", run, "--probe", "swap", *FEW).out
    for name, how in (("agreement", "by the grammar"), ("mentions", "by the words")):
        assert how in table
        assert f"on {100 * found['swap'][name]['chance']:.0f} %" in table


def test_bad_requests_are_one_line(cli: Run, trained: Path):
    cli("probe", trained / "nowhere").refused("there is no run")
    cli("probe", trained, "--probe", "swap", "--plot", "a.png").refused("--plot", "layers")
    cli("probe", trained, "--max-sequences", 1).refused("two sequences or more, got 1", "--probe layers alone")
    cli("probe", trained, "--probe", "other").refused("other")


def test_a_model_of_another_kind_has_no_thoughts_to_probe(cli: Run, train: Run, tmp_path: Path):
    assert train("--model", "ar", "--steps", 1, "--out", tmp_path / "ar").code == 0
    cli("probe", tmp_path / "ar").refused("kind ar", "no thoughts to probe")
