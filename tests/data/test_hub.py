"""Hub data sets, tested on local folders in the hub's own formats and on a hub that does not answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltm_pyro.data.hub import HubCorpus
from ltm_pyro.data.sources import open_corpus, split_corpus
from ltm_pyro.errors import LTMError

ROWS = {"train": ["one", "", "two", "three"], "validation": ["four"]}


@pytest.fixture(autouse=True)
def _own_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub-cache"))
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    root.mkdir()
    for split, rows in ROWS.items():
        table = pa.table({"id": range(len(rows)), "text": rows, "upper": [r.upper() for r in rows]})
        pq.write_table(table, root / f"{split}.parquet")
    return root


def texts(corpus: Any) -> list[str]:
    return [d.text for d in corpus.documents()]


@pytest.mark.parametrize("streaming", [False, True])
def test_downloaded_and_streamed_rows_are_the_same_documents(folder: Path, streaming: bool) -> None:
    corpus = open_corpus(f"hf:{folder}", streaming=streaming)
    got = list(corpus.documents())
    assert [(d.text, d.row) for d in got] == [("one", 1), ("two", 3), ("three", 4)]
    assert texts(corpus) == [d.text for d in got]  # a second pass
    assert got[0].file == f"hf:{folder} train"
    assert texts(open_corpus(f"hf:{folder}", streaming=streaming, split="validation")) == ["four"]
    assert texts(open_corpus(f"hf:{folder}:upper", streaming=streaming, documents=2)) == ["ONE", "TWO"]
    assert texts(open_corpus(f"hf:{folder}", column="upper", streaming=streaming)) == ["ONE", "TWO", "THREE"]


def test_json_lines_folder_is_read_too(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    (root / "data.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ("a", "\u05d0\U0001f600")))
    assert texts(open_corpus(f"hf:{root}")) == ["a", "\u05d0\U0001f600"]


def test_a_validation_split_of_its_own_is_used_and_otherwise_one_is_held_out(folder: Path) -> None:
    train, held = split_corpus(f"hf:{folder}")
    assert (texts(train), texts(held)) == (["one", "two", "three"], ["four"])
    (folder / "validation.parquet").unlink()
    train, held = split_corpus(f"hf:{folder}", fraction=0.5)
    assert sorted(texts(train) + texts(held)) == ["one", "three", "two"]
    with pytest.raises(LTMError, match="validation and training are the same documents"):
        split_corpus(f"hf:{folder}", f"hf:{folder}")


@pytest.mark.parametrize("streaming", [False, True])
def test_fingerprint_follows_the_bytes_and_the_column(folder: Path, streaming: bool) -> None:
    def now(source: str = f"hf:{folder}", **options: Any) -> str:
        return HubCorpus(source, streaming=streaming, **options).fingerprint()

    first = now()
    assert now() == first
    assert now(column="upper") == now(f"hf:{folder}:upper") != first
    assert now(split="validation") != first
    pq.write_table(pa.table({"id": [1], "text": ["changed"], "upper": ["CHANGED"]}), folder / "train.parquet")
    assert now() != first


class Fake:
    """Stands for `load_dataset` and records how it was called."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, name: str, config: str | None, *, streaming: bool) -> Any:
        self.calls.append((name, config, streaming))
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def rows(*values: Any) -> datasets.DatasetDict:
    return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"story": list(values)})})


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_are_read_from_a_column(folder: Path, streaming: bool) -> None:
    corpus = open_corpus(f"hf:{folder}", streaming=streaming, label_column="id")
    assert [(d.text, d.label) for d in corpus.documents()] == [("one", "0"), ("two", "2"), ("three", "3")]
    train, held = split_corpus(f"hf:{folder}:upper", streaming=streaming, label_column="text", documents=2)
    assert [(d.text, d.label) for d in (*train.documents(), *held.documents())] == [
        ("ONE", "one"),
        ("TWO", "two"),
        ("FOUR", "four"),
    ]
    assert len({HubCorpus(f"hf:{folder}", label_column=c).fingerprint() for c in (None, "id", "upper")}) == 3
    with pytest.raises(LTMError, match=r"no column 'kind'; there is id, text, upper: choose one with `label_column`"):
        texts(open_corpus(f"hf:{folder}", streaming=streaming, label_column="kind"))


def test_numbers_of_a_class_column_get_the_data_sets_names(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "y": datasets.ClassLabel(names=["World", "Sports"])}
    )
    table = {"text": list("abcd"), "y": [1, 0, -1, None]}
    monkeypatch.setattr(datasets, "load_dataset", Fake({"train": datasets.Dataset.from_dict(table, features=features)}))
    corpus = HubCorpus("hf:x", label_column="y")
    assert [d.label for d in corpus.documents()] == ["Sports", "World", None, None]
    assert corpus.fingerprint() != HubCorpus("hf:x").fingerprint()


