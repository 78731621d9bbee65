"""A run on disk: ``config.json``, ``tokenizer.json``, ``metrics.jsonl``, ``checkpoints/``, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltm_pyro.components import autocast_type, build_baseline, build_guide, build_model
from ltm_pyro.config import Settings
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError
from ltm_pyro.infer.fast_config import FastConfig
from ltm_pyro.infer.fast_slow import FastSlowSVI
from ltm_pyro.language_model import LanguageModel, ThoughtLanguageModel
from ltm_pyro.training.checkpoints import Checkpoint, CheckpointStore, read_checkpoint, write_durably
from ltm_pyro.training.metrics import MetricsLog
from ltm_pyro.training.schedules import fast_lr

__all__ = ["LoadedRun", "RunDirectory", "choose_device", "fast_config", "load_run", "load_weights"]

_FORMAT = 1


class RunDirectory:
    """Paths and settings of a run.

    Args:
        path: the run's folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def exists(self) -> bool:
        """Whether a run has been started here."""
        return (self.path / "config.json").exists()

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
        run = cls(path)
        run.refuse_to_overwrite()
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            tokenizer.save(run.path / "tokenizer.json")
        except OSError as error:
            raise LTMError(f"cannot write the run directory {path}: {error.strerror}; choose another --out") from error
        run.write_settings(settings, tokenizer.vocab_size, class_names)
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """A run that has been started, by its folder or by a checkpoint inside it.

        Raises:
            LTMError: there is none at ``path``.
        """
        place = Path(path).absolute()
        inside = place.name.startswith("step-") and place.parent.name == "checkpoints"
        run = cls(place.parents[1] if inside else path)
        if not run.path.exists():
            raise LTMError(f"there is no run at {path}: give the folder that `ltm-pyro train` wrote")
        if not run.exists:
            raise LTMError(f"{path} is not a run directory (it has no config.json): give what `ltm-pyro train` wrote")
        return run

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
            raise LTMError(
                f"cannot write {self.path / 'config.json'}: {error.strerror}; free some space or choose another --out"
            ) from error

    @property
    def settings(self) -> Settings:
        """The settings that the run was started with."""
        return Settings.from_dict(self._config()["settings"])

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
            about = json.loads(path.read_text(encoding="utf-8"))
            version, settings = about["format"], about["settings"]
            if not isinstance(settings, dict):
                raise TypeError(f"settings are {type(settings).__name__}")
            if not all(isinstance(name, str) for name in about.get("classes", ())):
                raise TypeError("a class has no name")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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


def load_run(path: str | Path, *, device: str = "auto") -> LoadedRun:
    """Loads a run directory's newest whole checkpoint, or the checkpoint at ``path`` itself.

    Raises:
        LTMError: there is no run or no whole checkpoint, or a file of it is damaged.
    """
    run = RunDirectory.open(path)
    settings, tokenizer, where = run.settings, run.tokenizer, choose_device(device)
    checkpoint = run.store().latest() if run.path == Path(path) else read_checkpoint(path)
    language_model = _load(settings, tokenizer.vocab_size, checkpoint, where)
    return LoadedRun(settings, tokenizer, language_model, checkpoint.step, where, run.class_names)


def _load(settings: Settings, vocab_size: int, checkpoint: Checkpoint, device: torch.device) -> LanguageModel:
    if settings.model.name != "ltm":
        baseline = build_baseline(settings, vocab_size)
        load_weights(torch.nn.ModuleDict({"model": baseline}), checkpoint)
        return baseline.to(device).eval()
    model = build_model(settings, vocab_size)
    guide = build_guide(settings, model)
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
    try:
        modules.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise LTMError(f"the checkpoint's weights do not fit the run's settings: {reason}") from error


def fast_config(settings: Settings) -> FastConfig:
    """The fast loop that the settings describe."""
    inference = settings.inference
    return FastConfig(
        steps=inference.fast_steps,
        lr=inference.fast_lr,
        lr_decay=inference.fast_lr_decay,
        optimizer=inference.fast_optimizer,
        betas=(inference.fast_beta1, inference.fast_beta2),
        noise=inference.noise,
        slow_gradient=inference.slow_gradient,
        tolerance=inference.tolerance,
        cuda_graph=inference.cuda_graph,
        token_fraction=inference.token_fraction,
        full_final_steps=inference.full_final_steps,
    )


def choose_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:K`` means.

    Raises:
        LTMError: there is no such device.
    """
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
