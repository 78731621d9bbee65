"""GSM8K: problems, prompts and draws, with a model that answers what the test says."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_runs import new_trainer, tiny_data

from ltm_pyro.data import Tokenizer
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.gsm8k import Problem, Solved, load_problems, pass_rates, prompt_text, solution_of, solve
from ltm_pyro.evaluation.gsm8k.pass_at_k import pass_at_k
from ltm_pyro.language_model import LanguageModel
from ltm_pyro.training import load_run

ROWS = [
    {"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = <<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}"}
    for n in range(9)
]
PROBLEMS = [Problem(row["question"], row["answer"], Fraction(2 * n)) for n, row in enumerate(ROWS)]


class Oracle(LanguageModel):
    """Answers a prompt with what ``answers`` makes of it and of each draw's number; keeps what it was asked."""

    kind = "oracle"
    protocols: ClassVar[tuple[Any, ...]] = ("prequential",)
    default_protocols = protocols
    comparable = "prequential"
    max_length = 10_000
    device = torch.device("cpu")

    def __init__(self, tokenizer: Tokenizer, answers: Callable[[str, int], str], max_length: int = 10_000):
        self.tokenizer = tokenizer
        self.answers = answers
        self.max_length = max_length
        self.asked: list[dict[str, Any]] = []

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("a likelihood is not needed")

    predict = evaluate

    def generate_batch(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[list[int]]]:
        assert all(len(prompt) <= self.max_length for prompt in prompts)
        texts = [self.tokenizer.decode(prompt) for prompt in prompts]
        self.asked += [options | {"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
        if options["progress"] is not None:
            options["progress"](len(prompts) * options["num"])
        return [
            [self.tokenizer.encode(self.answers(text, n))[: options["max_tokens"]] for n in range(options["num"])]
            for text in texts
        ]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([prompt_text(p.question, PROBLEMS) for p in PROBLEMS], 320)


def last_question(prompt: str) -> int:
    """n of the question that the prompt asks."""
    return int(prompt.rpartition("What is ")[2].partition(" ")[0])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_problems_are_read_from_every_kind_of_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub-cache"))
    datasets.disable_progress_bars()
    plain = write(tmp_path / "a.jsonl", [{"id": 1, **row} for row in ROWS])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    hub = tmp_path / "hub"
    hub.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[:7]), hub / "train.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[7:]), hub / "test.parquet")
    assert load_problems(str(plain)) == load_problems(str(tmp_path / "b.jsonl.gz")) == PROBLEMS
    assert load_problems(str(plain), documents=2) == PROBLEMS[:2]
    assert load_problems(f"hf:{hub}", split="train") == load_problems(str(hub / "train.parquet")) == PROBLEMS[:7]
    assert load_problems(f"hf:{hub}") == PROBLEMS[7:]
    (hub / "test.parquet").unlink()
    with pytest.raises(LTMError, match="no validation or test split"):
        load_problems(f"hf:{hub}")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([ROWS[0], {"question": "q", "answer": "9"}], "row 2: the answer must end in #### and a number"),
        ([ROWS[0], {"question": "q", "answer": "#### none"}], "row 2: the answer must end in ####"),
        ([{"question": "q", "text": "#### 9"}], "no column 'answer'; there is question, text"),
        ([{"question": None, "answer": "#### 9"}], "no problems; expected rows with a question and an answer"),
        ([{"question": "q", "answer": 9}], "column 'answer' holds int, not text"),
    ],
)
def test_rows_that_are_no_problems_are_refused(tmp_path: Path, rows: list[dict[str, Any]], words: str):
    with pytest.raises(LTMError) as caught:
        load_problems(str(write(tmp_path / "a.jsonl", rows)))
    assert words in str(caught.value)


@pytest.mark.parametrize("source", ["fables", "hf:openai/gsm8k/main:question"])
def test_sources_that_hold_no_problems_are_refused(source: str):
    with pytest.raises(LTMError, match="no GSM8K problems"):
        load_problems(source)


def test_every_problem_of_gsm8k_is_read(shared_data: Path):
    problems = load_problems(str(shared_data / "gsm8k_train.jsonl.gz"))
    assert len(problems) == 7473
    assert problems[0].answer == 72
    assert problems[0].question.startswith("Natalia sold clips")


