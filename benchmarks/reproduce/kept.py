"""Rows of a table that are kept beside their training, so that an interrupted recipe goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["kept"]


def kept(
    folder: Path, asked: dict[str, Any], compute: Callable[[], dict[str, Any]], *, name: str = "row"
) -> dict[str, Any]:
    """The row in ``folder``/``name``.json if it is the answer to what is asked now, else computed and written there.

    It is one of the weights, too: a training that was made again has no row.

    Args:
        folder: of a finished training.
        asked: all that the row depends on besides the training, as plain values.
        compute: makes the row, of plain values.
        name: of the file, where a training has several rows.
    """
    path = folder / f"{name}.json"
    asked = asked | {"checkpoint": _digest(folder)}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["asked"] == asked:
            return dict(found["row"])
    row = compute()
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps({"asked": asked, "row": row}), encoding="utf-8")
    unfinished.replace(path)
    return row


def _digest(folder: Path) -> str | None:
    """Of the newest checkpoint, as it stands in its own state; None where there is none."""
    states = sorted(folder.glob("checkpoints/step-*/state.json"))
    return json.loads(states[-1].read_text(encoding="utf-8"))["digest"] if states else None
