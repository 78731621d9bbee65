"""GSM8K by sampling: pass@k of an LTM and an AR finetuned on worked problems, beside what guessing has."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.reproduce.models import options_of_training, settings_of, spent, spent_table, train
from benchmarks.reproduce.recipe import (
    machine_line,
    options_of,
    parser_of,
    plain,
    read_data,
    save_svg,
    write,
    write_fables,
)
from ltm_pyro.config import Settings
from ltm_pyro.data import Tokenizer
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.evaluation.gsm8k import EXTRACTIONS, Problem, load_problems, pass_rates, solve
from ltm_pyro.evaluation.gsm8k.pass_at_k import mean_and_error
from ltm_pyro.training import LoadedRun

TEMPLATE = r"Question: {question}\nAnswer: {answer}"
# The benchmarks' small decoder, on sequences that hold a problem with two examples before it.
SMALL: dict[str, Any] = {
    "data.sequence_length": 512,
    "data.documents": None,
    "decoder.hidden": 64,
    "decoder.num_thoughts": 4,
    "decoder.thought_width": 16,
    "training.slow_lr": 3e-3,
    "training.batch_size": 8,
    "training.eval_sequences": 16,
}
SMOKE: dict[str, Any] = {
    "data.sequence_length": 256,
    "data.vocab_size": 300,
    "decoder.hidden": 16,
    "decoder.heads": 2,
    "decoder.num_thoughts": 2,
    "decoder.thought_width": 8,
    "training.batch_size": 2,
    "training.warmup_steps": 1,
    "training.eval_sequences": 2,
    "training.steps": 2,
}
MODELS = ("ltm", "ar")


def main(arguments: list[str]) -> None:
    """Trains, finetunes, solves and writes gsm8k.{json,md,svg}."""
    parser = parser_of("gsm8k", __doc__.splitlines()[0])
    parser.add_argument("--train", metavar="SOURCE", help="problems: .jsonl, .parquet, hf:name/config (smoke: its own)")
    parser.add_argument("--test", metavar="SOURCE", help="problems to solve (default: the last ones of --train)")
    parser.add_argument("--problems", type=int, default=48, help="how many to solve; held out where --test is none")
    parser.add_argument("--pretrain", metavar="SOURCE", help="text to train on before the problems")
    parser.add_argument("--pretrain-steps", type=int, default=60, help="slow steps on it")
    parser.add_argument("--tokenizer", default="train", metavar="T", help="path or hub name (default: train one)")
    options_of_training(parser)
    parser.add_argument("--shots", type=int, nargs="*", default=[0, 5, 10], help="worked examples before a problem")
    parser.add_argument("--samples", type=int, default=5, help="answers to each problem")
    parser.add_argument("--k", type=int, nargs="*", default=[1, 5], help="of pass@k")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=160, help="of an answer")
    parser.add_argument("--eval-steps", type=int, help="T_fast at evaluation (default: that of training)")
    options = options_of(parser, arguments)
    if options.smoke:
        _write_smoke_text(options)
        options.problems, options.shots, options.max_tokens, options.pretrain_steps = 2, [0, 1], 4, 2
    if not options.train:
        parser.error("--train names the problems")
    known, held = _split(options)
    texts = _write_problems(options.runs / "train.jsonl", known), _write_problems(options.runs / "held.jsonl", held)
    base = settings_of(options, SMALL, SMOKE, steps=240).updated(
        {"data.tokenizer": _tokenizer(options, known), "data.layout": "documents"}
    )
    trainings, rows = [], []
    for model in MODELS:
        runs = finetuned(base, model, texts, options)
        trainings += [{"title": title, **spent(run, folder)} for title, run, folder in runs]
        rows += [{"model": model, **row} for row in pass_rows(runs[-1][1], held, known, options)]
    result = {"title": "GSM8K by sampling", "options": plain(options), "settings": base.to_dict()}
    result |= {"problems": {"train": len(known), "held": len(held)}, "guessing": guessing(known, held, options.k)}
    write(options, result | {"trainings": trainings, "rows": rows}, table, draw)


def finetuned(
    base: Settings, model: str, texts: tuple[Path, Path], options: argparse.Namespace
) -> list[tuple[str, LoadedRun, Path]]:
    """The runs of a kind of model, the last one on the problems, from the weights of the one before it."""
    runs, problems = [], base
    if options.pretrain:
        steps = {"data.source": options.pretrain, "data.layout": "packed", "training.steps": options.pretrain_steps}
        folder = options.runs / f"{model}-{options.seed}-pretrained"
        settings = base.updated(steps)
        runs.append((f"{model}, {options.pretrain}", train(settings, read_data(settings), model, folder), folder))
        problems = base.updated({"training.init_from": str(folder)})
    source = {"data.source": str(texts[0]), "data.validation": str(texts[1]), "data.column": TEMPLATE}
    settings = problems.updated(source)
    folder = options.runs / f"{model}-{options.seed}"
    runs.append((f"{model}, problems", train(settings, read_data(settings), model, folder), folder))
    return runs


def pass_rows(
    run: LoadedRun, held: Sequence[Problem], known: Sequence[Problem], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """pass@k for every number of shots, with two of the drawn texts."""
    rows = []
    for shots in options.shots:
        solved = solve(
            run.language_model,
            run.tokenizer,
            held,
            shots=shots,
            examples=known,
            samples=options.samples,
            max_tokens=options.max_tokens,
            sampling=Sampling(temperature=options.temperature),
            fast_steps=options.eval_steps,
            seed=options.seed,
        )
        texts = [{"question": one.problem.question, "text": one.texts[0]} for one in solved[:2] if one.texts]
        rows.append({"shots": shots, **pass_rates(solved, options.samples, options.k), "texts": texts})
        print(f"{run.language_model.kind}, {shots} shots: {rows[-1]['flexible']}", flush=True)
    return rows


def guessing(
    known: Sequence[Problem], held: Sequence[Problem], ks: Sequence[int]
) -> dict[str, dict[str, float | None]]:
    """What is right without reading a question: pass@k, exactly, and its standard error over the held-out problems.

    ``drawn``: k answers drawn from those of the training problems. ``frequent``: the k most frequent of them.
    """
    counts = Counter(problem.answer for problem in known)
    order = [answer for answer, _ in counts.most_common()]
    rates: dict[str, dict[str, float | None]] = {"drawn": {}, "frequent": {}}
    for k in ks:
        drawn = [1 - (1 - counts[problem.answer] / len(known)) ** k for problem in held]
        frequent = [float(problem.answer in order[:k]) for problem in held]
        for name, values in (("drawn", drawn), ("frequent", frequent)):
            mean, error = mean_and_error(values)
            rates[name] |= {f"pass@{k}": mean, f"pass@{k}_se": error}
    return rates


def table(result: dict[str, Any]) -> str:
    """pass@k by model, shots and extraction, with the guesses, as Markdown."""
    options, held = result["options"], result["problems"]["held"]
    rates = [f"pass@{k}" for k in options["k"]]
    lines = [f"# {result['title']}", "", *spent_table(result["trainings"]), ""]
    lines += [
        f"| model | shots | of them fitted | answers with #### | extraction | {' | '.join(rates)} |",
        f"| --- | --- | --- | --- | --- |{' --- |' * len(rates)}",
    ]
    for row in result["rows"]:
        fitted = "–" if row["fitted_shots"] is None else f"{row['fitted_shots']:.1f}"
        about = f"{row['model'].upper()} | {row['shots']} | {fitted} | {row['marked_draws']} of {row['draws']}"
        for extraction in EXTRACTIONS:
            found = row[extraction]
            cells = [_percent(found[r], found[f"{r}_se"], found.get(f"{r}_chance")) for r in rates]
            lines.append(f"| {about} | {extraction} | {' | '.join(cells)} |")
    titles = {"drawn": "k draws from the training answers", "frequent": "the k most frequent training answers"}
    for name, found in result["guessing"].items():
        cells = [_percent(found[r], found[f"{r}_se"]) for r in rates]
        lines.append(f"| {titles[name]} | – | – | – | no question read | {' | '.join(cells)} |")
    lines += [
        "",
        f"{held} problems that were not trained on, {options['samples']} answers each, temperature "
        f"{options['temperature']:g}, at most {options['max_tokens']} tokens, seed {options['seed']}. ± is the "
        "standard error over problems, without the seed of training; where nothing is solved it is 0 and says nothing, "
        f"and the truth may be up to about {3 / held:.1%}. `by chance` is what the same answers score against the "
        "numbers of the *other* problems. No likelihood is in any of these numbers.",
        "",
        machine_line(result),
        "",
    ]
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """pass@k for the largest k against shots, with the guesses as lines."""
    from matplotlib.figure import Figure

    k = f"pass@{max(result['options']['k'])}"
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    for model, colour in (("ltm", "#0072B2"), ("ar", "#D55E00")):
        for extraction, style in (("strict", "-"), ("flexible", "--")):
            rows = [row for row in result["rows"] if row["model"] == model]
            values = [100 * row[extraction][k] for row in rows]
            errors = [100 * (row[extraction][f"{k}_se"] or 0) for row in rows]
            label = f"{model.upper()}, {extraction}"
            axis.errorbar([r["shots"] for r in rows], values, errors, fmt=f"o{style}", color=colour, label=label)
    for name, style in (("drawn", ":"), ("frequent", "-.")):
        axis.axhline(100 * result["guessing"][name][k], color="black", linewidth=0.8, linestyle=style, label=name)
    axis.set_xlabel("shots")
    axis.set_ylabel(f"{k}, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    save_svg(figure, path)


def _split(options: argparse.Namespace) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on, and others to solve: those of ``--test``, or the last ones of ``--train``."""
    problems = load_problems(options.train, split="train")
    if options.test:
        return problems, load_problems(options.test, documents=options.problems)
    held = problems[-options.problems :]
    asked = {problem.question for problem in held}
    return [problem for problem in problems[: -options.problems] if problem.question not in asked], held


