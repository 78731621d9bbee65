"""The zero-shot suite under LTM, AR and MDLM of equal parameters and tokens, each by its comparable protocol."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.reproduce.models import (
    TITLES,
    mean_difference,
    options_of_training,
    settings_of,
    spent,
    spent_table,
    train,
)
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
from ltm_pyro.data import Data
from ltm_pyro.data.fables import generate
from ltm_pyro.evaluation import bits_per_character, characters, perplexities, words
from ltm_pyro.evaluation.protocols import Report
from ltm_pyro.evaluation.zero_shot import SuiteCorpus, score_corpus, suite_corpora
from ltm_pyro.training import LoadedRun

# Sized for one core: a vocabulary small enough that the decoder, not the softmax, has the work.
SMALL: dict[str, Any] = {
    "data.sequence_length": 256,
    "data.layout": "packed",
    "data.documents": None,
    "data.vocab_size": 4096,
    "decoder.layers": 3,
    "decoder.num_thoughts": 12,
    "training.dtype": "bfloat16",
    "training.eval_sequences": 8,
}
SMOKE: dict[str, Any] = {
    "data.sequence_length": 64,
    "data.vocab_size": 300,
    "decoder.hidden": 16,
    "decoder.heads": 2,
    "decoder.num_thoughts": 3,
    "decoder.thought_width": 8,
    "training.dtype": "float32",
    "training.batch_size": 2,
    "training.warmup_steps": 1,
    "training.eval_sequences": 2,
    "training.steps": 2,
}
PROTOCOLS = {"ltm": ("prequential", "elbo", "reconstruction"), "ar": ("likelihood",), "mdlm": ("nelbo",)}


def main(arguments: list[str]) -> None:
    """Trains, scores and writes zero-shot.{json,md,svg}."""
    parser = parser_of("zero-shot", __doc__.splitlines()[0])
    parser.add_argument("--train", metavar="SOURCE", help="a file or folder of text (a smoke run writes its own)")
    parser.add_argument(
        "--validation", metavar="SOURCE", help="text that is not in --train (default: documents held out)"
    )
    parser.add_argument("--tokenizer", default="train", metavar="T", help="path or hub name (default: train one)")
    parser.add_argument("--suite-data", metavar="FOLDER", help="the suite's corpora as files (default: the hub's)")
    options_of_training(parser)
    parser.add_argument("--samples", type=int, default=16, help="draws of z")
    parser.add_argument("--masks", type=int, default=32, help="masks of MDLM for each sequence")
    parser.add_argument("--eval-steps", type=int, default=16, help="T_fast at evaluation")
    parser.add_argument("--block-size", type=int, default=32, help="tokens of a block of prequential")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences scored at once")
    parser.add_argument("--max-sequences", type=int, help="of each corpus (default: all)")
    options = options_of(parser, arguments)
    if options.smoke:
        _write_smoke_text(options)
        options.samples, options.masks, options.eval_steps, options.max_sequences = 2, 2, 1, 2
    if not options.train:
        parser.error("--train names the text to train on")
    base = settings_of(options, SMALL, SMOKE, steps=240).updated(
        {"data.source": options.train, "data.validation": options.validation, "data.tokenizer": options.tokenizer}
    )
    data = read_data(base)
    corpora = suite_corpora(Path(options.suite_data) if options.suite_data else None)
    trainings, rows = [], []
    for model in PROTOCOLS:
        folder = options.runs / f"{model}-{options.seed}"
        run = train(base, data, model, folder)
        trainings.append(spent(run, folder))
        rows += score_model(run, data, corpora, options)
    result: dict[str, Any] = {"title": "Zero-shot suite and three kinds of model", "options": plain(options)}
    result |= {"settings": base.to_dict(), "trainings": trainings, "rows": rows}
    write(options, result, table, draw)


def score_model(
    run: LoadedRun, data: Data, corpora: Mapping[str, SuiteCorpus], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for the validation text and for each corpus of the suite."""
    model = run.language_model
    how: dict[str, Any] = {
        "protocols": PROTOCOLS[model.kind],
        "samples": {"ltm": options.samples, "ar": 1, "mdlm": options.masks}[model.kind],
        "block_size": options.block_size,
        "fast_steps": options.eval_steps,
        "batch_size": options.batch_size,
        "seed": options.seed,
    }
    indices = range(min(len(data.validation), options.max_sequences or len(data.validation)))
    report = model.evaluate(data.validation, indices, **how)
    row = {"corpus": "validation", "title": "validation text", **report.to_dict()}
    row |= bits_per_character(report, characters(data.validation, indices, run.tokenizer))
    row |= perplexities(report, words(data.validation, indices, run.tokenizer))
    if "reconstruction" in row:
        row["reconstruction_exp_without_kl"] = math.exp(row["reconstruction"])
    rows = [{"model": model.kind, **row, **_nats(report, model.comparable)}]
    for corpus in corpora.values():
        sequences = corpus.sequences(run.tokenizer, model.max_length)
        scored = score_corpus(model, run.tokenizer, corpus, sequences, max_sequences=options.max_sequences, **how)
        rows.append({"model": model.kind, **scored.to_dict(), **_nats(scored.report, model.comparable)})
        print(f"{model.kind} {corpus.spec.title}: {rows[-1][model.comparable]:.4f} nats per token", flush=True)
    return rows


