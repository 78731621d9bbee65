"""Readers for files that may be hostile: bounded JSON, safetensors headers, names, links."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ltm_pyro import untrusted
from ltm_pyro.errors import LTMError
from ltm_pyro.untrusted import (
    exists,
    local_path,
    parse_json,
    printable,
    read_bytes,
    read_json,
    refuse_link,
    refuse_what_memory_cannot_hold,
    tensor_entries,
)

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.zeros(5, dtype=torch.int64), "none": torch.zeros(0, 4)}


def lying(change: Callable[[dict[str, Any]], object], *, tail: bytes = b"", declared: int | None = None) -> bytes:
    """The tensors' file with its header changed."""
    content = save(TENSORS)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    return struct.pack("<Q", len(new) if declared is None else declared) + new + content[8 + length :] + tail


def test_the_header_of_a_sound_file_gives_types_and_shapes() -> None:
    expected = {"a": ("F32", (2, 3)), "b.c": ("I64", (5,)), "none": ("F32", (0, 4))}
    assert tensor_entries(save(TENSORS), "x") == expected
    assert tensor_entries(save(TENSORS, metadata={"made": "here"}), "x") == expected
    assert tensor_entries(save({}), "x") == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.float64, torch.int16])
def test_all_types_that_torch_writes_are_known(dtype: torch.dtype) -> None:
    assert tensor_entries(save({"a": torch.zeros(3, dtype=dtype)}), "x")["a"][1] == (3,)


def a(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["a"].update({key: value})


# The last column: whether the library itself notices.
LIES = [
    ("offsets beyond the end", lying(a("data_offsets", [40, 1 << 40])), "bytes for F32", True),
    ("offsets the wrong way", lying(a("data_offsets", [64, 40])), "no beginning and end", True),
    ("negative offsets", lying(a("data_offsets", [-24, 0])), "no beginning and end", True),
    ("a larger shape", lying(a("shape", [1 << 31, 1 << 31])), "bytes for F32", True),
    ("a shape whose product overflows", lying(a("shape", [1 << 61, 8])), "bytes for F32", True),
    ("a negative shape", lying(a("shape", [-2, -3])), "no list of sizes", True),
    ("a shape of truth values", lying(a("shape", [True])), "no list of sizes", True),
    ("many dimensions", lying(a("shape", [1] * 100 + [6])), "no list of sizes", False),
    ("an unknown type", lying(a("dtype", "PICKLE")), "unknown type 'PICKLE'", True),
    ("a type that is none", lying(a("dtype", ["F32"])), "unknown type", True),
    ("one more key", lying(a("code", "os.system")), "it needs dtype, shape and data_offsets", False),
    ("an overlap", lying(a("data_offsets", [0, 24])), "is in none or several", True),
    ("bytes in no tensor", lying(lambda h: h.pop("b.c")), "in none or several", True),
    ("bytes behind the last", lying(lambda h: None, tail=b"x"), "its tensors have 64 bytes, the file 65", True),
    ("a header that is no table", struct.pack("<Q", 2) + b"[]", "its header is no table", True),
    ("a deep header", struct.pack("<Q", 100_000) + b"[" * 100_000, "nested more than 4 deep", True),
    ("a header that is not UTF-8", struct.pack("<Q", 4) + b'{"\xff"', "not valid JSON", True),
    ("a header longer than the file", lying(lambda h: None, declared=1 << 20), "declares a header of 1048576", True),
    ("a header without end", lying(lambda h: None, declared=(1 << 64) - 1), "declares a header", True),
    ("no header", b"\0\0\0", "it has 3 bytes", True),
    ("nothing", b"", "it has 0 bytes", True),
    ("a name of controls", lying(lambda h: h.update({"\x1b[2J": h.pop("a")})), r"has the name '\\x1b[2J'", False),
    ("a long name", lying(lambda h: h.update({"x" * 2000: h.pop("a")})), "a tensor has the name", False),
    ("a name without letters", lying(lambda h: h.update({"": h.pop("a")})), "a tensor has the name ''", False),
]


@pytest.mark.parametrize(("content", "words", "noticed"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_a_header_that_lies_is_refused_before_any_tensor_is_made(content: bytes, words: str, noticed: bool) -> None:
    with pytest.raises(LTMError) as caught:
        tensor_entries(content, "x.safetensors")
    assert words in str(caught.value)
    assert "x.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 300
    if noticed:
        with pytest.raises((SafetensorError, OverflowError)):
            load(content)
    else:
        load(content)


@pytest.mark.parametrize("text", ['{"a": [1, 2]}', "7", "null", '"x"', "[[[[1]]]]"])
def test_sound_json_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_json(tmp_path / "a.json") == json.loads(text)


def test_depth_and_size_of_json_are_bounded(tmp_path: Path) -> None:
    assert parse_json("[" * 64 + "]" * 64, "x")
    for depth in (65, 900, 100_000):
        for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
            with pytest.raises(LTMError, match="x is nested more than 64 deep"):
                parse_json(text, "x")
    with pytest.raises(LTMError, match="x is nested more than 2 deep"):
        parse_json("[[[1]]]", "x", depth=2)
    (tmp_path / "a.json").write_text(" " * 101)
    with pytest.raises(LTMError, match=r"a.json has 101 bytes, more than the 100 that such a file may have"):
        read_json(tmp_path / "a.json", most=100)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1e5,]", b"9" * 5000, b'{"a": 1}{'])
def test_what_is_no_json_is_one_line(content: bytes) -> None:
    with pytest.raises(LTMError, match=r"^x is not valid JSON \(.*\)$"):
        parse_json(content, "x")


def test_a_pipe_a_device_and_a_folder_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(LTMError, match=f"{name} is not a regular file"):
            read_bytes(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)
    with pytest.raises(LTMError, match="no name that a file can have"):
        read_bytes(tmp_path / "a\0b")


def test_a_file_that_no_memory_holds_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 42)  # takes no space on the disk
    with pytest.raises(LTMError, match=r"sparse takes 4096 GiB, this machine has .* GiB: make it smaller"):
        read_bytes(tmp_path / "sparse")
    refuse_what_memory_cannot_hold(1 << 20, "a little")


def test_memory_that_runs_out_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    (tmp_path / "a").write_text("x")
    monkeypatch.setattr(untrusted.Path, "open", full)
    with pytest.raises(LTMError, match="larger than the memory that is left"):
        read_bytes(tmp_path / "a")


def test_what_steers_a_terminal_is_written_out() -> None:
    assert printable("a\x1b[31mb\0\x9b\ud800") == r"a\x1b[31mb\x00\x9b\ud800"
    assert printable("שלום é\U0001f469 \t\n") == "שלום é\U0001f469 \t\n"


def test_paths_that_cannot_be_are_one_line_or_not_there(tmp_path: Path) -> None:
    assert local_path("~nobody-has-this-name/x") == Path("~nobody-has-this-name/x")
    assert local_path("~") == Path.home()
    with pytest.raises(LTMError, match="has a NUL in it"):
        local_path("a\0b")
    assert not exists(tmp_path / ("x" * 5000))
    assert not exists(tmp_path / "a\0b")
    assert exists(tmp_path)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LTMError, match="link is a symbolic link, and nothing is written through one"):
        refuse_link(tmp_path / "link")
    refuse_link(tmp_path)
    refuse_link(tmp_path / "absent")
