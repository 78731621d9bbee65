"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = [
    "allow_custom_code_option",
    "batch_size_option",
    "column_option",
    "device_option",
    "fast_steps_option",
    "json_option",
    "run_argument",
    "sampling_options",
    "seed_option",
]

F = TypeVar("F", bound=Callable[..., Any])

run_argument: Callable[[F], F] = click.argument("run", metavar="RUN", type=click.Path())
column_option: Callable[[F], F] = click.option(
    "--column", metavar="C", help="Field that holds the text in .jsonl and .parquet (default: the run's)."
)
batch_size_option: Callable[[F], F] = click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, metavar="B", help="Changes speed alone."
)
device_option: Callable[[F], F] = click.option(
    "--device", default="auto", show_default=True, metavar="D", help="auto, cpu, cuda or cuda:K."
)
fast_steps_option: Callable[[F], F] = click.option(
    "--fast-steps",
    type=click.IntRange(min=0),
    metavar="T",
    help="Fast steps of the inference of z (default: the run's).",
)
seed_option: Callable[[F], F] = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, metavar="S", help="Seed of every draw."
)
allow_custom_code_option: Callable[[F], F] = click.option(
    "--allow-custom-code",
    is_flag=True,
    help="Run the code that RUN names as package.module:Class: for runs you trust like a program.",
)
json_option: Callable[[F], F] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on standard output and nothing else there."
)


def sampling_options(command: F) -> F:
    """The options that `Sampling` has: ``--temperature``, ``--top-k`` and ``--top-p``."""
    for option in (
        click.option(
            "--top-p", type=float, metavar="P", help="Keep the most probable tokens of mass P (default: all)."
        ),
        click.option("--top-k", type=int, metavar="N", help="Keep the N most probable tokens (default: all)."),
        click.option(
            "--temperature",
            type=float,
            default=1.0,
            show_default=True,
            metavar="X",
            help="Divides the logits; 0 is greedy.",
        ),
    ):
        command = option(command)
    return command
