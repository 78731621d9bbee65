"""``ltm-pyro probe``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from ltm_pyro.evaluation.probes import FittedThoughts

__all__ = ["command"]


@click.command()
@run_argument
@click.option("--data", metavar="SOURCE", help="What to probe with (default: the run's own validation text).")
@column_option
@click.option(
    "--probe",
    "probes",
    multiple=True,
    type=click.Choice(["layers", "swap", "interpolate"]),
    metavar="P",
    help="layers, swap or interpolate; may be repeated (default: all).",
)
@click.option(
    "--max-sequences",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    metavar="M",
    help="Probe with the first M sequences.",
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=1, show_default=True, metavar="S", help="Draws of z per sequence."
)
@click.option(
    "--points", type=click.IntRange(min=2), default=5, show_default=True, metavar="K", help="Points of interpolate."
)
@click.option("--show-texts", is_flag=True, help="Also show the texts of swap and interpolate.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), metavar="M", help="Most tokens of a text (default: the run's)."
)
@click.option("--no-free", is_flag=True, help="Leave free-running accuracy, the slow part of layers, out.")
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw accuracy against layers (needs matplotlib).")
@batch_size_option
@fast_steps_option
@seed_option
@device_option
@allow_custom_code_option
@json_option
def command(
    run: str,
    probes: tuple[str, ...],
    data: str | None,
    column: str | None,
    max_sequences: int,
    samples: int,
    points: int,
    show_texts: bool,
    max_tokens: int | None,
    no_free: bool,
    plot: str | None,
    batch_size: int,
    fast_steps: int | None,
    seed: int,
    device: str,
    allow_custom_code: bool,
    as_json: bool,
) -> None:
    """Ask what the thoughts of each layer hold, of the model of RUN, a run directory or one of its checkpoints.

    \b
    layers       reconstruction from the thoughts of layers 1 to l, and of one
                 layer alone, the other layers' from the prior
    swap         every document's tokens under every document's thoughts; for the
                 fables, also whose facts a text from the thoughts of two tells
    interpolate  from one document's thoughts to the next one's, straight and
                 along the arc

    None of the numbers is a probability of the text: the KL is left out of all of them.

    \b
    Examples:
        ltm-pyro probe runs/tiny-fables
        ltm-pyro probe runs/tiny-fables --probe layers --plot layers.png
        ltm-pyro probe runs/tiny-fables --probe swap --show-texts
    """
    from ltm_pyro.cli.probe_tables import plot_layers, show_probes
    from ltm_pyro.cli.render import console, notices, reading

    from ltm_pyro.errors import LTMError
    from ltm_pyro.evaluation import validation_data
    from ltm_pyro.evaluation.probes import fit_thoughts, probe_layers
    from ltm_pyro.evaluation.probes.interpolation import PATHS, interpolate
    from ltm_pyro.language_model import ThoughtLanguageModel
    from ltm_pyro.training import load_run

    chosen = probes or ("layers", "swap", "interpolate")
    if plot is not None and "layers" not in chosen:
        raise LTMError("--plot draws the probe layers, which is left out: add --probe layers")
    loaded = load_run(run, device=device, allow_custom_code=allow_custom_code)
    model = loaded.language_model
    if model.kind != "ltm" or not isinstance(model, ThoughtLanguageModel):
        raise LTMError(
            f"{run} holds a model of kind {model.kind}, which has no thoughts to probe: train one with --model ltm"
        )
    source = data or loaded.settings.data.validation or loaded.settings.data.source
    with notices.status(reading(source)):
        sequences = validation_data(loaded.settings, loaded.tokenizer, data, column, class_names=loaded.class_names)
    indices = range(min(len(sequences), max_sequences))
    if len(indices) < 2 and set(chosen) != {"layers"}:
        raise LTMError("swap and interpolate need two sequences or more, got 1: take more, or --probe layers alone")
    with notices.status(f"Inferring the thoughts of {len(indices)} sequences"):
        fitted = fit_thoughts(
            model.svi,
            sequences,
            indices,
            samples=samples,
            fast_steps=fast_steps,
            fast_lr=model.fast_lr,
            batch_size=batch_size,
            seed=seed,
            device=loaded.device,
        )
    decode, most = loaded.tokenizer.decode, max_tokens or loaded.settings.data.sequence_length
    row: dict[str, Any] = {"run": run, "step": loaded.step, "model": model.kind, "data": source}
    if "layers" in chosen:
        with notices.status("Reconstructing from some layers"):
            row["layers"] = probe_layers(fitted, free_running=not no_free).to_dict()
    if "swap" in chosen:
        with notices.status("Swapping thoughts"):
            row["swap"] = _swap(fitted, decode, source == "fables", show_texts, most)
    if "interpolate" in chosen:
        for path in PATHS:
            with notices.status(f"Interpolating ({path})"):
                found = interpolate(fitted, path=path, steps=points, max_tokens=most if show_texts else 0)
                row[path] = found.to_dict()
                if found.texts is not None:
                    row[path]["texts"] = [[decode(tokens) for tokens in point] for point in found.texts]
    if plot is not None:
        plot_layers(Path(plot), row["layers"])
    if as_json:
        click.echo(json.dumps(row, ensure_ascii=False))
    else:
        show_probes(console, row)


def _swap(
    fitted: FittedThoughts, decode: Callable[[Sequence[int]], str], fables: bool, texts: bool, max_tokens: int
) -> dict[str, Any]:
    """The swap matrix; of the fables the facts of mixed texts, by both readings; and the texts if asked for."""
    from ltm_pyro.evaluation.probes import agreement, facts_of, mentions, mixed_texts, read_fable, swap_thoughts

    row = swap_thoughts(fitted).to_dict()
    if not texts and not fables:
        return row
    mixed = mixed_texts(fitted, max_tokens=max_tokens)
    plans = facts_of(fitted, decode) if fables else None
    if plans is not None:  # the documents are whole
        row["agreement"] = agreement(mixed, plans, decode, read_fable)
        row["mentions"] = agreement(mixed, facts_of(fitted, decode, mentions) or [], decode, mentions)
    if texts:
        row["texts"] = [{"a": t.a, "b": t.b, "layers": t.layers, "text": decode(t.tokens)} for t in mixed]
    return row
