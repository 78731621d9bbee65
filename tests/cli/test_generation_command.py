"""``ltm-pyro generation``: one document with both sides, a table, the texts in a file, and one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import Run

from ltm_pyro.data import Tokenizer

FEW = ["--num", 4, "--max-tokens", 8]


def test_one_document_holds_every_number_of_both_sides(cli: Run, trained: Path, tmp_path: Path):
    found = cli("generation", trained, *FEW, "--second-model", "self", "--json", "--texts", tmp_path / "texts.jsonl")
    assert (found.code, found.err) == (0, "")
    row = json.loads(found.out)
    assert row["generated"].keys() == row["reference"].keys() >= {"distinct_4", "entropy", "nats_per_token"}
    assert (row["texts"], row["max_tokens"], row["prompt_tokens"], row["temperature"]) == (4, 8, 0, 1.0)
    assert (row["model"], row["unit"], row["fast_steps"]) == ("ltm", "words", 2)
    assert row["second_model"]["protocol"] == "prequential"
    texts = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(texts) == 4
    assert all(text.keys() == {"prompt", "generated", "reference"} and text["prompt"] == "" for text in texts)
    again = cli("generation", trained, *FEW, "--second-model", "self", "--json")
    assert json.loads(again.out) == row


def test_prompts_are_continued_greedily(cli: Run, trained: Path, tmp_path: Path):
    options = [*FEW, "--prompt-tokens", 5, "--temperature", 0, "--unit", "tokens", "--texts", tmp_path / "texts"]
    found = cli("generation", trained, *options)
    assert (found.code, found.err) == (0, "")
    assert "4 texts continuing 5 tokens, greedy, T_fast = 2, seed 0" in found.out
    assert all(name in found.out for name in ("repetition_4", "entropy", "generated", "reference"))
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "texts").read_text(encoding="utf-8").splitlines()]
    assert len(set(prompts)) == 4
    tokenizer = Tokenizer.load(trained)
    assert all(len(tokenizer.encode(prompt)) == 5 for prompt in prompts)


def test_mauve_and_self_bleu_join_the_table(cli: Run, trained: Path):
    pytest.importorskip("mauve", reason="needs mauve-text")
    pytest.importorskip("sacrebleu", reason="needs sacrebleu")
    # The 4 validation documents do not make two sets of 4.
    found = cli("generation", trained, *FEW, "--mauve", "self", "--mauve-seeds", 2, "--self-bleu")
    assert (found.code, found.err) == (0, "")
    assert "MAUVE: features of self, 2 buckets, ± over 2 clusterings" in found.out
    assert "reference: too few other documents" in " ".join(found.out.split())
    assert "self_bleu_4" in found.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num", 99], ["99 texts were asked for", "ask for fewer texts"]),
        (["--prompt-tokens", 999], ["longer than 999 tokens", "shorter prompts"]),
        (["--temperature", "-1"], ["temperature must be 0 or more"]),
        (["--mauve", "gpt2-large"], ["no model at gpt2-large", "nothing is fetched"]),
        (["--second-model", "."], [". is not a run directory"]),
        (["--texts", "missing/texts.jsonl", *FEW], ["cannot write the texts to missing/texts.jsonl", "--texts"]),
    ],
)
def test_bad_input_is_one_line(cli: Run, trained: Path, options: list, words: list[str]):
    cli("generation", trained, *options).refused(*words)
