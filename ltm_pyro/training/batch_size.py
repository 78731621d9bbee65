"""How many sequences fit at once: tried on a GPU; elsewhere by formula, or from steps on few."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ltm_pyro.batch import TokenBatch
from ltm_pyro.components import build_baseline, build_model
from ltm_pyro.config import Settings
from ltm_pyro.data import Data
from ltm_pyro.data.sequences import SequenceDataset
from ltm_pyro.errors import LTMError
from ltm_pyro.flops import DecoderSize, TransformerSize
from ltm_pyro.memory import TrainingShape, slow_step_memory, transformer_step_memory
from ltm_pyro.memory_meter import measured_peak
from ltm_pyro.ranks import present_ranks
from ltm_pyro.training.learners import Learner, build_learner
from ltm_pyro.training.run import choose_device

__all__ = ["Fit", "available_memory", "fit_batch_size", "formula_bytes"]

MARGIN = 0.7
"""Share of a CPU's available memory that tensors may take: kernels and the allocator need about a third on top."""

GPU_MARGIN = 0.9
"""Share of a GPU's free memory that may be reserved, which has the allocator's slack in it."""

# Components without a network of their own: what they keep is in the formula.
_COUNTED = {
    "model": ("ltm", "ar", "mdlm"),
    "prior": ("gaussian", "learned-gaussian", "mixture", "supervised"),
    "guide": ("local-normal", "local-delta"),
}


class Fit(NamedTuple):
    """``size`` sequences fit at once. ``how`` says in words how that is known."""

    size: int
    how: str


def fit_batch_size(settings: Settings, data: Data, *, most: int | None = None) -> Fit:
    """The greatest number of sequences that a step can work on at once, taking the longest of the data.

    Training is unchanged by the search: what it tries, it tries on a learner of its own.

    Args:
        settings: of the run; its batch and micro-batch sizes are not read.
        data: of the run.
        most: where to stop; None is the number of training sequences.

    Raises:
        LTMError: not even one sequence fits, how much memory there is cannot be told, or the weights are to lie in
            parts on several ranks.
    """
    if settings.training.shard and present_ranks().size > 1:
        raise LTMError(
            "a size that is auto is found with all weights on one device, which training.shard=true is to spare: give "
            "the number"
        )
    device = choose_device(settings.training.device)
    most = len(data.train) if most is None else min(most, len(data.train))
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        budget = int(GPU_MARGIN * (free + torch.cuda.memory_reserved(device)))
        trial, how = _on_trial(settings, data, device, budget), "tried"
    else:
        budget = int(MARGIN * available_memory())
        if _is_counted(settings):
            trial, how = (lambda size: formula_bytes(settings, data, size) <= budget), "by formula"
        else:
            trial, how = _extrapolated(settings, data, device, budget), "from steps on few sequences"
    size = _largest(trial, most)
    if size == 0:
        raise LTMError(
            f"a step on one sequence of {int(data.train.lengths.max())} tokens does not fit into {_gib(budget)} of "
            "memory: set decoder.checkpointing=true or training.dtype=bfloat16, or a smaller data.sequence_length"
        )
    reached = " (all of the data)" if size == len(data.train) else ""
    return Fit(size, f"{how}, for {_gib(budget)} of memory{reached}")