def _write_problems(path: Path, problems: Sequence[Problem]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (json.dumps({"question": one.question, "answer": one.solution}) for one in problems)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def _tokenizer(options: argparse.Namespace, known: Sequence[Problem]) -> str:
    """The one that was asked for, or one trained on the problems, which the text before them is to use, too."""
    if options.tokenizer != "train":
        return str(options.tokenizer)
    path = options.runs / "tokenizer.json"
    texts = (f"Question: {one.question}\nAnswer: {one.solution}" for one in known)
    size = settings_of(options, SMALL, SMOKE, steps=1).data.vocab_size
    Tokenizer.train(texts, size).save(path)
    return str(path)


def _write_smoke_text(options: argparse.Namespace) -> None:
    """Sums in the form of GSM8K, and fables to read before them."""
    sums = [(a, b) for a in range(2, 6) for b in range(3, 6)]
    asked = ((f"{a} hens lay {b} eggs each. How many?", a, b) for a, b in sums)
    problems = [Problem(text, f"{a}*{b}={a * b}.\n#### {a * b}", Fraction(a * b)) for text, a, b in asked]
    options.train = str(_write_problems(options.runs / "sums.jsonl", problems))
    options.pretrain = str(write_fables(options.runs / "fables.txt", 30))


def _percent(value: float, error: float | None, chance: float | None = None) -> str:
    cell = f"{value:.2%}" + ("" if error is None else f" ± {error:.2%}")
    return cell if chance is None else f"{cell} (by chance {chance:.2%})"
