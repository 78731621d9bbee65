"""Curves as text: a line of braille dots with marks on it, or of ASCII where the terminal knows no better."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

__all__ = ["Points", "draw", "wants_logarithm"]

Points = Sequence[tuple[float, float]]
"""(step, value), by step."""

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, by row and column


def draw(line: Points, marks: Points = (), *, width: int, height: int, log: bool, ascii_only: bool) -> list[str]:
    """The rows of a chart: values to the left, steps below.

    Where several points of the line fall on one column of dots it has their mean; ``●`` (in ASCII ``o``) are the marks.

    Args:
        line: what is drawn through.
        marks: what is set upon it.
        width: characters of a row, the values' among them.
        height: rows of the plane.
        log: make the steps logarithmic, which leaves out what stands at 0.
        ascii_only: draw with ``.`` and ``o``.
    """
    line, marks = ([(x, y) for x, y in points if x > 0 or not log] for points in (line, marks))
    steps, values = [x for x, _ in (*line, *marks)], [y for _, y in (*line, *marks)]
    low, high, first, last = min(values), max(values), min(steps), max(steps)
    margin = max(len(_brief(low)), len(_brief(high)))
    columns = max(20, width - margin - 2)
    across, down = (1, 1) if ascii_only else (2, 4)

    def column(x: float) -> int:
        share = math.log(x / first) / (math.log(last / first) or 1) if log else (x - first) / ((last - first) or 1)
        return round(share * (columns * across - 1))

    def row(y: float) -> int:
        return round((high - y) / ((high - low) or 1) * (height * down - 1))

    dots = [[0] * columns for _ in range(height)]
    before: int | None = None
    for at, value in _without_gaps([(column(x), y) for x, y in line]):
        # Up or down to where the column before was, so that a steep line has no holes.
        here = row(value)
        reached = here if before is None else before + (here > before) - (here < before)
        for dot in range(min(here, reached), max(here, reached) + 1):
            dots[dot // down][at // across] |= _DOTS[dot % down][at % across]
        before = here
    rows = [["." if ascii_only and cell else chr(0x2800 + cell) if cell else " " for cell in cells] for cells in dots]
    for x, y in marks:
        rows[row(y) // down][column(x) // across] = "o" if ascii_only else "●"
    bar, corner, floor = ("|", "+", "-") if ascii_only else ("│", "└", "─")
    labels = [_brief(high), *[""] * (height - 2), _brief(low)]
    text = [f"{label:>{margin}} {bar}{''.join(cells)}" for label, cells in zip(labels, rows, strict=True)]
    ends = f"{first:g}", f"{last:g}"
    about = f"{' steps (log) ' if log else ' steps ':^{max(0, columns - len(''.join(ends)))}}"
    return [*text, f"{'':>{margin}} {corner}{floor * columns}", f"{'':>{margin}}  {ends[0]}{about}{ends[1]}"]


def wants_logarithm(line: Points) -> bool:
    """Whether nearly all of a curve's change lies in the first tenth of its steps, so that a straight axis hides it."""
    if len(line) < 50:
        return False
    values = [y for _, y in line]
    late = [y for x, y in line if x > line[-1][0] / 10]
    return max(late) - min(late) < 0.3 * (max(values) - min(values))


def _without_gaps(points: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """The mean of every column, and the straight line between two that have something between them."""
    found: dict[int, list[float]] = {}
    for x, y in points:
        found.setdefault(x, []).append(y)
    means = [(x, sum(ys) / len(ys)) for x, ys in sorted(found.items())]
    yield from means[:1]
    for (x, y), (then, value) in pairwise(means):
        for step in range(x + 1, then + 1):
            yield step, y + (value - y) * (step - x) / (then - x)


def _brief(value: float) -> str:
    return f"{value:.4g}"
