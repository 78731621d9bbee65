"""Sample efficiency: LTM, autoregressive and masked diffusion models by the tokens that they were trained on."""

from __future__ import annotations

from benchmarks.reproduce.efficiency import run


def main(arguments: list[str]) -> None:
    """Trains and writes tokens.{json,md,svg}."""
    run("tokens", arguments, __doc__.splitlines()[0])
