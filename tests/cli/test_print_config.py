"""Settings printed, read back, taken from another run, and never taken from the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pytest
from cli_runs import SETTINGS, Run
from ltm_pyro.cli.main import _COMMANDS
from ltm_pyro.cli.main import cli as group

from ltm_pyro.config import Settings, read_toml
from ltm_pyro.presets import preset
from ltm_pyro.training import RunDirectory


def test_printed_settings_are_toml_and_nothing_else_and_nothing_is_made(cli: Run, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("train", "--preset", "ltm-s", "--steps", 7, "--set", "training.device=cuda:9", "--print-config")
    assert (result.code, result.err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    Path("my.toml").write_text(result.out, encoding="utf-8")
    found = Settings.from_dict(read_toml("my.toml"))
    assert found == preset("ltm-s").updated({"training.steps": 7, "training.device": "cuda:9"})


def test_printed_settings_are_read_back_whatever_preset_they_came_from(cli: Run, tmp_path: Path):
    options = ["--preset", "ltm-m", "--prior", "mixture", "--set", "prior.components=16"]
    printed = cli("train", *options, "--print-config").out
    (tmp_path / "my.toml").write_text(printed, encoding="utf-8")
    assert cli("train", "--config", tmp_path / "my.toml", "--print-config").out == printed
    changed = cli("train", "--config", tmp_path / "my.toml", "--seed", 5, "--print-config").out
    assert changed == printed.replace("seed = 0", "seed = 5")


@pytest.mark.parametrize("option", ["--batch-size=auto", "--set=training.micro_batch_size=auto"])
def test_a_number_that_is_yet_to_be_found_stays_so(cli: Run, tmp_path: Path, option: str):
    printed = cli("train", option, "--print-config").out
    assert printed.count('batch_size = "auto"') == 1
    (tmp_path / "my.toml").write_text(printed)
    assert cli("train", "--config", tmp_path / "my.toml", "--print-config").out == printed


def test_what_an_older_runs_config_does_not_name_is_the_default_and_not_the_presets(cli: Run, tmp_path: Path):
    settings = preset("paper-ltm-s").to_dict()
    for key in ("thought_addresses", "thought_gain"):
        del settings["decoder"][key]
    for key in ("fast_optimizer", "natural_lr", "kl_hold_steps", "kl_weight_start"):
        del settings["inference"][key]
    settings["decoder"]["zero_cross_attention"] = False  # a setting that is no more
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings}), encoding="utf-8")
    result = cli("train", "--config", tmp_path / "config.json", "--print-config")
    assert result.code == 0, result.err
    (tmp_path / "my.toml").write_text(result.out, encoding="utf-8")
    assert Settings.from_dict(read_toml(tmp_path / "my.toml")) == preset("paper-ltm-s")


def test_a_runs_config_starts_another_like_it(cli: Run, trained: Path, tmp_path: Path):
    options = ["--config", trained / "config.json", "--out", tmp_path / "again"]
    result = cli("train", *options)
    assert result.code == 0, result.err
    assert RunDirectory.open(tmp_path / "again").settings == RunDirectory.open(trained).settings
    first, second = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (trained, tmp_path / "again")
    )
    assert [row.get("loss") for row in first] == [row.get("loss") for row in second]


def test_what_is_no_config_is_refused(cli: Run, tmp_path: Path):
    (tmp_path / "x.json").write_text('{"training": {"steps": 3}}')
    cli("train", "--config", tmp_path / "x.json", "--print-config").refused("is not the config.json of a run")
    cli("train", "--config", tmp_path, "--print-config").refused("is a folder")


def test_printing_is_for_new_runs(cli: Run, trained: Path):
    cli("train", "--resume", "--out", trained, "--print-config").refused("--config RUN/config.json")


def test_environment_variables_set_nothing(cli: Run, monkeypatch: pytest.MonkeyPatch):
    before = cli("train", *SETTINGS, "--print-config").out
    settings = Settings()
    addresses = [f"{section}_{key}" for section, keys in settings.to_dict().items() for key in keys]
    options = ["steps", "seed", "device", "dtype", "preset", "model", "data", "config", "batch_size", "out", "set"]
    for prefix in ("", "LTM_", "LTM_PYRO_", "LTM_PYRO_TRAIN_", "LTMPYRO_", "TRAIN_"):
        for name in (*addresses, *options, "section.key"):
            monkeypatch.setenv((prefix + name).upper(), "3")
            monkeypatch.setenv(prefix + name, "3")
    assert cli("train", *SETTINGS, "--print-config").out == before
    assert os.environ["LTM_PYRO_TRAIN_STEPS"] == "3"


def test_no_option_has_a_variable_and_none_takes_a_secret():
    context = click.Context(group)
    assert group.context_settings.get("auto_envvar_prefix") is None
    for name in _COMMANDS:
        command = group.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            assert parameter.envvar is None, f"{name} {parameter.name}"
            words = set(parameter.name.replace("-", "_").split("_"))
            assert not words & {"key", "token", "password", "secret", "auth"}, f"{name} {parameter.name}"
