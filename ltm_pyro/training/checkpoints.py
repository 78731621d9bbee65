"""Checkpoints that survive a kill at any instant: safetensors and JSON, written aside, fsynced, renamed, checked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltm_pyro.errors import LTMError, unwritable
from ltm_pyro.training.checkpoint_state import check_finite, check_state, not_finite
from ltm_pyro.untrusted import read_bytes, read_json, refuse_link, tensor_entries

__all__ = ["Checkpoint", "CheckpointStore", "read_checkpoint", "write_durably"]

FORMAT = 1
_TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")
_POSTERIORS = "posteriors.safetensors"  # only where there are some


@dataclass(frozen=True)
class Checkpoint:
    """What training needs to go on.

    Args:
        step: slow steps taken.
        model: weights by name.
        optimizer: the slow optimiser's moments as ``<weight>.<moment>``.
        state: plain values: where the sampler stands.
        posteriors: fitted local parameters that are in no other file yet (`PosteriorTable.unwritten`), if any are kept.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    posteriors: dict[str, Tensor] = field(default_factory=dict)


class CheckpointStore:
    """The folder ``checkpoints`` of a run: ``step-00001000/{model.safetensors, optimizer.safetensors, state.json}``.

    Args:
        folder: where the checkpoints stand; made when the first is saved.
        keep: newest checkpoints that are kept.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3):
        self.folder = Path(folder)
        self.keep = keep

    def paths(self) -> list[Path]:
        """The complete checkpoints' folders, newest first."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted((p for p in found if p.is_dir() and p.name[5:].isdigit()), reverse=True)

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of a step, be it there or not."""
        return self.folder / f"step-{step:08d}"

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint in full before it appears under its name, then lets the oldest ones go.

        Raises:
            LTMError: the disk is full or not writable, a number is not finite, or the folder is a link; earlier
                checkpoints are still there.
        """
        if name := not_finite(checkpoint.model | checkpoint.optimizer):
            raise LTMError(
                f"{name} is not finite after step {checkpoint.step}, so it is not saved: lower training.slow_lr and "
                "resume the run; earlier checkpoints are untouched"
            )
        refuse_link(self.folder)
        target = self.path(checkpoint.step)
        aside = self.folder / f".{target.name}.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
            aside.mkdir()
            _write(aside, checkpoint)
            if target.exists():
                # A damaged checkpoint of the same step, or one that is made again: it stays until its heir is complete.
                old = self.folder / f".{target.name}.{os.getpid()}.old"
                target.rename(old)
                aside.rename(target)
                shutil.rmtree(old)
            else:
                aside.rename(target)
            _fsync(self.folder)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise unwritable(
                f"the checkpoint {target}", error, "and resume the run; earlier checkpoints are untouched"
            ) from error
        # Later ones are damaged and were passed over: they are being made again.
        later = [path for path in self.paths() if path.name > target.name]
        for path in (*later, *self.paths()[len(later) + self.keep :]):
            shutil.rmtree(path, ignore_errors=True)
        return target

    def latest(self) -> Checkpoint:
        """The newest checkpoint that is whole; a damaged one is passed over with a warning.

        Raises:
            LTMError: there is none.
        """
        damage: list[LTMError] = []
        for path in self.paths():
            try:
                checkpoint = read_checkpoint(path)
            except LTMError as error:
                damage.append(error)
                continue
            for reason in damage:
                warnings.warn(f"{reason}; going back to step {checkpoint.step}", stacklevel=2)
            return checkpoint
        if damage:
            raise LTMError(f"no whole checkpoint in {self.folder}: {damage[0]}; restore it, or train the run again")
        raise LTMError(f"no checkpoint in {self.folder} yet: train the run first")

    def _clear_leftovers(self) -> None:
        for path in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".step-*.old"):
            name = path.name[1 : path.name.index(".", 1)]
            if (self.folder / name).exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(self.folder / name)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads one checkpoint's folder onto the CPU and checks every byte of it against the digests.

    A digest tells damage; it proves nothing of who wrote the file, so headers, values and state are checked as well
    (`ltm_pyro.untrusted`), before any tensor is made.

    Raises:
        LTMError: a file is missing, truncated, changed, of another version, or holds what is no number.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    about = _read_state(path / "state.json")
    tensors = []
    names = [*_TENSOR_FILES, *([_POSTERIORS] if _POSTERIORS in about["sha256"] else [])]
    for name in names:
        try:
            content = read_bytes(path / name)
        except OSError as error:
            raise LTMError(f"checkpoint {path} is damaged: cannot read {name} ({error.strerror})") from error
        if hashlib.sha256(content).hexdigest() != about["sha256"].get(name):
            raise LTMError(f"checkpoint {path} is damaged: {name} is truncated or changed")
        try:
            tensor_entries(content, name)
            tensors.append(load(content))
            check_finite(tensors[-1], name)
        except LTMError as error:
            raise LTMError(f"checkpoint {path} is damaged: {error}") from error
        except SafetensorError as error:
            raise LTMError(f"checkpoint {path} is damaged: {name} is not a safetensors file ({error})") from error
    model, optimizer, *posteriors = tensors
    if path.name.startswith("step-") and path.name[5:].isdigit() and int(path.name[5:]) != about["step"]:
        raise LTMError(f"checkpoint {path} is damaged: it is that of step {about['step']}")
    return Checkpoint(about["step"], model, optimizer, about["state"], *posteriors)


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a file in one piece: aside, fsync, rename."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.unlink(missing_ok=True)  # of a killed process with this number, or a link that leads elsewhere
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _fsync(path.parent)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    from safetensors.torch import save

    digests = {}
    files = dict(zip(_TENSOR_FILES, (checkpoint.model, checkpoint.optimizer), strict=True))
    if checkpoint.posteriors:
        files[_POSTERIORS] = checkpoint.posteriors
    for name, tensors in files.items():
        content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        digests[name] = hashlib.sha256(content).hexdigest()
        write_durably(folder / name, content)
    about = {"format": FORMAT, "step": checkpoint.step, "state": checkpoint.state, "sha256": digests}
    about["torch"] = str(torch.__version__)
    about["digest"] = _digest(about)
    write_durably(folder / "state.json", json.dumps(about, indent=1).encode())


def _read_state(path: Path) -> dict[str, Any]:
    try:
        about = read_json(path)
        digest = about.pop("digest")
        version = about["format"]
    except OSError as error:
        raise LTMError(f"checkpoint {path.parent} is damaged: cannot read state.json ({error.strerror})") from error
    except (LTMError, KeyError, TypeError, AttributeError) as error:
        raise LTMError(f"checkpoint {path.parent} is damaged: state.json is truncated or changed") from error
    if digest != _digest(about):
        raise LTMError(f"checkpoint {path.parent} is damaged: state.json is truncated or changed")
    if version != FORMAT:
        raise LTMError(
            f"checkpoint {path.parent} has format {version}, this version of ltm-pyro reads format {FORMAT}: "
            "use the version that wrote it"
        )
    try:
        check_state(about, (*_TENSOR_FILES, _POSTERIORS))
    except LTMError as error:
        raise LTMError(f"checkpoint {path.parent} is damaged: {error}") from error
    return dict(about)


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
