"""``ltm-pyro gsm8k``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from ltm_pyro.cli.options import (
    allow_custom_code_option,
    device_option,
    fast_steps_option,
    json_option,
    run_argument,
    sampling_options,
    seed_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console
    from rich.status import Status

    from ltm_pyro.evaluation.gsm8k import Solved

__all__ = ["command"]


@click.command()
@run_argument
@click.option(
    "--data",
    default="hf:openai/gsm8k/main",
    show_default=True,
    metavar="SOURCE",
    help="The problems: a .jsonl or .parquet file with question and answer, or a hub data set.",
)
@click.option("--examples", metavar="SOURCE", help="Where --shots come from (default: the training split of hf: data).")
@click.option(
    "--shots",
    multiple=True,
    type=click.IntRange(min=0),
    default=[0],
    show_default=True,
    metavar="N",
    help="Worked examples before each problem; may be repeated.",
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=5, show_default=True, metavar="S", help="Draws per problem."
)
@click.option(
    "--k",
    "ks",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="K",
    help="Report pass@K, K at most S; may be repeated (default: 1 and S).",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    metavar="M",
    help="Most tokens of an answer.",
)
@sampling_options
@click.option("--max-problems", type=click.IntRange(min=1), metavar="M", help="The first M problems (default: all).")
@click.option("--texts", type=click.Path(), metavar="FILE", help="Write the answers there, a JSON object a line.")
@fast_steps_option
@seed_option
@device_option
@allow_custom_code_option
@json_option
def command(
    run: str,
    data: str,
    examples: str | None,
    shots: tuple[int, ...],
    samples: int,
    ks: tuple[int, ...],
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    max_problems: int | None,
    texts: str | None,
    fast_steps: int | None,
    seed: int,
    device: str,
    allow_custom_code: bool,
    as_json: bool,
) -> None:
    """Solve GSM8K's problems with the model of RUN, a run directory or one of its checkpoints.

    z is inferred from the prompt, "Question: ...", "Answer:" after the worked examples; every answer has a draw of it.
    pass@k, the chance that one of k answers is right, is estimated without bias from the S draws.

    \b
    strict     the number after #### is the problem's
    flexible   that, or where there is none the last number of the text
    by chance  the same answers held against the other problems: what guessing
               brings

    \b
    Examples:
        ltm-pyro gsm8k runs/finetuned --shots 0 --shots 5
        ltm-pyro gsm8k runs/finetuned --data test.jsonl --samples 20 --k 5
    """
    from ltm_pyro.decoder import Sampling

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)

    from ltm_pyro.cli.render import console, notices

    from ltm_pyro.errors import LTMError
    from ltm_pyro.evaluation.gsm8k import load_problems, pass_rates, solve
    from ltm_pyro.training import load_run

    wanted = sorted(set(ks or (1, samples)))
    if wanted[-1] > samples:
        raise LTMError(f"--k {wanted[-1]} needs --samples {wanted[-1]} or more, got {samples}")
    told = examples or (data if data.startswith("hf:") else None)
    if any(shots) and told is None:
        raise LTMError("--shots needs --examples: a file of solved problems, such as the training ones")
    loaded = load_run(run, device=device, allow_custom_code=allow_custom_code)
    with notices.status("Preparing the data"):
        problems = load_problems(data, documents=max_problems)
        known = load_problems(told, split="train") if told is not None and any(shots) else []
    if texts is not None:
        _write(texts, "w")  # before the work, in case it cannot be
    results = []
    for count in sorted(set(shots)):
        with notices.status("Solving") as status:
            solved = solve(
                loaded.language_model,
                loaded.tokenizer,
                problems,
                shots=count,
                examples=known,
                samples=samples,
                max_tokens=max_tokens,
                sampling=sampling,
                fast_steps=fast_steps,
                seed=seed,
                progress=_counter(status, f"{count} shots: %d of {len(problems)} problems"),
            )
        if texts is not None:
            _write(texts, "a", count, solved)
        results.append({"shots": count, **pass_rates(solved, samples, wanted)})
    fast = loaded.language_model.about_inference(fast_steps).get("fast_steps")
    row: dict[str, Any] = {"run": run, "step": loaded.step, "model": loaded.language_model.kind, "data": data}
    row |= {"examples": told if known else None, "samples": samples, "k": wanted, "seed": seed, "fast_steps": fast}
    row |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_tokens": max_tokens, "results": results}
    if as_json:
        click.echo(json.dumps(row))
    else:
        _show(console, row)


def _counter(status: Status, words: str) -> Callable[[int], None]:
    return lambda done: status.update(words % done)


def _write(path: str, mode: str, shots: int = 0, solved: Sequence[Solved] = ()) -> None:
    """Starts the file of answers, or adds to it."""
    from ltm_pyro.errors import LTMError

    try:
        with Path(path).open(mode, encoding="utf-8") as file:
            for one in solved:
                row = {"shots": shots, "question": one.problem.question, "solution": one.problem.solution}
                row |= {"fitted": one.fitted, "texts": one.texts}
                row |= {extraction: one.correct(extraction) for extraction in ("strict", "flexible")}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise LTMError(f"cannot write {path}: {error.strerror}; choose another --texts") from error


def _show(out: Console, row: dict[str, Any]) -> None:
    """Prints pass@k by shots and extraction, and what settles the numbers."""
    from rich import box
    from rich.table import Table

    rates, kinds = [f"pass@{k}" for k in row["k"]], ("strict", "flexible")
    title = f"{row['data']} under {row['run']}, step {row['step']}"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("shots", "fitted", "too long", "with ####", "extraction", *(f"{rate}, %" for rate in rates)):
        table.add_column(heading, no_wrap=True)
    for result in row["results"]:
        fitted = result["fitted_shots"]
        about = [str(result["shots"]), "" if fitted is None else f"{fitted:.1f}", str(result["too_long"])]
        about.append(f"{result['marked_draws']} of {result['draws']}")
        for extraction in kinds:
            cells = [_percent(result[extraction][rate], result[extraction][f"{rate}_se"]) for rate in rates]
            table.add_row(*about, extraction, *cells)
            about = [""] * len(about)
            table.add_row(*about, "by chance", *(_percent(result[extraction][f"{rate}_chance"]) for rate in rates))
    out.print(table)
    if any(result[extraction][rate] == 0 for result in row["results"] for extraction in kinds for rate in rates):
        most = 100 * min(3 / row["results"][0]["problems"], 1)
        out.print(
            f"Where none is solved, ± 0 says nothing: the truth may be up to about {most:.2g} %.", highlight=False
        )
    kept = "".join(f", {name.replace('_', '-')} {row[name]}" for name in ("top_k", "top_p") if row[name] is not None)
    fit = "" if row["fast_steps"] is None else f"T_fast = {row['fast_steps']}, "
    out.print(
        f"{row['results'][0]['problems']} problems, {row['samples']} draws each, {fit}"
        f"seed {row['seed']}, temperature {row['temperature']:g}{kept}, at most {row['max_tokens']} tokens",
        highlight=False,
    )


def _percent(value: float | None, error: float | None = None) -> str:
    shown = "" if value is None else f"{100 * value:.1f}"
    return shown if error is None else f"{shown} ± {100 * error:.1f}"
