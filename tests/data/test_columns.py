"""Text put together from several columns, in every kind of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltm_pyro.data.columns import columns_of, text_of
from ltm_pyro.data.corpora import Corpus
from ltm_pyro.data.sources import open_corpus
from ltm_pyro.errors import LTMError

TEMPLATE = r"Q: {question}\nA: {answer}"
ROWS: list[dict[str, Any]] = [
    {"question": "one and {one}?", "answer": "two", "n": 1},
    {"question": None, "answer": "no question", "n": 2},
    {"question": "and then", "answer": "…", "n": 3},
]
TEXTS = ["Q: one and {one}?\nA: two", "Q: and then\nA: …"]


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus.documents()]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "train.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def test_a_template_reads_the_same_text_from_every_kind_of_file(
    jsonl: Path, parquet: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub-cache"))
    datasets.disable_progress_bars()
    for source in (str(jsonl), str(parquet), f"hf:{parquet.parent}"):
        assert texts(open_corpus(source, column=TEMPLATE)) == TEXTS
    assert texts(open_corpus(f"hf:{parquet.parent}:{TEMPLATE}")) == TEXTS


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{answer}", "two"),
        ("{answer}{answer} {question}", "twotwo one and {one}?"),
        ("{{{answer}}}", "{two}"),
        ("a\nb {answer}\\nc", "a\nb two\nc"),
        ("{answer}\n", "two\n"),
    ],
)
def test_braces_hold_a_column_and_double_ones_are_braces(template: str, text: str):
    assert text_of(ROWS[0], template, "row 1") == text


def test_a_name_without_braces_is_a_column_whatever_it_looks_like():
    assert columns_of(r"a\nb}") == [r"a\nb}"]
    assert text_of({r"a\nb}": "x"}, r"a\nb}", "row 1") == "x"
    assert columns_of(TEMPLATE) == ["question", "answer"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{question", "expected '}'"),
        ("{question}}", "Single '}'"),
        ("{}", "just the name of a column"),
        ("{question!r}", "just the name of a column"),
        ("{question:>9}", "just the name of a column"),
        ("{{question}}", "names no column"),
        ("{body} {answer}", "no column 'body'; there is question, answer, n"),
        ("{n} {answer}", "column 'n' holds int, not text; choose another with `column`"),
    ],
)
def test_a_template_that_cannot_be_is_refused(jsonl: Path, parquet: Path, template: str, words: str):
    for path in (jsonl, parquet):
        with pytest.raises(LTMError) as caught:
            texts(open_corpus(str(path), column=template))
        assert words in str(caught.value)


def test_templates_tell_fingerprints_apart(jsonl: Path):
    columns = ("answer", "{answer}", TEMPLATE, TEMPLATE + " ")
    assert len({open_corpus(str(jsonl), column=column).fingerprint() for column in columns}) == 4
