"""``ltm-pyro train``."""

from __future__ import annotations

import shlex
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from ltm_pyro.cli.options import allow_custom_code_option

if TYPE_CHECKING:
    from ltm_pyro.config import Settings
    from ltm_pyro.data import Data
    from ltm_pyro.data.prepare import Progress
    from ltm_pyro.ranks import Ranks
    from ltm_pyro.training import RunDirectory

__all__ = ["command", "overrides_of"]

# What changes where the time or the space goes, and nothing that is learned.
_MAY_CHANGE = ("checkpointing", "workers", "prefetch", "spool_chunks", "max_document_mb")


@click.command()
@click.option("--preset", metavar="NAME", help="tiny (default), ltm-s, ltm-m, ltm-l, or paper-ltm-s|m|l.")
@click.option(
    "--model",
    metavar="M",
    help="ltm (default); to compare with: ar, an autoregressive Transformer, or mdlm, masked diffusion, both from the "
    "same blocks with as many parameters; their options are --set model.OPTION=value.",
)
@click.option("--data", metavar="SOURCE", help="fables (default), a file, a folder, or hf:name[/config][:column].")
@click.option("--validation", metavar="SOURCE", help="Validation text (default: documents held out of --data).")
@click.option("--tokenizer", metavar="T", help="Path or hub name of a tokenizer (default: train one on the data).")
@click.option(
    "--prior",
    metavar="P",
    help="gaussian (default), learned-gaussian, mixture, hierarchical, markov, flow, vamp, energy, supervised, or your "
    "own as package.module:Class; its options are --set prior.OPTION=value.",
)
@click.option(
    "--guide",
    metavar="G",
    help="local-normal (default), local-lowrank, local-flow, local-delta, amortized, semi-amortized, or your own as "
    "package.module:Class; its options are --set guide.OPTION=value.",
)
@click.option("--steps", type=int, metavar="N", help="Slow steps.")
@click.option("--fast-steps", type=int, metavar="T", help="Fast steps per slow step.")
@click.option("--batch-size", metavar="N|auto", help="Sequences per slow step; auto: as many as fit into memory.")
@click.option("--out", type=click.Path(), metavar="DIR", help="Run directory (default: a new one under runs/).")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of --out.")
@allow_custom_code_option
@click.option("--device", metavar="D", help="auto (default), cpu, cuda or cuda:K.")
@click.option("--dtype", metavar="D", help="float32 (default) or bfloat16.")
@click.option("--seed", type=int, metavar="S", help="Seed of weights, data order and noise (default: 0).")
@click.option(
    "--config",
    type=click.Path(),
    metavar="FILE.toml",
    help="Settings, one table per section; or a run's config.json, for a run like that one.",
)
@click.option("--set", "assignments", multiple=True, metavar="section.key=value", help="One setting; may be repeated.")
@click.option("--print-config", is_flag=True, help="Print all settings as TOML, for --config, and train nothing.")
def command(
    preset: str | None,
    out: str | None,
    resume: bool,
    allow_custom_code: bool,
    config: str | None,
    assignments: tuple[str, ...],
    print_config: bool,
    **flags: Any,
) -> None:
    """Train a Latent Thought Language Model, or a baseline to compare it with.

    With no options, the tiny preset is trained on the embedded fables in about two minutes on two cores. Later settings
    win over earlier ones: preset, then --config, then --set, then the other options; environment variables set none.
    Every setting is printed at the start and kept in the run's config.json. Ctrl-C, SIGTERM and SIGUSR1
    finish the step and save.

    \b
    Examples:
        ltm-pyro train
        ltm-pyro train --data stories/ --steps 2000 --out runs/stories
        ltm-pyro train --preset ltm-s --data text.jsonl.gz --tokenizer gpt2/
        ltm-pyro train --prior mixture --set prior.components=16
        ltm-pyro train --model ar --data stories/ --out runs/stories-ar
        ltm-pyro train --preset ltm-s --print-config > my.toml
        ltm-pyro train --resume --out runs/stories
    """
    from ltm_pyro.cli.progress import preparing
    from ltm_pyro.cli.render import show_settings

    from ltm_pyro.ranks import present_ranks

    if print_config and resume:
        raise click.UsageError(
            "--print-config prints what a new run would have; a run's own is --config RUN/config.json"
        )
    ranks = present_ranks()
    overrides = overrides_of(config, assignments, flags)
    fitted = _to_be_fitted(overrides)
    if resume:
        run, settings = _reopen(out, preset, overrides, allow_custom_code)
    else:
        from ltm_pyro.presets import preset as named

        name = preset or overrides.pop("preset", None) or "tiny"
        settings = named(name).updated(overrides)
        if print_config:
            _print_config(settings, fitted)
            return
        place = ranks.same(Path(out) if out else _new_directory(name, settings))
        run = _refuse_what_cannot_be(place, settings)
    _refuse_options_of_thoughts(settings, flags)
    fitted = None if resume else fitted  # a resumed run keeps the number that was found when it began
    if fitted is None:
        show_settings(settings)
    with run.lock() if ranks.is_main else nullcontext():  # rank 0 holds it for all
        with preparing() as progress:
            data = ranks.main_first(lambda: _data(settings, run.path / "tokenizer.json" if resume else None, progress))
        if fitted is not None:
            settings = _fit(settings, data, fitted, ranks)
            show_settings(settings)
        _train(run, settings, data, resume)


