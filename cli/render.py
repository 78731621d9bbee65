"""What the commands print, by rich."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ltm_pyro.ranks import Ranks
from ltm_pyro.training.trainer import Observer
from ltm_pyro.untrusted import printable

if TYPE_CHECKING:
    from torch import nn

    from ltm_pyro.config import Settings
    from ltm_pyro.decoder import Sampling
    from ltm_pyro.training import LoadedRun

__all__ = [
    "BASELINE_TERMS",
    "TrainingDisplay",
    "console",
    "draw_samples",
    "notices",
    "number",
    "reading",
    "show_manifest",
    "show_report",
    "show_samples",
    "show_settings",
    "show_texts",
]

# Paths and texts are shown as they are: brackets and colons in them mean nothing.
console = Console(markup=False, emoji=False)
notices = Console(stderr=True, markup=False, emoji=False)


def show_settings(settings: Settings) -> None:
    """Prints every setting that the model reads, section by section, in the form that --set takes."""
    unread = () if settings.model.name == "ltm" else ("prior", "guide", "inference")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for section, values in settings.to_dict().items():
        if section in unread:
            continue
        text = "  ".join(f"{key}={'none' if value is None else value}" for key, value in values.items())
        table.add_row(section, printable(text))
    console.print(table)
    console.print()


def reading(source: str) -> str:
    """What a status says while a source is read, which may be one that a run names."""
    return f"Reading {printable(source)}"


class TrainingDisplay(Observer):
    """A progress bar on a terminal; elsewhere, a line now and then.

    Args:
        steps: slow steps in all.
    """

    def __init__(self, steps: int):
        self.steps = steps
        self._progress: Progress | None = None
        self._last_line = 0.0
        self._loss = "loss"
        if console.is_terminal:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[seen]}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=console)
            self._task = self._progress.add_task("train", total=steps, seen="")

    def show_start(self, path: Path, counts: Mapping[str, Mapping[str, int]], model: nn.Module, step: int) -> None:
        """Says what is trained on what, and where it goes."""
        parameters = sum(p.numel() for p in model.parameters())
        self._loss = BASELINE_TERMS.get(getattr(model, "comparable", ""), "loss")
        for split, count in counts.items():
            numbers = ", ".join(f"{number:,} {name}" for name, number in count.items())
            console.print(f"{split}: {numbers}", highlight=False)
        console.print(f"model: {parameters:,} parameters", highlight=False)
        console.print(f"run:   {path}\n", highlight=False, soft_wrap=True)
        if step:
            console.print(f"Going on after step {step}.\n", highlight=False)
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def __enter__(self) -> TrainingDisplay:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, row: dict[str, Any]) -> None:
        """Moves the bar, or prints a line every few seconds."""
        seen = f"{_training_terms(row, self._loss)}  {row['tokens_per_s']:,.0f} tokens/s"
        if self._progress is not None:
            self._progress.update(self._task, completed=row["step"], seen=seen)
        elif time.monotonic() - self._last_line > 5 or row["step"] == self.steps:
            self._last_line = time.monotonic()
            console.print(f"step {row['step']}/{self.steps}  {seen}", highlight=False, soft_wrap=True)

    def validation(self, row: dict[str, Any]) -> None:
        """Prints a validation above the bar."""
        console.print(f"validation at step {row['step']}: {_terms(row)}", highlight=False, soft_wrap=True)


def draw_samples(
    run: LoadedRun,
    *,
    prompt: str = "",
    num: int = 1,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    fast_steps: int | None = None,
    label: str | None = None,
    seed: int = 0,
    ranks: Ranks | None = None,
) -> list[dict[str, Any]]:
    """Texts of a run's model as ``{"text": …, "tokens": …}``, the prompt left out; ``ranks`` share them out."""
    ranks = ranks or Ranks()
    mine = ranks.share(range(num))
    drawn = (
        []
        if not mine
        else run.language_model.generate(
            start=run.tokenizer.end_of_text,
            prompt=run.tokenizer.encode(prompt),
            num=len(mine),
            first=mine[0],
            max_tokens=max_tokens,
            sampling=sampling,
            stop=run.tokenizer.end_of_text,
            fast_steps=fast_steps,
            label=None if label is None else run.class_index(label),
            seed=seed,
        )
    )
    texts = [{"text": run.tokenizer.decode(tokens), "tokens": len(tokens)} for tokens in drawn]
    return [text for part in ranks.gather(texts) for text in part]


def show_samples(run: LoadedRun, *, num: int, max_tokens: int) -> None:
    """Prints texts that no prompt was given for."""
    show_texts(console, draw_samples(run, num=num, max_tokens=max_tokens), "")


def show_texts(out: Console, texts: Sequence[Mapping[str, Any]], prompt: str) -> None:
    """Prints texts between rules, each after its prompt."""
    for number, text in enumerate(texts, 1):
        if len(texts) > 1:
            out.rule(str(number), style="dim")
        # Wrapped for the eye alone: a file gets the text as it was drawn.
        out.print(Text(prompt, style="bold") + Text(text["text"]), soft_wrap=not out.is_terminal)