def formula_bytes(settings: Settings, data: Data, size: int) -> int:
    """Peak bytes, by `ltm_pyro.memory`, of a step on the ``size`` longest sequences of the data."""
    lengths = sorted(data.train.lengths.tolist(), reverse=True)[:size]
    vocab_size = data.tokenizer.vocab_size
    shape = TrainingShape(
        batch=len(lengths),
        length=lengths[0],
        scored=sum(lengths),
        heads=settings.decoder.heads,
        autocast=settings.training.dtype == "bfloat16",
        checkpointing=settings.decoder.checkpointing,
    )
    with torch.device("meta"):
        if settings.model.name == "ltm":
            model = build_model(settings, vocab_size)
            others = sum(p.numel() for p in model.prior.parameters())
            return slow_step_memory(DecoderSize.of(model.decoder), replace(shape, other_weights=others)).peak
        baseline = build_baseline(settings, vocab_size)
    if settings.model.name == "mdlm":  # reads the start token, too
        shape = replace(shape, length=shape.length + 1)
    return transformer_step_memory(TransformerSize.of(baseline.network), shape).peak


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: what the system has available, within the control group's limit.

    Where the system does not say what is available, half of what it has.

    Args:
        root: where ``proc`` and ``sys`` are.

    Raises:
        LTMError: the system says neither.
    """
    found = []
    with suppress(OSError, ValueError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with suppress(ValueError, OSError, AttributeError):
        if not found:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    if not found:
        raise LTMError("cannot tell how much memory there is: give --batch-size a number")
    return min(found + _control_group(root))


def _control_group(root: Path) -> list[int]:
    """What is left of each limit on this process's control groups, of either version."""
    folders = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                folders.append((root / "sys/fs/cgroup", path, "memory.max", "memory.current"))
            elif "memory" in controllers.split(","):
                folders.append((root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes"))
    left = []
    for mount, path, limit, usage in folders:
        for folder in {mount / path.lstrip("/"), mount}:  # inside a container its own group is often the mount
            with suppress(OSError, ValueError):  # no such file, or a limit of "max"
                left.append(max(0, int((folder / limit).read_text()) - _used(folder, usage)))
    return left


def _used(folder: Path, usage: str) -> int:
    """Bytes in use by a control group, without the pages of files that it would give up."""
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int((folder / usage).read_text()) - int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest size up to ``most`` that fits, by doubling and then bisecting; 0 where 1 does not."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _is_counted(settings: Settings) -> bool:
    thoughts = settings.model.name == "ltm"
    kinds = ("model", "prior", "guide") if thoughts else ("model",)
    counted = all(getattr(settings, kind).name in _COUNTED[kind] for kind in kinds)
    return counted and not (thoughts and settings.inference.slow_gradient == "trajectory")


def _on_trial(settings: Settings, data: Data, device: torch.device, budget: int) -> Callable[[int], bool]:
    learner = _throwaway(settings, data, device)

    def fits(size: int) -> bool:
        torch.cuda.reset_peak_memory_stats(device)
        fitted = False
        with suppress(torch.OutOfMemoryError):
            _take_steps(learner, _longest(data.train, size).to(device))
            fitted = torch.cuda.max_memory_reserved(device) <= budget
        learner.optimizer.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()
        return fitted

    return fits


def _extrapolated(settings: Settings, data: Data, device: torch.device, budget: int) -> Callable[[int], bool]:
    """Peak bytes on any number of sequences from a step on few of them, on the safe side.

    What has the size of a weight does not grow with the batch: weights, gradients, moments and temporaries are counted
    as if all were there at once. The rest is taken to grow in proportion.
    """
    learner = _throwaway(settings, data, device)
    weights = [p for p in learner.modules.parameters() if p.requires_grad]
    sizes = {p.nbytes for p in weights}
    fixed = 4 * sum(p.nbytes for p in weights) + 2 * max(sizes)
    # Activations of as many rows as a weight has would be taken for one.
    length, sides = int(data.train.lengths.max()), {side for p in weights for side in p.shape}
    candidates = [n for n in (8, 9, 10, 11, 7, 6, 5, 4, 3, 2, 1) if n <= len(data.train)]
    few = next((n for n in candidates if sides.isdisjoint((n * length, n * (length + 1)))), candidates[-1])
    rest = measured_peak(partial(_take_steps, learner, _longest(data.train, few).to(device)), but=sizes)
    return lambda size: fixed + rest * max(size / few, 1) <= budget


def _throwaway(settings: Settings, data: Data, device: torch.device) -> Learner:
    """A learner that works as the run's does, for two fast steps: a third needs no more memory."""
    steps = min(settings.inference.fast_steps, 2)
    settings = settings.updated(
        {
            "inference.fast_steps": steps,
            "inference.warm_start": False,
            "decoder.compile": False,
            "training.micro_batch_size": None,
        }
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        folder = Path(tempfile.gettempdir())  # for a table of posteriors, which there is none of
        return build_learner(settings, data.tokenizer.vocab_size, data.class_names, device, folder)


def _take_steps(learner: Learner, batch: TokenBatch) -> None:
    """Two steps: the optimiser's moments are there from the first one's end."""
    device = batch.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for at in range(2):
            learner.step(batch, at=at, seed=at)


def _longest(data: SequenceDataset, size: int) -> TokenBatch:
    order = (-data.lengths).argsort(kind="stable")
    return data.batch(order[:size].tolist())


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
