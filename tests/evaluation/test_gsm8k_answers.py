"""The number that a worked solution ends in."""

from __future__ import annotations

import gzip
import json
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltm_pyro.evaluation.gsm8k.answers import final_number, marked_number


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("72", 72),
        ("1,234", 1234),
        ("12,345,678.90", Fraction("12345678.9")),
        ("-5", -5),
        ("\u22125", -5),
        ("\uff0d5", -5),
        ("- 5", -5),
        ("18.00", 18),
        ("18.", 18),
        ("-.5", Fraction(-1, 2)),
        ("$18", 18),
        ("$ 18", 18),
        ("-$18", -18),
        ("- $18", -18),
        ("$-18", -18),
        ("\u20ac1,000.50", Fraction("1000.5")),
        ("18 dollars", 18),
        ("50%", 50),
        ("**42**", 42),
        ("x = 42.", 42),
        ("3/4", Fraction(3, 4)),
        ("3 1/2", Fraction(7, 2)),
        ("3\u20444", Fraction(3, 4)),
        ("1 234", 1234),
        ("1 234 567", 1_234_567),
        ("1\u202f234", 1234),
        ("1\u00a0234", 1234),
        ("12 apples", 12),
        ("1.2e3", 1200),
        ("5E-1", Fraction(1, 2)),
        ("1.2 x 10^3", 1200),
        ("2\u00d710^{6}", 2_000_000),
        ("<<5+3=8>>8", 8),
        ("007", 7),
        ("12 or 13", 12),
        ("-0", 0),
    ],
)
def test_the_number_after_the_mark_is_read_by_value(line: str, number: Fraction):
    text = f"He has 3 apples and 4.5 pears.\n#### {line}\n"
    assert marked_number(text) == number
    assert final_number(text) == number


@pytest.mark.parametrize("text", ["#### 7\nand 8", "3 + 4 = 7\n####\n7 it is", "####7", "#### 7\n#### 8", "##### 7"])
def test_the_first_mark_counts_wherever_its_number_stands(text: str):
    assert marked_number(text) == final_number(text) == 7


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So 3 boxes of 4 make 12.", 12),
        ("48/2 = <<48/2=24>>24 clips", 24),
        ("48/2 = 24 clips", 24),
        ("48/2 = <<48/2=24>>", 24),
        ("#### <<48/2=24>>", 24),
        ("10-5", 5),
        ("10 - 5", 5),
        ("(2)-5", 5),
        ("10%-5", 5),
        ("x=-5", -5),
        ("from 3 to -4", -4),
        ("COVID-19", 19),
        ("1, 2, 3", 3),
        ("it costs $1,000,000!", 1_000_000),
        ("it has 3/4", Fraction(3, 4)),
        ("it has 1\u00a0234\u202f567", 1_234_567),
        ("it has 1 234", 234),  # an ordinary space may stand between two numbers
        ("#### none, but 6", 6),
        ("9 ####", 9),
        ("9 ####\n\n", 9),
    ],
)
def test_without_a_number_after_the_mark_the_last_one_is_the_flexible_answer(text: str, number: Fraction):
    assert marked_number(text) in (None, 6)
    assert final_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "none", "####", "#### none", "#### .", "#### 5/0", "5/0", "9" * 200, "#### " + "9" * 5000, "\u0663"]
)
def test_no_number_is_none(text: str):
    assert marked_number(text) is None
    assert final_number(text) is None


@pytest.mark.parametrize("power", [4, 300, 10**6, 10**12])
def test_exponents_are_exact_or_not_read(power: int):
    found = marked_number(f"#### 1e{power}")
    assert found == (10**power if power < 1000 else 1)


def test_long_texts_are_read_in_little_time():
    for piece in ("1", "1,", "1 ", "1,111", "-", "1/", "$", "####", "<<", "1 000"):
        final_number(piece * 4000)


@given(st.decimals(-(10**9), 10**9, places=2), st.sampled_from(["{}", "${}", "{}%", "{} cats", "**{}**", "it is {}."]))
def test_every_way_to_write_a_number_is_its_value(number: Decimal, way: str):
    for written in (f"{number:f}", f"{number:,f}", f"{number:E}"):
        for line in (way.format(written), way.format(written.replace("-", "\u2212", 1))):
            assert marked_number(f"2 + 2\n#### {line}") == final_number(f"It was 7, then {line}") == Fraction(number)


@given(st.text(st.characters(codec="utf-8")) | st.text("0123456789,. -/$#<>=e^x\n"))
def test_any_text_is_read_and_strict_answers_are_flexible_ones(text: str):
    strict, flexible = marked_number(text), final_number(text)
    assert strict in (None, flexible)


def test_every_answer_of_gsm8k_is_read_as_its_digits(shared_data: Path):
    with gzip.open(shared_data / "gsm8k_train.jsonl.gz", "rt", encoding="utf-8") as file:
        solutions = [json.loads(line)["answer"] for line in file]
    assert len(solutions) == 7473
    for solution in solutions:
        expected = int(solution.split("#### ")[1].replace(",", ""))
        stripped = re.sub(r"<<.*?>>", "", solution)
        assert marked_number(solution) == final_number(solution) == marked_number(stripped) == expected