def table(result: dict[str, Any]) -> str:
    """Every corpus under every model, then what is no probability, as Markdown."""
    rows, options = result["rows"], result["options"]
    lines = [f"# {result['title']}", "", *spent_table(result["trainings"]), ""]
    lines += [
        "| corpus | model | protocol | nats per token | − AR, same sequences | perplexity per token | per word "
        "| bits per character |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda r: list(dict.fromkeys(x["corpus"] for x in rows)).index(r["corpus"])):
        name, bound = row["protocol"], "≤ " if row["protocol"] == "nelbo" else ""
        other = next(r for r in rows if (r["model"], r["corpus"]) == ("ar", row["corpus"]))
        gap, error = mean_difference(row["nats"], other["nats"], row["num_scored"])
        cells = [f"{bound}{row[name]:.4f}{_error(row[f'{name}_se'])}"]
        cells.append("" if row["model"] == "ar" else f"{gap:+.4f} ± {error:.4f}")
        for key, digits in ((f"{name}_perplexity", 2), (f"{name}_perplexity_per_word", 1)):
            cells.append(_cell(row[key], digits, bound))
        cells.append(_cell(row[f"{name}_bits_per_character"], 4, bound))
        lines.append(f"| {row['title']} | {TITLES[row['model']]} | {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "`likelihood` is exact, `prequential` a probability, `nelbo` an upper bound (≤), so these three compare. Per "
        "word counts the corpus's own words. ± is the standard error over sequences, of the difference as well; the "
        "seed of training is in none of them.",
        "",
        "Of the LTM also what its thoughts, fitted to the scored text itself, make of it. **`reconstruction` leaves "
        "the KL out: it is no bound, no probability, and its exponential no perplexity.** It stands here because the "
        "paper's row for T_fast = 16 can be nothing else.",
        "",
        "| corpus | reconstruction | exp(reconstruction), without the KL | kl | elbo, a bound |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in (row for row in rows if row["model"] == "ltm"):
        lines.append(
            f"| {row['title']} | {row['reconstruction']:.4f} | {row['reconstruction_exp_without_kl']:.2f} "
            f"| {row['kl']:.4f} | ≤ {row['elbo']:.4f}{_error(row['elbo_se'])} |"
        )
    told = [row for row in rows if "last_word_accuracy" in row]
    if told:
        lines += [
            "",
            "| LAMBADA's last word | accuracy | perplexity per word | passages |",
            "| --- | --- | --- | --- |",
        ]
    for row in told:
        bound = "≤ " if row["last_word_is_upper_bound"] else ""
        lines.append(
            f"| {TITLES[row['model']]} | {row['last_word_accuracy']:.4f}{_error(row['last_word_accuracy_se'])} "
            f"| {_cell(row['last_word_perplexity'], 2, bound)} | {row['passages']} |"
        )
    scored = options["max_sequences"]
    lines += [
        "",
        f"Seed {options['seed']}; {f'the first {scored}' if scored else 'all'} sequences of a corpus, packed. LTM: "
        f"T_fast = {options['eval_steps']}, S = {options['samples']}, `prequential` in blocks of "
        f"{options['block_size']}. MDLM: {options['masks']} masks a sequence.",
        "",
        machine_line(result),
        "",
    ]
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Bits per character of every corpus under every model."""
    from matplotlib.figure import Figure

    titles = list(dict.fromkeys(row["title"] for row in result["rows"]))
    figure = Figure(figsize=(7, 0.5 * len(titles) + 1.4), layout="constrained")
    axis = figure.subplots()
    for shift, (model, colour) in zip((-0.2, 0, 0.2), _COLOURS.items(), strict=True):
        rows = [row for row in result["rows"] if row["model"] == model]
        values = [row[f"{row['protocol']}_bits_per_character"] or math.nan for row in rows]
        places = [titles.index(row["title"]) + shift for row in rows]
        axis.plot(values, places, "o", color=colour, label=f"{TITLES[model]} ({rows[0]['protocol']})")
    axis.set_yticks(range(len(titles)), titles)
    axis.invert_yaxis()
    axis.set_xlabel("bits per character")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    save_svg(figure, path)


_COLOURS = {"ltm": "#0072B2", "ar": "#D55E00", "mdlm": "#009E73"}


def _nats(report: Report, protocol: str) -> dict[str, Any]:
    values = [round(value, 4) for value in report.values[protocol].tolist()]
    return {"protocol": protocol, "num_scored": report.num_scored.tolist(), "nats": values}


def _write_smoke_text(options: argparse.Namespace) -> None:
    """Fables to train on, and two corpora of the suite in its own file formats."""
    options.train = str(write_fables(options.runs / "train.txt", 40))
    options.validation = str(write_fables(options.runs / "validation.txt", 10, split="validation"))
    folder = options.runs / "suite"
    folder.mkdir(exist_ok=True)
    texts = [" ".join(fable.text.split()) for fable in generate(4, seed=1, split="validation")]
    (folder / "ptb.txt").write_text("".join(f" {text.lower()} \n" for text in texts), encoding="utf-8")
    passages = (json.dumps({"text": " ".join(text.split()[:16]).rstrip(".,")}) for text in texts)
    (folder / "lambada.jsonl").write_text("\n".join(passages) + "\n", encoding="utf-8")
    options.suite_data = str(folder)


def _error(value: float | None) -> str:
    return "" if value is None else f" ± {value:.4f}"


def _cell(value: float | None, digits: int, mark: str = "") -> str:
    return "–" if value is None else mark + (f"{value:.{digits}f}" if value < 1e5 else f"{value:.2e}")
