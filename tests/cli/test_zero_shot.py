"""``ltm-pyro eval --suite zero-shot`` on local folders and on a hub that does not answer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pytest
from cli_runs import Run

CHEAP = ("--max-sequences", 2, "--fast-steps", 1, "--block-size", 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "corpora"
    path.mkdir()
    (path / "ptb_valid.txt").write_text(" the cat 's mat \n a dog saw N birds \n" * 9, encoding="utf-8")
    (path / "lambada.jsonl").write_text('{"text": "the cat sat on a mat"}\n{"text": "a dog"}\n', encoding="utf-8")
    return path


def test_every_corpus_that_is_there_is_scored_and_the_others_are_named(cli: Run, trained: Path, folder: Path):
    result = cli("eval", trained, "--suite", "zero-shot", "--data", folder, "--json", *CHEAP)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert (report["suite"], report["model"], report["protocols"]) == ("zero-shot", "ltm", ["prequential"])
    assert [row["corpus"] for row in report["corpora"]] == ["ptb", "lambada"]
    assert list(report["missing"]) == ["wikitext", "lm1b", "ag_news", "pubmed", "arxiv"]
    for row in report["corpora"]:
        assert row["sequences"] <= 2
        nats = row["prequential"] * row["tokens"]
        assert row["prequential_perplexity"] == pytest.approx(math.exp(row["prequential"]))
        assert row["prequential_perplexity_per_word"] == pytest.approx(math.exp(nats / row["words"]))
        assert row["prequential_bits_per_character"] == pytest.approx(nats / math.log(2) / row["characters"])
    assert report["corpora"][0]["words"] < 9 * 9 + 2 * 9  # a share of them
    assert report["corpora"][1]["passages"] == 2
    assert 0 <= report["corpora"][1]["last_word_accuracy"] <= 1


def test_batch_size_changes_nothing(cli: Run, trained: Path, folder: Path):
    rows = []
    for size in (1, 4):
        result = cli("eval", trained, "--suite", "zero-shot", "--data", folder, "--json", "--batch-size", size, *CHEAP)
        rows.append(json.loads(result.out)["corpora"])
    for one, four in zip(*rows, strict=True):
        assert one == {key: pytest.approx(v, rel=1e-4) if isinstance(v, float) else v for key, v in four.items()}


def test_table_says_what_each_number_is(cli: Run, trained: Path, folder: Path):
    protocols = ("--protocol", "elbo", "--protocol", "reconstruction", "--protocol", "prequential")
    result = cli("eval", trained, "--suite", "zero-shot", "--data", folder, *protocols, *CHEAP)
    assert result.code == 0, result.err
    assert "ppl/word" in result.out
    elbo, reconstruction, prequential = (
        next(line for line in result.out.splitlines() if line.strip().startswith("PTB") and name in line)
        for name in ("elbo", "reconstruction", "prequential")
    )
    assert elbo.count("≤") == 3
    assert "≤" not in prequential
    assert "–" not in prequential
    assert reconstruction.count("–") == 3  # neither bits nor perplexities
    assert "PTB exp(reconstruction), KL left out, no perplexity:" in result.out
    assert "LAMBADA last word: accuracy" in result.out
    assert "missing: arxiv" in result.out
    assert "…" not in result.out  # everything fits 80 columns


def test_bad_input_is_refused(cli: Run, trained: Path, folder: Path, tmp_path: Path):
    def suite(*arguments: Any) -> Any:
        return cli("eval", trained, "--suite", "zero-shot", *arguments)

    empty = tmp_path / "empty"
    empty.mkdir()
    suite("--data", empty).refused("none of the suite's corpora is here", str(empty))
    suite("--data", tmp_path / "nowhere").refused("no such folder", "nowhere")
    suite("--data", folder, "--information").refused("--information")
    suite("--data", folder, "--column", "body").refused("no column 'body'", "lambada.jsonl")
    cli("eval", trained, "--suite", "glue").refused("glue")


def test_without_a_folder_the_hub_is_asked_and_what_it_has_is_scored(
    cli: Run, trained: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def load(name: str, config: str | None = None, **options: Any) -> Any:
        asked.append((name, config, options))
        if "ag_news" not in name:
            raise ConnectionError("unreachable")
        rows = datasets.Dataset.from_dict({"text": ["the cat sat on a mat"] * 3, "label": [0, 1, 2]})
        return {"test": rows.to_iterable_dataset()}

    class Api:
        def dataset_info(self, name: str, **options: Any) -> Any:
            return type("Info", (), {"sha": "abc"})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    result = cli("eval", trained, "--suite", "zero-shot", "--json", *CHEAP)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert [row["corpus"] for row in report["corpora"]] == ["ag_news"]
    assert "unreachable" in report["missing"]["ptb"]
    converted = {"streaming": True, "revision": "refs/convert/parquet"}
    assert asked[0] == ("ptb-text-only/ptb_text_only", None, {"data_dir": "penn_treebank"} | converted)
    assert ("Salesforce/wikitext", "wikitext-2-raw-v1", {"streaming": True}) in asked
    assert ("armanc/scientific_papers", None, {"data_dir": "arxiv"} | converted) in asked

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **o: (_ for _ in ()).throw(ConnectionError("silent")))
    cli("eval", trained, "--suite", "zero-shot").refused("none of the suite's corpora can be had", "silent", "--data")


def test_a_plain_report_has_perplexity_per_word(cli: Run, trained: Path, folder: Path):
    text = folder / "lambada.jsonl"
    row = json.loads(cli("eval", trained, "--data", text, "--protocol", "elbo", "--json", "--fast-steps", 1).out)
    assert row["words"] == 8
    assert row["elbo_perplexity_per_word"] == pytest.approx(math.exp(row["elbo"] * row["tokens"] / 8))
    shown = cli("eval", trained, "--data", text, "--protocol", "elbo", "--fast-steps", 1).out
    assert f"perplexity per word, of 8 words: elbo ≤ {row['elbo_perplexity_per_word']:.6g}" in shown
