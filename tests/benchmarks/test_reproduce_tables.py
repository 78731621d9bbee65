"""The recipes `zero-shot`, `gsm8k` and `generation`: a run of seconds each, and their numbers by another way."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra plot)")

from benchmarks.reproduce import generation, gsm8k, zero_shot
from benchmarks.reproduce.models import mean_difference
from ltm_pyro.data import Tokenizer
from ltm_pyro.data.fables import fable, log_prob
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.evaluation.generation import WrittenTexts, write_texts
from ltm_pyro.evaluation.gsm8k import Problem
from ltm_pyro.evaluation.zero_shot import suite_corpora
from ltm_pyro.training import load_run

RECIPES = {"zero-shot": zero_shot, "gsm8k": gsm8k, "generation": generation}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Runs a recipe's smoke run once, in a folder of its own; gives that folder and the result."""
    done: dict[str, tuple[Path, dict]] = {}

    def run(name: str) -> tuple[Path, dict]:
        if name not in done:
            root = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(root)
                patch.setenv("LTM_PYRO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
                RECIPES[name].main(["--smoke", "--device", "cpu"])
            folder = root / "runs" / "reproduce" / f"{name}-smoke"
            done[name] = folder, json.loads((folder / f"{name}.json").read_text())
        return done[name]

    return run


@pytest.fixture(params=list(RECIPES))
def recipe(request, smoke):
    return request.param, *smoke(request.param)


def test_smoke_run_writes_all_files_and_no_path_of_the_machine(recipe):
    name, folder, result = recipe
    assert result["smoke"] is True
    assert result["machine"]["torch"] == str(torch.__version__)
    for ending in (".json", ".md", ".svg"):
        text = (folder / f"{name}{ending}").read_text()
        assert str(folder.parents[2]) not in text
        assert not re.search(r'["\s(`=]/(?:home|root|tmp|work|usr|Users)/', text)
    assert (folder / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    assert "out" not in result["options"]  # its default is where the checkout is


def test_models_of_a_smoke_run_have_equal_parameters_and_tokens(recipe):
    _, _, result = recipe
    compared = [row for row in result["trainings"] if "another seed" not in row.get("title", "")]
    parameters = [row["parameters"] for row in compared]
    assert max(parameters) - min(parameters) < 0.01 * max(parameters)
    by_model: dict[str, list[int]] = {}
    for row in compared:
        by_model.setdefault(row["model"], []).append(row["training_tokens"])
    assert len(by_model) > 1
    assert len({tuple(tokens) for tokens in by_model.values()}) == 1


def test_zero_shot_has_a_row_for_every_corpus_and_model_by_its_comparable_protocol(smoke):
    folder, result = smoke("zero-shot")
    rows = {(row["model"], row["corpus"]): row for row in result["rows"]}
    assert rows.keys() == {(m, c) for m in ("ltm", "ar", "mdlm") for c in ("validation", "ptb", "lambada")}
    for (model, corpus), row in rows.items():
        name = {"ltm": "prequential", "ar": "likelihood", "mdlm": "nelbo"}[model]
        assert row["protocol"] == name
        assert row[f"{name}_perplexity"] == pytest.approx(math.exp(row[name]))
        assert row[f"{name}_perplexity_per_word"] == pytest.approx(math.exp(row[name] * row["tokens"] / row["words"]))
        assert ("last_word_accuracy" in row) == (corpus == "lambada")
        assert ("reconstruction" in row) == (model == "ltm")
        assert "reconstruction_perplexity" not in row
    assert (folder / "zero-shot.md").read_text().count("| PTB |") == 4  # three models, and the LTM's own table


def test_zero_shot_likelihood_is_the_sum_of_the_predicted_log_probabilities(smoke):
    folder, result = smoke("zero-shot")
    run = load_run(folder / "ar-0", device="cpu")
    corpus = suite_corpora(folder / "suite", only=["ptb"])["ptb"]
    data = corpus.sequences(run.tokenizer, run.language_model.max_length, cache_dir=folder / "cache")
    batch = data.batch([0, 1])
    nats = -run.language_model.predict(batch).log_prob
    row = next(r for r in result["rows"] if (r["model"], r["corpus"]) == ("ar", "ptb"))
    assert float(nats.sum() / batch.num_scored.sum()) == pytest.approx(row["likelihood"], rel=1e-5)
    assert nats.tolist() == pytest.approx(row["nats"], rel=1e-5)


def test_difference_of_models_is_that_of_the_means_with_the_spread_of_single_gaps():
    gap, error = mean_difference([6.0, 4.0, 9.0], [5.0, 3.0, 6.0], [2, 2, 4])
    assert gap == pytest.approx(5 / 8)
    gaps = [1 - 2 * 5 / 8, 1 - 2 * 5 / 8, 3 - 4 * 5 / 8]
    assert error == pytest.approx(math.sqrt(sum(g**2 for g in gaps) * 3 / 2) / 8)
    assert mean_difference([1.0, 2.0], [1.0, 2.0], [3, 3]) == (0.0, 0.0)


def test_gsm8k_has_a_row_for_every_model_and_number_of_shots(smoke):
    folder, result = smoke("gsm8k")
    assert [(row["model"], row["shots"]) for row in result["rows"]] == [("ltm", 0), ("ltm", 1), ("ar", 0), ("ar", 1)]
    for row in result["rows"]:
        assert row["problems"] == 2
        assert row["draws"] == 10
        for extraction in ("strict", "flexible"):
            assert 0 <= row[extraction]["pass@1"] <= row[extraction]["pass@5"] <= 1
    assert load_run(folder / "ltm-0", device="cpu").settings.training.init_from.endswith("ltm-0-pretrained")


def test_gsm8k_solves_no_problem_that_it_was_trained_on(smoke):
    folder, result = smoke("gsm8k")
    known, held = ([json.loads(line) for line in (folder / f).open()] for f in ("train.jsonl", "held.jsonl"))
    assert len(known), len(held) == (result["problems"]["train"], result["problems"]["held"])
    assert len(held) == 2
    assert not {row["question"] for row in known} & {row["question"] for row in held}


def test_guesses_are_what_their_enumeration_gives():
    answers = [3, 3, 3, 5, 5, 7]
    known = [Problem(f"known {i}", f"#### {a}", Fraction(a)) for i, a in enumerate(answers)]
    held = [Problem(f"held {i}", f"#### {a}", Fraction(a)) for i, a in enumerate([3, 7, 9])]
    found = gsm8k.guessing(known, held, [1, 2])
    pairs = [(a, b) for a in answers for b in answers]
    for k, draws in ((1, [(a,) for a in answers]), (2, pairs)):
        by_hand = [sum(h in draw for draw in draws) / len(draws) for h in (3, 7, 9)]
        assert found["drawn"][f"pass@{k}"] == pytest.approx(sum(by_hand) / 3)
        frequent = [a for a, _ in Counter(answers).most_common(k)]
        assert found["frequent"][f"pass@{k}"] == pytest.approx(sum(h in frequent for h in (3, 7, 9)) / 3)


def test_generation_has_a_row_for_every_model_and_form(smoke):
    _, result = smoke("generation")
    forms = [(prompt, t, m) for prompt, t in ((0, 1.0), (0, 0.0), (4, 1.0), (4, 0.0)) for m in ("ltm", "ar", "mdlm")]
    assert [(row["prompt_tokens"], row["temperature"], row["model"]) for row in result["rows"]] == forms
    for row in result["rows"]:
        for side in ("generated", "reference"):
            assert row[side].keys() >= {"distinct_1", "repetition_4", "generative_perplexity", "parsed", "derived"}
        assert row["second_model"]["exact"] is True
    greedy = next(r for r in result["rows"] if (r["model"], r["prompt_tokens"], r["temperature"]) == ("ar", 0, 0.0))
    assert greedy["generated"]["unique_texts"] == 1 / 4  # it has no noise but its tokens'


def test_generative_perplexity_is_that_of_the_same_texts_predicted_by_the_second_model(smoke):
    folder, result = smoke("generation")
    run, second = (load_run(folder / name, device="cpu") for name in ("ar-0", "second-1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parents[2])
        data = generation.read_data(run.settings)
    texts = write_texts(
        run.language_model, run.tokenizer, data.validation, num=4, max_tokens=24, sampling=Sampling(temperature=1.0)
    )
    from ltm_pyro.batch import TokenBatch

    ids = [second.tokenizer.encode(text) for text in texts.decoded(texts.generated)]
    ends = [second.tokenizer.end_of_text] * len(ids)
    whole = [[*row, end] if len(text) < 24 else row for row, end, text in zip(ids, ends, texts.generated, strict=True)]
    nats = -second.language_model.predict(TokenBatch.from_lists(whole, ends)).log_prob.sum()
    row = next(r for r in result["rows"] if (r["model"], r["prompt_tokens"], r["temperature"]) == ("ar", 0, 1.0))
    expected = math.exp(float(nats) / sum(map(len, whole)))
    assert row["generated"]["generative_perplexity"] == pytest.approx(expected, rel=1e-4)


def test_grammar_counts_whole_fables_and_the_part_before_the_first_fault():
    known = fable(0).text
    broken = known[:100] + "#" + known[100:]
    tokenizer = Tokenizer.train([known], 300)
    sides = [tokenizer.encode(known), tokenizer.encode(broken)]
    texts = WrittenTexts([[], []], sides, [], [], 2000, tokenizer)
    found = generation.grammar(texts, sides)
    assert found["parsed"] == 0.5
    assert found["parsed_se"] == pytest.approx(math.sqrt(0.5 * 0.5 / 2))
    assert found["nats_per_parsed_text"] == pytest.approx(-log_prob(known))
    assert found["derived"] == pytest.approx((1 + 100 / len(broken)) / 2)
    assert generation.grammar(texts, sides[1:] * 2)["nats_per_parsed_text"] is None
