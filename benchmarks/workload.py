"""The options that the benchmarks of speed share, and the model and the batch that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.plain import plain_preset
from ltm_pyro.batch import TokenBatch
from ltm_pyro.components import autocast_type, build_guide, build_model
from ltm_pyro.config import Settings
from ltm_pyro.infer import FastConfig, FastSlowSVI

__all__ = ["GPT2_VOCABULARY", "Workload", "options_of", "parser_of", "plain"]

GPT2_VOCABULARY = 50_257

_ABOUT: dict[str, tuple[type, str]] = {
    "preset": (str, "the model's sizes"),
    "vocabulary": (int, "V"),
    "batch": (int, "B, sequences"),
    "tokens": (int, "N, tokens of a sequence"),
    "fast_steps": (int, "T_fast"),
    "dtype": (str, "type of the decoder's products: float32 or bfloat16"),
}


def parser_of(name: str, about: str | None, *, rounds: int, **work: Any) -> argparse.ArgumentParser:
    """Options that every benchmark of speed has, and those of ``_ABOUT`` that this one has, with their defaults.

    Args:
        name: of the benchmark.
        about: its docstring, whose first line the help shows.
        rounds: how often everything is timed.
        work: by option; where the default is a list, the option takes several.
    """
    parser = argparse.ArgumentParser(prog=f"just bench {name}", description=(about or "").partition("\n")[0])
    for option, default in work.items():
        kind, help_text = _ABOUT[option]
        parser.add_argument(
            f"--{option.replace('_', '-')}",
            type=kind,
            default=default,
            nargs="+" if isinstance(default, list) else None,
            choices=("float32", "bfloat16") if option == "dtype" else None,
            help=f"{help_text} (default: {' '.join(map(str, default)) if isinstance(default, list) else default})",
        )
    parser.add_argument("--rounds", type=int, default=rounds, help=f"how often each is timed (default: {rounds})")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--out", default=name, help=f"name of the files under benchmarks/results/ (default: {name})")
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works; writes to runs/bench/")
    return parser


def options_of(
    parser: argparse.ArgumentParser, arguments: Sequence[str], smoke: Mapping[str, Any]
) -> argparse.Namespace:
    """The parsed options; ``smoke`` are the defaults of a smoke run. Sets torch's threads and its seed."""
    if parser.parse_args(arguments).smoke:
        parser.set_defaults(**smoke)
    options = parser.parse_args(arguments)
    options.folder = Path("runs") / "bench" if options.smoke else None
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def plain(options: argparse.Namespace) -> dict[str, Any]:
    """The options as plain values, but for where the results go."""
    return {name: value for name, value in vars(options).items() if name not in ("out", "folder")}


@dataclass(frozen=True)
class Workload:
    """A model of a preset on random tokens, ready for a slow step.

    Args:
        settings: of the model and of how it is trained.
        svi: with AdamW at a rate that leaves the weights where they are.
        batch: B sequences of N tokens, all of them scored.
    """

    settings: Settings
    svi: FastSlowSVI
    batch: TokenBatch

    @classmethod
    def of(
        cls,
        *,
        preset: str,
        vocabulary: int,
        batch: int,
        tokens: int,
        fast_steps: int,
        dtype: str = "float32",
        device: str = "cpu",
        settings: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> Workload:
        """From options, those being left alone that are no part of the work; ``settings`` changes the preset."""
        changes = {"data.sequence_length": tokens, "inference.fast_steps": fast_steps, "training.dtype": dtype}
        chosen = plain_preset(preset).updated(changes | dict(settings or {}))
        model = build_model(chosen, vocabulary).to(device)
        svi = FastSlowSVI(
            model,
            build_guide(chosen, model).to(device),
            fast=FastConfig(steps=fast_steps),
            slow=torch.optim.AdamW(model.parameters(), lr=1e-6),
            clip_norm=chosen.training.clip_norm,
            autocast=autocast_type(chosen),
        )
        ids = torch.randint(vocabulary, (batch, tokens))
        lengths, start = torch.full((batch,), tokens), torch.zeros(batch, dtype=torch.int64)
        return cls(chosen, svi, TokenBatch(ids, lengths, start).to(device))

    def step(self) -> None:
        """One slow step, T_fast fast ones in it."""
        self.svi.step(self.batch, seed=0)

    def warm_up(self) -> None:
        """A slow step with a single fast step, after which nothing is done for the first time."""
        svi = self.svi
        fast, svi.fast = svi.fast, replace(svi.fast, steps=1)
        self.step()
        svi.fast = fast
