"""Settings as files: TOML there and back, and the config.json of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltm_pyro.config import Settings
from ltm_pyro.config_files import read_settings, to_toml
from ltm_pyro.errors import LTMError
from ltm_pyro.presets import PRESETS, preset


def back(path: Path, found: Settings) -> Settings:
    path.write_text(to_toml(found.to_dict()), encoding="utf-8")
    return Settings.from_dict(read_settings(path))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_toml(tmp_path: Path, name: str):
    assert back(tmp_path / "settings.toml", preset(name)) == preset(name)


def test_every_kind_of_value_survives_toml(tmp_path: Path):
    found = Settings().updated(
        {
            "data.source": 'a "quoted" \\ path\twith\n\x7fünï☃ and 𝄞',
            "training.wandb": "team/project",
            "training.clip_norm": None,
            "training.slow_lr": 1e-7,
            "data.streaming": True,
            "decoder.thought_width": 3,
            "prior.name": "my.module:Class",
            "prior.widths": [1, 2.5, [True]],
            "prior.table": {"a key": {"inner": "x"}, "b": []},
            "guide.an odd key": 1,
        }
    )
    assert back(tmp_path / "settings.toml", found) == found


def test_numbers_that_are_none_survive_toml(tmp_path: Path):
    path = tmp_path / "settings.toml"
    path.write_text(to_toml({"prior": {"a": math.inf, "b": -math.inf, "c": math.nan}}))
    values = read_settings(path)["prior"]
    assert (values["a"], values["b"]) == (math.inf, -math.inf)
    assert math.isnan(values["c"])


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.floats(allow_nan=False), st.integers())
def test_any_text_and_number_survives_toml(tmp_path_factory: pytest.TempPathFactory, text: str, x: float, n: int):
    n = max(-(2**63), min(n, 2**63 - 1))
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(to_toml({"prior": {"text": text, "x": x, text + "n": n}}), encoding="utf-8", newline="")
    assert read_settings(path) == {"prior": {"text": text, "x": x, text + "n": n}}


def test_a_runs_config_is_read_for_its_settings_alone(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"format": 1, "vocab_size": 7, "settings": preset("ltm-m").to_dict()}))
    assert Settings.from_dict(read_settings(path)) == preset("ltm-m")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": 3}', "[" * 10**5])
def test_other_json_is_refused_in_one_line(tmp_path: Path, content: Any):
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(LTMError, match=r"other\.json is not the config.json of a run: give one, or a TOML file"):
        read_settings(tmp_path / "other.json")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(LTMError, match=r"cannot read the settings file .*no\.json"):
        read_settings(tmp_path / "no.json")
    with pytest.raises(LTMError, match=r"is a folder: give a TOML file, or a run's .*config\.json"):
        read_settings(tmp_path)
