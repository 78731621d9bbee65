"""``ltm-pyro prepare``."""

from __future__ import annotations

import json
from typing import Any

import click
from ltm_pyro.cli.options import json_option

__all__ = ["command"]


@click.command()
@click.option("--preset", metavar="NAME", help="Where the settings start, as for train (default: tiny).")
@click.option("--data", metavar="SOURCE", help="fables (default), a file, a folder, or hf:name[/config][:column].")
@click.option("--validation", metavar="SOURCE", help="Validation text (default: documents held out of --data).")
@click.option("--tokenizer", metavar="T", help="Path or hub name of a tokenizer (default: train one on the data).")
@click.option(
    "--workers", type=click.IntRange(min=0), metavar="N", help="Processes that tokenise (default: one for each core)."
)
@click.option("--seed", type=int, metavar="S", help="Seed of the fables (default: 0).")
@click.option("--config", type=click.Path(), metavar="FILE.toml", help="Settings, one table per section.")
@click.option("--set", "assignments", multiple=True, metavar="section.key=value", help="One setting; may be repeated.")
@json_option
def command(preset: str | None, config: str | None, assignments: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Tokenise the data of a training ahead of it, so that train with the same settings starts at once.

    What is done is kept chunk by chunk: after Ctrl-C or a kill the same command goes on where it was. Prints the counts
    and the hashes of what was made.

    \b
    Examples:
        ltm-pyro prepare --data stories/
        ltm-pyro prepare --data web.jsonl.zst --tokenizer gpt2/ --workers 8 --json
        ltm-pyro prepare --data hf:owner/name --set data.streaming=true
    """
    from dataclasses import asdict

    from ltm_pyro.cli.progress import preparing
    from ltm_pyro.cli.render import console, show_manifest
    from ltm_pyro.cli.train import overrides_of

    from ltm_pyro.data.build import prepare_data
    from ltm_pyro.presets import preset as named

    overrides = overrides_of(config, assignments, flags)
    settings = named(preset or overrides.pop("preset", None) or "tiny").updated(overrides)
    with preparing() as progress:
        manifest = prepare_data(**asdict(settings.data), seed=settings.training.seed, progress=progress)
    if as_json:
        click.echo(json.dumps({"source": settings.data.source, **manifest}))
    else:
        show_manifest(console, manifest)
