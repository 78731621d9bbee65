"""The benchmark `elbo-time`: its smoke run, and what its tables say of each way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import elbo_time


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elbo-time")
    elbo_time.main(["--smoke", "--set", f"data.cache_dir={folder / 'cache'}", "--out", str(folder)])
    return folder


@pytest.mark.slow
def test_every_way_is_scored_at_every_number_of_steps_beside_the_plain_one(written: Path):
    part = json.loads((written / "elbo-time.json").read_text())["parts"]["inference"]
    rows = {(row["way"], row["fast_steps"]): row for row in part["rows"]}
    assert rows.keys() == {(way, steps) for way in elbo_time.WAYS for steps in (2, 9)}
    for (way, steps), row in rows.items():
        plain = rows["plain", steps]
        assert sum(row["per_token"]) / len(row["per_token"]) == pytest.approx(row["negative_elbo"], abs=1e-4)
        assert row["negative_elbo"] - plain["negative_elbo"] == pytest.approx(row["above_plain"], abs=1e-6)
        assert row["steps_taken"] <= steps
        if "tokens" in way and not way.startswith("encoder"):
            assert row["mflop_per_token"] < plain["mflop_per_token"]
    half, quarter = (rows[f"{share} of the tokens", 9]["mflop_per_token"] for share in ("half", "a quarter"))
    assert quarter < half


@pytest.mark.slow
def test_every_training_and_share_of_the_tokens_has_its_row_and_a_part_can_be_measured_alone(written: Path):
    before = json.loads((written / "elbo-time.json").read_text())["parts"]
    assert [row["training"] for row in before["training"]["rows"]] == list(elbo_time.TRAININGS)
    assert [row["token_fraction"] for row in before["vocabulary"]["rows"]] == [1.0, 0.5, 0.25]
    table = (written / "elbo-time.md").read_text()
    assert all(f"| {name} |" in table for name in elbo_time.WAYS | elbo_time.TRAININGS)
    elbo_time.main(["--smoke", "--parts", "vocabulary", "--out", str(written)])
    after = json.loads((written / "elbo-time.json").read_text())["parts"]
    assert after["inference"] == before["inference"]
    assert after["vocabulary"] != before["vocabulary"]
