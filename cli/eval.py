"""``ltm-pyro eval``."""

from __future__ import annotations

import json
from typing import Any

import click
from ltm_pyro.cli.options import (
    allow_custom_code_option,
    batch_size_option,
    column_option,
    device_option,
    fast_steps_option,
    json_option,
    run_argument,
    seed_option,
)

__all__ = ["command"]


_PROTOCOLS = ("elbo", "reconstruction", "iwae", "prequential", "likelihood", "nelbo")


def _protocols(context: click.Context, option: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuses what is none; what has been reported as one, with the reason."""
    for name in names:
        if name not in _PROTOCOLS:
            from ltm_pyro.evaluation.protocols import refuse_flattery

            refuse_flattery([name])
            raise click.BadParameter(f"{name!r} is not one of {', '.join(_PROTOCOLS)}")
    return names


@click.command()
@run_argument
@click.option("--data", metavar="SOURCE", help="What to score (default: the run's own validation text).")
@column_option
@click.option(
    "--suite",
    type=click.Choice(["zero-shot"]),
    help="Score a suite of corpora instead: from the folder --data, else from the hub.",
)
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    metavar="P",
    callback=_protocols,
    help="One of those above; may be repeated (default: elbo and reconstruction; of a baseline, the one it has).",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="S",
    help="Draws of z (of the masks, for mdlm) per sequence.",
)
@click.option(
    "--block-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="Tokens between two inferences of prequential.",
)
@click.option(
    "--information",
    "informed",
    is_flag=True,
    help="Also: active units, KL per layer, I(x; z); fits once more.",
)
@click.option(
    "--max-sequences",
    type=click.IntRange(min=1),
    metavar="M",
    help="Score the first M sequences (default: all).",
)
@batch_size_option
@fast_steps_option
@seed_option
@device_option
@allow_custom_code_option
@json_option
def command(
    run: str,
    data: str | None,
    suite: str | None,
    column: str | None,
    protocols: tuple[str, ...],
    samples: int,
    block_size: int,
    informed: bool,
    max_sequences: int | None,
    batch_size: int,
    fast_steps: int | None,
    seed: int,
    device: str,
    allow_custom_code: bool,
    as_json: bool,
) -> None:
    """Score the model of RUN, a run directory or one of its checkpoints, in nats per token.

    \b
    elbo            an upper bound on -log p(x): reconstruction plus KL, on noise
                    drawn after the fit
    reconstruction  how well the thoughts encode the text: the KL is left out, so
                    it is no bound and compares with no other model's loss
    iwae            a tighter upper bound from S importance-weighted draws
                    (--samples 100), with the Pareto k-hat of the weights
    prequential     thoughts inferred from the tokens before each block score the
                    block: compares with an autoregressive model's perplexity
    likelihood      of ar, an autoregressive baseline: -log p(x), exact
    nelbo           of mdlm, masked diffusion: an upper bound on -log p(x) given
                    its length, by S draws of the masks

    \b
    Examples:
        ltm-pyro eval runs/tiny-fables --samples 4
        ltm-pyro eval runs/tiny-fables --data other.txt --protocol elbo --json
        ltm-pyro eval runs/tiny-fables --protocol prequential --samples 8
        ltm-pyro eval runs/web --suite zero-shot --data corpora/ --samples 8

    With --suite the default is the protocol that compares between models: prequential, or a baseline's own.
    """
    if suite is not None:
        from ltm_pyro.cli.suite import run_suite

        run_suite(
            run,
            data,
            column,
            protocols,
            informed=informed,
            device=device,
            allow_custom_code=allow_custom_code,
            as_json=as_json,
            samples=samples,
            block_size=block_size,
            max_sequences=max_sequences,
            batch_size=batch_size,
            fast_steps=fast_steps,
            seed=seed,
        )
        return
    from ltm_pyro.cli.render import console, notices, reading, show_report

    from ltm_pyro.evaluation import (
        bits_per_character,
        characters,
        generator_entropy,
        information,
        perplexities,
        validation_data,
        words,
    )
    from ltm_pyro.evaluation.together import evaluate_together
    from ltm_pyro.ranks import present_ranks
    from ltm_pyro.training import load_run

    ranks = present_ranks()
    loaded = load_run(run, device=device, allow_custom_code=allow_custom_code)
    model = loaded.language_model
    chosen = model.choose(protocols or None)
    if informed:
        loaded.svi  # noqa: B018 - refuses a model without thoughts before the long work
    source = data or loaded.settings.data.validation or loaded.settings.data.source
    with notices.status(reading(source)):
        sequences = ranks.main_first(
            lambda: validation_data(loaded.settings, loaded.tokenizer, data, column, class_names=loaded.class_names)
        )
    indices = range(min(len(sequences), max_sequences or len(sequences)))
    options: dict[str, Any] = {
        "samples": samples,
        "fast_steps": fast_steps,
        "batch_size": batch_size,
        "seed": seed,
    }
    with notices.status(f"Scoring {len(indices)} sequences"):
        report = evaluate_together(
            model, sequences, indices, ranks=ranks, protocols=chosen, block_size=block_size, **options
        )
    row = {"run": run, "step": loaded.step, "model": model.kind, "data": source, **report.to_dict()}
    row |= bits_per_character(report, characters(sequences, indices, loaded.tokenizer))
    row |= perplexities(report, words(sequences, indices, loaded.tokenizer))
    if informed:
        with notices.status("Comparing the posteriors"):
            options |= {"fast_lr": loaded.fast_lr, "device": loaded.device}
            row |= information(loaded.svi, sequences, indices, **options).to_dict()
    if source == "fables":
        row["generator_entropy"] = generator_entropy(sequences, indices, loaded.tokenizer)
    if as_json:
        click.echo(json.dumps(row))
    else:
        show_report(console, row, chosen)
