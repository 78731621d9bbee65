"""Compute efficiency: LTM, autoregressive and masked diffusion models by the operations of their training."""

from __future__ import annotations

from benchmarks.reproduce.efficiency import run


def main(arguments: list[str]) -> None:
    """Trains and writes flops.{json,md,svg}."""
    run("flops", arguments, __doc__.splitlines()[0])
