"""Tokenizer: golden GPT-2 ids, round trips, training, and what bad tokenizer files are told."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltm_pyro.data.tokenizer import END_OF_TEXT, Tokenizer
from ltm_pyro.errors import LTMError

valid_text = st.text(st.characters(exclude_categories=["Cs"]))


def error(source: str | Path) -> str:
    with pytest.raises(LTMError) as caught:
        Tokenizer.load(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [15496, 995]),
        (" Hello world", [18435, 995]),
        ("Hello, world!", [15496, 11, 995, 0]),
        ("The quick brown fox", [464, 2068, 7586, 21831]),
        ("\n\n", [628]),
        ("", []),
    ],
)
def test_gpt2_files_give_the_published_ids(gpt2: Tokenizer, text: str, ids: list[int]) -> None:
    assert gpt2.encode(text) == ids
    assert gpt2.decode(ids) == text


def test_gpt2_vocabulary_has_50257_entries_and_ends_with_end_of_text(gpt2: Tokenizer) -> None:
    assert gpt2.vocab_size == len(gpt2) == 50257
    assert gpt2.end_of_text == 50256


@pytest.mark.parametrize(("name", "expected"), [("tinystories_valid", 48_268), ("ag_news_valid_sample", 27_140)])
def test_gpt2_token_counts_of_real_documents_are_the_known_ones(
    shared_data: Path, gpt2: Tokenizer, name: str, expected: int
) -> None:
    with gzip.open(shared_data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    assert sum(map(len, gpt2.encode_batch(texts))) == expected


@settings(deadline=None)
@given(valid_text)
def test_decoding_the_ids_gives_the_text_back(gpt2: Tokenizer, small: Tokenizer, text: str) -> None:
    for tokenizer in (gpt2, small):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(valid_text)
def test_the_characters_of_the_ids_add_up_to_those_of_the_text(gpt2: Tokenizer, small: Tokenizer, text: str) -> None:
    for tokenizer in (gpt2, small):
        assert sum(tokenizer.characters[i] for i in tokenizer.encode(text)) == len(text)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(), max_size=5))
def test_a_batch_is_encoded_like_its_texts_one_by_one(small: Tokenizer, texts: list[str]) -> None:
    assert small.encode_batch(texts) == [small.encode(text) for text in texts]


@pytest.mark.parametrize(
    "text", ["\0", "\r\n\t ", "\U0001f469\u200d\U0001f4bb", "שלום \u202eabc", "a\ufffdb", "\ufeffx"]
)
def test_unusual_text_round_trips(small: Tokenizer, text: str) -> None:
    assert small.decode(small.encode(text)) == text


def test_the_name_of_a_special_token_inside_a_text_is_text(gpt2: Tokenizer, small: Tokenizer) -> None:
    text = f"a{END_OF_TEXT}b {END_OF_TEXT}"
    for tokenizer in (gpt2, small):
        ids = tokenizer.encode(text)
        assert tokenizer.end_of_text not in ids
        assert [ids] == tokenizer.encode_batch([text])
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([*ids, tokenizer.end_of_text]) == text


def test_lone_surrogates_are_encoded_as_the_replacement_character(small: Tokenizer) -> None:
    assert small.decode(small.encode("a\ud800b")) == "a\ufffdb"
    assert small.encode_batch(["\udc00"]) == [small.encode("\ufffd")]


def test_hundreds_of_thousands_of_letters_without_a_space_are_encoded(small: Tokenizer) -> None:
    text = "a" * 300_000
    assert small.decode(small.encode(text)) == text


def test_training_learns_frequent_words_within_the_vocabulary() -> None:
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 10, 265)
    assert tokenizer.vocab_size == 265
    assert tokenizer.end_of_text == 0
    assert len(tokenizer.encode(" the")) == 1
    assert Tokenizer.train(["aaaa"], 5000).vocab_size < 300  # little text, few merges
    assert Tokenizer.train([], 257).decode(Tokenizer.train([], 257).encode("é")) == "é"


@pytest.mark.slow
def test_training_is_the_same_in_another_process(small: Tokenizer) -> None:
    program = (
        "from ltm_pyro.data.tokenizer import Tokenizer; "
        "print(Tokenizer.train(['the cat sat on the mat and the dog sat on the cat'] * 4, 300).digest)"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == small.digest


def test_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(LTMError, match=r"vocab_size=256: a byte-level vocabulary needs at least 257 .* raise it"):
        Tokenizer.train(["x"], 256)


def test_saved_tokenizer_is_the_same_tokenizer(tmp_path: Path, gpt2: Tokenizer, small: Tokenizer) -> None:
    for tokenizer in (gpt2, small):
        tokenizer.save(tmp_path / "tokenizer.json")
        for again in (Tokenizer.load(tmp_path), Tokenizer.load(tmp_path / "tokenizer.json")):
            assert again.digest == tokenizer.digest
            assert (again.vocab_size, again.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
            text = f"The dog {END_OF_TEXT} sat\n"
            assert again.encode(text) == tokenizer.encode(text)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    assert gpt2.digest != small.digest


def test_settings_of_a_foreign_file_add_and_cut_nothing(tmp_path: Path, small: Tokenizer) -> None:
    small.save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": END_OF_TEXT,
    }
    piece = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [piece, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [0], "tokens": [END_OF_TEXT]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    again = Tokenizer.load(tmp_path)
    for text in ("the cat", "the cat sat on the mat, and again"):
        assert again.encode(text) == small.encode(text)
        assert again.encode_batch([text]) == [small.encode(text)]


def test_other_end_of_text_names_are_found(tmp_path: Path, small: Tokenizer) -> None:
    small.save(tmp_path / "tokenizer.json")
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace(END_OF_TEXT, "</s>"))
    assert Tokenizer.load(path).end_of_text == 0


def test_tokenizer_without_end_of_text_says_what_to_add(tmp_path: Path, small: Tokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    small.save(path)
    path.write_text(path.read_text().replace(END_OF_TEXT, "[UNK]"))
    message = error(path)
    assert str(path) in message
    assert "no end-of-text token: add the special token <|endoftext|>" in message


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"version": "1.0"}'])
def test_unsound_tokenizer_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    message = error(tmp_path)
    assert f"{tmp_path / 'tokenizer.json'}: not a sound tokenizer" in message
    assert "fetch or write it again" in message


def test_folder_with_half_of_gpt2s_files_says_what_is_needed(tmp_path: Path, shared_data: Path) -> None:
    shutil.copy(shared_data / "gpt2_tokenizer" / "vocab.json", tmp_path)
    assert "holds no tokenizer.json, and not both vocab.json and merges.txt" in error(tmp_path)
    (tmp_path / "merges.txt").write_text("not merges\n")
    assert "not a sound tokenizer" in error(tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "runs/x/tokenizer.json", "~/nowhere/"])
def test_missing_path_is_not_looked_up_on_the_hub(name: str) -> None:
    message = error(name)
    assert message.startswith(name)
    assert "no such file or folder; give a tokenizer.json" in message
    assert "`train`" in message


def test_unreachable_hub_is_one_line_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    import tokenizers

    class Offline:
        @staticmethod
        def from_pretrained(name: str) -> None:
            raise ConnectionError(f"no route to the hub\nwhile fetching {name}")

    monkeypatch.setattr(tokenizers, "Tokenizer", Offline)
    message = error("gpt2-of-nobody")
    assert "gpt2-of-nobody: no such file, and no tokenizer of that name could be had from the hub" in message
    assert "no route to the hub" in message
    assert "check the name and the connection, or give a local tokenizer.json" in message


def test_hub_name_is_loaded_through_the_hub_client(monkeypatch: pytest.MonkeyPatch, small: Tokenizer) -> None:
    import tokenizers

    asked = []

    class Hub:
        @staticmethod
        def from_pretrained(name: str) -> object:
            asked.append(name)
            return small._backend

    monkeypatch.setattr(tokenizers, "Tokenizer", Hub)
    assert Tokenizer.load("owner/name").digest == small.digest
    assert asked == ["owner/name"]


def test_unknown_ids_are_refused_with_the_range(small: Tokenizer) -> None:
    for wrong in (small.vocab_size, -1):
        with pytest.raises(
            LTMError, match=rf"token id {wrong}: expected 0 … {small.vocab_size - 1}; is this another run's tokenizer"
        ):
            small.decode([5, wrong])


def test_importing_the_data_package_imports_no_heavy_library() -> None:
    program = (
        "import sys, ltm_pyro.data; "
        "print([m for m in ('datasets', 'pyarrow', 'tokenizers', 'huggingface_hub', 'zstandard') if m in sys.modules])"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == "[]"


def test_missing_tokenizers_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(LTMError, match="pip install tokenizers"):
        Tokenizer.train(["x"], 300)
