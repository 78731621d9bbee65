"""metrics.jsonl: one JSON object a line, appended as training goes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ltm_pyro.data.files import first_line
from ltm_pyro.errors import LTMError, unwritable
from ltm_pyro.training.checkpoints import write_durably
from ltm_pyro.training.sinks import Sink
from ltm_pyro.untrusted import MEBI, parse_json, read_bytes, refuse_link

__all__ = ["MetricsLog"]


class MetricsLog:
    """The metrics of a run, in nats per token. As a context it closes its sinks.

    A sink that fails is left out from there on, with one warning: the file is what counts.

    Args:
        path: the file ``metrics.jsonl``.
        sinks: what else shows each row.
    """

    def __init__(self, path: Path, sinks: Sequence[Sink] = ()):
        self.path = path
        self._sinks = list(sinks)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._tell(lambda sink: sink.close(failed=kind is not None))

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one row; it is in the file when this returns.

        Raises:
            LTMError: the disk is full or not writable, or the file is a link.
        """
        refuse_link(self.path)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise unwritable(self.path, error, "and resume the run") from error
        self._tell(lambda sink: sink.append(row))

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows so far; a last line that a kill has cut short is left out, as is whatever is no row.

        Raises:
            LTMError: the file cannot be read.
        """
        try:
            lines = read_bytes(self.path).split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LTMError(f"cannot read {self.path}: {error.strerror}; restore it, or train the run again") from error
        rows = []
        for line in lines:
            try:
                row = parse_json(line, "a row", depth=4) if len(line) <= MEBI else None
            except LTMError:
                continue
            if row is not None and _is_row(row):
                rows.append(row)
        return rows

    def rewind(self, step: int) -> None:
        """Drops the rows after ``step``: training is about to make them again.

        Raises:
            LTMError: the disk is full or not writable.
        """
        kept = [row for row in self.rows() if row["step"] <= step]
        try:
            write_durably(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        except OSError as error:
            raise unwritable(self.path, error, "and resume the run") from error
        self._tell(lambda sink: sink.rewind(step))

    def _tell(self, what: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                what(sink)
            except Exception as error:  # a network, a disk, a foreign library: none of them may stop a training
                self._sinks.remove(sink)
                warnings.warn(
                    f"{sink.name} failed ({first_line(error)}) and gets no more metrics; training goes on, and "
                    f"{self.path} has them all",
                    stacklevel=3,
                )


def _is_row(row: Any) -> bool:
    """Whether a value has a step and a split, and nothing else than numbers that can be shown and drawn."""
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
        return False
    others = {name: value for name, value in row.items() if name != "split" and value is not None}
    if not all(isinstance(value, int | float) and not abs(value) >= 1e30 for value in others.values()):
        return False
    errors = (value for name, value in others.items() if name.endswith("_se"))
    return row.get("split") in ("train", "validation") and not any(error < 0 for error in errors)
