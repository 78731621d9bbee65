"""``ltm-pyro lm-eval``."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Run the command lm_eval of lm-evaluation-harness, which then knows the model ltm-pyro."""
    from ltm_pyro.evaluation.harness import command_line

    command_line(arguments)
