"""What a tokenizer.json from anywhere may hold: usual parts, and nothing that hangs, panics or fills memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltm_pyro.data import tokenizer_file
from ltm_pyro.data.patterns import check_pattern
from ltm_pyro.data.tokenizer import END_OF_TEXT, Tokenizer
from ltm_pyro.errors import LTMError

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
USUAL = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + CONTRACTIONS
    + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "deepseek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    "digits": r"\p{N}{1,3}",
    "possessive": r"\p{L}++|\s++$",
}
BOMBS = [
    r"(a+)+b",
    r"(a*)*b",
    r"(?:a|a)*b",
    r"(a|aa)+b",
    r"([a-z]+)*\d",
    r"(?:(?:a?){20}){20}b",
    r"a?a?a?a?a?a?a?a?a?a?a?a?aaaaaaaaaaaa",
    r"(?:a|a)(?:a|a)(?:a|a)(?:a|a)(?:a|a)(?:a|a)(?:a|a)(?:a|a)(?:a|a)(?:a|a)(?:a|a)b",
    r"\s*\s*\s*x",
    r"(a)\1",
    r"(?<n>a)\k<n>",
    r"(?<n>a\g<n>?b)",
    r"a{1,100000}",
    r"(?x) a # b",
    r"a**",
    r"(?(1)a|b)",
    r"(a",
    r"a)",
    r"[a",
    r"+a",
    "a\\",
    "a" * 5000,
]


@pytest.mark.parametrize("name", USUAL)
def test_usual_patterns_are_allowed(name: str) -> None:
    check_pattern(USUAL[name])


@pytest.mark.parametrize("pattern", BOMBS, ids=lambda p: p[:20])
def test_patterns_that_backtrack_without_end_are_refused(pattern: str) -> None:
    with pytest.raises(LTMError, match="a pattern has"):
        check_pattern(pattern)


def written(small: Tokenizer, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The tokenizer's file with its content changed."""
    small.save(path / "tokenizer.json")
    content = json.loads((path / "tokenizer.json").read_text())
    change(content)
    (path / "tokenizer.json").write_text(json.dumps(content))
    return path / "tokenizer.json"


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def refusal(path: Path) -> str:
    with pytest.raises(LTMError) as caught:
        Tokenizer.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def nested(depth: int) -> Any:
    return {"type": "Sequence", "normalizers": [nested(depth - 1)]} if depth else {"type": "NFC"}


@pytest.mark.parametrize("pattern", ["(a+)+b", r"(x|x)*y"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_pattern_that_backtracks_is_refused_wherever_it_stands(
    tmp_path: Path, small: Tokenizer, pattern: str, inside: bool
) -> None:
    part = split(pattern)
    if inside:
        part = {"type": "Sequence", "pretokenizers": [part, {"type": "ByteLevel"}]}
    message = refusal(written(small, tmp_path, lambda c: c.update(pre_tokenizer=part)))
    assert "tokenizer.json: not a sound tokenizer (a pattern has a quantifier over a group" in message


@pytest.mark.parametrize("name", USUAL)
def test_tokenizers_with_usual_patterns_load_and_encode_long_runs_in_little_time(
    tmp_path: Path, small: Tokenizer, name: str
) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    sequence = {"type": "Sequence", "pretokenizers": [split(USUAL[name]), byte_level]}
    tokenizer = Tokenizer.load(written(small, tmp_path, lambda c: c.update(pre_tokenizer=sequence)))
    began = time.perf_counter()
    for text in ("a" * 20_000, " " * 3000, "\n" * 3000, "1" * 3000, "'" * 3000):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(pre_tokenizer={"type": "RunThis"}), "unknown pre_tokenizer 'RunThis', known are"),
        (lambda c: c.update(normalizer={"type": "Sequence", "normalizers": [{"type": "X"}]}), "unknown normalizer 'X'"),
        (lambda c: c.update(decoder={"type": "\x1b[2J"}), r"unknown decoder '\\x1b[2J'"),
        (lambda c: c["model"].update(type="Neural"), "unknown model 'Neural', known are BPE"),
        (lambda c: c.pop("model"), "no table `model`"),
        (lambda c: c["model"].update(vocab=7), "no vocabulary"),
        (lambda c: c["model"]["vocab"].update(a=1 << 31), "token id '2147483648' is no number in 0 … 1048575"),
        (lambda c: c["model"]["vocab"].update(a=-1), "token id '-1'"),
        (lambda c: c["model"]["vocab"].update(a=True), "token id 'True'"),
        (lambda c: c["added_tokens"][0].update(id=4_294_967_295), "token id '4294967295'"),
        (lambda c: c.update(added_tokens=["x"]), "an added token is no table"),
        (lambda c: c.update(added_tokens=3), "added_tokens is no list"),
        (lambda c: c.update(normalizer=nested(40)), "nested more than 64 deep"),
        (lambda c: c["model"].update(merges=[["zz", "yy"]]), "Token `zz` out of vocabulary"),
    ],
)
def test_hostile_content_is_refused_with_the_reason(
    tmp_path: Path, small: Tokenizer, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    assert words in refusal(written(small, tmp_path, change))


def test_large_files_and_vocabularies_are_refused_unread(
    tmp_path: Path, small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(small, tmp_path, lambda c: None)
    monkeypatch.setattr(tokenizer_file, "MAX_VOCABULARY", 100)
    assert "the vocabulary has" in refusal(path)
    monkeypatch.setattr(tokenizer_file, "_MOST_BYTES", 1000)
    assert "more than the 1000 that such a file may have" in refusal(path)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": ' * 100_000)
    assert "nested more than 64 deep" in refusal(tmp_path)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "tokenizer.json")
    assert "is not a regular file" in refusal(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to("/dev/zero")
    assert "is not a regular file" in refusal(tmp_path)


def test_gpt2s_two_files_have_the_same_bounds(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "vocab.json").write_text(json.dumps({END_OF_TEXT: 0, "a": 1 << 40}))
    assert "token id '1099511627776'" in refusal(tmp_path)
    (tmp_path / "vocab.json").write_text("[" * 100_000)
    assert "nested more than 64 deep" in refusal(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps([]))
    assert "not a sound tokenizer" in refusal(tmp_path)


def test_a_panic_of_the_library_is_one_line(small: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    class Broken:
        def encode(self, *_: object, **__: object) -> None:
            raise PanicException("index out of bounds\nbacktrace")

    monkeypatch.setattr(small, "_backend", Broken())
    with pytest.raises(LTMError, match=r"the library panics: index out of bounds\); use one that is byte-level"):
        small.encode("x")


def test_a_text_that_a_tokenizer_cannot_write_is_one_line(tmp_path: Path, small: Tokenizer) -> None:
    def words_alone(content: dict[str, Any]) -> None:
        content["model"] = {"type": "WordLevel", "vocab": {END_OF_TEXT: 0, "a": 1}, "unk_token": "[UNK]"}

    tokenizer = Tokenizer.load(written(small, tmp_path, words_alone))
    with pytest.raises(LTMError, match="the tokenizer cannot do this"):
        tokenizer.encode("b")
    with pytest.raises(LTMError, match="the tokenizer cannot do this"):
        tokenizer.encode_batch(["b"])
