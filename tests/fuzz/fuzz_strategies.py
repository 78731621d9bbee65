"""Hostile bytes, texts, JSON values, settings and checkpoints, as hypothesis strategies."""

from __future__ import annotations

import bz2
import copy
import gzip
import hashlib
import json
import lzma
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import zstandard
from hypothesis import strategies as st

from ltm_pyro.config import ComponentSettings, Settings
from ltm_pyro.guides import GUIDES
from ltm_pyro.priors import PRIORS

NUMBERS = [
    -1,
    0,
    1,
    2,
    7,
    300,
    2**31,
    2**63,
    2**64,
    10**9,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
]
WORDS = [
    "",
    "\0",
    "x" * 3000,
    "\ud800",
    "\x1b[31m",
    "\u202e",
    "../../../etc/passwd",
    "/dev/zero",
    "~nobody-here/x",
    "none",
]
WORDS += [
    "train",
    "auto",
    "NaN",
    "1e999",
    "{text}",
    "{",
    "os:system",
    "fables",
    "float32",
    "9" * 5000,
    "é\u0301",
    "a\nb",
]
DEEP: Any = None
for _ in range(200):
    DEEP = [DEEP]
VALUES = [
    None,
    True,
    *NUMBERS,
    *WORDS,
    [],
    {},
    [1, "a"],
    {"a": {"b": []}},
    [[]] * 50,
    DEEP,
    {"type": "x"},
    {"Regex": "(a+)+b"},
]

values = st.sampled_from(VALUES) | st.integers() | st.floats() | st.text(max_size=20)
texts = st.text(max_size=60) | st.sampled_from(
    [
        "",
        " ",
        "\0",
        "a\r\nb\rc\n",
        "\ufeffx",
        "שלום \u202eabc",
        "\U0001f469\u200d\U0001f4bb",
        "\u2028\x0b\x1c",
        "<|endoftext|>",
        "\ud83d",
    ]
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The address of every part of a JSON value, itself first."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(items)[:40]:
        yield from places(part, (*at, key))


@st.composite
def changed(draw: Any, value: Any) -> Any:
    """A JSON value with a few of its parts replaced, removed, doubled, or renamed."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(list(places(value))))
        if not at:
            if draw(st.integers(0, 9)) == 0:
                return draw(values)
            continue
        holder = value
        for key in at[:-1]:
            holder = holder[key]
        key, how = at[-1], draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "double"]))
        if how == "remove":
            del holder[key]
        elif how == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from(WORDS) | st.text(max_size=9))] = holder.pop(key)
        elif how == "double" and isinstance(holder, list):
            holder += [holder[key]] * draw(st.sampled_from([1, 100]))
        else:
            holder[key] = draw(values)
    return value


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Bytes with some flipped, cut, inserted, or all of them replaced."""
    how = draw(st.sampled_from(["flip", "flip", "cut", "insert", "other", "none"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    if how == "flip" and content:
        changes = draw(
            st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)), min_size=1, max_size=4)
        )
        raw = bytearray(content)
        for place, bits in changes:
            raw[place] ^= bits
        return bytes(raw)
    if how == "cut":
        return content[:at]
    if how == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=12)) + content[at:]
    return draw(st.binary(max_size=200)) if how == "other" else content


def dumped(value: Any) -> bytes:
    """JSON, with the NaN and infinities that Python's reader takes."""
    return json.dumps(value).encode()


_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda raw: gzip.compress(raw, 1),
    ".bz2": bz2.compress,
    ".xz": lambda raw: lzma.compress(raw, preset=0),
    ".zst": lambda raw: zstandard.ZstdCompressor().compress(raw),
}


