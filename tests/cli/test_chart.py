"""Charts of characters: where points come to stand, no holes, no row too wide."""

from __future__ import annotations

import math

import pytest
from ltm_pyro.cli.chart import draw, wants_logarithm

FALL = [(float(step), 3 + 5 * math.exp(-step / 20)) for step in range(1, 501)]


def plane(rows: list[str]) -> list[str]:
    """What is drawn, without labels and axes."""
    return [row.partition("|")[2] or row.partition("│")[2] for row in rows[:-2]]


def test_a_line_in_ascii_goes_from_corner_to_corner():
    rows = draw([(0, 1.0), (10, 0.0)], [(5, 0.5)], width=26, height=5, log=False, ascii_only=True)
    assert rows == [
        "1 |...                    ",
        "  |   ......              ",
        "  |         ..o..         ",
        "  |              ......   ",
        "0 |                    ...",
        "  +-----------------------",
        "   0       steps        10",
    ]


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("width", [10, 40, 100])
def test_a_chart_has_no_holes_and_is_no_wider_than_asked(ascii_only: bool, log: bool, width: int):
    rows = draw(FALL, FALL[::100], width=width, height=7, log=log, ascii_only=ascii_only)
    assert len(rows) == 9
    inside = plane(rows)
    assert all(any(row[column] != " " for row in inside) for column in range(len(inside[0])))
    assert max(map(len, rows)) <= max(width, 28)
    assert "".join(rows).isascii() == ascii_only


def test_braille_dots_stand_where_the_values_are():
    rows = plane(draw([(0, 0.0), (1, 0.0), (2, 0.0)], [], width=10, height=3, log=False, ascii_only=False))
    assert rows == ["⠉" * 20, " " * 20, " " * 20]  # a constant has no scale: it lies on the upper row
    rows = plane(draw([(0, 1.0), (39, 0.0)], [], width=23, height=2, log=False, ascii_only=False))
    assert rows[0][0] == "⠉"
    assert rows[1][-1] == "⣀"


def test_a_logarithmic_axis_leaves_out_what_stands_at_zero():
    rows = draw([(1, 2.0), (10, 1.0), (100, 0.0)], [(0, 9.0)], width=26, height=3, log=True, ascii_only=True)
    assert rows[-1].split() == ["1", "steps", "(log)", "100"]
    assert "o" not in "".join(plane(rows))
    straight = plane(draw([(1, 2.0), (10, 1.0), (100, 0.0)], [], width=26, height=3, log=False, ascii_only=True))
    assert plane(rows)[1].strip() != straight[1].strip()


def test_marks_alone_and_a_single_point_can_be_drawn():
    assert "●" in "".join(draw([], [(0, 1.0), (3, 2.0)], width=30, height=4, log=False, ascii_only=False))
    assert len(draw([(3, 1.0)], [], width=30, height=4, log=False, ascii_only=False)) == 6
    assert len(draw([(3, 1.0)], [(3, 1.0)], width=30, height=4, log=True, ascii_only=True)) == 6


def test_the_axis_is_logarithmic_where_the_change_lies_in_the_first_tenth():
    assert wants_logarithm(FALL)
    assert not wants_logarithm([(x, -x) for x, _ in FALL])
    assert not wants_logarithm(FALL[:40])
    assert not wants_logarithm([])
    assert not wants_logarithm([(x, 1.0) for x, _ in FALL])
