"""The commands on runs of models without thoughts: what they refuse, when, and what they call what they show."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cli_runs import SETTINGS, Run, call

from ltm_pyro.baselines import Autoregressive, Baseline


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """Runs ``ar`` and ``mdlm``, of two steps and sequences of 32 tokens."""
    folder = tmp_path_factory.mktemp("baselines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTM_PYRO_CACHE", str(tmp_path_factory.getbasetemp() / "ltm-pyro-cache"))
        for kind in ("ar", "mdlm"):
            options = [*SETTINGS, "--set=training.steps=2", "--set=training.eval_every=9", "--model", kind]
            result = call("train", "--data", corpus, *options, "--out", folder / kind)
            assert result.code == 0, result.err
    return folder


def never(*arguments: object, **options: object) -> None:
    raise AssertionError("the long work was begun")


def test_information_is_refused_before_anything_is_scored(cli: Run, runs: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Baseline, "evaluate", never)
    cli("eval", runs / "ar", "--information").refused("of kind ar, which has no thoughts")


def test_features_that_there_are_none_of_are_refused_before_a_text_is_written(cli: Run, runs: Path, monkeypatch):
    pytest.importorskip("mauve", reason="needs mauve-text")
    monkeypatch.setattr(Autoregressive, "generate", never)
    cli("generation", runs / "ar", "--mauve", runs / "mdlm").refused("of kind mdlm has no features")


def test_a_package_that_is_not_there_is_named_before_a_text_is_written(cli: Run, runs: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr(Autoregressive, "generate", never)
    cli("generation", runs / "ar", "--self-bleu").refused("self-BLEU needs the package sacrebleu", "ltm-pyro[bleu]")


def test_masked_diffusion_is_not_asked_for_texts_longer_than_it_writes(cli: Run, runs: Path):
    few = ["--num", 3, "--max-tokens"]
    assert "of 32 at most" in cli("generation", runs / "mdlm", *few, 32).out
    cli("generation", runs / "mdlm", *few, 33).refused("of kind mdlm reads and writes 32 tokens at most", "33")


@pytest.mark.parametrize("kind", ["ar", "mdlm"])
def test_no_prior_and_no_fast_steps_are_spoken_of(cli: Run, runs: Path, tmp_path: Path, kind: str):
    found = cli("generation", runs / kind, "--num", 3, "--max-tokens", 8)
    assert "3 texts without a prompt, temperature 1, seed 0" in found.out
    found = cli("generation", runs / kind, "--num", 3, "--max-tokens", 8, "--prompt-tokens", 2)
    assert "3 texts continuing 2 tokens, temperature 1, seed 0" in found.out
    (tmp_path / "lambada.txt").write_text("the dog saw the cat\n", encoding="utf-8")
    found = cli("eval", runs / kind, "--suite", "zero-shot", "--data", tmp_path)
    assert "packed; S = 1, seed 0" in found.out


def test_the_bound_of_masked_diffusion_says_that_the_length_is_given(cli: Run, runs: Path):
    found = cli("eval", runs / "mdlm", "--max-sequences", 2)
    assert "the length given" in " ".join(found.out.split())