def test_five_frequent_numbers_solve_as_many_problems_as_the_page_says(shared_data: Path):
    problems = load_problems(str(shared_data / "gsm8k_train.jsonl.gz"))
    known, asked = problems[:7000], problems[7000:]
    frequent = [number for number, _ in Counter(problem.answer for problem in known).most_common(5)]
    assert sorted(frequent) == [3, 4, 5, 6, 10]
    assert len(asked) == 473
    share = sum(problem.answer in frequent for problem in asked) / 473
    assert share == pytest.approx(0.146, abs=5e-4)
    assert math.sqrt(share * (1 - share) / 473) == pytest.approx(0.016, abs=5e-4)
    assert frequent[0] == 6
    assert sum(problem.answer == 6 for problem in asked) / 473 == pytest.approx(0.021, abs=5e-4)


@pytest.mark.slow
def test_problems_are_as_long_as_the_page_says(shared_data: Path):
    problems = load_problems(str(shared_data / "gsm8k_train.jsonl.gz"))
    gpt2 = Tokenizer.load(shared_data / "gpt2_tokenizer")
    prompts = [len(ids) for ids in gpt2.encode_batch([prompt_text(p.question) for p in problems])]
    whole = [len(ids) for ids in gpt2.encode_batch([f"{prompt_text(p.question)} {p.solution}\n\n" for p in problems])]
    answers = [total - prompt for total, prompt in zip(whole, prompts, strict=True)]
    assert (round(sum(whole) / 7473), max(whole)) == (156, 439)
    assert round(sum(answers) / 7473) == 96
    assert sum(answer > 256 for answer in answers) / 7473 == pytest.approx(0.003, abs=5e-4)
    model = Oracle(gpt2, lambda prompt, draw: "", max_length=1024)
    solved = solve(model, gpt2, problems[:300], shots=10, examples=problems, samples=1)
    assert sum(one.fitted for one in solved) / 300 == pytest.approx(5.7, abs=0.05)


def test_the_prompt_is_the_examples_and_the_question():
    assert prompt_text("Why?") == "Question: Why?\nAnswer:"
    assert prompt_text("Why?", PROBLEMS[1:3]) == (
        "Question: What is 1 + 1?\nAnswer: 1 + 1 = <<1+1=2>>2\n#### 2\n\n"
        "Question: What is 2 + 2?\nAnswer: 2 + 2 = <<2+2=4>>4\n#### 4\n\n"
        "Question: Why?\nAnswer:"
    )


def test_a_prompt_is_the_beginning_of_the_text_that_finetuning_trains_on(tmp_path: Path, tokenizer: Tokenizer):
    from ltm_pyro.data import open_corpus

    corpus = open_corpus(str(write(tmp_path / "a.jsonl", ROWS)), column=r"Question: {question}\nAnswer: {answer}")
    for document, problem in zip(corpus.documents(), PROBLEMS, strict=True):
        prompt = tokenizer.encode(prompt_text(problem.question))
        assert tokenizer.encode(document.text)[: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (" It is 7.\n#### 7\n\nQuestion: And 8?\nAnswer: #### 9", " It is 7.\n#### 7\n\n"),
        (" #### 7", " #### 7"),
        ("Question: what?", ""),
        (" The question: 7", " The question: 7"),
    ],
)
def test_an_answer_ends_where_the_model_asks_itself(text: str, kept: str):
    assert solution_of(text) == kept


def test_draws_are_scored_by_problem_and_extraction(tokenizer: Tokenizer):
    def answers(prompt: str, draw: int) -> str:
        right = 2 * last_question(prompt)
        return [f" #### {right}", f" It is {right}.00", " #### 99", f" 99\nQuestion: #### {right}"][draw]

    model = Oracle(tokenizer, answers)
    told: list[int] = []
    solved = solve(model, tokenizer, PROBLEMS[:3], samples=4, progress=told.append)
    assert told == [3]
    assert [one.correct("strict") for one in solved] == [1, 1, 1]
    assert [one.correct("flexible") for one in solved] == [2, 2, 2]
    assert solved[1].texts[3] == " 99\n"
    row = pass_rates(solved, 4, [1, 2, 4])
    counts = {"problems": 3, "too_long": 0, "fitted_shots": 0.0, "fewest_fitted_shots": 0, "draws": 12}
    rates = {
        "strict": {"pass@1": 1 / 4, "pass@2": 1 / 2, "pass@4": 1.0},
        "flexible": {"pass@1": 1 / 2, "pass@2": 5 / 6, "pass@4": 1.0},
    }
    for found in rates.values():
        found |= {f"pass@{k}_{name}": 0.0 for k in (1, 2, 4) for name in ("se", "chance")}
    assert row == counts | {"marked_draws": 6} | rates


