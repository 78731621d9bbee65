"""Hostile input of every kind is read or refused in one line: no other exception, no hang, bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from fuzz_strategies import (
    Checkpoints,
    assignments,
    changed,
    corpora,
    damaged,
    dumped,
    metric_files,
    options,
    patterns,
    tomls,
)
from fuzz_worker import Outcome, Worker
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ANNOYING = ["a" * 400, "ab" * 200, " " * 400, "1" * 400, "a" * 200 + "!" + " \n" * 200, "é" * 100 + "\0"]


class Fuzz(NamedTuple):
    """Cases of one kind, how many in the normal suite and how many at length, and what is asked of the worker."""

    quick: int
    long: int
    cases: Callable[[Checkpoints], st.SearchStrategy[Any]]
    ask: Callable[[Worker, Any], Outcome]


FUZZES = {
    "corpora": Fuzz(
        60,
        450,
        lambda _: corpora(),
        lambda w, c: w.run(
            "corpus", {c["name"]: c["content"]}, name=c["name"], unit=c["unit"], label_column=c["label_column"]
        ),
    ),
    "settings": Fuzz(
        60,
        400,
        lambda _: st.tuples(tomls(), assignments),
        lambda w, c: w.run("settings", {"my.toml": c[0]}, assignments=c[1]),
    ),
    "builds": Fuzz(25, 200, lambda _: options(), lambda w, c: w.run("build", assignments=c)),
    "commands": Fuzz(
        20,
        150,
        lambda _: st.tuples(tomls(), assignments),
        lambda w, c: w.run("train", {"my.toml": c[0]}, assignments=c[1]),
    ),
    "checkpoints": Fuzz(50, 450, lambda s: Checkpoints.cases(s), lambda w, c: w.run("checkpoint", c, links=[])),
    "resumes": Fuzz(5, 80, lambda s: Checkpoints.cases(s), lambda w, c: w.run("resume", c)),
    "tokenizers": Fuzz(
        40,
        350,
        lambda s: st.one_of(changed(s.tokenizer).map(dumped), damaged(dumped(s.tokenizer))),
        lambda w, c: w.run("tokenizer", {"tokenizer.json": c}),
    ),
    "patterns": Fuzz(30, 250, lambda _: patterns, lambda w, c: w.run("pattern", pattern=c, texts=ANNOYING)),
    "metrics": Fuzz(
        8, 120, lambda s: metric_files(s.metrics), lambda w, c: w.run("metrics", {"copy/metrics.jsonl": c})
    ),
    "posteriors": Fuzz(
        15,
        100,
        lambda s: st.fixed_dictionaries({name: damaged(content) for name, content in s.posteriors.items()}),
        lambda w, c: w.run("posteriors", {f"posteriors/{name}": content for name, content in c.items()}),
    ),
}


def fuzz(name: str, worker: Worker, sound: Checkpoints, examples: int, *, fixed: bool) -> None:
    """Asks for as many cases; ``fixed`` ones are the same each time."""

    @settings(
        max_examples=examples,
        phases=(Phase.generate,),  # a hang takes its time at each step of making it smaller
        deadline=None,
        derandomize=fixed,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(FUZZES[name].cases(sound))
    def is_read_or_refused(case: Any) -> None:
        outcome = FUZZES[name].ask(worker, case)
        assert outcome.kind in ("done", "refused"), outcome.text

    before = worker.cases
    is_read_or_refused()
    assert worker.cases - before >= examples


@pytest.mark.parametrize("name", FUZZES)
def test_hostile_input_is_read_or_refused(worker: Worker, sound: Checkpoints, name: str) -> None:
    fuzz(name, worker, sound, FUZZES[name].quick, fixed=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZES)
def test_much_hostile_input_is_read_or_refused(worker: Worker, sound: Checkpoints, name: str) -> None:
    fuzz(name, worker, sound, FUZZES[name].long, fixed=False)


def test_two_thousand_cases_are_asked_for() -> None:
    assert sum(kind.long for kind in FUZZES.values()) >= 2000
    assert sum(kind.quick for kind in FUZZES.values()) >= 300


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
def test_lines_of_ten_megabytes_are_read_in_bounded_memory(worker: Worker, name: str) -> None:
    line = b"a" * 10_000_000 if name == "text.txt" else dumped({"text": "a" * 10_000_000})
    outcome = worker.run(
        "corpus", {name: line + b"\n" + line}, cpu_seconds=150, name=name, unit="line", label_column=None
    )
    assert outcome.kind == "done", outcome.text


@pytest.mark.slow  # two new processes
def test_the_worker_tells_a_bug_a_hang_and_much_memory_from_a_refusal(worker: Worker) -> None:
    assert worker.run("tokenizer", {"tokenizer.json": b"{"}).kind == "refused"
    assert "KeyError" in worker.run("no such task").text
    assert "MemoryError" in worker.run("hoard").text
    assert worker.run("hang", cpu_seconds=1) == Outcome("failed", "the process died (-27) or gave no answer")
    assert worker.run("crash").kind == "failed"
    outcome = worker.run("tokenizer", {"tokenizer.json": b"{"})
    assert outcome.kind == "refused", outcome.text
