"""Where metrics go beside metrics.jsonl: TensorBoard events, and Weights & Biases."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ltm_pyro.config import Settings
from ltm_pyro.data.files import optional_import
from ltm_pyro.training.checkpoints import write_durably
from ltm_pyro.untrusted import refuse_link

__all__ = ["Sink", "TensorBoardSink", "WandbSink", "build_sinks"]

_FLUSH_SECONDS = 10  # what a kill may cost a TensorBoard curve; its default is two minutes


@runtime_checkable
class Sink(Protocol):
    """A place that shows a run's metrics. Whatever it raises costs the run nothing but the place (`MetricsLog`)."""

    @property
    def name(self) -> str:
        """What a warning calls it."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row of metrics; the first one opens what has to be opened."""

    def rewind(self, step: int) -> None:
        """Training is about to make the rows after ``step`` again."""

    def close(self, *, failed: bool) -> None:
        """Everything is to be out when this returns; a later row opens the place again."""


def build_sinks(settings: Settings, folder: Path) -> list[Sink]:
    """The sinks that a run's settings ask for.

    Args:
        settings: of the run.
        folder: the run's.

    Raises:
        LTMError: the package of one of them is not installed.
    """
    training = settings.training
    sinks: list[Sink] = []
    if training.tensorboard:
        sinks.append(TensorBoardSink(folder / "tensorboard"))
    if training.wandb is not None:
        sinks.append(WandbSink(training.wandb, folder, settings.to_dict()))
    return sinks


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row as ``split/name``."""
    return {
        f"{row['split']}/{name}": value
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
    }


class TensorBoardSink:
    """TensorBoard events. After a resume TensorBoard hides what an earlier session wrote past the checkpoint.

    Args:
        folder: of the events.

    Raises:
        LTMError: the package is not installed.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path):
        refuse_link(folder)
        optional_import("tensorboard", "training.tensorboard", "tensorboard")
        self.folder = folder
        self._purge: int | None = None
        self._writer: Any = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds the row's numbers; a validation's are on the disk when this returns."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self._purge, flush_secs=_FLUSH_SECONDS)
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])
        if row["split"] == "validation":
            self._writer.flush()

    def rewind(self, step: int) -> None:
        """Lets the next row open a file that takes back all events after ``step``."""
        self.close(failed=False)
        self._purge = step + 1

    def close(self, *, failed: bool) -> None:
        """Writes what is left and closes the file."""
        if self._writer is not None:
            self._writer.close()
        self._writer, self._purge = None, None


class WandbSink:
    """One run of Weights & Biases for a run directory, which every resume goes on with.

    W&B takes no row back. Its charts are drawn against the metric ``step``, so that steps which are trained again stand
    where they stood, beside what was there. The id is kept in ``wandb.json``, W&B's own files in ``wandb/``. The key
    and the mode are W&B's business: WANDB_API_KEY or `wandb login`, WANDB_MODE.

    Args:
        target: ``project`` or ``entity/project``.
        folder: the run's.
        config: what W&B shows as the run's configuration.

    Raises:
        LTMError: the package is not installed.
    """

    name = "Weights & Biases"

    def __init__(self, target: str, folder: Path, config: Mapping[str, Any]):
        self._wandb = optional_import("wandb", "training.wandb", "wandb")
        self.target = target
        self.folder = folder
        self.config = dict(config)
        self._run: Any = None
        self._about: dict[str, Any] = {}

    def append(self, row: Mapping[str, Any]) -> None:
        """Logs the row's numbers."""
        if self._run is None:
            self._open()
        # W&B's own counter must never go back; offline it would begin at 0 in every session.
        self._about["rows"] += 1
        self._run.log({"step": row["step"], **_numbers(row)}, step=self._about["rows"])
        # In one piece, for a kill; it need not be on the disk, for W&B tells how far it is.
        aside = self._path.with_name(".wandb.json.tmp")
        aside.write_text(json.dumps(self._about), encoding="utf-8")
        aside.replace(self._path)

    def rewind(self, step: int) -> None:
        """Nothing: rows that are made again are logged again."""

    def close(self, *, failed: bool) -> None:
        """Sends what is left and ends the session, as failed or not."""
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=int(failed))

    def _open(self) -> None:
        *entity, project = self.target.split("/")
        about = self._kept()
        if about.get("target") != self.target:
            about = {"target": self.target, "id": secrets.token_hex(4), "rows": 0}
        self._run = self._wandb.init(
            project=project,
            entity=entity[0] if entity else None,
            id=about["id"],
            resume="allow",
            name=self.folder.absolute().name,
            dir=str(self.folder),
            config=self.config,
            allow_val_change=True,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._about = about | {"rows": max(about["rows"], int(self._run.step)), "url": self._run.url}
        write_durably(self._path, json.dumps(self._about).encode())

    @property
    def _path(self) -> Path:
        return self.folder / "wandb.json"

    def _kept(self) -> dict[str, Any]:
        try:
            about = json.loads(self._path.read_bytes())
            return {"target": str(about["target"]), "id": str(about["id"]), "rows": int(about["rows"])}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}