def test_chance_is_the_score_of_the_same_texts_under_every_other_problem():
    texts = [("#### 4", "#### 4", "it is 2"), ("#### 2", "none", "#### 6"), ("#### 2", "#### 4", "#### 2"), ()]
    answers = [2, 4, 2, 6]
    solved = [
        Solved(Problem("", "", Fraction(number)), 0 if drawn else None, drawn)
        for number, drawn in zip(answers, texts, strict=True)
    ]
    row = pass_rates(solved, 3, [1, 3])
    for extraction in ("strict", "flexible"):
        for k in (1, 3):
            scores = [
                pass_at_k(3, replace(one, problem=other.problem).correct(extraction), k)
                for one, other in permutations(solved, 2)
            ]
            assert row[extraction][f"pass@{k}_chance"] == pytest.approx(sum(scores) / 12, rel=1e-12)
    assert row["strict"]["pass@1"] == pytest.approx((0 + 0 + 2 / 3 + 0) / 4)


def test_a_model_that_guesses_one_number_is_no_better_than_chance(tokenizer: Tokenizer):
    problems = [Problem(f"{n}", "", Fraction(n % 3)) for n in range(90)]
    row = pass_rates(solve(Oracle(tokenizer, lambda prompt, draw: "#### 1"), tokenizer, problems), 5, [5])
    assert row["strict"]["pass@5"] == pytest.approx(1 / 3)
    assert row["strict"]["pass@5_chance"] == pytest.approx(1 / 3)


def test_the_model_is_asked_with_the_settings_given(tokenizer: Tokenizer):
    from ltm_pyro.decoder import Sampling

    model, sampling = Oracle(tokenizer, lambda prompt, draw: " #### 1 and more"), Sampling(temperature=0.5)
    solved = solve(model, tokenizer, PROBLEMS[:1], samples=3, max_tokens=4, sampling=sampling, fast_steps=7)
    (asked,) = model.asked
    assert (asked["num"], asked["max_tokens"], asked["sampling"], asked["fast_steps"]) == (3, 4, sampling, 7)
    assert asked["start"] == asked["stop"] == tokenizer.end_of_text
    assert asked["text"] == "Question: What is 0 + 0?\nAnswer:"
    assert all(len(tokenizer.encode(text)) <= 4 for text in solved[0].texts)


@pytest.mark.parametrize("shots", [1, 3, 8])
def test_examples_differ_from_each_other_and_from_the_problem(tokenizer: Tokenizer, shots: int):
    model = Oracle(tokenizer, lambda prompt, draw: "")
    solved = solve(model, tokenizer, PROBLEMS, shots=shots, examples=[*PROBLEMS, *PROBLEMS], samples=1)
    assert [one.fitted for one in solved] == [shots] * 9
    for asked, problem in zip(model.asked, PROBLEMS, strict=True):
        told, _, question = asked["text"].rpartition("\n\n")
        assert question == prompt_text(problem.question)
        assert len(set(told.split("\n\n"))) == shots
        assert problem.question not in told


def test_the_seed_and_the_place_settle_examples_and_more_shots_begin_with_the_same(tokenizer: Tokenizer):
    def asked(problems: list[Problem], shots: int, seed: int) -> list[str]:
        model = Oracle(tokenizer, lambda prompt, draw: "")
        solve(model, tokenizer, problems, shots=shots, examples=PROBLEMS, samples=1, seed=seed)
        assert {one["seed"] for one in model.asked} == {seed}
        return [one["text"] for one in model.asked]

    few, same, more = asked(PROBLEMS, 2, 0), asked(PROBLEMS[:4], 2, 0), asked(PROBLEMS, 5, 0)
    assert few[:4] == same
    for short, long in zip(few, more, strict=True):
        assert long.split("\n\n")[:2] == short.split("\n\n")[:2]
    assert asked(PROBLEMS, 2, 1) != few


