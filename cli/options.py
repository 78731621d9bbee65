"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["device_option", "fast_steps_option", "json_option", "run_argument", "seed_option"]

F = TypeVar("F", bound=Callable[..., Any])

run_argument: Callable[[F], F] = click.argument("run", metavar="RUN", type=click.Path())
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
json_option: Callable[[F], F] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on standard output and nothing else there."
)
