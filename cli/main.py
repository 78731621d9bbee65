"""The command ``ltm-pyro``: commands are imported when they are called, so that help answers at once."""

from __future__ import annotations

import importlib
import io
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import TextIO

import click

__all__ = ["cli", "main"]

_COMMANDS = {
    "train": "Train a Latent Thought Language Model, or a baseline.",
    "prepare": "Tokenise the data of a training ahead of it.",
    "sample": "Write text with a trained model.",
    "eval": "Score a trained model by protocols that say what they leave out.",
    "probe": "Ask which layers' thoughts hold what of the text.",
    "plot": "Draw the curves of runs in one picture.",
    "gsm8k": "Solve grade-school problems by sampling: pass@k.",
    "generation": "Compare a trained model's texts with real ones.",
    "info": "Show what a run is, how far it got, and what to do next.",
    "lm-eval": "Run lm-evaluation-harness on trained models.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"ltm_pyro.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ltm-pyro", message="ltm-pyro %(version)s")
def cli() -> None:
    """Latent Thought Language Models as a probabilistic program in Pyro.

    Start with

    \b
        ltm-pyro train

    which trains a tiny model on an embedded corpus of fables in about two minutes, prints texts of its own, and names
    the next command to type.
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; bad input ends it with one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal's encoding lacks is written out
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    if "" not in sys.path:
        sys.path.append("")  # priors and guides of the user's own may lie in the working directory
    # Torchrun's and srun's variables, looked up by name here: without them there is nothing to import.
    if "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        from ltm_pyro.cli.ranked import main_of_rank

        main_of_rank(run, arguments)
    else:
        run(arguments)


def run(arguments: list[str] | None, say: Callable[[str], None] | None = None) -> None:
    """Runs the command line and exits; ``say`` prints the line of an error, by default on standard error."""
    say = say or partial(click.echo, err=True)
    try:
        sys.exit(cli.main(arguments, prog_name="ltm-pyro", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        where = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see {where.command_path} --help)" if where else ""
        say(f"Error: {' '.join(error.format_message().split())}{hint}")
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("Aborted.", err=True)
        sys.exit(130)
    except Exception as error:
        # Importing the library takes seconds, so the class is looked up only where there is something to compare.
        from ltm_pyro.errors import LTMError

        if not isinstance(error, LTMError):
            raise
        from ltm_pyro.untrusted import printable

        say(f"Error: {printable(' '.join(str(error).split()))}")
        sys.exit(2)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):
        click.echo(f"Warning: {' '.join(str(message).split())}", err=True)