def _refuse_options_of_thoughts(settings: Settings, flags: dict[str, Any]) -> None:
    """Nothing, where no option was given that the chosen model would not read."""
    from ltm_pyro.errors import LTMError

    if settings.model.name != "ltm":
        for flag in ("prior", "guide", "fast_steps"):
            if flags[flag] is not None:
                raise LTMError(
                    f"--{flag.replace('_', '-')} says how thoughts are inferred, and model {settings.model.name!r} has "
                    "none: leave it out"
                )


def overrides_of(config: str | None, assignments: tuple[str, ...], flags: dict[str, Any]) -> dict[str, Any]:
    """The settings that a file, ``--set`` and the other options give, by address; a later one wins."""
    from ltm_pyro.config_files import read_settings
    from ltm_pyro.errors import LTMError

    values: dict[str, Any] = {}
    for section, content in (read_settings(config) if config else {}).items():
        if isinstance(content, dict):
            values |= {f"{section}.{key}": value for key, value in content.items()}
        elif section == "preset":
            values["preset"] = content
        else:
            raise LTMError(f"{section} in {config} stands in no section: put it under a table such as [training]")
    for assignment in assignments:
        address, equals, value = assignment.partition("=")
        if not equals:
            raise LTMError(f"--set {assignment!r} is not of the form section.key=value")
        values[address.strip()] = value.strip()
    addresses = {
        "model": "model.name",
        "data": "data.source",
        "validation": "data.validation",
        "tokenizer": "data.tokenizer",
        "prior": "prior.name",
        "guide": "guide.name",
        "workers": "data.workers",
        "steps": "training.steps",
        "fast_steps": "inference.fast_steps",
        "batch_size": "training.batch_size",
        "device": "training.device",
        "dtype": "training.dtype",
        "seed": "training.seed",
    }
    return values | {addresses[flag]: value for flag, value in flags.items() if value is not None}


def _print_config(settings: Settings, fitted: str | None) -> None:
    """Prints the settings as a file for --config; a number that is yet to be found stays to be found."""
    from ltm_pyro.config_files import to_toml

    sections = settings.to_dict()
    if fitted is not None:
        section, _, key = fitted.partition(".")
        sections[section][key] = "auto"
    click.echo(to_toml(sections), nl=False)


def _to_be_fitted(overrides: dict[str, Any]) -> str | None:
    """Which of batch and micro-batch is to be as large as fits, if one is; taken out of the overrides."""
    from ltm_pyro.errors import LTMError

    batch, part = "training.batch_size", "training.micro_batch_size"
    chosen = [address for address in (batch, part) if str(overrides.get(address)).lower() == "auto"]
    for address in chosen:
        del overrides[address]
    if batch in chosen and (part in chosen or str(overrides.get(part)).lower() != "none"):
        raise LTMError(
            f"{batch}=auto is as many sequences as fit at once, which leaves nothing for {part}: leave that out, or "
            "give the batch size and let the micro-batch be auto"
        )
    return chosen[0] if chosen else None


def _fit(settings: Settings, data: Data, address: str, ranks: Ranks) -> Settings:
    """The settings with the number of sequences that fit."""
    from ltm_pyro.cli.render import console, notices

    from ltm_pyro.training.batch_size import fit_batch_size

    whole = address == "training.batch_size"
    with notices.status("Finding how many sequences fit"):
        size, how = fit_batch_size(settings, data, most=None if whole else settings.training.batch_size)
    size = min(ranks.gather(size)) * (ranks.size if whole else 1)
    console.print(f"{address} = {size}: {how}\n", highlight=False, soft_wrap=True)
    return settings.updated({address: size} | ({"training.micro_batch_size": None} if whole else {}))