def test_a_hub_value_that_names_no_class_is_refused_with_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "y": [[1], [2]]})
    monkeypatch.setattr(datasets, "load_dataset", Fake({"train": table}))
    with pytest.raises(LTMError, match=r"hf:x, row 1: column 'y' holds list, not a class .*`label_column`"):
        texts(HubCorpus("hf:x", label_column="y"))


@pytest.mark.parametrize(
    ("source", "call", "column"),
    [
        ("hf:name:story", ("name", None), "story"),
        ("hf:owner/name:story", ("owner/name", None), "story"),
        ("hf:owner/name/config-1:story", ("owner/name", "config-1"), "story"),
    ],
)
def test_source_string_names_data_set_configuration_and_column(
    monkeypatch: pytest.MonkeyPatch, source: str, call: tuple[str, str | None], column: str
) -> None:
    fake = Fake(rows("a", None, " ", "b"))
    monkeypatch.setattr(datasets, "load_dataset", fake)
    corpus = HubCorpus(source)
    assert texts(corpus) == ["a", "b"]
    assert fake.calls == [(*call, False)]
    assert corpus.fingerprint() == HubCorpus(source).fingerprint()


def test_a_stream_from_the_hub_is_fingerprinted_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Api:
        sha = "1" * 40

        def dataset_info(self, name: str) -> Any:
            assert name == "owner/name"
            return self

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    stream = datasets.IterableDatasetDict({"train": rows("a")["train"].to_iterable_dataset()})
    monkeypatch.setattr(datasets, "load_dataset", Fake(stream))
    first = HubCorpus("hf:owner/name:story", streaming=True).fingerprint()
    Api.sha = "2" * 40
    assert HubCorpus("hf:owner/name:story", streaming=True).fingerprint() != first

    def silent(self: Api, name: str) -> Any:
        raise ConnectionError("no answer")

    monkeypatch.setattr(Api, "dataset_info", silent)
    with pytest.raises(LTMError, match=r"hf:owner/name:story: .*\(no answer\); .*leave streaming off"):
        HubCorpus("hf:owner/name:story", streaming=True).fingerprint()


@pytest.mark.parametrize("source", ["hf:", "hf::text", "hf:a/b/c/d", "hf:a//b"])
def test_malformed_source_shows_the_form(source: str) -> None:
    with pytest.raises(LTMError, match=r"hf:.*owner/name"):
        texts(HubCorpus(source))


def test_wrong_column_lists_those_there_are(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for streaming in (False, True):
        with pytest.raises(LTMError, match=r"no column 'body'; there is id, text, upper: choose one"):
            texts(HubCorpus(f"hf:{folder}:body", streaming=streaming))
        with pytest.raises(LTMError, match=r"row 1: column 'id' holds int, not text; choose another column"):
            texts(HubCorpus(f"hf:{folder}:id", streaming=streaming))


def test_data_set_without_a_training_split_lists_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", Fake(datasets.DatasetDict({"extra": rows("a")["train"]})))
    with pytest.raises(LTMError, match="hf:x: no split train; there is extra"):
        texts(HubCorpus("hf:x"))


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("couldn't reach the hub\nmore"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub or cannot be accessed."),
        ValueError("BuilderConfig 'c' not found. Available: ['a', 'b']"),
    ],
)
def test_unreachable_hub_is_one_line_with_the_mend(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    monkeypatch.setattr(datasets, "load_dataset", Fake(failure))
    with pytest.raises(LTMError) as caught:
        texts(HubCorpus("hf:x/y/c"))
    message = str(caught.value)
    assert message.startswith(f"hf:x/y/c: the data set could not be had ({str(failure).splitlines()[0]})")
    assert message.endswith("the connection, or give a local file")
    assert "\n" not in message


def test_a_stream_that_breaks_off_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        yield {"story": "a"}
        raise ConnectionResetError("connection reset")

    stream = datasets.IterableDataset.from_generator(broken)
    monkeypatch.setattr(datasets, "load_dataset", Fake({"train": stream}))
    with pytest.raises(LTMError, match=r"hf:x:story: reading broke off \(.*run again"):
        texts(HubCorpus("hf:x:story", streaming=True))


def test_missing_datasets_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LTMError, match="hf:x needs the package datasets: run `pip install datasets`"):
        texts(HubCorpus("hf:x"))


@pytest.mark.slow
def test_the_real_client_without_a_connection_ends_in_one_line(tmp_path: Path) -> None:
    program = (
        "from ltm_pyro.data import open_corpus, Tokenizer\n"
        "from ltm_pyro.errors import LTMError\n"
        "corpus = open_corpus('hf:nobody/nothing')\n"
        "for call in (lambda: next(corpus.documents()), lambda: Tokenizer.load('no-one/x')):\n"
        "    try: call()\n"
        "    except LTMError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    one, two = done.stdout.splitlines()
    assert "hf:nobody/nothing: the data set could not be had" in one
    assert "no-one/x: no such file, and no tokenizer of that name" in two
