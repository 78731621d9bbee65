"""``ltm-pyro plot``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from ltm_pyro.cli.options import json_option

if TYPE_CHECKING:
    from ltm_pyro.training.curves import XAxis

__all__ = ["command"]


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--x",
    type=click.Choice(["steps", "tokens", "flops"]),
    default="steps",
    show_default=True,
    help="What the curves are drawn against.",
)
@click.option("--log", is_flag=True, help="A logarithmic axis, without what stands at 0.")
@click.option(
    "--out",
    type=click.Path(),
    default="curves.svg",
    show_default=True,
    metavar="FILE",
    help="A file that ends in .svg or .png.",
)
@json_option
def command(runs: tuple[str, ...], x: XAxis, log: bool, out: str, as_json: bool) -> None:
    """Draw the curves of one or more runs into one picture: training losses, and validations with their errors.

    What does not compare stands apart: -log p(x) and its bounds in one panel, the reconstruction, which leaves the KL
    out, in another, the KL in a third.

    \b
    Examples:
        ltm-pyro plot runs/tiny-fables
        ltm-pyro plot runs/stories runs/stories-ar --x flops --log --out both.png
    """
    from ltm_pyro.cli.render import console

    from ltm_pyro.training.curves import draw_curves, read_curves

    curves = read_curves(runs, x)
    draw_curves(curves, out, x, log=log)
    if as_json:
        click.echo(json.dumps({"out": out, "x": x, "curves": [curve.to_dict() for curve in curves]}))
    else:
        console.print(f"{len(curves)} curves drawn in {out}")