def _reopen(
    out: str | None, preset: str | None, overrides: dict[str, Any], allow_custom_code: bool
) -> tuple[RunDirectory, Settings]:
    from ltm_pyro.errors import LTMError
    from ltm_pyro.training import RunDirectory, load_run

    if out is None:
        raise LTMError("--resume needs --out DIR: the run directory to go on with")
    if preset is not None or "preset" in overrides:
        raise LTMError(
            "--preset cannot change when a run is resumed: leave it out, or start a new run with another --out"
        )
    # A class that is named again here is one that the user wants.
    named = [str(overrides[address]) for address in ("model.name", "prior.name", "guide.name") if address in overrides]
    run = RunDirectory.open(out, allow_custom_code=allow_custom_code or named)
    before = run.settings
    settings = before.updated(overrides)
    for section in ("model", "data", "decoder", "prior", "guide"):
        old, new = before.to_dict()[section], settings.to_dict()[section]
        changed = [key for key in new if old.get(key) != new[key] and key not in _MAY_CHANGE]
        if changed:
            raise LTMError(
                f"{section}.{changed[0]} cannot change when a run is resumed: leave it out, or start a new run with "
                "another --out"
            )
    if settings.training.init_from != before.training.init_from:
        raise LTMError("training.init_from cannot change when a run is resumed: start a new run with another --out")
    run.refuse_links()
    if run.store().paths():
        # Refused here, where sizes that no checkpoint bears out are held back; training itself takes them as they are.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged checkpoints: the trainer will say so
            load_run(run.path, device="cpu", allow_custom_code=True)
    return run, settings


def _data(settings: Settings, tokenizer: Path | None, progress: Progress) -> Data:
    from dataclasses import asdict

    from ltm_pyro.data import build_data
    from ltm_pyro.data.cache import known_cache

    arguments = asdict(settings.data)
    if tokenizer is not None:
        arguments |= {"tokenizer": str(tokenizer), "cache_dir": known_cache(settings.data.cache_dir)}
    return build_data(**arguments, seed=settings.training.seed, progress=progress)


def _new_directory(preset: str, settings: Settings) -> Path:
    source = Path(settings.data.source).name.split(".")[0].replace(":", "-") or "data"
    kind = "" if settings.model.name == "ltm" else f"-{settings.model.name.split(':')[-1].lower()}"
    base = Path("runs") / f"{preset}-{source}{kind}"
    number = 1
    while (place := base if number == 1 else base.with_name(f"{base.name}-{number}")).exists():
        number += 1
    return place


def _refuse_what_cannot_be(place: Path, settings: Settings) -> RunDirectory:
    """The run to be, after the checks that need not wait for the data."""
    from ltm_pyro.components import check_components
    from ltm_pyro.training import RunDirectory
    from ltm_pyro.training.initial_weights import check_initial_weights
    from ltm_pyro.training.run import choose_device

    run = RunDirectory(place)
    run.refuse_to_overwrite()
    choose_device(settings.training.device)
    check_components(settings)
    check_initial_weights(settings)
    return run


def _train(run: RunDirectory, settings: Settings, data: Data, resume: bool) -> None:
    from ltm_pyro.cli.render import TrainingDisplay, console

    from ltm_pyro.errors import LTMError
    from ltm_pyro.training import RunDirectory, Trainer

    display = TrainingDisplay(settings.training.steps)
    trainer = Trainer(settings, data, run, display)
    ranks = trainer.ranks
    if resume:
        trainer.resume()
        if ranks.is_main:
            run.write_settings(settings, data.tokenizer.vocab_size, data.class_names)
    elif ranks.is_main:
        RunDirectory.create(run.path, settings, data.tokenizer, data.class_names)
    ranks.wait()
    if not run.exists:
        raise LTMError(
            f"rank {ranks.rank} does not see the run directory {run.path}: put --out on a disk that all share"
        )
    display.show_start(run.path, data.counts, trainer.learner.modules["model"], trainer.step)
    with display:
        finished = trainer.fit()
    if not finished:
        where = f"after step {trainer.step}, saved" if trainer.step else "before the first step was done"
        console.print(f"\nStopped {where}. Go on with:\n")
        console.print(
            f"    ltm-pyro train --resume --out {shlex.quote(str(run.path))}\n", soft_wrap=True, highlight=False
        )
        sys.exit(130)
    if not ranks.is_main:
        return
    if trainer.learner.sharding is None:  # else the model may be too large for this device
        _show_samples(run, settings)
    console.print("\nNext:\n")
    console.print(f"    ltm-pyro sample {shlex.quote(str(run.path))} --num 3\n", soft_wrap=True, highlight=False)


def _show_samples(run: RunDirectory, settings: Settings) -> None:
    from ltm_pyro.cli.render import console, show_samples

    from ltm_pyro.training import load_run

    thoughts = ", from thoughts drawn from the prior" if settings.model.name == "ltm" else ""
    console.print(f"\nTexts of its own{thoughts}:\n")
    # What it would run has run already.
    trained = load_run(run.path, device=settings.training.device, allow_custom_code=True)
    show_samples(trained, num=2, max_tokens=300)
