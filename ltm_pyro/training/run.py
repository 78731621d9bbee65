"""A run on disk: ``config.json``, ``tokenizer.json``, ``metrics.jsonl``, ``checkpoints/``, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltm_pyro.components import autocast_type, build_baseline, build_guide, build_model, refuse_custom_code
from ltm_pyro.config import Settings
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError, unwritable
from ltm_pyro.infer.fast_config import FastConfig
from ltm_pyro.infer.fast_slow import FastSlowSVI
from ltm_pyro.language_model import LanguageModel, ThoughtLanguageModel
from ltm_pyro.ranks import Ranks, present_ranks
from ltm_pyro.sharding import split_like
from ltm_pyro.training.checkpoints import Checkpoint, CheckpointStore, read_checkpoint, write_durably
from ltm_pyro.training.guarded_build import guarded, refuse_other_weights
from ltm_pyro.training.lock import RunLock, is_locked
from ltm_pyro.training.metrics import MetricsLog
from ltm_pyro.training.schedules import fast_lr
from ltm_pyro.untrusted import MEBI, exists, read_json, refuse_link

__all__ = ["LoadedRun", "RunDirectory", "choose_device", "fast_config", "load_run", "load_weights"]

_FORMAT = 1
_MOST_CONFIG = 16 * MEBI  # nearly all of it the names of classes


class RunDirectory:
    """Paths and settings of a run.

    Args:
        path: the run's folder.
        allow_custom_code: whether its config.json may name classes as ``package.module:Class``, whose modules are run
            when they are imported; or those names that the caller has given himself.
    """

    def __init__(self, path: str | Path, *, allow_custom_code: bool | Collection[str] = False):
        self.path = Path(path)
        self._allowed = allow_custom_code
        self._lock = RunLock(self.path)

    def lock(self) -> RunLock:
        """Context in which no other trainer works here (`RunLock`); it may be entered again from inside.

        Raises:
            LTMError: on entering: another process does, or the folder cannot be written.
        """
        return self._lock

    def is_locked(self) -> bool:
        """Whether a trainer works here."""
        return is_locked(self.path)

    @property
    def exists(self) -> bool:
        """Whether a run has been started here."""
        return exists(self.path / "config.json")

    def refuse_to_overwrite(self) -> None:
        """Nothing, where no run has been started here.

        Raises:
            LTMError: there is one.
        """
        if self.exists:
            raise LTMError(f"{self.path} already holds a run: continue it with --resume, or choose another --out")

    @classmethod
    def create(
        cls, path: str | Path, settings: Settings, tokenizer: Tokenizer, class_names: Sequence[str] = ()
    ) -> RunDirectory:
        """Starts a run: the folder, its settings with the names of its classes, and its tokenizer.

        Raises:
            LTMError: there is a run already, or the folder cannot be written.
        """
        run = cls(path, allow_custom_code=True)  # the settings are the caller's own
        run.refuse_to_overwrite()
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            tokenizer.save(run.path / "tokenizer.json")
        except OSError as error:
            raise unwritable(f"the run directory {path}", error, "or choose another --out") from error
        run.write_settings(settings, tokenizer.vocab_size, class_names)
        return run

    @classmethod
    def open(cls, path: str | Path, *, allow_custom_code: bool | Collection[str] = False) -> RunDirectory:
        """A run that has been started, by its folder or by a checkpoint inside it.

        Args:
            path: the folder.
            allow_custom_code: as for the class.

        Raises:
            LTMError: there is none at ``path``.
        """
        place = Path(path).absolute()
        inside = place.name.startswith("step-") and place.parent.name == "checkpoints"
        run = cls(place.parents[1] if inside else path, allow_custom_code=allow_custom_code)
        if not exists(run.path):
            raise LTMError(f"there is no run at {path}: give the folder that `ltm-pyro train` wrote")
        if not run.exists:
            raise LTMError(f"{path} is not a run directory (it has no config.json): give what `ltm-pyro train` wrote")
        return run

    def refuse_links(self) -> None:
        """Nothing, where all that training writes lies in this folder.

        Raises:
            LTMError: a part of it is a symbolic link.
        """
        for place in (self.path / "checkpoints", self.path / "posteriors", self.path / "tensorboard"):
            for path in (place, *(place.iterdir() if place.is_dir() and not place.is_symlink() else ())):
                refuse_link(path)
        for path in self.path.iterdir():
            refuse_link(path)

    def write_settings(self, settings: Settings, vocab_size: int, class_names: Sequence[str] = ()) -> None:
        """Writes config.json in one piece.

        Raises:
            LTMError: the disk is full or not writable.
        """
        import ltm_pyro

        about = {
            "format": _FORMAT,
            "version": ltm_pyro.__version__,
            "vocab_size": vocab_size,
            "settings": settings.to_dict(),
        }
        if class_names:
            about["classes"] = list(class_names)
        try:
            write_durably(self.path / "config.json", json.dumps(about, indent=2).encode())
        except OSError as error:
            raise unwritable(self.path / "config.json", error, "or choose another --out") from error

    @property
    def settings(self) -> Settings:
        """The settings that the run was started with.

        Raises:
            LTMError: config.json is damaged, or names code that the caller has not allowed.
        """
        settings = Settings.from_dict(self._config()["settings"])
        if self._allowed is not True:
            refuse_custom_code(settings, self.path / "config.json", self._allowed or ())
        return settings

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; empty for a run without labels."""
        return tuple(self._config().get("classes", ()))

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's own tokenizer."""
        return Tokenizer.load(self.path / "tokenizer.json")

    @property
    def metrics(self) -> MetricsLog:
        """The run's metrics, for reading."""
        return MetricsLog(self.path / "metrics.jsonl")

    def store(self, keep: int = 3) -> CheckpointStore:
        """The run's checkpoints."""
        return CheckpointStore(self.path / "checkpoints", keep=keep)

    def _config(self) -> dict[str, Any]:
        path = self.path / "config.json"
        try:
            about = read_json(path, most=_MOST_CONFIG)
            version, settings = about["format"], about["settings"]
            if not isinstance(settings, dict):
                raise TypeError(f"settings are {type(settings).__name__}")
            classes = about.get("classes", [])
            if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
                raise TypeError("a class has no name")
        except (OSError, LTMError, KeyError, TypeError, AttributeError) as error:
            raise LTMError(f"{path} is damaged or no run's settings: restore it, or train the run again") from error
        if version != _FORMAT:
            raise LTMError(
                f"{path} has format {version}, this version of ltm-pyro reads {_FORMAT}: use the other version"
            )
        return dict(about)


