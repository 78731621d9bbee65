"""The progress of tokenising, by rich: a line that changes on a terminal; elsewhere, a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltm_pyro.data.prepare import Preparation, Progress

__all__ = ["preparing"]

_LINE_SECONDS = 10


@contextmanager
def preparing() -> Iterator[Progress]:
    """What is to be told of a preparation, to show on standard error."""
    from ltm_pyro.cli.render import notices

    began: dict[str, float] = {}
    last_line = time.monotonic()
    with notices.status("Preparing the data") as status:

        def show(state: Preparation) -> None:
            nonlocal last_line
            now = time.monotonic()
            seconds = now - began.setdefault(state.name, now)
            text = _line(state, seconds)
            if notices.is_terminal:
                status.update(text)
            elif now - last_line > _LINE_SECONDS:
                last_line = now
                notices.print(text, highlight=False, soft_wrap=True)

        yield show


def _line(state: Preparation, seconds: float) -> str:
    done = f"{state.documents:,} documents, {state.characters / 1e6:,.1f} million characters, {state.tokens:,} tokens"
    speed = (state.characters - state.found) / 1e6 / seconds if seconds > 0 else 0.0
    found = f", {state.found / 1e6:,.1f} million of them from before" if state.found else ""
    return f"Preparing {state.name}: {done}{found}" + (f", {speed:.1f} million characters/s" if speed else "")
