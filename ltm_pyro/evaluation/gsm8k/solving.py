"""GSM8K: grade-school problems in words, answered by sampling and scored by pass@k (Cobbe et al. 2021)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ltm_pyro.data import Tokenizer, open_corpus
from ltm_pyro.data.corpora import Split
from ltm_pyro.data.hub import HubCorpus
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.errors import LTMError
from ltm_pyro.evaluation.gsm8k.answers import MARK, final_number, marked_number
from ltm_pyro.evaluation.gsm8k.pass_at_k import mean_and_error, pass_at_k
from ltm_pyro.language_model import LanguageModel

__all__ = ["EXTRACTIONS", "Problem", "Solved", "load_problems", "pass_rates", "prompt_text", "solution_of", "solve"]

EXTRACTIONS = ("strict", "flexible")
"""How a number is read from a text: `marked_number`, `final_number`."""

_SEPARATOR = "\x1f"  # between the two columns of a row, which are read as one text
_NEXT = "Question:"


@dataclass(frozen=True)
class Problem:
    """One problem: the question, the worked solution that ends in ``#### <number>``, and that number."""

    question: str
    solution: str
    answer: Fraction


@dataclass(frozen=True)
class Solved:
    """What a model made of one problem.

    Args:
        problem: the problem.
        fitted: worked examples in the prompt; None where not even the problem alone fits the model.
        texts: what was drawn, cut where the next question begins; empty where nothing fits.
    """

    problem: Problem
    fitted: int | None
    texts: tuple[str, ...]

    def numbers(self, extraction: str) -> list[Fraction | None]:
        """The number that each text ends in, by one of the `EXTRACTIONS`."""
        read = {"strict": marked_number, "flexible": final_number}[extraction]
        return [read(text) for text in self.texts]

    def correct(self, extraction: str) -> int:
        """How many of the texts have the problem's number."""
        return self.numbers(extraction).count(self.problem.answer)


def load_problems(source: str, *, split: Split = "validation", documents: int | None = None) -> list[Problem]:
    """The problems of a .jsonl or .parquet file or folder, or of a hub data set as ``hf:name[/config]``.

    A row has the columns ``question`` and ``answer``.

    Args:
        source: where they are.
        split: of a hub data set: ``train``, or ``validation`` for its validation or test split.
        documents: at most so many, the first ones.

    Raises:
        LTMError: the source is unusable, has no problems or no such split, or a solution ends in no number.
    """
    if source == "fables" or (source.startswith("hf:") and ":" in source[3:]):
        raise LTMError(f"{source}: no GSM8K problems; give a .jsonl or .parquet file, or hf:name/config with no column")
    corpus = open_corpus(source, split=split, column=f"{{question}}{_SEPARATOR}{{answer}}", documents=documents)
    if source.startswith("hf:") and split == "validation" and not HubCorpus(source).has_validation:
        raise LTMError(f"{source}: no validation or test split; give the problems as a file")
    problems = []
    for document in corpus.documents():
        question, separator, solution = document.text.partition(_SEPARATOR)
        answer = marked_number(solution)
        if answer is None or not separator or _SEPARATOR in solution:
            raise LTMError(
                f"{document.file}, row {document.row}: the answer must end in {MARK} and a number, as in '{MARK} 72'"
            )
        problems.append(Problem(question.strip(), solution.strip(), answer))
    if not problems:
        raise LTMError(f"{source}: no problems; expected rows with a question and an answer")
    return problems


def prompt_text(question: str, examples: Sequence[Problem] = ()) -> str:
    r"""What the model continues: ``Question: …\nAnswer: …`` of each example, then the question, blank lines between."""
    told = [f"Question: {example.question}\nAnswer: {example.solution}\n\n" for example in examples]
    return f"{''.join(told)}Question: {question}\nAnswer:"


def solution_of(text: str) -> str:
    """A drawn text up to where the model goes on with a question of its own."""
    return text.partition(_NEXT)[0]


