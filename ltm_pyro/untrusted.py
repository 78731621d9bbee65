"""Readers for files that may be hostile: bounded JSON, and safetensors that are what their header says.

A run may come from anybody. What is read here costs memory in proportion to the file, no more than this machine has,
and no more than a stated bound where the file is text; no name in a file is followed, and no pipe is waited for.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

from ltm_pyro.errors import LTMError

__all__ = [
    "MAX_DEPTH",
    "MEBI",
    "TensorEntry",
    "exists",
    "local_path",
    "parse_json",
    "printable",
    "read_bytes",
    "read_json",
    "refuse_link",
    "refuse_what_memory_cannot_hold",
    "tensor_entries",
]

MEBI = 1 << 20
MAX_DEPTH = 64
_MOST_HEADER = 32 * MEBI  # a million tensors
_MOST_DIMENSIONS = 64
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_ITEM_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
TensorEntry = tuple[str, tuple[int, ...]]
"""A tensor's type as safetensors names it, and its shape."""


def printable(text: str) -> str:
    """The text with what would steer a terminal (escapes, other controls but for white space) written out."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def local_path(text: str | Path) -> Path:
    """The path that a text means; ``~`` and ``~name`` are home directories, where there are any.

    Raises:
        LTMError: no path can be so.
    """
    if "\0" in str(text):
        raise LTMError(f"{str(text)!r} has a NUL in it, which no path has: leave it out")
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:  # no such user
        return path


def exists(path: Path) -> bool:
    """Whether something is at a path that can be looked at; False also where the name is too long or out of reach."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def refuse_link(path: Path) -> None:
    """Nothing, where a path that is about to be written is no symbolic link.

    Raises:
        LTMError: it is one, and what is written there would lie elsewhere.
    """
    if path.is_symlink():
        raise LTMError(f"{path} is a symbolic link, and nothing is written through one: put the real one in its place")


def refuse_what_memory_cannot_hold(size: int, what: str) -> None:
    """Nothing, where ``size`` bytes are less than this machine has.

    Raises:
        LTMError: they are more.
    """
    try:
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not told on every system
        most = 1 << 42
    if size > most:
        raise LTMError(f"{what} takes {size / 2**30:.6g} GiB, this machine has {most / 2**30:.6g} GiB: make it smaller")


def read_bytes(path: Path, *, most: int | None = None) -> bytes:
    """The bytes of a regular file; those of what may never end (a pipe, a device) are not waited for.

    Args:
        path: the file.
        most: bytes that it may have; None is what the machine's memory holds.

    Raises:
        LTMError: it is no regular file, or larger.
        OSError: it cannot be read.
    """
    try:
        about = path.stat()  # before it is opened: to open a pipe is to wait for its writer
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):  # a folder cannot be opened anyway
            raise LTMError(f"{path} is not a regular file: put one in its place")
        if most is None:
            refuse_what_memory_cannot_hold(about.st_size, str(path))
        elif about.st_size > most:
            raise LTMError(f"{path} has {about.st_size} bytes, more than the {most} that such a file may have")
        with path.open("rb") as file:
            return file.read(about.st_size)
    except MemoryError as error:
        raise LTMError(f"{path} is larger than the memory that is left: make room") from error
    except ValueError as error:  # a NUL in the name
        raise LTMError(f"{str(path)!r} is no name that a file can have") from error


def read_json(path: Path, *, most: int = MEBI, depth: int = MAX_DEPTH) -> Any:
    """The value in a JSON file of at most ``most`` bytes, nested at most ``depth`` deep.

    Raises:
        LTMError: as for `read_bytes` and `parse_json`.
        OSError: it cannot be read.
    """
    return parse_json(read_bytes(path, most=most), str(path), depth=depth)


def parse_json(content: bytes | str, name: str, *, depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text, nested at most ``depth`` deep.

    Raises:
        LTMError: it is not UTF-8, not JSON, or deeper.
    """
    try:
        value = json.loads(content)
    except RecursionError as error:
        raise LTMError(f"{name} is nested more than {depth} deep") from error
    except ValueError as error:
        raise LTMError(f"{name} is not valid JSON ({' '.join(str(error).split())[:200]})") from error
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(depth):
        if not level:
            return value
        level = [
            part
            for container in level
            for part in (container.values() if isinstance(container, dict) else container)
            if isinstance(part, (dict, list))
        ]
    if level:
        raise LTMError(f"{name} is nested more than {depth} deep")
    return value


def tensor_entries(content: bytes, name: str) -> dict[str, TensorEntry]:
    """What the header of a safetensors file declares, after all of it has been held against the file's bytes.

    Names are plain, types known, every byte behind the header belongs to exactly one tensor, and every tensor has as
    many bytes as its type and shape say.

    Raises:
        LTMError: the file is not so.
    """
    if len(content) < 8:
        raise LTMError(f"{name} is not a safetensors file (it has {len(content)} bytes)")
    length = int.from_bytes(content[:8], "little")
    if length > min(len(content) - 8, _MOST_HEADER):
        raise LTMError(f"{name} is not a safetensors file (it declares a header of {length} bytes)")
    header = parse_json(content[8 : 8 + length], f"the header of {name}", depth=4)
    if not isinstance(header, dict):
        raise LTMError(f"{name} is not a safetensors file (its header is no table)")
    header.pop("__metadata__", None)
    entries, ranges = {}, []
    for tensor, about in header.items():
        shown = printable(tensor[:80])
        if not (0 < len(tensor) <= 1000 and tensor.isprintable()):
            raise LTMError(f"{name} is not a safetensors file (a tensor has the name {shown!r})")
        dtype, shape, (begin, end) = _entry(about, f"{name} is not a safetensors file (tensor {shown})")
        if end - begin != _ITEM_SIZES[dtype] * math.prod(shape):
            raise LTMError(f"{name} is not a safetensors file ({shown} has {end - begin} bytes for {dtype} {shape})")
        entries[tensor] = (dtype, shape)
        ranges.append((begin, end))
    at = 0
    for begin, end in sorted(ranges):
        if begin != at:
            raise LTMError(f"{name} is not a safetensors file (byte {at} of its tensors is in none or several)")
        at = end
    if at != (there := len(content) - 8 - length):
        raise LTMError(f"{name} is not a safetensors file (its tensors have {at} bytes, the file {there} for them)")
    return entries


def _entry(about: Any, wrong: str) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise LTMError(f"{wrong}: it needs dtype, shape and data_offsets")
    dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_SIZES:
        raise LTMError(f"{wrong}: unknown type {str(dtype)[:20]!r}")
    if not _is_counts(shape) or len(shape) > _MOST_DIMENSIONS:
        raise LTMError(f"{wrong}: its shape is no list of sizes")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise LTMError(f"{wrong}: its offsets are no beginning and end")
    return dtype, tuple(shape), (offsets[0], offsets[1])


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 62 for size in value)