@dataclass(frozen=True)
class LoadedRun:
    """A trained model and what belongs to it.

    Args:
        settings: of the run.
        tokenizer: of the run.
        language_model: the model as one among others: to score, predict and generate with, whatever its kind.
        step: slow steps behind the weights.
        device: where the model is.
        class_names: names of the classes, in the order of their numbers; empty for a run without labels.
    """

    settings: Settings
    tokenizer: Tokenizer
    language_model: LanguageModel
    step: int
    device: torch.device
    class_names: tuple[str, ...] = ()

    @property
    def svi(self) -> FastSlowSVI:
        """Model, guide and fast loop, ready for `FastSlowSVI.infer`.

        Raises:
            LTMError: the model has no thoughts to infer.
        """
        return self._thoughtful.svi

    @property
    def fast_lr(self) -> float | None:
        """η_fast that training had reached.

        Raises:
            LTMError: the model has no thoughts to infer.
        """
        return self._thoughtful.fast_lr

    @property
    def _thoughtful(self) -> ThoughtLanguageModel:
        if not isinstance(self.language_model, ThoughtLanguageModel):
            raise LTMError(
                f"the run's model is of kind {self.language_model.kind}, which has no thoughts: give a run that was "
                "trained with --model ltm"
            )
        return self.language_model

    def class_index(self, name: str) -> int:
        """The number of a class.

        Raises:
            LTMError: the run's data have no such class.
        """
        if name in self.class_names:
            return self.class_names.index(name)
        known = f"known are {', '.join(self.class_names)}" if self.class_names else "it was trained without labels"
        raise LTMError(f"the run has no class {name!r}: {known}")


