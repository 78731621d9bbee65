"""``ltm-pyro eval --suite zero-shot``: runs the suite and shows what it found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["run_suite", "show_suite"]


def run_suite(
    run: str,
    folder: str | None,
    column: str | None,
    protocols: Sequence[str],
    *,
    informed: bool,
    device: str,
    allow_custom_code: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Scores every corpus that is there under the model of a run; further options are those of `score_corpus`.

    Raises:
        LTMError: no corpus is there, or one that is there cannot be scored.
    """
    from ltm_pyro.cli.render import console, notices

    from ltm_pyro.data.cache import known_cache
    from ltm_pyro.errors import LTMError
    from ltm_pyro.evaluation.zero_shot import CORPORA, score_corpus, suite_corpora
    from ltm_pyro.training import load_run

    if informed:
        raise click.UsageError("--information compares the posteriors of one text: leave it or --suite out")
    loaded = load_run(run, device=device, allow_custom_code=allow_custom_code)
    model, tokenizer = loaded.language_model, loaded.tokenizer
    chosen = model.choose(list(protocols) or [model.comparable])  # click has checked the names
    cache_dir = known_cache(loaded.settings.data.cache_dir)
    corpora = suite_corpora(None if folder is None else Path(folder), column=column)
    rows, missing = [], {name: f"not in {folder}" for name in CORPORA if name not in corpora}
    for name, corpus in corpora.items():
        with notices.status(f"{corpus.spec.title}: preparing {corpus.name}"):
            try:
                data = corpus.sequences(tokenizer, model.max_length, cache_dir=cache_dir)
                corpus.words  # noqa: B018 - read and kept now, so that no connection breaks off a finished corpus
            except LTMError as error:
                if folder is not None:
                    raise
                missing[name] = str(error)  # what the hub does not have today must not cost the other corpora
                continue
        with notices.status(f"{corpus.spec.title}: scoring {corpus.name}"):
            rows.append(score_corpus(model, tokenizer, corpus, data, protocols=chosen, **options).to_dict())
    if not rows:
        first = next(iter(missing.values()))
        raise LTMError(f"none of the suite's corpora can be had: give a folder of them as --data; the first: {first}")
    report = {
        "run": run,
        "step": loaded.step,
        "model": model.kind,
        "suite": "zero-shot",
        "protocols": list(chosen),
        "corpora": rows,
        "missing": missing,
    }
    if as_json:
        click.echo(json.dumps(report))
    else:
        show_suite(console, report)


def show_suite(out: Console, report: Mapping[str, Any]) -> None:
    """Prints the suite as one table: a line for every corpus and protocol, then what the numbers are."""
    title = f"zero-shot under {report['run']} ({report['model']}), step {report['step']}"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("corpus", "protocol", "nats/tok", "± s.e.", "bits/char", "ppl/token", "ppl/word"):
        table.add_column(heading, justify="left" if heading in ("corpus", "protocol") else "right", no_wrap=True)
    for row in report["corpora"]:
        for name in report["protocols"]:
            mark = "≤ " if name in row["upper_bounds"] else ""
            table.add_row(
                row["title"],
                name,
                _cell(row[name], 4),
                _cell(row[f"{name}_se"], 4),
                _cell(row.get(f"{name}_bits_per_character"), 4, mark),
                _cell(row.get(f"{name}_perplexity"), 2, mark),
                _cell(row.get(f"{name}_perplexity_per_word"), 2, mark),
            )
    out.print(table)
    for row in report["corpora"]:
        words = f"{'about ' if row['words_estimated'] else ''}{row['words']:,.0f} words"
        size = f"{row['sequences']:,} sequences, {row['tokens']:,} tokens, {words}"
        out.print(f"{row['title']}: {size}, from {row['data']}", highlight=False, soft_wrap=True)
    for row in (row for row in report["corpora"] if "last_word_accuracy" in row):
        error = row["last_word_accuracy_se"]
        mark = "≤ " if row["last_word_is_upper_bound"] else ""
        out.print(
            f"{row['title']} last word: accuracy {row['last_word_accuracy']:.4f}"
            f"{'' if error is None else f' ± {error:.4f}'}, perplexity {_cell(row['last_word_perplexity'], 2, mark)}, "
            f"{row['passages']} passages",
            highlight=False,
        )
    for row in (row for row in report["corpora"] if row.get("reconstruction_exp_without_kl") is not None):
        value = row["reconstruction_exp_without_kl"]
        out.print(f"{row['title']} exp(reconstruction), KL left out, no perplexity: {value:.2f}", highlight=False)
    first = report["corpora"][0]
    blocks = f", blocks of {first['block_size']}" if "block_size" in first else ""
    steps = "" if first["fast_steps"] is None else f"T_fast = {first['fast_steps']}, "
    out.print(
        f"{first['layout']}; S = {first['samples']}, {steps}seed {first['seed']}{blocks}",
        highlight=False,
    )
    for name, reason in report["missing"].items():
        out.print(f"missing: {name} ({reason})", highlight=False, soft_wrap=True)


def _cell(value: float | None, digits: int, mark: str = "") -> str:
    if value is None:
        return "–"
    return mark + (f"{value:.{digits}f}" if value < 1e5 else f"{value:.{digits}e}")
