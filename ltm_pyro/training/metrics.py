"""metrics.jsonl: one JSON object a line, appended as training goes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltm_pyro.errors import LTMError
from ltm_pyro.training.checkpoints import write_durably
from ltm_pyro.untrusted import MEBI, parse_json, read_bytes, refuse_link

__all__ = ["MetricsLog"]


class MetricsLog:
    """The metrics of a run, in nats per token; optionally mirrored as TensorBoard events.

    Args:
        path: the file ``metrics.jsonl``.
        tensorboard: folder of TensorBoard events, None for none.

    Raises:
        LTMError: TensorBoard is asked for but not installed.
    """

    def __init__(self, path: Path, *, tensorboard: Path | None = None):
        self.path = path
        self._writer: Any = None
        if tensorboard is not None:
            refuse_link(tensorboard)
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise LTMError(
                    "training.tensorboard needs the package tensorboard: pip install 'ltm-pyro[tensorboard]'"
                ) from error
            self._writer = SummaryWriter(str(tensorboard))

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
            raise LTMError(f"cannot write {self.path}: {error.strerror}; free some space and resume the run") from error
        if self._writer is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    self._writer.add_scalar(f"{row['split']}/{name}", value, row["step"])

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
            raise LTMError(f"cannot write {self.path}: {error.strerror}; free some space and resume the run") from error


def _is_row(row: Any) -> bool:
    """Whether a value has a step and a split, and no number that is too large to be shown."""
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
        return False
    numbers = [value for value in row.values() if type(value) is int]
    return row.get("split") in ("train", "validation") and all(abs(value) < 10**30 for value in numbers)
