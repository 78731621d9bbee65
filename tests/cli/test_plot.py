"""``ltm-pyro plot``: what is in the picture, where it stands, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cli_runs import Run


def texts(svg: Path) -> list[str]:
    root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def with_rows(run: Path, *rows: dict[str, Any]) -> Path:
    """The run with other metrics."""
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return run


def train_row(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "split": "train", "loss": 5.0 - step, **values}


def validation_row(step: int, **values: float | None) -> dict[str, Any]:
    errors = {f"{name}_se": None if value is None else 0.25 for name, value in values.items()}
    return {"step": step, "split": "validation", **values, **errors, "tokens": 99, "sequences": 3, "seed": 0}


def curves_of(result: Any) -> dict[tuple[str, str, str], dict[str, Any]]:
    assert result.code == 0, result.err
    return {(c["run"], c["split"], c["quantity"]): c for c in json.loads(result.out)["curves"]}


def test_a_runs_losses_are_drawn_with_their_names_and_units(cli: Run, trained: Path, tmp_path: Path):
    result = cli("plot", trained, "--out", tmp_path / "curves.svg")
    assert result.code == 0, result.err
    assert "6 curves drawn in" in result.out
    shown = texts(tmp_path / "curves.svg")
    assert "tiny: validation elbo" in shown
    assert "slow steps" in shown
    assert shown.count("nats per token") == 3
    assert any("the KL is left out, no bound" in text for text in shown)


def test_json_holds_the_points_of_metrics_jsonl(cli: Run, trained: Path, tmp_path: Path):
    curves = curves_of(cli("plot", trained, "--out", tmp_path / "curves.png", "--json"))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    for (run, split, quantity), curve in curves.items():
        assert run == "tiny"
        expected = [row for row in rows if row["split"] == split]
        assert curve["x"] == [row["step"] for row in expected]
        assert curve["y"] == [row[quantity] for row in expected]
        errors = [row[f"{quantity}_se"] for row in expected] if split == "validation" else None
        assert curve["standard_errors"] == errors
    names = {"train": ["loss", "reconstruction", "kl"], "validation": ["elbo", "reconstruction", "kl"]}
    assert {key[1:] for key in curves} == {(split, name) for split, found in names.items() for name in found}


def test_other_kinds_of_model_keep_the_names_of_their_own_protocols(cli: Run, copy: Path, tmp_path: Path):
    kinds = {"autoregressive": "likelihood", "diffusion": "nelbo"}
    for kind, protocol in kinds.items():
        shutil.copytree(copy, tmp_path / kind)
        with_rows(tmp_path / kind, validation_row(0, **{protocol: 6.0}), train_row(1), train_row(2))
    result = cli("plot", *(tmp_path / kind for kind in kinds), copy, "--out", tmp_path / "c.svg")
    assert result.code == 0, result.err
    shown = texts(tmp_path / "c.svg")
    expected = ["autoregressive: validation likelihood", "diffusion: validation nelbo", "copy: validation elbo"]
    assert [text for text in shown if ": validation " in text and "±" not in text] == expected


def test_a_validation_stands_where_training_had_got_to(cli: Run, copy: Path, tmp_path: Path):
    rows = [validation_row(0, elbo=6.0), *(train_row(s, tokens=100 * s, flops=10**12 * s) for s in (2, 4))]
    with_rows(copy, *rows, validation_row(3, elbo=4.0), validation_row(4, elbo=3.0))
    for x, unit, label in (("tokens", 100, "tokens trained on"), ("flops", 10**12, "training FLOPs")):
        curves = curves_of(cli("plot", copy, "--x", x, "--out", tmp_path / "c.svg", "--json"))
        assert curves["copy", "train", "loss"]["x"] == [2 * unit, 4 * unit]
        assert curves["copy", "validation", "elbo"]["x"] == [0, 3 * unit, 4 * unit]
        assert any(label in text for text in texts(tmp_path / "c.svg"))


def test_a_logarithmic_axis_reaches_across_orders_of_magnitude(cli: Run, copy: Path, tmp_path: Path):
    cheap, dear = copy, shutil.copytree(copy, tmp_path / "dear")
    for run, unit in ((cheap, 10**9), (dear, 10**12)):
        with_rows(run, validation_row(0, elbo=6.0), *(train_row(s, flops=unit * s) for s in (1, 2)))
    for options, expected in ((["--log"], {"109", "1010", "1011", "1012"}), ([], set())):
        assert cli("plot", cheap, dear, "--x", "flops", *options, "--out", tmp_path / "c.svg").code == 0
        shown = {"".join(text.split()) for text in texts(tmp_path / "c.svg")}
        assert shown & {"109", "1010", "1011", "1012"} == expected  # powers of ten


def test_a_point_estimate_is_not_drawn_among_the_bounds(cli: Run, copy: Path, tmp_path: Path):
    point = validation_row(0, elbo=None, reconstruction=5.0, kl=None, log_joint=9.0)
    with_rows(copy, point, train_row(1, reconstruction=4.0, negative_log_prior=3.0))
    curves = curves_of(cli("plot", copy, "--out", tmp_path / "c.svg", "--json"))
    assert {quantity for _, _, quantity in curves} == {"loss", "reconstruction", "log_joint"}
    shown = texts(tmp_path / "c.svg")
    assert "copy: validation log_joint" in shown
    assert not any("upper bound" in text for text in shown)


def test_runs_of_one_name_are_told_apart_by_their_paths(cli: Run, copy: Path, tmp_path: Path):
    shutil.copytree(copy, tmp_path / "other" / "copy")
    curves = curves_of(cli("plot", copy, tmp_path / "other" / "copy", "--out", tmp_path / "c.svg", "--json"))
    assert {run for run, _, _ in curves} == {str(copy), str(tmp_path / "other" / "copy")}


@pytest.mark.parametrize("name", ["_$a$<b>", "ä b", "$"])
def test_a_runs_name_is_shown_as_it_is(cli: Run, copy: Path, tmp_path: Path, name: str):
    copy.rename(tmp_path / name)
    assert cli("plot", tmp_path / name, "--out", tmp_path / "c.svg").code == 0
    assert f"{name}: validation elbo" in texts(tmp_path / "c.svg")


def test_more_runs_than_colours_are_still_told_apart(cli: Run, copy: Path, tmp_path: Path):
    runs = [shutil.copytree(copy, tmp_path / f"run{k}") for k in range(9)]
    assert cli("plot", *runs, "--out", tmp_path / "c.svg").code == 0
    assert {f"run{k}: validation elbo" for k in range(9)} <= set(texts(tmp_path / "c.svg"))


def test_a_run_that_was_never_validated_has_its_training_loss(cli: Run, copy: Path, tmp_path: Path):
    with_rows(copy, train_row(1))
    assert cli("plot", copy, "--out", tmp_path / "c.svg").code == 0
    assert "copy: train loss" in texts(tmp_path / "c.svg")


def test_the_same_runs_give_the_same_file(cli: Run, trained: Path, tmp_path: Path):
    for name in ("a.svg", "b.svg"):
        cli("plot", trained, "--out", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_what_cannot_be_drawn_is_refused(cli: Run, trained: Path, copy: Path, tmp_path: Path):
    cli("plot", tmp_path / "missing").refused("no run at", "missing")
    cli("plot", trained, "--out", "curves.bmp").refused("curves.bmp", ".png or .svg")
    cli("plot", trained, "--out", tmp_path / "no" / "c.svg").refused("cannot write", "choose another file")
    cli("plot").refused("RUN")
    cli("plot", trained, "--x", "hours").refused("hours", "flops")
    (copy / "metrics.jsonl").unlink()
    cli("plot", trained, copy).refused("copy", "no metrics yet")


@pytest.mark.parametrize("x", ["tokens", "flops"])
def test_a_run_that_never_recorded_the_axis_is_named(cli: Run, copy: Path, tmp_path: Path, x: str):
    with_rows(copy, train_row(1), validation_row(1, elbo=2.0))
    cli("plot", copy, "--x", x, "--out", tmp_path / "c.svg").refused("copy", f"no {x}", "--x steps")
    assert not (tmp_path / "c.svg").exists()


def test_metrics_without_a_loss_are_refused(cli: Run, copy: Path):
    cli("plot", with_rows(copy, {"step": 1, "split": "train"})).refused("no curve to draw")


def test_without_matplotlib_the_extra_is_named(cli: Run, trained: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    cli("plot", trained).refused("matplotlib", "pip install 'ltm-pyro[plot]'")
