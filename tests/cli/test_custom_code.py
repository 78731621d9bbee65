"""Code that a run names is imported after consent alone: an option, or the same name on the user's own command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Run

from ltm_pyro.errors import LTMError
from ltm_pyro.training import RunDirectory, load_run

MODULE = """
from pathlib import Path
from ltm_pyro import Autoregressive, GaussianPrior, LocalNormal

Path({mark!r}).write_text("imported")

class MyPrior(GaussianPrior):
    pass

class MyGuide(LocalNormal):
    pass

class MyModel(Autoregressive):
    pass
"""

# Of each command that loads a run, arguments that make it quick.
COMMANDS = {
    "sample": ["--max-tokens", 2],
    "eval": ["--max-sequences", 1],
    "probe": ["--probe", "layers", "--max-sequences", 1, "--no-free"],
    "generation": ["--num", 1, "--max-tokens", 2],
    "gsm8k": ["--data", "hf:x"],
    "info": [],
}


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the module ``planted`` writes that it was imported; it lies in the working directory."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "planted.py").write_text(MODULE.format(mark=str(tmp_path / "mark")))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(str(tmp_path / "work"))
    yield tmp_path / "mark"
    sys.modules.pop("planted", None)


def renamed(run: Path, kind: str, name: str) -> Path:
    """The run, its config.json now naming another class."""
    about = json.loads((run / "config.json").read_text())
    about["settings"][kind] = {"name": name}
    (run / "config.json").write_text(json.dumps(about))
    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_a_run_that_names_code_and_runs_none_of_it(cli: Run, copy: Path, mark: Path, command: str):
    renamed(copy, "prior", "planted:MyPrior")
    result = cli(command, copy, *COMMANDS[command])
    result.refused("config.json", "the prior 'planted:MyPrior'", "code that would run", "--allow-custom-code")
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["model", "prior", "guide"])
def test_every_part_that_is_imported_by_name_is_refused(cli: Run, copy: Path, mark: Path, kind: str):
    renamed(copy, kind, f"planted:My{kind.title()}")
    cli("eval", copy).refused(f"the {kind} 'planted:My{kind.title()}'", "--allow-custom-code")
    cli("train", "--resume", "--out", copy).refused(f"the {kind} 'planted:My{kind.title()}'", "--allow-custom-code")
    with pytest.raises(LTMError, match="allow_custom_code=True"):
        load_run(copy)
    with pytest.raises(LTMError, match="allow_custom_code=True"):
        RunDirectory.open(copy).settings  # noqa: B018
    assert not mark.exists()


@pytest.mark.parametrize("command", ["sample", "info"])
def test_with_the_option_the_run_is_loaded(cli: Run, copy: Path, mark: Path, command: str):
    renamed(copy, "prior", "planted:MyPrior")
    result = cli(command, copy, *COMMANDS[command], "--allow-custom-code")
    assert result.code == 0, result.err
    assert mark.exists() == (command != "info")  # which builds nothing
    assert type(load_run(copy, allow_custom_code=True).svi.model.prior).__name__ == "MyPrior"


def test_a_second_model_needs_consent_too(cli: Run, trained: Path, copy: Path, mark: Path):
    renamed(copy, "prior", "planted:MyPrior")
    result = cli("generation", trained, "--num", 1, "--max-tokens", 2, "--second-model", copy)
    result.refused("the prior 'planted:MyPrior'", "--allow-custom-code")
    assert not mark.exists()


def test_a_class_on_the_command_line_needs_no_option_and_a_resume_names_it_again(
    train: Run, cli: Run, tmp_path: Path, mark: Path
):
    out = tmp_path / "run"
    result = train("--out", out, "--prior", "planted:MyPrior", "--steps", 2)
    assert result.code == 0, result.err
    assert mark.exists()
    mark.unlink()
    del sys.modules["planted"]
    resume: list[Any] = ["train", "--resume", "--out", out, "--steps", 3]
    cli(*resume).refused("the prior 'planted:MyPrior'", "--allow-custom-code")
    cli(*resume, "--prior", "planted:Other").refused("the prior 'planted:MyPrior'")
    cli(*resume, "--guide", "planted:MyPrior").refused("guide.name cannot change")
    assert not mark.exists()
    assert cli(*resume, "--prior", "planted:MyPrior").code == 0
    assert mark.exists()
    assert cli("train", "--resume", "--out", out, "--steps", 4, "--allow-custom-code").code == 0


def test_weights_of_a_run_with_code_of_its_own_are_taken_without_running_it(
    train: Run, copy: Path, tmp_path: Path, mark: Path
):
    renamed(copy, "prior", "planted:MyPrior")
    options = ["--set", f"training.init_from={copy}", "--tokenizer", copy / "tokenizer.json", "--steps", 1]
    result = train("--out", tmp_path / "new", *options)
    assert result.code == 0, result.err
    assert not mark.exists()


@pytest.mark.parametrize("name", ["os:system", "planted:", ":MyPrior", "planted:MyPrior:x", "a b:c", "\u202eplanted:P"])
def test_whatever_has_a_colon_is_code(cli: Run, copy: Path, mark: Path, name: str):
    renamed(copy, "guide", name)
    cli("sample", copy).refused("names the guide", "--allow-custom-code")
    assert not mark.exists()
