"""``ltm-pyro generation``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from ltm_pyro.cli.options import (
    allow_custom_code_option,
    column_option,
    device_option,
    fast_steps_option,
    json_option,
    run_argument,
    sampling_options,
    seed_option,
)

if TYPE_CHECKING:
    from ltm_pyro.evaluation.generation.second_model import SecondModel
    from ltm_pyro.training import LoadedRun

__all__ = ["command"]


@click.command()
@run_argument
@click.option("--data", metavar="SOURCE", help="Real texts (default: the run's own validation text).")
@column_option
@click.option("--num", type=click.IntRange(min=1), default=100, show_default=True, metavar="K", help="Texts to write.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    metavar="M",
    help="Most tokens of a text.",
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="P",
    help="Continue the first P tokens of the real documents; 0 writes without a prompt.",
)
@sampling_options
@click.option(
    "--unit",
    type=click.Choice(["words", "tokens"]),
    default="words",
    show_default=True,
    help="What the statistics count.",
)
@click.option("--self-bleu", "with_self_bleu", is_flag=True, help="Also self-BLEU-4 (needs the extra bleu).")
@click.option(
    "--mauve",
    "featurizer",
    metavar="MODEL",
    help="Also MAUVE, by the features of MODEL: a run, a transformers folder, or self (needs the extra mauve).",
)
@click.option("--mauve-buckets", type=click.IntRange(min=2), metavar="B", help="Clusters of MAUVE (default: K / 10).")
@click.option(
    "--mauve-seeds", type=click.IntRange(min=1), default=5, show_default=True, metavar="R", help="Clusterings of MAUVE."
)
@click.option(
    "--second-model", "judge", metavar="MODEL", help="Also generative perplexity under MODEL, named as for --mauve."
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="S",
    help="Draws of z per block, where the second model is a run.",
)
@click.option(
    "--texts",
    "texts_file",
    type=click.Path(),
    metavar="FILE",
    help="Write the texts there, a JSON object a line.",
)
@fast_steps_option
@seed_option
@device_option
@allow_custom_code_option
@json_option
def command(
    run: str,
    num: int,
    max_tokens: int,
    prompt_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    data: str | None,
    column: str | None,
    unit: str,
    with_self_bleu: bool,
    featurizer: str | None,
    mauve_buckets: int | None,
    mauve_seeds: int,
    judge: str | None,
    samples: int,
    texts_file: str | None,
    fast_steps: int | None,
    seed: int,
    device: str,
    allow_custom_code: bool,
    as_json: bool,
) -> None:
    """Compare texts of the model of RUN, a run directory or one of its checkpoints, with real ones.

    Every statistic is printed beside its value on as many real texts, cut at as many tokens: only the comparison means
    something. Without --prompt-tokens the model writes as ltm-pyro sample does without a prompt; with it, beginnings of
    documents are continued, and their own continuations are the real texts.

    \b
    Examples:
        ltm-pyro generation runs/tiny-fables
        ltm-pyro generation runs/tiny-fables --prompt-tokens 16 --temperature 0
        ltm-pyro generation runs/tiny-fables --second-model runs/other --self-bleu
    """
    from ltm_pyro.decoder import Sampling

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)

    from ltm_pyro.cli.render import console, notices, reading

    from ltm_pyro.data.files import optional_import
    from ltm_pyro.evaluation.generation import compare_features, compare_scores, compare_statistics, write_texts
    from ltm_pyro.evaluation.sources import validation_data
    from ltm_pyro.training import load_run

    loaded = load_run(run, device=device, allow_custom_code=allow_custom_code)
    model = loaded.language_model
    # Found before the long work, so that a mistyped name or a package that is not there costs nothing.
    for wanted, package, purpose, extra in (
        (with_self_bleu, "sacrebleu", "self-BLEU", "bleu"),
        (featurizer, "mauve", "MAUVE", "mauve"),
    ):
        if wanted:
            optional_import(package, purpose, extra)
    models: dict[str, SecondModel] = {
        name: _second_model(name, loaded, device, allow_custom_code, samples, seed)
        for name in {featurizer, judge} - {None}
        if name
    }
    if featurizer:
        models[featurizer].features(["."])  # refused here by a model that has none
    source = data or loaded.settings.data.validation or loaded.settings.data.source
    with notices.status(reading(source)):
        documents = validation_data(loaded.settings, loaded.tokenizer, data, column, class_names=loaded.class_names)
    with notices.status(f"Writing {num} texts"):
        texts = write_texts(
            model,
            loaded.tokenizer,
            documents,
            num=num,
            max_tokens=max_tokens,
            prompt_tokens=prompt_tokens,
            sampling=sampling,
            fast_steps=fast_steps,
            seed=seed,
        )
    if texts_file is not None:
        _write(Path(texts_file), texts.rows())
    parts = [compare_statistics(texts, unit="tokens" if unit == "tokens" else "words", self_bleu=with_self_bleu)]
    with notices.status("Comparing them"):
        if featurizer:
            parts.append(
                compare_features(texts, models[featurizer], buckets=mauve_buckets, seeds=mauve_seeds, seed=seed)
            )
        if judge:
            parts.append(compare_scores(texts, models[judge]))
    row: dict[str, Any] = {
        "run": run,
        "step": loaded.step,
        "model": model.kind,
        "data": source,
        "texts": num,
        "max_tokens": max_tokens,
        "prompt_tokens": prompt_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "fast_steps": model.about_inference(fast_steps).get("fast_steps"),
        "seed": seed,
    }
    for part in parts:
        sides = {side: row.get(side, {}) | part[side] for side in ("generated", "reference")}
        row |= part | sides
    if as_json:
        click.echo(json.dumps(row))
    else:
        _show(console, row)


def _second_model(
    name: str, loaded: LoadedRun, device: str, allow_custom_code: bool, samples: int, seed: int
) -> SecondModel:
    from ltm_pyro.errors import LTMError
    from ltm_pyro.evaluation.generation.huggingface import HuggingFaceModel, is_huggingface
    from ltm_pyro.evaluation.generation.second_model import RunModel
    from ltm_pyro.training import load_run

    if name != "self" and not Path(name).exists():
        raise LTMError(
            f"there is no model at {name}: give a run directory, a transformers folder (nothing is fetched), or self"
        )
    if name != "self" and is_huggingface(name):
        return HuggingFaceModel(name, device=loaded.device)
    other = loaded if name == "self" else load_run(name, device=device, allow_custom_code=allow_custom_code)
    return RunModel(other.language_model, other.tokenizer, name, samples=samples, seed=seed)


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    from ltm_pyro.errors import LTMError

    try:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise LTMError(f"cannot write the texts to {path}: {error.strerror}; choose another --texts") from error


def _show(out: Any, row: dict[str, Any]) -> None:
    """A table of every statistic beside that of the real texts, and what they were computed on."""
    from rich.table import Table

    unit = row["unit"]
    meaning = {
        "tokens_per_text": f"of {row['max_tokens']} at most",
        "ended": "share of texts",
        "unique_texts": "share of texts",
        **{f"distinct_{n}": f"share of {n}-grams" for n in (1, 2, 3, 4)},
        "repetition_4": "share of 4-grams",
        "repeated_units": f"share of {unit}",
        "entropy": "nats, in a text",
        "self_bleu_4": "1: all the same",
        "mauve": "1: no difference",
        "nats_per_token": "low if repetitive",
        "generative_perplexity": "its exponential",
    }
    table = Table(title=f"{row['run']}, step {row['step']}, beside {row['data']}")
    table.add_column(no_wrap=True)
    for header in ("generated", "reference", "what it is"):
        table.add_column(header)
    spread = {"mauve": "mauve_std", "nats_per_token": "nats_per_token_se"}
    for name, text in meaning.items():
        if name in row["generated"]:
            cells = (_cell(row[side][name], row[side].get(spread.get(name, ""))) for side in ("generated", "reference"))
            table.add_row(name, *cells, text)
    out.print(table)
    free = "from the prior" if row["model"] == "ltm" else "without a prompt"
    wrote = f"continuing {row['prompt_tokens']} tokens" if row["prompt_tokens"] else free
    drawn = "greedy" if row["temperature"] == 0 else f"temperature {row['temperature']:g}"
    cut = "".join(f", {name} {row[key]}" for name, key in (("top-k", "top_k"), ("top-p", "top_p")) if row[key])
    measured = f"; {unit}, distinct-n of {row['distinct_units']} a side"
    fit = f", T_fast = {row['fast_steps']}" if row["prompt_tokens"] and row["fast_steps"] is not None else ""
    out.print(f"{row['texts']} texts {wrote}, {drawn}{cut}{fit}, seed {row['seed']}{measured}", highlight=False)
    if "mauve" in row:
        about = row["mauve"]
        none = row["reference"]["mauve"] is None
        control = f"reference: {'too few' if none else 'that of'} other documents"
        out.print(
            f"MAUVE: features of {about['features']['model']}, {about['buckets']} buckets, "
            f"± over {about['seeds']} clusterings; {control}",
            highlight=False,
        )
    if "second_model" in row:
        about = row["second_model"]
        bound = "" if about["exact"] else ", an upper bound"
        drawn = "" if about["protocol"] == "likelihood" else f", S = {about['samples']}"
        fit = "" if about["fast_steps"] is None else f", T_fast = {about['fast_steps']}"
        blocks = "" if about["block_size"] is None else f", blocks of {about['block_size']}"
        out.print(
            f"second model: {about['model']}, {about['protocol']}{bound}{drawn}{fit}{blocks}, ± s.e. over texts",
            highlight=False,
        )


def _cell(value: float | None, spread: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"
