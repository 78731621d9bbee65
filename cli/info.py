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
    """Show the settings, the curves and the state of RUN, and what to do next.

    \b
    Examples:
        ltm-pyro info runs/tiny-fables
        ltm-pyro info runs/tiny-fables --json
    """
    from ltm_pyro.cli.render import console
    from ltm_pyro.cli.run_info import show_info

    from ltm_pyro.training import RunDirectory
    from ltm_pyro.training.curves import read_curves
    from ltm_pyro.training.status import read_status

    status = read_status(RunDirectory.open(run, allow_custom_code=allow_custom_code))
    curves = read_curves([status.path]) if status.rows else []
    if as_json:
        click.echo(json.dumps({**status.to_dict(), "curves": [curve.to_dict() for curve in curves]}))
    else:
        show_info(console, status, curves)