def test_examples_are_dropped_from_the_front_until_the_prompt_fits(tokenizer: Tokenizer):
    free = Oracle(tokenizer, lambda prompt, draw: "")
    solve(free, tokenizer, PROBLEMS[:1], shots=4, examples=PROBLEMS, samples=1)
    parts = free.asked[0]["text"].split("\n\n")
    for kept in range(5):
        text = "\n\n".join(parts[4 - kept :])
        tight = Oracle(tokenizer, lambda prompt, draw: "", max_length=len(tokenizer.encode(text)))
        (one,) = solve(tight, tokenizer, PROBLEMS[:1], shots=4, examples=PROBLEMS, samples=1)
        assert one.fitted == kept
        assert tight.asked[0]["text"] == text


def test_a_model_that_fills_a_window_keeps_room_in_it_for_the_answer(tokenizer: Tokenizer):
    model = Oracle(tokenizer, lambda text, n: "")
    model.open_ended = False
    whole, one = (len(tokenizer.encode(prompt_text(PROBLEMS[0].question, PROBLEMS[1 : n + 1]))) for n in (3, 1))
    for max_tokens, longest in ((20, whole - 20), (10_000, whole // 2)):
        model.max_length = whole
        solve(model, tokenizer, PROBLEMS[:3], shots=3, examples=PROBLEMS, samples=1, max_tokens=max_tokens)
        assert one < longest
        assert max(len(asked["prompt"]) for asked in model.asked) <= longest
        model.asked.clear()


def test_a_problem_that_does_not_fit_alone_is_unsolved_and_told_apart(tokenizer: Tokenizer):
    long = Problem("What is 1 + 1? " * 50, "#### 2", Fraction(2))
    model = Oracle(tokenizer, lambda prompt, draw: f" #### {2 * last_question(prompt)}", max_length=60)
    solved = solve(model, tokenizer, [PROBLEMS[3], long, PROBLEMS[4]], samples=2)
    assert solved[1] == Solved(long, None, ())
    assert len(model.asked) == 2
    row = pass_rates(solved, 2, [1, 2])
    assert (row["problems"], row["too_long"], row["draws"]) == (3, 1, 4)
    assert row["strict"]["pass@1"] == row["strict"]["pass@2"] == pytest.approx(2 / 3)
    assert row["strict"]["pass@1_se"] == pytest.approx(1 / 3)
    none = pass_rates(solved[1:2], 2, [1])
    assert (none["fitted_shots"], none["fewest_fitted_shots"]) == (None, None)
    assert none["strict"] == {"pass@1": 0.0, "pass@1_se": None, "pass@1_chance": None}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shots": 9, "examples": PROBLEMS}, "9 shots need 10 different examples or more, got 9"),
        ({"shots": 1}, "1 shots need 2 different examples or more, got 0"),
        ({"shots": 1, "examples": [PROBLEMS[0]] * 5}, "got 1"),
        ({"shots": -1}, "shots must be 0 or more"),
        ({"samples": 0}, "samples 1 or more"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tokenizer: Tokenizer, options: dict[str, Any], words: str):
    with pytest.raises(LTMError) as caught:
        solve(Oracle(tokenizer, lambda prompt, draw: ""), tokenizer, PROBLEMS, **options)
    assert words in str(caught.value)


def test_a_model_with_thoughts_is_asked_the_same_way(tmp_path: Path):
    data = tiny_data(tmp_path, layout="documents")
    new_trainer(tmp_path / "run", data, {"training.steps": 1}).fit()
    run = load_run(tmp_path / "run", device="cpu")
    fits = Problem("the cat", "#### 1", Fraction(1))  # 32 tokens are few
    options = {"samples": 3, "max_tokens": 6, "fast_steps": 1}
    solved = solve(run.language_model, run.tokenizer, [fits, PROBLEMS[0]], **options)
    assert [len(one.texts) for one in solved] == [3, 0 if solved[1].fitted is None else 3]
    assert solved[0].fitted == 0
    again = solve(run.language_model, run.tokenizer, [fits], **options)
    assert again[0].texts == solved[0].texts
    assert len(set(again[0].texts)) > 1  # each draw has thoughts of its own
