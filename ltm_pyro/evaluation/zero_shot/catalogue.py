"""The corpora of the zero-shot suite: where each is found, what a document of it is, and how its text is undone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ltm_pyro.data.files import TextUnit
from ltm_pyro.evaluation.zero_shot import detokenizers

__all__ = ["CORPORA", "CorpusSpec"]

_CONVERTED = "refs/convert/parquet"  # the hub's own copy of a data set that comes as a program


@dataclass(frozen=True)
class CorpusSpec:
    """One corpus of the suite, wherever its text comes from.

    Args:
        name: on the command line, and what the name of a local file begins with.
        title: what the report calls it.
        hub: ``hf:name[/config]:column``.
        document: what is one document: the ``whole`` text, its rows joined by line ends; an ``article`` of rows below
            a heading; or a ``row``.
        detokenize: a document's text as people write it.
        line_marks: whether the literature counts an end-of-line mark as a word of every row.
        columns: fields of .jsonl and .parquet that may hold the text, the first that is there.
        unit: what a row of a .txt file is.
        split: of the hub's data set.
        data_dir: the folder of the hub's data set.
        revision: the branch of the hub's data set.
    """

    name: str
    title: str
    hub: str
    document: Literal["whole", "article", "row"]
    detokenize: detokenizers.Detokenizer
    line_marks: bool = False
    columns: tuple[str, ...] = ("text",)
    unit: TextUnit = "line"
    split: str = "test"
    data_dir: str | None = None
    revision: str | None = None


CORPORA = {
    spec.name: spec
    for spec in (
        CorpusSpec(
            "ptb",
            "PTB",
            "hf:ptb-text-only/ptb_text_only:sentence",
            "whole",
            detokenizers.penn_treebank,
            line_marks=True,
            columns=("sentence", "text"),
            data_dir="penn_treebank",
            revision=_CONVERTED,
        ),
        CorpusSpec(
            "wikitext",
            "WikiText",
            "hf:Salesforce/wikitext/wikitext-2-raw-v1:text",
            "article",
            detokenizers.wikitext,
            line_marks=True,
        ),
        CorpusSpec(
            "lm1b",
            "LM1B",
            "hf:billion-word-benchmark/lm1b:text",
            "row",
            detokenizers.lm1b,
            line_marks=True,
            data_dir="plain_text",
            revision=_CONVERTED,
        ),
        CorpusSpec("lambada", "LAMBADA", "hf:EleutherAI/lambada_openai:text", "row", detokenizers.lambada),
        CorpusSpec("ag_news", "AG News", "hf:fancyzhx/ag_news:text", "row", detokenizers.as_it_is),
        CorpusSpec(
            "pubmed",
            "PubMed",
            "hf:armanc/scientific_papers:article",
            "row",
            detokenizers.scientific_papers,
            columns=("article", "text"),
            unit="auto",
            data_dir="pubmed",
            revision=_CONVERTED,
        ),
        CorpusSpec(
            "arxiv",
            "ArXiv",
            "hf:armanc/scientific_papers:article",
            "row",
            detokenizers.scientific_papers,
            columns=("article", "text"),
            unit="auto",
            data_dir="arxiv",
            revision=_CONVERTED,
        ),
    )
}
"""The suite, in the order of the report."""
