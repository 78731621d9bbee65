"""``ltm-pyro info``."""

from __future__ import annotations

import json

import click
from ltm_pyro.cli.options import allow_custom_code_option, json_option, run_argument

__all__ = ["command"]


@click.command()
@run_argument
@allow_custom_code_option
@json_option
def command(run: str, allow_custom_code: bool, as_json: bool) -> None:
    """Show the settings, the progress and the checkpoints of RUN, and what to do next."""
    from ltm_pyro.cli.render import console, show_info

    from ltm_pyro.training import RunDirectory

    directory = RunDirectory.open(run, allow_custom_code=allow_custom_code)
    settings = directory.settings
    rows = directory.metrics.rows()
    checkpoints = [path.name for path in directory.store().paths()]
    about = {
        "run": str(directory.path),
        "step": int(checkpoints[0].removeprefix("step-")) if checkpoints else 0,
        "steps": settings.training.steps,
        "checkpoints": checkpoints,
        "train": next((row for row in reversed(rows) if row["split"] == "train"), None),
        "validation": [row for row in rows if row["split"] == "validation"],
        "settings": settings.to_dict(),
    }
    if as_json:
        click.echo(json.dumps(about))
    else:
        show_info(console, about, settings)
