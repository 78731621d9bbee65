"""Reading .txt, .jsonl and .parquet: what comes out, and what every kind of bad input is told."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltm_pyro.data.corpora import FileCorpus
from ltm_pyro.data.files import kind_of, list_files
from ltm_pyro.data.sources import open_corpus
from ltm_pyro.errors import LTMError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: zstandard.ZstdCompressor(write_checksum=True).compress(raw),
}


def texts(path: Path, **options: Any) -> list[str]:
    return [d.text for d in FileCorpus(path, **options).documents()]


def error(path: Path, **options: Any) -> str:
    with pytest.raises(LTMError) as caught:
        texts(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.name) in message
    return message


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_compressed_files_give_the_documents_of_the_plain_one(tmp_path: Path, kind: str, suffix: str) -> None:
    plain = "one\n\ntwo\n" if kind == ".txt" else '{"text": "one"}\n{"text": "two"}\n'
    path = write(tmp_path / f"a{kind}{suffix}", COMPRESS[suffix](plain.encode()))
    assert texts(path) == ["one", "two"]


def test_zstd_files_of_several_frames_are_read_to_the_end(tmp_path: Path) -> None:
    compress = COMPRESS[".zst"]
    raw = [f"line {i} {'x' * 400}\n".encode() for i in range(3000)]
    path = write(tmp_path / "a.txt.zst", compress(b"".join(raw[:2000])) + compress(b"".join(raw[2000:])))
    assert "\n".join(texts(path, unit="line")) == b"".join(raw).decode().rstrip("\n")


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", [("one\ntwo\n\n \nthree\n", 1)]),
        ("block", [("one\ntwo", 1), ("three", 5)]),
        ("line", [("one", 1), ("two", 2), ("three", 5)]),
        ("auto", [("one\ntwo", 1), ("three", 5)]),
    ],
)
def test_text_unit_says_what_a_document_is_and_rows_are_lines(
    tmp_path: Path, unit: Any, expected: list[tuple[str, int]]
) -> None:
    path = write(tmp_path / "a.txt", "one\ntwo\n\n \nthree\n")
    got = list(FileCorpus(path, unit=unit).documents())
    assert [(d.text, d.row) for d in got] == expected
    assert {d.file for d in got} == {str(path)}


def test_auto_takes_lines_where_a_file_has_no_blank_line_and_files_in_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\n\none\ntwo\nthree\n\n")  # blank lines around the text separate nothing
    assert texts(path, unit="line") == ["one", "two", "three"]
    assert texts(write(tmp_path / "b.txt", "one\ntwo\n")) == ["one", "two"]
    assert texts(tmp_path) == ["\n\none\ntwo\nthree\n\n", "one\ntwo\n"]


def test_byte_order_mark_and_foreign_line_ends_leave_no_trace(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\rfour")
    assert texts(path) == ["one\ntwo", "three\nfour"]
    assert texts(path, unit="file") == ["one\ntwo\n\nthree\nfour"]
    assert texts(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')) == ["a", "b"]


def test_unusual_characters_pass_unchanged(tmp_path: Path) -> None:
    odd = "nul \0, \U0001f469\u200d\U0001f4bb, \u202bשלום\u202c, next\u2028line\x0b\x1c\x85, e\u0301"
    assert texts(write(tmp_path / "a.txt", odd), unit="line") == [odd]
    assert texts(write(tmp_path / "a.jsonl", json.dumps({"text": odd}))) == [odd]


def test_lone_surrogates_of_json_become_the_replacement_character(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", r'{"text": "a\ud800b \ud83d\ude00 \udc00"}')
    assert texts(path) == ["a\ufffdb \U0001f600 \ufffd"]


def test_a_very_long_line_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "ab " * 1_000_000)
    assert [len(t) for t in texts(path)] == [3_000_000]


def test_null_empty_and_blank_texts_are_no_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": null}\n{"text": ""}\n{"text": " \\n "}\n{"text": "x"}\n')
    assert [(d.text, d.row) for d in FileCorpus(path).documents()] == [("x", 4)]


def test_parquet_gives_the_column_in_row_order(tmp_path: Path) -> None:
    rows = [f"text {i}" for i in range(1000)]
    pq.write_table(pa.table({"id": range(1000), "story": rows}), tmp_path / "a.parquet", row_group_size=300)
    got = list(FileCorpus(tmp_path / "a.parquet", column="story").documents())
    assert [d.text for d in got] == rows
    assert [d.row for d in got] == list(range(1, 1001))


def test_a_folder_is_its_readable_files_sorted_and_recursive(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.jsonl", "a/b/c.txt.gz", ".hidden.txt", "a/.git/x.txt", "notes.md", "c.parquet.gz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        body = b'{"text": "z"}' if name.endswith("jsonl") else name.encode()
        write(path, gzip.compress(body) if name.endswith(".gz") else body)
    found = [p.relative_to(tmp_path).as_posix() for p in list_files(tmp_path)]
    assert found == ["a/b/c.txt.gz", "a/z.jsonl", "b.txt"]
    assert texts(tmp_path) == ["a/b/c.txt.gz", "z", "b.txt"]


def test_documents_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "good"}\nnot json\n')
    assert next(FileCorpus(path).documents()).text == "good"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(st.text(), max_size=8))
def test_jsonl_round_trips_any_text(tmp_path: Path, wanted: list[str]) -> None:
    lines = [json.dumps({"text": t}, ensure_ascii=i % 2 == 0) for i, t in enumerate(wanted)]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    assert texts(path) == [t for t in wanted if t and not t.isspace()]


def test_missing_file_names_the_path_and_the_alternatives(tmp_path: Path) -> None:
    with pytest.raises(LTMError, match=r"nowhere\.txt: no such file or folder; give .*fables.*hf:name"):
        open_corpus(str(tmp_path / "nowhere.txt"))


def test_empty_source_is_refused() -> None:
    with pytest.raises(LTMError, match="the data source is empty; give `fables`"):
        open_corpus("")


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.parquet.gz", "a.gz"])
def test_unknown_kind_of_file_lists_the_known_ones(tmp_path: Path, name: str) -> None:
    message = error(write(tmp_path / name, "x"))
    assert "unknown kind of file" in message
    assert ".txt, .jsonl, .parquet" in message
    assert "convert" in message


def test_folder_without_text_lists_the_known_kinds(tmp_path: Path) -> None:
    write(tmp_path / "a.pdf", "x")
    message = error(tmp_path)
    assert "holds no text files" in message
    assert ".jsonl" in message


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_wrong_column_lists_those_there_are(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a{kind}"
    if kind == ".jsonl":
        write(path, '{"question": "q", "answer": "a"}\n')
    else:
        pq.write_table(pa.table({"question": ["q"], "answer": ["a"]}), path)
    message = error(path)
    assert "no column 'text'; there is question, answer" in message
    assert "`column`" in message
    assert texts(path, column="answer") == ["a"]


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_column_that_is_not_text_is_refused_with_its_place(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a{kind}"
    if kind == ".jsonl":
        write(path, '{"text": "a"}\n{"text": 5}\n')
    else:
        pq.write_table(pa.table({"text": [1, 2]}), path)
    message = error(path)
    assert ("line 2" if kind == ".jsonl" else "row 1") in message
    assert "holds int, not text; choose another" in message


def test_not_utf8_names_line_and_byte_and_how_to_convert(tmp_path: Path) -> None:
    message = error(write(tmp_path / "a.txt", b"good\ncaf\xe9\n"))
    assert "line 2, byte 8: not UTF-8 (byte 0xe9)" in message
    assert "iconv -f latin1 -t utf-8" in message
    message = error(write(tmp_path / "b.txt", "hello".encode("utf-16")))
    assert "iconv -f utf-16 -t utf-8" in message
    message = error(write(tmp_path / "c.txt", b"\xef\xbb\xbfcaf\xe9"))
    assert "line 1, byte 6:" in message


@pytest.mark.parametrize("bad", ['{"text": "a"', "x" * 5, "[" * 100_000, '{"text": ' + "1" * 5000 + "}"])
def test_invalid_json_names_the_line(tmp_path: Path, bad: str) -> None:
    message = error(write(tmp_path / "a.jsonl", '{"text": "a"}\n\n' + bad + "\n"))
    assert "line 3: not valid JSON" in message
    assert "one JSON object on each line" in message


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    assert 'line 1: expected a JSON object such as {"text": "…"}, got list' in error(
        write(tmp_path / "a.jsonl", '["a"]\n')
    )


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["truncated", "garbled", "foreign"])
def test_damaged_compressed_file_says_so(tmp_path: Path, suffix: str, damage: str) -> None:
    whole = COMPRESS[suffix](os.urandom(2000).hex().encode())
    middle = len(whole) // 2
    bad = {
        "truncated": whole[:middle],
        "garbled": whole[:middle] + bytes(64) + whole[middle + 64 :],
        "foreign": b"this is no compressed file at all",
    }[damage]
    message = error(write(tmp_path / f"a.txt{suffix}", bad))
    assert "damaged or cut short" in message or "not UTF-8" in message
    assert "again" in message or "convert" in message


@pytest.mark.parametrize("cut", [0, 100, -5])
def test_damaged_parquet_says_so(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a" * 500]}), path)
    message = error(write(path, path.read_bytes()[:cut]))
    assert "not a sound parquet file" in message
    assert "fetch or write it again" in message


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable_file_names_the_permissions(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x")
    path.chmod(0)
    assert "check the path and its permissions" in error(path)


def test_operating_system_errors_are_worded_for_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "a.txt", "x")
    monkeypatch.setattr(Path, "open", refuse)
    message = error(path)
    assert "Permission denied" in message
    assert "check the path and its permissions" in message


def test_missing_optional_package_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert "pip install pyarrow" in error(path)
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    assert "pip install zstandard" in error(write(tmp_path / "a.txt.zst", b""))


def test_kind_is_read_off_the_last_suffixes() -> None:
    assert kind_of(Path("v1.2/a.b.TXT.GZ")) == (".txt", ".gz")
    assert kind_of(Path("a.parquet")) == (".parquet", "")
    assert kind_of(Path("a.txt.bak")) is None
