"""Generated fables of LTM, AR and MDLM beside real ones, and how many of them the grammar knows."""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.reproduce.models import TITLES, options_of_training, settings_of, spent, spent_table, train
from benchmarks.reproduce.recipe import machine_line, options_of, parser_of, plain, read_data, save_svg, write
from ltm_pyro.data.fables import derived, log_prob
from ltm_pyro.decoder.sampling import Sampling
from ltm_pyro.evaluation.generation import (
    WrittenTexts,
    compare_features,
    compare_scores,
    compare_statistics,
    write_texts,
)
from ltm_pyro.evaluation.generation.second_model import RunModel

# The benchmarks' small decoder, on sequences that hold a whole fable.
SMALL: dict[str, Any] = {
    "data.sequence_length": 448,
    "data.vocab_size": 2048,
    "data.documents": 2500,
    "data.validation_fraction": 0.08,
    "decoder.hidden": 64,
    "decoder.num_thoughts": 4,
    "decoder.thought_width": 16,
    "training.batch_size": 8,
    "training.slow_lr": 3e-3,
    "training.eval_sequences": 16,
}
SMOKE: dict[str, Any] = {
    "data.sequence_length": 64,
    "data.documents": 60,
    "data.validation_fraction": 0.2,
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
STATISTICS = {
    "tokens_per_text": "tokens",
    "ended": "ended",
    "unique_texts": "unique",
    "distinct_1": "distinct-1",
    "distinct_4": "distinct-4",
    "repetition_4": "seq-rep-4",
    "self_bleu_4": "self-BLEU",
    "mauve": "MAUVE",
    "generative_perplexity": "gen. ppl",
}
GRAMMAR = {"parsed": "parsed", "derived": "derived", "nats_per_parsed_text": "−log p of those"}


def main(arguments: list[str]) -> None:
    """Trains, writes texts, compares them and writes generation.{json,md,svg}."""
    parser = parser_of("generation", __doc__.splitlines()[0])
    parser.add_argument("--data", default="fables", metavar="SOURCE", help="other text (default: fables)")
    options_of_training(parser)
    parser.add_argument("--second-steps", type=int, default=400, help="of the second model")
    parser.add_argument("--num", type=int, default=32, help="texts of each kind")
    parser.add_argument("--max-tokens", type=int, default=384, help="of a text; what has fewer has ended by itself")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="of a document, where they are continued")
    parser.add_argument("--sampling-steps", type=int, default=32, help="evaluations of MDLM for a text")
    parser.add_argument("--mauve-seeds", type=int, default=5, help="clusterings")
    options = options_of(parser, arguments)
    if options.smoke:
        options.num, options.max_tokens, options.prompt_tokens, options.sampling_steps = 4, 24, 4, 4
        options.mauve_seeds, options.second_steps = 1, 2
    base = settings_of(options, SMALL, SMOKE, steps=200).updated({"data.source": options.data})
    data = read_data(base)
    other = base.updated({"training.seed": options.seed + 1, "training.steps": options.second_steps})
    folder = options.runs / f"second-{options.seed + 1}"
    second_run = train(other, read_data(other), "ar", folder)
    second = RunModel(second_run.language_model, second_run.tokenizer, f"AR of seed {options.seed + 1}", batch_size=32)
    trainings = [{"title": "AR of another seed, the second model", **spent(second_run, folder)}]
    runs = {}
    for model in TITLES:
        settings = base.updated({"model.name": model})
        if model == "mdlm":
            settings = settings.updated({"model.sampling_steps": options.sampling_steps})
        folder = options.runs / f"{model}-{options.seed}"
        runs[model] = train(settings, data, model, folder)
        trainings.append(spent(runs[model], folder))
    rows = []
    for prompt, temperature in ((0, 1.0), (0, 0.0), (options.prompt_tokens, 1.0), (options.prompt_tokens, 0.0)):
        for model, run in runs.items():
            texts = write_texts(
                run.language_model,
                run.tokenizer,
                data.validation,
                num=options.num,
                max_tokens=options.max_tokens,
                prompt_tokens=prompt,
                sampling=Sampling(temperature=temperature),
                seed=options.seed,
            )
            found = compare(texts, second, options)
            form = {"model": model, "prompt_tokens": prompt, "temperature": temperature}
            rows.append({**form, **found, "texts": texts.rows()[:2]})
            print(f"{model}, prompt {prompt}, temperature {temperature}: {rows[-1]['generated']}", flush=True)
    result = {"title": "Generated fables beside real ones", "options": plain(options), "settings": base.to_dict()}
    write(options, result | {"trainings": trainings, "rows": rows}, table, draw)


def compare(texts: WrittenTexts, second: RunModel, options: argparse.Namespace) -> dict[str, Any]:
    """All statistics of the generated and the reference texts; those of packages that are not there are left out."""
    parts = [
        compare_statistics(texts, self_bleu=importlib.util.find_spec("sacrebleu") is not None),
        compare_scores(texts, second),
    ]
    if importlib.util.find_spec("mauve") is not None:
        parts.append(compare_features(texts, second, seeds=options.mauve_seeds, seed=options.seed))
    if options.data == "fables":
        sides = {"generated": texts.generated, "reference": texts.reference}
        parts.append({name: grammar(texts, side) for name, side in sides.items()})
    row: dict[str, Any] = {}
    for part in parts:
        row |= part | {side: row.get(side, {}) | part[side] for side in ("generated", "reference")}
    return row