def solve(
    model: LanguageModel,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    *,
    shots: int = 0,
    examples: Sequence[Problem] = (),
    samples: int = 5,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    fast_steps: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Solved]:
    """Draws ``samples`` answers to each problem, a draw of z ~ q(z | prompt) for each.

    A problem's examples come from the seed and its place alone, its draws from the seed and its prompt; with more shots
    it gets the same examples and more. Examples are dropped from the front until the prompt has at most
    `LanguageModel.max_length` tokens; where the answer must fit in there, too, until there is room for it, or half of
    the length is left.

    Args:
        model: of any kind.
        tokenizer: the model's.
        problems: what to solve.
        shots: worked examples before each problem.
        examples: where they are taken from; never one with the problem's own question.
        samples: n.
        max_tokens: most tokens of an answer.
        sampling: how tokens are drawn; None is the model's own distribution.
        fast_steps: T_fast; None takes the configured number.
        seed: of examples, thoughts and tokens.
        progress: told how many problems are done, again and again.

    Raises:
        LTMError: fewer examples than shots, or a number out of range.
    """
    if shots < 0 or samples < 1:
        raise LTMError(f"shots must be 0 or more and samples 1 or more, got {shots} and {samples}")
    known = len({example.question for example in examples})
    if known - 1 < shots and shots:
        raise LTMError(f"{shots} shots need {shots + 1} different examples or more, got {known}: give more examples")
    longest = model.max_length
    if not model.open_ended:
        longest = max(longest - max_tokens, longest // 2)
    fitted = []
    for place, problem in enumerate(problems):
        # Strings seed Python's generator by their SHA-512, the same everywhere.
        source = random.Random(f"{seed} {place}")
        fitted.append(_fit(tokenizer, problem, _choose(examples, problem, shots, source), longest))
    too_long = fitted.count(None)
    drawn = iter(
        model.generate_batch(
            [one[0] for one in fitted if one is not None],
            start=tokenizer.end_of_text,
            num=samples,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=tokenizer.end_of_text,
            ended=lambda tokens: _NEXT in tokenizer.decode(tokens),
            fast_steps=fast_steps,
            seed=seed,
            progress=None if progress is None else lambda texts: progress(too_long + texts // samples),
        )
    )
    solved = []
    for problem, one in zip(problems, fitted, strict=True):
        texts = () if one is None else tuple(solution_of(tokenizer.decode(tokens)) for tokens in next(drawn))
        solved.append(Solved(problem, None if one is None else one[1], texts))
    return solved


def pass_rates(solved: Sequence[Solved], samples: int, ks: Sequence[int]) -> dict[str, Any]:
    """The row of a report: counts, and pass@k by each extraction with its standard error over problems.

    A problem that is too long is unsolved. ``pass@k_chance`` is what the same texts score when each problem's are held
    against the numbers of the others, the mean over all pairs: what guessing the numbers that are common brings. It is
    None for a single problem.

    Args:
        solved: one or more problems.
        samples: n, draws for each.
        ks: the k of pass@k, each at most n.

    Raises:
        LTMError: a k out of range.
    """
    fitted = [one.fitted for one in solved if one.fitted is not None]
    row: dict[str, Any] = {
        "problems": len(solved),
        "too_long": len(solved) - len(fitted),
        "fitted_shots": sum(fitted) / len(fitted) if fitted else None,
        "fewest_fitted_shots": min(fitted, default=None),
        "draws": sum(len(one.texts) for one in solved),
        "marked_draws": sum(marked_number(text) is not None for one in solved for text in one.texts),
    }
    answers = Counter(one.problem.answer for one in solved)
    for extraction in EXTRACTIONS:
        counts = [Counter(one.numbers(extraction)) for one in solved]
        rates: dict[str, float | None] = {}
        for k in ks:
            values = [pass_at_k(samples, c[one.problem.answer], k) for one, c in zip(solved, counts, strict=True)]
            mean, error = mean_and_error(values)
            # Over all pairs, less each problem with itself.
            pairs = sum(answers[n] * pass_at_k(samples, c[n], k) for c in counts for n in c if n is not None)
            chance = (pairs - sum(values)) / (len(solved) * (len(solved) - 1)) if len(solved) > 1 else None
            rates |= {f"pass@{k}": mean, f"pass@{k}_se": error, f"pass@{k}_chance": chance}
        row[extraction] = rates
    return row


def _choose(examples: Sequence[Problem], problem: Problem, shots: int, source: random.Random) -> list[Problem]:
    """Different examples, one draw after another, so that more shots begin with the same."""
    chosen: dict[str, Problem] = {}
    while len(chosen) < shots:
        example = examples[source.randrange(len(examples))]
        if example.question != problem.question:
            chosen.setdefault(example.question, example)
    return list(chosen.values())


def _fit(
    tokenizer: Tokenizer, problem: Problem, examples: Sequence[Problem], longest: int
) -> tuple[list[int], int] | None:
    """The prompt with as many of the last examples as fit, and how many; None where it does not fit with none."""
    for first in range(len(examples) + 1):
        prompt = tokenizer.encode(prompt_text(problem.question, examples[first:]))
        if len(prompt) <= longest:
            return prompt, len(examples) - first
    return None