def show_report(out: Console, row: Mapping[str, Any], protocols: Sequence[str]) -> None:
    """Prints an evaluation as a table that says what each number is."""
    from ltm_pyro.evaluation.perplexity import UPPER_BOUNDS

    meaning = {
        "elbo": "upper bound on -log p(x)",
        "reconstruction": "KL left out: no bound",
        "iwae": "tighter upper bound on -log p(x)",
        "prequential": "-log p(x): compares with an AR model's",
        "kl": "information in the thoughts, at most",
        "log_joint": "-log p(x, z) at a point: no bound, changes with the units of z",
        "likelihood": "exact -log p(x)",
        "nelbo": "upper bound on -log p(x), the length given",
    }
    table = Table(
        "", "nats/token", "± s.e.", "what it is", title=f"{row['data']} under {row['run']}, step {row['step']}"
    )
    for name in (name for name in (*protocols, "kl", "log_joint") if row.get(name) is not None):
        table.add_row(name, f"{row[name]:.4f}", number(row[f"{name}_se"]), meaning[name])
    if row.get("generator_entropy") is not None:
        table.add_row("generator", f"{row['generator_entropy']:.4f}", "", "exact -log p(x) of the same texts")
    out.print(table)
    blocks = f", blocks of {row['block_size']}" if "block_size" in row else ""
    steps = "" if row["fast_steps"] is None else f"T_fast = {row['fast_steps']}, "
    # An exact likelihood has no draws.
    drawn = "" if list(protocols) == ["likelihood"] else f", S = {row['samples']}, {steps}seed {row['seed']}{blocks}"
    out.print(f"{row['sequences']} sequences, {row['tokens']} tokens{drawn}", highlight=False)
    shown = {name: f"{name} ≤" if name in UPPER_BOUNDS else name for name in protocols}
    bits = {name: row.get(f"{name}_bits_per_character") for name in protocols}
    if any(value is not None for value in bits.values()):
        found = ", ".join(f"{shown[name]} {value:.4f}" for name, value in bits.items() if value is not None)
        out.print(f"bits per character, of {row['characters']}: {found}", highlight=False)
    by_word = {name: row.get(f"{name}_perplexity_per_word") for name in protocols}
    if any(value is not None for value in by_word.values()):
        found = ", ".join(f"{shown[name]} {value:.6g}" for name, value in by_word.items() if value is not None)
        out.print(f"perplexity per word, of {row['words']} words: {found}", highlight=False)
    if row.get("iwae") is not None:
        out.print(_k_hat(row), highlight=False)
    for line in _information(row):
        out.print(line, highlight=False)


def _k_hat(row: Mapping[str, Any]) -> str:
    """How far the weights behind ``iwae`` can be trusted."""
    share = row["k_hat_above_0.7"]
    if share is None:
        return "iwae: too few draws for a Pareto k-hat, take --samples 100"
    median = "not finite" if row["k_hat_median"] is None else f"{row['k_hat_median']:.2f}"
    return f"iwae: Pareto k-hat {median} (median), above 0.7 in {share:.0%} of the sequences"


def _information(row: Mapping[str, Any]) -> list[str]:
    """What the thoughts know of the text, a line for each thing that was asked for and is defined."""
    if "mutual_information" not in row:
        return []
    lines = []
    if row["mutual_information"] is not None:
        value, limit = row["mutual_information"], row["mutual_information_limit"]
        lines.append(f"I(x; z): {value:.4f} nats per sequence, of log M = {limit:.4f} at most")
    if row["active_units"] is not None:
        lines.append(f"active units: {row['active_units']} of {row['units']}")
    if row["kl_per_layer"] is not None:
        lines.append(f"KL per layer, nats/token: {'  '.join(f'{value:.4f}' for value in row['kl_per_layer'])}")
    return lines or ["information: not defined for this guide, whose q is no diagonal normal"]


def show_manifest(out: Console, manifest: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints what was prepared: a table of every part's counts and hashes."""
    for part, about in manifest.items():
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title=part, title_justify="left")
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in about.items():
            table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
        out.print(table)


BASELINE_TERMS = {"likelihood": "-log p(x)", "nelbo": "NELBO"}
"""What the numbers of models without thoughts are, by the protocols that they come from."""


def _training_terms(row: Mapping[str, Any], loss: str) -> str:
    """The terms of a training row; a baseline has a loss, called as in its validations, and nothing beside it."""
    if "reconstruction" not in row:
        return f"{loss} {row['loss']:.3f} nats/token"
    return _terms({**row, "elbo": row["loss"] if "kl" in row else None, "log_joint": row["loss"]})


def _terms(row: Mapping[str, Any]) -> str:
    """The terms of a row; a point estimate has no ELBO and no KL, a baseline the one number of its protocol."""
    for name, about in BASELINE_TERMS.items():
        if name in row:
            return f"{about} {row[name]:.3f}{_error(row.get(f'{name}_se'))} nats/token"
    if row["elbo"] is None:
        return f"-log p(x, z) {row['log_joint']:.3f}  reconstruction {row['reconstruction']:.3f} nats/token, no bound"
    return (
        f"-ELBO {row['elbo']:.3f}{_error(row.get('elbo_se'))}  reconstruction {row['reconstruction']:.3f}  "
        f"KL {row['kl']:.3f} nats/token"
    )


def number(value: object) -> str:
    """A number of a row, four digits; a file that others wrote may have anything in its place, which is nothing."""
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _error(value: float | None) -> str:
    return "" if value is None else f" ± {value:.3f}"
