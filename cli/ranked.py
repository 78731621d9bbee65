"""The command line as one of several ranks, started by torchrun or srun: rank 0 prints, the others work."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

__all__ = ["main_of_rank"]

COMMANDS = ("train", "eval", "sample")
"""Those that several ranks can share."""


def main_of_rank(run: Callable[..., None], arguments: list[str] | None) -> None:
    """Joins the other ranks and runs the command line; what goes wrong for all alike is printed once."""
    from ltm_pyro.errors import LTMError
    from ltm_pyro.ranks import joined_ranks

    try:
        with joined_ranks() as ranks:

            def say(line: str) -> None:
                if ranks.first_to_say(line):
                    click.echo(line if ranks.is_main else f"Rank {ranks.rank}: {line}", err=True)

            chosen = next(iter(sys.argv[1:] if arguments is None else arguments), "")
            if ranks.size > 1 and not chosen.startswith("-") and chosen not in COMMANDS:
                raise LTMError(
                    f"{chosen or 'no command'} is no work for {ranks.size} ranks, as {', '.join(COMMANDS)} are: start "
                    "it without torchrun or srun"
                )
            with contextlib.ExitStack() as stack:
                if not ranks.is_main:
                    _be_quiet(stack)
                run(arguments, say)
    except LTMError as error:
        rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
        if rank == "0":
            click.echo(f"Error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


def _be_quiet(stack: contextlib.ExitStack) -> None:
    """Standard output goes nowhere, and nothing is drawn on standard error."""
    from ltm_pyro.cli.render import notices

    nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - the stack closes it
    stack.enter_context(contextlib.redirect_stdout(nowhere))
    notices.quiet = True