def grammar(texts: WrittenTexts, side: Sequence[list[int]]) -> dict[str, float | int | None]:
    """What the fables' generator says of texts, prompts included.

    ``parsed``: share that are whole fables, ``parsed_se`` its standard error; ``derived``: the mean share of a text's
    characters before its first fault; ``nats_per_parsed_text``: the mean exact -log p of those that are whole, None
    where there is none.
    """
    whole = [texts.tokenizer.decode([*prompt, *text]) for prompt, text in zip(texts.prompts, side, strict=True)]
    values = [log_prob(text) for text in whole]
    known = [-value for value in values if value > -math.inf]
    share = len(known) / len(whole)
    return {
        "parsed": share,
        "parsed_se": math.sqrt(share * (1 - share) / len(whole)),
        "derived": statistics.fmean(derived(text) / max(len(text), 1) for text in whole),
        "nats_per_parsed_text": statistics.fmean(known) if known else None,
    }


def table(result: dict[str, Any]) -> str:
    """Every form of generation: each model's statistics, and the reference texts' last, as Markdown."""
    rows, options = result["rows"], result["options"]
    shown = {**STATISTICS, **(GRAMMAR if options["data"] == "fables" else {})}
    shown = {name: title for name, title in shown.items() if name in rows[0]["generated"]}
    lines = [f"# {result['title']}", "", *spent_table(result["trainings"])]
    for form in dict.fromkeys((row["prompt_tokens"], row["temperature"]) for row in rows):
        prompt, temperature = form
        found = [row for row in rows if (row["prompt_tokens"], row["temperature"]) == form]
        about = f"The first {prompt} tokens of a document continued" if prompt else "From the prior"
        lines += ["", f"## {about}, {'multinomial' if temperature else 'greedy'}", ""]
        lines += [f"| | {' | '.join(shown.values())} |", f"| --- |{' --- |' * len(shown)}"]
        sides = [(TITLES[row["model"]], row["generated"]) for row in found] + [("*real texts*", found[0]["reference"])]
        for title, side in sides:
            lines.append(f"| {title} | {' | '.join(_cell(name, side) for name in shown)} |")
    lines += ["", *_notes(result, shown), "", machine_line(result), ""]
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Of texts from the prior: distinct-4 against generative perplexity, and the share that the grammar derives."""
    from matplotlib.figure import Figure

    colours = {"ltm": "#0072B2", "ar": "#D55E00", "mdlm": "#009E73"}
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for row in result["rows"]:
        filled = colours[row["model"]] if row["temperature"] else "none"
        label = f"{TITLES[row['model']]}, {'multinomial' if row['temperature'] else 'greedy'}"
        axis.scatter(
            row["generated"]["generative_perplexity"],
            row["generated"]["distinct_4"],
            marker="s" if row["prompt_tokens"] else "o",
            facecolor=filled,
            edgecolor=colours[row["model"]],
            label=None if row["prompt_tokens"] else label,
        )
    for prompt in dict.fromkeys(row["prompt_tokens"] for row in result["rows"]):
        real = next(r["reference"] for r in result["rows"] if r["prompt_tokens"] == prompt)
        place = real["generative_perplexity"], real["distinct_4"]
        axis.scatter(*place, marker="s" if prompt else "o", color="black", label=None if prompt else "real texts")
    axis.set_xscale("log")
    axis.set_xlabel("generative perplexity (squares: with a prompt)")
    axis.set_ylabel("distinct-4")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    save_svg(figure, path)


def _notes(result: dict[str, Any], shown: dict[str, str]) -> list[str]:
    options, row = result["options"], result["rows"][0]
    second = row["second_model"]
    bound = "" if second["exact"] else ", an upper bound"
    notes = [
        f"{options['num']} texts a cell of at most {options['max_tokens']} tokens, seed {options['seed']}; words are "
        "counted. Every number depends on the number and length of the texts: only the comparison with the real texts "
        "says anything. gen. ppl is exp of the nats per token of the texts (not of the model) under the second model, "
        f"by {second['protocol']}{bound}; texts that repeat themselves have the lowest. MDLM takes "
        f"{options['sampling_steps']} evaluations a text, fills {options['max_tokens']} masks, and is cut at its first "
        "end of text."
    ]
    if "mauve" in row:
        notes += [
            "",
            f"MAUVE: features of the second model, {row['mauve']['buckets']} clusters, ± over "
            f"{row['mauve']['seeds']} clusterings; of the real texts: other documents beside these. It compares with "
            "no other MAUVE.",
        ]
    if "parsed" in shown:
        notes += [
            "",
            "parsed: share of the texts that are whole fables, exactly, ± its standard error. derived: mean share of a "
            "text's characters before its first fault. −log p of those: mean of the generator's exact nats for a whole "
            "fable; of real texts, those that were cut are not parsed, either.",
        ]
    return notes


def _cell(name: str, side: dict[str, Any]) -> str:
    value = side[name]
    if value is None:
        return "–"
    spread = side.get({"mauve": "mauve_std", "parsed": "parsed_se"}.get(name, ""))
    digits = 1 if name in ("tokens_per_text", "nats_per_parsed_text", "generative_perplexity") else 3
    return f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")
