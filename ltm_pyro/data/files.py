"""Local text files as streams of documents: .txt, .jsonl and .parquet, the first two also compressed.

Every failure names the file, the place in it, and the mend; nothing is read before it is asked for.
"""

from __future__ import annotations

import importlib
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from ltm_pyro.data.columns import columns_of, text_of
from ltm_pyro.data.labels import as_label
from ltm_pyro.data.long_text import LongText
from ltm_pyro.data.text_files import TextUnit, decoded, open_stream, text_rows
from ltm_pyro.errors import LTMError
from ltm_pyro.untrusted import exists

__all__ = [
    "KINDS",
    "LONGEST",
    "TextUnit",
    "column_names",
    "first_line",
    "kind_of",
    "list_files",
    "missing_column",
    "optional_import",
    "read_rows",
]

KINDS = (".txt", ".jsonl", ".parquet")
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_BUFFER = 1 << 20
LONGEST = 256_000_000
"""Bytes of the longest line of .jsonl, unless told otherwise."""


def optional_import(module: str, purpose: str, extra: str | None = None) -> Any:
    """A module that not every installation has, or one line that says how to get it: by an extra of this package's."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        install = f"'ltm-pyro[{extra}]'" if extra else package
        raise LTMError(f"{purpose} needs the package {package}: run `pip install {install}`") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def kind_of(path: Path) -> tuple[str, str] | None:
    """(kind, compression) by the name, such as (".txt", ".gz") or (".parquet", ""); None for other files."""
    suffixes = [s.lower() for s in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
    kind = suffixes[-1] if suffixes else ""
    if kind not in KINDS or (kind == ".parquet" and compression):
        return None
    return kind, compression


def list_files(path: Path) -> list[Path]:
    """The file itself, or the readable files of a folder: recursive, sorted, hidden ones left out.

    Raises:
        LTMError: nothing is there, or nothing that can be read as text.
    """
    known = ", ".join(KINDS) + f" (.txt and .jsonl also with {', '.join(_COMPRESSIONS)})"
    if exists(path) and path.is_dir():
        inside = (p for p in path.rglob("*") if not any(x.startswith(".") for x in p.relative_to(path).parts))
        found = sorted((p for p in inside if p.is_file() and kind_of(p)), key=lambda p: p.relative_to(path).parts)
        if not found:
            raise LTMError(f"{path}: the folder holds no text files; expected {known}")
        return found
    if not exists(path):
        raise LTMError(f"{path}: no such file or folder; give an existing path, `fables`, or `hf:name` for the hub")
    if kind_of(path) is None:
        raise LTMError(f"{path}: unknown kind of file; expected {known}: rename or convert it")
    if not path.is_file():
        raise LTMError(f"{path}: no regular file, so it may never end; write it into one")
    return [path]


def read_rows(
    path: Path, *, column: str, unit: TextUnit, label_column: str | None = None, longest: int = LONGEST
) -> Iterator[tuple[int, str | LongText, str | None]]:
    r"""(row, text, label) of every document in one file, in order; rows count from 1 (for .txt and .jsonl: lines).

    A byte-order mark is dropped and the line ends of .txt become ``\n``. ``unit`` says what a document is in
    a .txt file: the whole ``file``, each ``block`` between blank lines, each ``line``, or ``auto``: blocks if
    a blank line follows some text in the first MiB, otherwise lines. Empty texts are yielded too. ``column`` may be
    a template of several (`columns_of`). ``label`` is None where there is no ``label_column``, and where a row's class
    is unknown (`as_label`). A text of a .txt file that may be longer than memory is a `LongText`; a line of .jsonl has
    at most ``longest`` bytes.
    """
    kind = kind_of(path)
    if kind is None:  # pragma: no cover - list_files has refused it
        raise LTMError(f"{path}: unknown kind of file")
    with _reading(path):
        if kind[0] == ".parquet":
            yield from _parquet_rows(path, column, label_column)
        elif kind[0] == ".jsonl":
            yield from _json_rows(path, kind[1], column, label_column, longest)
        else:
            yield from ((row, text, None) for row, text in text_rows(path, kind[1], unit))


def column_names(path: Path) -> list[str]:
    """Fields of a .parquet file, or of the first record of a .jsonl file; a .txt file has none.

    Raises:
        LTMError: the file cannot be read.
    """
    kind = kind_of(path)
    with _reading(path):
        if kind == (".parquet", ""):
            parquet = optional_import("pyarrow.parquet", f"{path}: reading .parquet")
            arrow_error = optional_import("pyarrow", f"{path}: reading .parquet").ArrowException
            try:
                return list(parquet.read_schema(path).names)
            except arrow_error as error:
                raise LTMError(
                    f"{path}: not a sound parquet file ({first_line(error)}); fetch or write it again"
                ) from error
        if kind is not None and kind[0] == ".jsonl":
            first = next((line for _, line in _lines(path, kind[1], LONGEST) if line.strip()), "{}")
            try:
                record = json.loads(first)
            except (ValueError, RecursionError):
                return []  # reading the rows says where
            return list(record) if isinstance(record, dict) else []
    return []


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise LTMError(f"{path}: takes more memory than there is; compress it with a smaller window") from error
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if getattr(error, "errno", None) is None:  # gzip and bz2 report damage as an OSError without a number
            raise LTMError(
                f"{path}: the compressed data are damaged or cut short ({first_line(error)}); fetch or "
                "compress the file again"
            ) from error
        raise LTMError(f"{path}: cannot be read ({first_line(error)}); check the path and its permissions") from error


def _lines(path: Path, compression: str, longest: int) -> Iterator[tuple[int, str]]:
    r"""(number, decoded line with its end) of a UTF-8 file of lines of at most so many bytes."""
    offset = 0
    with open_stream(path, compression) as stream:
        for number in count(1):
            raw = stream.readline(longest + 1)
            if not raw:
                return
            if len(raw) > longest:
                raise LTMError(
                    f"{path}, line {number}: the line has more than {longest:,} bytes, and .jsonl is read by whole "
                    "lines; raise data.max_document_mb, or break the document up"
                )
            yield number, decoded(raw, path, number, offset)
            offset += len(raw)


def _json_rows(
    path: Path, compression: str, column: str, label_column: str | None, longest: int
) -> Iterator[tuple[int, str, str | None]]:
    for number, line in _lines(path, compression, longest):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LTMError(
                f"{path}, line {number}: not valid JSON ({error}); .jsonl needs one JSON object on each line"
            ) from error
        where = f"{path}, line {number}"
        if not isinstance(record, dict):
            raise LTMError(f'{where}: expected a JSON object such as {{"text": "…"}}, got {type(record).__name__}')
        for name in columns_of(column):
            if name not in record:
                raise LTMError(missing_column(where, name, list(record)))
        label = None if label_column is None else as_label(record.get(label_column), where, label_column)
        yield number, text_of(record, column, where), label


def _parquet_rows(path: Path, column: str, label_column: str | None) -> Iterator[tuple[int, str, str | None]]:
    parquet = optional_import("pyarrow.parquet", f"{path}: reading .parquet")
    arrow_error = optional_import("pyarrow", f"{path}: reading .parquet").ArrowException
    try:
        # Neither all row groups nor the whole of one are fetched before they are asked for.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
            columns = columns_of(column)
            for name in columns:
                if name not in file.schema_arrow.names:
                    raise LTMError(missing_column(str(path), name, file.schema_arrow.names))
            if label_column is not None and label_column not in file.schema_arrow.names:
                raise LTMError(missing_column(str(path), label_column, file.schema_arrow.names, "label_column"))
            row = 0
            wanted = columns if label_column is None else list(dict.fromkeys([*columns, label_column]))
            groups = range(file.num_row_groups)
            for batch in (b for g in groups for b in file.iter_batches(64, row_groups=[g], columns=wanted)):
                for record in batch.to_pylist():
                    row += 1
                    where = f"{path}, row {row}"
                    label = None if label_column is None else as_label(record[label_column], where, label_column)
                    yield row, text_of(record, column, where), label
    except (arrow_error, OSError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the operating system's; `read_rows` words it
        raise LTMError(f"{path}: not a sound parquet file ({first_line(error)}); fetch or write it again") from error


def missing_column(where: str, column: str, columns: list[str], setting: str = "column") -> str:
    """The message for a column that is not there, and that ``setting`` names."""
    return f"{where}: no column {column!r}; there is {', '.join(columns) or 'none'}: choose one with `{setting}`"