@st.composite
def corpora(draw: Any) -> dict[str, Any]:
    """A file of text or of JSON lines: name, content, and how it is read."""
    kind = draw(st.sampled_from([".txt", ".jsonl"]))
    lines = []
    for text in draw(st.lists(texts, min_size=1, max_size=12)):
        if kind == ".txt":
            lines.append(text.encode("utf-8", "surrogatepass"))
        elif draw(st.integers(0, 25)):
            lines.append(dumped({"text": text, "y": draw(st.sampled_from(["a", "b", 1, 2, None, True]))}))
        else:
            lines.append(dumped(draw(values)))
    if draw(st.integers(0, 11)) == 0:
        lines.insert(draw(st.integers(0, len(lines))), draw(st.binary(max_size=40)))
    if draw(st.integers(0, 15)) == 0:
        letter = draw(st.sampled_from([b"a", b" ", b"\0", b"[", b"\xf0\x9f\x91\xa9", b"\n", b"\r"]))
        lines.insert(draw(st.integers(0, len(lines))), letter * draw(st.sampled_from([70_000, 300_000])))
    raw = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"])) + draw(
        st.sampled_from([b"\n", b"\r\n", b"\n\n"])
    ).join(lines)
    suffix = draw(st.sampled_from(list(_COMPRESS)))
    content = _COMPRESS[suffix](raw)
    if draw(st.integers(0, 3)) == 0:
        content = draw(damaged(content))
    unit = draw(st.sampled_from(["auto", "file", "block", "line"]))
    label = draw(st.sampled_from([None, "y"])) if kind == ".jsonl" else None
    return {"name": f"text{kind}{suffix}", "content": content, "unit": unit, "label_column": label}


ADDRESSES = [
    f"{section.name}.{key}"
    for section in fields(Settings)
    for part in [getattr(Settings(), section.name)]
    for key in (
        ["name", "components", "layers", "x"] if isinstance(part, ComponentSettings) else [f.name for f in fields(part)]
    )
]
spelled = st.one_of(
    st.sampled_from(NUMBERS).map(str),
    st.sampled_from([word for word in WORDS if "\0" not in word]),
    st.text(max_size=12),
)
assignments = st.lists(
    st.builds("{}={}".format, st.sampled_from(ADDRESSES) | st.text(max_size=12), spelled), max_size=3
)


@st.composite
def options(draw: Any) -> list[str]:
    """A prior or guide by name with options that may be its own, at sizes that may be anything."""
    kind = draw(st.sampled_from(["prior", "guide"]))
    names = PRIORS if kind == "prior" else GUIDES
    own = [
        "components",
        "topics",
        "layers",
        "hidden",
        "width",
        "heads",
        "rank",
        "steps",
        "tokens",
        "classes",
        "spread",
        "scale",
    ]
    chosen = draw(
        st.lists(st.tuples(st.sampled_from(own), st.sampled_from(NUMBERS[:9]) | st.integers(-2, 99)), max_size=2)
    )
    sizes = st.sampled_from(["hidden", "layers", "heads", "num_thoughts", "thought_width", "window"])
    shape = draw(st.lists(st.tuples(sizes, st.sampled_from(NUMBERS[:11]) | st.integers(-1, 40)), max_size=2))
    found = [f"{kind}.name={draw(st.sampled_from(list(names)))}", *(f"{kind}.{key}={value}" for key, value in chosen)]
    return found + [f"decoder.{key}={value}" for key, value in shape]


@st.composite
def tomls(draw: Any) -> bytes:
    """A settings file, or what looks like one."""
    lines = []
    for section in draw(
        st.lists(st.sampled_from([f.name for f in fields(Settings)]) | st.text(max_size=6), max_size=3)
    ):
        lines.append(f"[{section}]")
        known = [address.split(".")[1] for address in ADDRESSES if address.startswith(f"{section}.")] or ["x"]
        for key in draw(st.lists(st.sampled_from(known), max_size=3, unique=True)):
            literal = draw(
                st.sampled_from(
                    ["1979-05-27", "[1, {a = 2}]", "inf", "nan", "0x" + "f" * 300, '"\\u0000"', "true", "[" * 300]
                )
            )
            value = draw(st.sampled_from(NUMBERS[:9] + WORDS[:5] + [literal]))
            lines.append(f"{key} = {value if value == literal or not isinstance(value, str) else json.dumps(value)}")
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return draw(damaged(content)) if draw(st.integers(0, 4)) == 0 else content


