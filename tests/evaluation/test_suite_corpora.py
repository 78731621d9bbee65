"""The suite's corpora: which file is which, what a document is, and how many words the literature counts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltm_pyro.data import Tokenizer
from ltm_pyro.data.hub import HubCorpus
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.zero_shot import CORPORA, SuiteCorpus, find_files, from_hub, suite_corpora

WIKI = """
 = First <unk> =

 One , two .
 = = Part = =

 Three @-@ four .

 = Second =

 a = b = c
 = Not a title =
"""


@pytest.fixture(autouse=True)
def _own_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub-cache"))
    datasets.disable_progress_bars()


def jsonl(path: Path, *records: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def texts(corpus: SuiteCorpus) -> list[str]:
    return [document.text for document in corpus.documents()]


def chosen(folder: Path) -> dict[str, str]:
    return {name: Path(corpus.name).name for name, corpus in find_files(folder).items()}


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_text("text\n", encoding="utf-8")
    return folder


def test_a_corpus_is_the_file_whose_name_begins_with_its_own(tmp_path: Path):
    touch(tmp_path, "PTB.txt", "wikitext103.jsonl", "lm1b-heldout.txt", "AG-News_x.jsonl", "pubmed.txt", "README.md")
    touch(tmp_path, "openwebtext_valid.jsonl", "a_lambada.txt", "arxiv.csv")
    assert chosen(tmp_path) == {
        "ptb": "PTB.txt",
        "wikitext": "wikitext103.jsonl",
        "lm1b": "lm1b-heldout.txt",
        "ag_news": "AG-News_x.jsonl",
        "pubmed": "pubmed.txt",
    }


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (("ptb.txt", "ptb_test.txt"), "ptb.txt"),
        (("ptb.test.txt", "ptb.valid.txt", "ptb.train.txt"), "ptb.test.txt"),
        (("ptb_other.txt", "ptb-dev.txt"), "ptb-dev.txt"),
        (("ptb_val.txt", "ptb_value.txt"), "ptb_val.txt"),
        (("ptb_train.txt", "ptbtrain.txt", "ptb-training.txt", "ptb_constrained.txt"), "ptb_constrained.txt"),
        (("ptb_latest.txt", "ptb_valid.txt"), "ptb_valid.txt"),
    ],
)
def test_of_several_files_the_held_out_one_is_taken(tmp_path: Path, names: tuple[str, ...], best: str):
    assert chosen(touch(tmp_path, *names)) == {"ptb": best}


def test_what_cannot_be_told_apart_or_is_not_there_is_refused(tmp_path: Path):
    touch(tmp_path, "ptb_train.txt")
    with pytest.raises(LTMError, match=r"none of the suite's corpora is here.*ptb, wikitext"):
        find_files(tmp_path)
    touch(tmp_path, "wikitext2_test.txt", "wikitext103_test.txt")
    with pytest.raises(
        LTMError, match=r"wikitext103_test\.txt and wikitext2_test\.txt.*call the right one wikitext\.txt"
    ):
        find_files(tmp_path)
    with pytest.raises(LTMError, match="no such folder"):
        find_files(tmp_path / "ptb_train.txt")


def test_penn_treebank_is_one_text_with_a_mark_for_every_line(tmp_path: Path):
    (tmp_path / "ptb.txt").write_text(" one 's N \n\n two <unk> \n", encoding="utf-8")
    corpus = find_files(tmp_path)["ptb"]
    assert texts(corpus) == ["one's 1\n\ntwo ?"]
    assert corpus.words == 3 + 0 + 2 + 3


def test_wikitext_is_articles_and_no_row_is_lost(tmp_path: Path):
    (tmp_path / "wikitext.txt").write_text(WIKI, encoding="utf-8")
    corpus = find_files(tmp_path)["wikitext"]
    first = "= First <unk> =\n\nOne, two.\n== Part ==\n\nThree-four."
    assert texts(corpus) == [first, "= Second =\n\na = b = c\n= Not a title ="]
    assert corpus.words == len(WIKI.split()) + WIKI.count("\n")


def test_rows_of_the_other_corpora_are_documents(tmp_path: Path):
    (tmp_path / "lm1b.txt.gz").write_bytes(gzip.compress(b"It isn 't .\n\n Yes , it is . \n"))
    jsonl(tmp_path / "lambada.jsonl", {"text": "“a” b\n c"}, {"text": ""})
    jsonl(tmp_path / "ag_news.jsonl", {"label": 1, "text": "A 's b"})
    jsonl(tmp_path / "arxiv.jsonl", {"article": "we show ( @xmath0 ) .\nit is .", "abstract": "no", "text": "no"})
    pq.write_table(pa.table({"article": ["one , two", None], "abstract": ["no", "no"]}), tmp_path / "pubmed.parquet")
    found = find_files(tmp_path)
    assert {name: texts(corpus) for name, corpus in found.items()} == {
        "lm1b": ["It isn't.", "Yes, it is."],
        "lambada": ['"a" b\nc'],
        "ag_news": ["A 's b"],
        "pubmed": ["one, two"],
        "arxiv": ["we show (@xmath0).\nit is."],
    }
    assert {name: corpus.words for name, corpus in found.items()} == {
        "lm1b": 4 + 1 + 5 + 1,
        "lambada": 3,
        "ag_news": 3,
        "pubmed": 3,
        "arxiv": 9,
    }


def test_the_column_can_be_named(tmp_path: Path):
    jsonl(tmp_path / "arxiv.jsonl", {"article": "no", "body": "yes ."})
    assert texts(find_files(tmp_path, "body")["arxiv"]) == ["yes."]
    with pytest.raises(LTMError, match=r"no column 'text'; there is article, body"):
        texts(find_files(tmp_path, "text")["arxiv"])
    (tmp_path / "arxiv.jsonl").write_text("{broken\n", encoding="utf-8")
    with pytest.raises(LTMError, match="line 1: not valid JSON"):
        texts(find_files(tmp_path)["arxiv"])
    (tmp_path / "arxiv.jsonl").unlink()
    (tmp_path / "arxiv.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(LTMError, match="not a sound parquet file"):
        texts(find_files(tmp_path)["arxiv"])


def test_only_some_corpora_may_be_asked_for(tmp_path: Path):
    touch(tmp_path, "ptb.txt", "lm1b.txt")
    assert list(suite_corpora(tmp_path, only=["lm1b", "arxiv"])) == ["lm1b"]
    with pytest.raises(LTMError, match=r"holds ptb, lm1b, none of which was asked for \(arxiv\)"):
        suite_corpora(tmp_path, only=["arxiv"])
    with pytest.raises(LTMError, match="'penn' is no corpus of the zero-shot suite; there are ptb"):
        suite_corpora(tmp_path, only=["penn"])
    assert list(suite_corpora()) == list(CORPORA)
    with pytest.raises(LTMError, match="column='body' is of local files"):
        suite_corpora(column="body")


def test_every_corpus_has_a_hub_name_with_a_column_that_local_files_may_have_too():
    for name, corpus in from_hub().items():
        assert isinstance(corpus.source, HubCorpus)
        assert corpus.source.streaming
        assert corpus.name.startswith("hf:")
        assert corpus.name.rpartition(":")[2] in CORPORA[name].columns


def test_hub_rows_and_local_rows_are_the_same_corpus(tmp_path: Path):
    """A data set as the hub keeps it: a folder for each configuration and split, rows with line ends."""
    root = tmp_path / "set"
    rows = [row + "\n" for row in WIKI.removesuffix("\n").split("\n")]
    for folder, split, content in (("penn", "train", ["no"]), ("penn", "test", rows), ("other", "test", ["no"])):
        (root / folder / split).mkdir(parents=True)
        pq.write_table(pa.table({"body": content}), root / folder / split / "0000.parquet")
    (tmp_path / "wikitext.txt").write_text(WIKI, encoding="utf-8")
    local = find_files(tmp_path)["wikitext"]
    for streaming in (False, True):
        source = HubCorpus(f"hf:{root}:body", streaming=streaming, exact_split="test", data_dir="penn")
        hub = SuiteCorpus(CORPORA["wikitext"], source)
        assert texts(hub) == texts(local)
        assert hub.words == local.words
        assert hub.fingerprint() != SuiteCorpus(CORPORA["lm1b"], source).fingerprint()
    with pytest.raises(LTMError, match="no split dev; there is train, test"):
        texts(SuiteCorpus(CORPORA["ptb"], HubCorpus(f"hf:{root}:body", exact_split="dev", data_dir="penn")))


def test_sequences_are_cached_and_packed_unless_told_otherwise(tmp_path: Path):
    (tmp_path / "lm1b.txt").write_text("a b .\nc .\n", encoding="utf-8")
    tokenizer = Tokenizer.train(["x"], 257)
    corpus = find_files(tmp_path)["lm1b"]
    packed, separate = corpus.sequences(tokenizer, 64), corpus.sequences(tokenizer, 64, layout="documents")
    assert (len(packed), len(separate), packed.num_tokens) == (1, 2, len("a b.") + 1 + len("c.") + 1)
    assert packed.sequence_length == 64


def test_words_of_real_files_are_those_of_the_literature(shared_data: Path):
    found = find_files(shared_data)
    assert found["ptb"].words == 73_760
    assert found["wikitext"].words == 245_569
    assert len(texts(found["wikitext"])) == 60
