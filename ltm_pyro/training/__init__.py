"""Training: trainer, schedules, checkpoints, metrics, and runs on disk."""

from ltm_pyro.training.checkpoints import Checkpoint, CheckpointStore, read_checkpoint
from ltm_pyro.training.metrics import MetricsLog
from ltm_pyro.training.optimizer import build_optimizer
from ltm_pyro.training.run import LoadedRun, RunDirectory, load_run
from ltm_pyro.training.trainer import Observer, Trainer

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "LoadedRun",
    "MetricsLog",
    "Observer",
    "RunDirectory",
    "Trainer",
    "build_optimizer",
    "load_run",
    "read_checkpoint",
]
