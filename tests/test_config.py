"""Settings: what strings mean, what is refused and in which words, and round trips."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ltm_pyro.config import Settings
from ltm_pyro.errors import LTMError
from ltm_pyro.presets import PRESETS, preset


def value_at(settings: Settings, address: str) -> Any:
    section, key = address.split(".")
    return settings.to_dict()[section][key]


@pytest.mark.parametrize(
    ("address", "text", "expected"),
    [
        ("training.steps", "12", 12),
        ("training.steps", "1_000", 1000),
        ("training.steps", "1e3", 1000),
        ("training.slow_lr", "1e-3", 1e-3),
        ("training.slow_lr", "1", 1.0),
        ("training.seed", "0", 0),
        ("decoder.compile", "true", True),
        ("decoder.compile", "False", False),
        ("decoder.thought_width", "none", None),
        ("decoder.thought_width", "32", 32),
        ("training.clip_norm", "None", None),
        ("training.dtype", "bfloat16", "bfloat16"),
        ("inference.noise", "fixed", "fixed"),
        ("inference.init_log_var", "-1", -1.0),
        ("data.source", "7", "7"),
        ("data.column", "true", "true"),
        ("data.label_column", "none", None),
        ("data.label_column", "topic", "topic"),
        ("data.labelled_fraction", "1", 1.0),
        ("prior.name", "gaussian", "gaussian"),
    ],
)
def test_strings_are_read_as_the_settings_type(address: str, text: str, expected: Any):
    found = value_at(Settings().updated({address: text}), address)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("address", "value", "words"),
    [
        ("training.stps", 3, "unknown setting training.stps: did you mean 'steps'?"),
        ("training.xyzzy", 3, "unknown setting training.xyzzy: known are steps, batch_size"),
        ("trainin.steps", 3, "unknown section 'trainin' in setting 'trainin.steps': did you mean 'training'?"),
        ("zzz.steps", 3, "known are model, data, decoder, prior, guide, inference, training"),
        ("steps", 3, "'steps' is not of the form section.key"),
        ("training.", 3, "'training.' is not of the form section.key"),
        ("training.steps", "many", "training.steps must be a whole number, got 'many'"),
        ("training.steps", 2.5, "training.steps must be a whole number, got 2.5"),
        ("training.steps", True, "training.steps must be a whole number, got True"),
        ("training.steps", None, "training.steps must be a whole number, got None"),
        ("training.steps", [1], r"training.steps must be a whole number, got \[1\]"),
        ("training.slow_lr", "fast", "training.slow_lr must be a number, got 'fast'"),
        ("decoder.compile", 1, "decoder.compile must be true or false, got 1"),
        ("decoder.compile", "yes", "decoder.compile must be true or false, got 'yes'"),
        ("training.dtype", "float16", "training.dtype must be one of float32, bfloat16, got 'float16'"),
        ("inference.noise", "pink", "inference.noise must be one of fresh, fixed"),
        ("data.layout", 3, "data.layout must be one of auto, packed, documents, got 3"),
        ("data.labelled_fraction", -0.1, "data.labelled_fraction must lie in 0"),
        ("data.labelled_fraction", "nan", "data.labelled_fraction must lie in 0"),
        ("training.steps", 0, "training.steps must be 1 or more, got 0"),
        ("training.steps", -5, "training.steps must be 1 or more, got -5"),
        ("training.batch_size", 0, "training.batch_size must be 1 or more"),
        ("training.micro_batch_size", 0, "training.micro_batch_size must be 1 or more"),
        ("training.log_every", 0, "training.log_every must be 1 or more"),
        ("training.keep_checkpoints", 0, "training.keep_checkpoints must be 1 or more"),
        ("training.slow_lr", 0, "training.slow_lr must be above 0"),
        ("training.slow_lr", "nan", "training.slow_lr must be above 0, got nan"),
        ("training.slow_lr_final", -1e-9, "training.slow_lr_final must be 0 or more"),
        ("training.beta1", 1, "training.beta1 must be below 1, got 1"),
        ("training.beta2", -0.1, "training.beta2 must be 0 or more"),
        ("training.clip_norm", 0, "training.clip_norm must be above 0"),
        ("training.seed", -1, "training.seed must lie in 0 … 2147483647, got -1"),
        ("training.seed", 2**31, "training.seed must lie in 0 … 2147483647"),
        ("inference.fast_steps", -1, "inference.fast_steps must be 0 or more"),
        ("inference.fast_lr", 0, "inference.fast_lr must be above 0"),
        ("inference.fast_lr_decay", 1.5, "inference.fast_lr_decay must lie in 0 … 1"),
        ("inference.kl_warmup_steps", math.inf, "must be a whole number of steps, or a share below 1, got inf"),
        ("inference.natural_lr", 1.5, "inference.natural_lr must be 1 or less"),
        ("decoder.thought_gain", -1, "decoder.thought_gain must lie in 0 … 100"),
        ("inference.tolerance", 0, "inference.tolerance must be above 0"),
        ("data.sequence_length", 1, "data.sequence_length must be 2 or more"),
        ("data.vocab_size", 256, "data.vocab_size must be 257 or more"),
        ("data.documents", 0, "data.documents must be 1 or more"),
        ("data.validation_fraction", 1.5, "data.validation_fraction must lie in 0 … 1"),
        ("decoder.layers", 0, "decoder.layers must be 1 or more"),
        ("decoder.rope_base", 1, "decoder.rope_base must be above 1"),
        ("decoder.hidden", 100, r"decoder.hidden = 100 is no multiple of 2 \* decoder.heads = 16"),
        ("decoder.num_thoughts", 25, "decoder.num_thoughts = 25 does not divide over decoder.layers = 3"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_address_and_what_was_expected(address: str, value: Any, words: str):
    with pytest.raises(LTMError, match=words):
        Settings().updated({address: value})


def test_settings_that_only_fit_together_are_set_together():
    changed = Settings().updated({"decoder.layers": 5, "decoder.num_thoughts": 10})
    assert (changed.decoder.layers, changed.decoder.num_thoughts) == (5, 10)
    with pytest.raises(LTMError, match="does not divide"):
        Settings().updated({"decoder.layers": 5})


def test_updating_leaves_the_original_and_all_other_settings_alone():
    before = Settings()
    after = before.updated({"training.steps": 7})
    assert before == Settings()
    assert after.to_dict() == {**before.to_dict(), "training": {**before.to_dict()["training"], "steps": 7}}


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        Settings().training.steps = 3  # type: ignore[misc]


def test_options_of_a_prior_are_kept_until_another_prior_is_named():
    first = Settings().updated({"prior.name": "mine:P", "prior.scale": "2", "prior.deep": "true", "prior.how": "so"})
    assert first.prior.options == {"scale": 2, "deep": True, "how": "so"}
    second = first.updated({"prior.scale": 3, "prior.name": "mine:P"})
    assert second.prior.options == {"scale": 3, "deep": True, "how": "so"}
    other = second.updated({"prior.name": "gaussian"})
    assert (other.prior.name, dict(other.prior.options)) == ("gaussian", {})
    assert Settings().updated({"guide.rank": 4}).guide.options == {"rank": 4}


def test_the_presets_say_what_the_paper_says():
    # Sizes: layers, thoughts and fast steps of LTM-S, -M and -L; H = 512, 8 heads, window 256, T_fast 16, 16, 64.
    for name, layers, thoughts, fast_steps in (("s", 3, 24, 16), ("m", 6, 24, 16), ("l", 12, 96, 64)):
        for prefix in ("ltm-", "paper-ltm-"):
            chosen = preset(prefix + name)
            assert (chosen.decoder.layers, chosen.decoder.num_thoughts) == (layers, thoughts)
            assert (chosen.decoder.hidden, chosen.decoder.window) == (512, 256)
            assert chosen.decoder.thought_width is None
            assert chosen.inference.fast_steps == fast_steps
        paper = preset("paper-ltm-" + name)
        assert (paper.data.sequence_length, paper.training.batch_size) == (1024, 512)
        assert (paper.inference.fast_lr, paper.inference.fast_lr_final) == (0.3, 0.34)
        assert (paper.training.slow_lr, paper.training.slow_lr_final) == (4e-4, 4e-5)
        assert (paper.inference.noise, paper.inference.slow_gradient) == ("fresh", "final")
        assert paper.inference.init_log_var == -5.0
        assert paper.training.dtype == "bfloat16"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_settings_that_exist_with_values_of_their_type(name: str):
    for address, value in PRESETS[name].items():
        assert value_at(preset(name), address) == value
        assert type(value_at(preset(name), address)) is type(value)


def test_an_unknown_preset_is_refused_with_the_nearest_name():
    with pytest.raises(LTMError, match="unknown preset 'ltm-x': did you mean 'ltm-"):
        preset("ltm-x")
    with pytest.raises(LTMError, match="unknown preset 'qqq': known are tiny, ltm-s"):
        preset("qqq")


def test_toml_and_back(tmp_path: Path):
    path = tmp_path / "settings.toml"
    path.write_text(
        '[training]\nsteps = 5\nslow_lr = 1\ntensorboard = true\n[prior]\nname = "a.b:C"\nscale = 2.5\n'
        '[decoder]\nthought_width = "none"\n[data]\nsource = "stories/ü.txt"\n',
        encoding="utf-8",
    )
    base = Settings().updated({"decoder.thought_width": 8, "training.batch_size": 3})
    found = Settings.from_toml(path, base)
    assert (found.training.steps, found.training.slow_lr, found.training.tensorboard) == (5, 1.0, True)
    assert (found.prior.name, dict(found.prior.options)) == ("a.b:C", {"scale": 2.5})
    assert found.decoder.thought_width is None
    assert found.data.source == "stories/ü.txt"
    assert found.training.batch_size == 3  # from the base
    assert found == Settings.from_toml(_written(tmp_path / "again.toml", found))


def _written(path: Path, settings: Settings) -> Path:
    """Every setting as TOML: JSON's numbers, strings and truth values are TOML's, and none is a word."""
    lines = []
    for section, values in settings.to_dict().items():
        lines.append(f"[{section}]")
        lines += [f"{k} = {json.dumps('none' if v is None else v, ensure_ascii=False)}" for k, v in values.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_toml(tmp_path: Path, name: str):
    assert Settings.from_toml(_written(tmp_path / "s.toml", preset(name))) == preset(name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[training\n", "s.toml is not valid TOML"),
        (b"\xff\xfe", "s.toml is not valid TOML"),
        (b"steps = 3\n", "section 'steps' of the settings must be a table of keys, got 3"),
        (b"[training]\nstpes = 3\n", "unknown setting training.stpes: did you mean 'steps'"),
        (b"[training]\nsteps = [3]\n", "training.steps must be a whole number"),
    ],
)
def test_bad_toml_is_refused_by_name(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "s.toml").write_bytes(content)
    with pytest.raises(LTMError, match=words):
        Settings.from_toml(tmp_path / "s.toml")


def test_a_missing_settings_file_is_named(tmp_path: Path):
    with pytest.raises(LTMError, match=r"cannot read the settings file .*none.toml: No such file"):
        Settings.from_toml(tmp_path / "none.toml")
    with pytest.raises(LTMError, match=r"cannot read the settings file .*: Is a directory"):
        Settings.from_toml(tmp_path)


positive = st.floats(1e-9, 1e9)
whole = st.integers(1, 10**6)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda t: t.lower() != "none")


@st.composite
def all_settings(draw: st.DrawFn) -> dict[str, Any]:
    layers, heads = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    return {
        "data.source": draw(words),
        "data.column": draw(st.none() | words),
        "data.text_unit": draw(st.sampled_from(["auto", "file", "line", "block"])),
        "data.documents": draw(st.none() | whole),
        "data.validation_fraction": draw(st.floats(0, 1)),
        "data.streaming": draw(st.booleans()),
        "decoder.layers": layers,
        "decoder.heads": heads,
        "decoder.hidden": 2 * heads * draw(st.integers(1, 64)),
        "decoder.num_thoughts": layers * draw(st.integers(1, 16)),
        "decoder.thought_width": draw(st.none() | whole),
        "prior.name": draw(words),
        "prior.scale": draw(st.none() | st.booleans() | whole | positive),
        "inference.fast_steps": draw(st.integers(0, 100)),
        "inference.fast_lr": draw(positive),
        "inference.init_log_var": draw(st.floats(-1e3, 1e3)),
        "inference.tolerance": draw(st.none() | positive),
        "training.steps": draw(whole),
        "training.seed": draw(st.integers(0, 2**31 - 1)),
        "training.beta1": draw(st.floats(0, 1, exclude_max=True)),
        "training.clip_norm": draw(st.none() | positive),
        "training.dtype": draw(st.sampled_from(["float32", "bfloat16"])),
    }


@hypothesis_settings(deadline=None, max_examples=50)  # a busy machine is no failure
@given(all_settings())
def test_settings_survive_json_and_strings(values: dict[str, Any]):
    settings = Settings().updated(values)
    assert {address: value_at(settings, address) for address in values} == values
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert Settings.from_dict(settings.to_dict(), base=preset("tiny")) == settings.updated({})
    spelled = {k: "none" if v is None else str(v) for k, v in values.items() if k != "prior.scale"}
    assert Settings().updated(spelled) == Settings().updated({k: v for k, v in values.items() if k != "prior.scale"})


def test_to_dict_names_every_setting_of_every_section():
    found = Settings().to_dict()
    assert list(found) == ["model", "data", "decoder", "prior", "guide", "inference", "training"]
    for section in ("data", "decoder", "inference", "training"):
        assert found[section] == asdict(getattr(Settings(), section))
    assert found["prior"] == {"name": "gaussian"}