def load_run(path: str | Path, *, device: str = "auto", allow_custom_code: bool = False) -> LoadedRun:
    """Loads a run directory's newest whole checkpoint, or the checkpoint at ``path`` itself.

    Args:
        path: the run or checkpoint.
        device: where the model goes.
        allow_custom_code: import the classes that the run names as ``package.module:Class``. Only for a run that you
            trust as you would a program.

    Raises:
        LTMError: there is no run or no whole checkpoint, a file of it is damaged, or it names code of its own.
    """
    run = RunDirectory.open(path, allow_custom_code=allow_custom_code)
    settings, tokenizer, where = run.settings, run.tokenizer, choose_device(device, present_ranks())
    checkpoint = run.store().latest() if run.path == Path(path) else read_checkpoint(path)
    language_model = _load(settings, tokenizer.vocab_size, checkpoint, where)
    return LoadedRun(settings, tokenizer, language_model, checkpoint.step, where, run.class_names)


def _load(settings: Settings, vocab_size: int, checkpoint: Checkpoint, device: torch.device) -> LanguageModel:
    if settings.model.name != "ltm":
        baseline = guarded(lambda: build_baseline(settings, vocab_size), settings, checkpoint.model)
        load_weights(torch.nn.ModuleDict({"model": baseline}), checkpoint)
        return baseline.to(device).eval()
    model = guarded(lambda: build_model(settings, vocab_size), settings, checkpoint.model)
    guide = guarded(lambda: build_guide(settings, model), settings, checkpoint.model)
    load_weights(torch.nn.ModuleDict({"model": model, "guide": guide}), checkpoint)
    svi = FastSlowSVI(
        model.to(device).eval(), guide.to(device).eval(), fast=fast_config(settings), autocast=autocast_type(settings)
    )
    return ThoughtLanguageModel(svi, fast_lr(settings.inference, settings.training, checkpoint.step))


def load_weights(modules: torch.nn.ModuleDict, checkpoint: Checkpoint) -> None:
    """Copies a checkpoint's weights into the modules that it was made from.

    Raises:
        LTMError: the weights are of another model.
    """
    refuse_other_weights(modules, checkpoint.model)
    places = modules.state_dict()
    modules.load_state_dict({n: split_like(w, places.get(n, w)) for n, w in checkpoint.model.items()})


def fast_config(settings: Settings) -> FastConfig:
    """The fast loop that the settings describe."""
    inference = settings.inference
    return FastConfig(
        steps=inference.fast_steps,
        lr=inference.fast_lr,
        lr_decay=inference.fast_lr_decay,
        optimizer=inference.fast_optimizer,
        natural_lr=inference.natural_lr,
        natural_delay=inference.natural_delay,
        betas=(inference.fast_beta1, inference.fast_beta2),
        noise=inference.noise,
        slow_gradient=inference.slow_gradient,
        tolerance=inference.tolerance,
        cuda_graph=inference.cuda_graph,
        token_fraction=inference.token_fraction,
        full_final_steps=inference.full_final_steps,
    )


def choose_device(name: str, ranks: Ranks | None = None) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:K`` means; of several ranks each has a GPU of its own.

    Raises:
        LTMError: there is no such device, or all ranks are to have the same one.
    """
    if ranks is not None and ranks.size > 1:
        if name.startswith("cuda:"):
            raise LTMError(f"device {name!r} cannot be that of {ranks.size} ranks: use auto, cpu or cuda")
        if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
            name = f"cuda:{ranks.local_rank}"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise LTMError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:K") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise LTMError(f"device {name!r} is not there ({count} CUDA devices found): use --device cpu")
    elif device.type != "cpu":
        raise LTMError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:K")
    return device