class Checkpoints:
    """Changes of a sound run's files, with every digest made to fit again.

    Args:
        run: the run.
    """

    STEP = "checkpoints/step-00000004"
    TENSORS = ("model.safetensors", "optimizer.safetensors")

    def __init__(self, run: Path):
        self.newest = {path.name: path.read_bytes() for path in (run / self.STEP).iterdir()}
        self.config = json.loads((run / "config.json").read_text())
        self.tokenizer = json.loads((run / "tokenizer.json").read_text())
        self.metrics = (run / "metrics.jsonl").read_bytes()
        self.posteriors = {path.name: path.read_bytes() for path in (run / "posteriors").iterdir()}

    @st.composite
    @staticmethod
    def cases(draw: Any, self: Checkpoints) -> dict[str, bytes]:
        """Files of a run that replace the sound ones, by their path under ``copy``."""
        what = draw(
            st.sampled_from(["tensors", "tensors", "header", "state", "state", "config", "config", "swap", "raw"])
        )
        files, found = dict(self.newest), {}
        name = draw(st.sampled_from(self.TENSORS))
        if what == "tensors":
            files[name] = draw(damaged(files[name]))
        elif what == "header":
            files[name] = draw(self.headers(self, files[name]))
        elif what == "swap":
            files[self.TENSORS[0]], files[self.TENSORS[1]] = files[self.TENSORS[1]], files[self.TENSORS[0]]
        elif what == "config":
            found["copy/config.json"] = draw(st.just(dumped(draw(changed(self.config)))) | damaged(dumped(self.config)))
        state = json.loads(files["state.json"])
        if what == "state":
            state = draw(changed(state))
        files["state.json"] = sealed(state, files)
        if what == "raw":
            files["state.json"] = draw(damaged(files["state.json"]))
        return found | {f"copy/{self.STEP}/{name}": content for name, content in files.items()}

    @st.composite
    @staticmethod
    def headers(draw: Any, self: Checkpoints, content: bytes) -> bytes:
        """A safetensors file whose header lies."""
        length = int.from_bytes(content[:8], "little")
        header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
        new = dumped(draw(changed(header)))
        declared = draw(st.sampled_from([len(new), len(new), len(new), 0, 7, len(content), 2**31, 2**63, 2**64 - 1]))
        return declared.to_bytes(8, "little") + new + rest[: draw(st.sampled_from([len(rest), len(rest), 5]))]


def sealed(state: Any, files: dict[str, bytes]) -> bytes:
    """A state.json whose digests are those of the files and of itself, so that no digest gives the change away."""
    if isinstance(state, dict):
        state.pop("digest", None)
        if isinstance(state.get("sha256"), dict):
            known = {name: hashlib.sha256(files[name]).hexdigest() for name in state["sha256"] if name in files}
            state["sha256"] |= known
        state["digest"] = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    return dumped(state)


@st.composite
def metric_files(draw: Any, sound: bytes) -> bytes:
    """Lines of metrics, some of them not."""
    rows = [json.loads(line) for line in sound.splitlines()]
    lines = []
    for _ in range(draw(st.integers(0, 6))):
        row = draw(st.sampled_from(rows))
        lines.append(draw(st.just(dumped(row)) | st.just(dumped(draw(changed(row)))) | damaged(dumped(row))))
    return b"\n".join(lines)


atoms = st.sampled_from(
    [r"\p{L}", r"\s", "a", ".", "[^a]", "[a-z]", r"\p{N}", "(?:ab|a)", "(a)", r"\S", "(?!a)", "(?:a)", "(?i:a)", "$"]
)
quantifiers = st.sampled_from(["", "", "*", "+", "?", "{1,3}", "{2}", "*?", "++", "{1,}", "{0,900}"])
patterns = st.lists(
    st.lists(st.tuples(atoms, quantifiers).map("".join), min_size=1, max_size=5).map("".join), min_size=1, max_size=3
).map("|".join) | st.text("ab()[]{}*+?|\\.^$pL:!=<>1,", max_size=14)
