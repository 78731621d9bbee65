"""Ranks: the processes that train one model together, each on its own sequences, and what they tell each other.

Only sums and plain values pass between them: local parameters belong to one sequence, and stay with its rank.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ltm_pyro.errors import LTMError

__all__ = ["RankLost", "Ranks", "is_split", "joined_ranks", "noticing_loss", "present_ranks"]

T = TypeVar("T")

_BUCKET_BYTES = 64 * 2**20  # gradients that are summed at once: more per message, less memory for the copies


class RankLost(LTMError):
    """Another rank is gone, or has not answered for as long as the ranks wait for each other."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together; a process alone is rank 0 of 1, and every sum is what it has.

    Args:
        rank: this process's number, from 0.
        size: how many there are.
        local_rank: this process's number on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and speaks to the user."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of what all ranks hold alike: contiguous, and of nearly equal size; it may be empty."""
        first, after = (len(items) * k // self.size for k in (self.rank, self.rank + 1))
        return items[first:after]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, on the tensor's device; the tensor itself is left as it is.

        Raises:
            RankLost: another rank does not take part.
        """
        if self.size == 1:
            return value
        total = value.detach().clone()
        with _together():
            dist.all_reduce(total)
        return total

    def any(self, value: bool) -> bool:
        """Whether it is true on some rank.

        Raises:
            RankLost: another rank does not take part.
        """
        return bool(self.sum(torch.tensor(int(value))) > 0)

    def sum_gradients(self, weights: Iterable[Tensor]) -> None:
        """Replaces every weight's gradient by the sum over ranks; a weight that no rank has one for keeps none.

        Weights that lie in parts on the ranks (`ltm_pyro.sharding`) have theirs summed already.

        One message for every 64 MiB, once per slow step however many micro-batches it had: it is one of the
        T_fast + 1 passes that waits, so there is little to win by sending earlier.

        Raises:
            RankLost: another rank does not take part.
        """
        if self.size == 1:
            return
        weights = [weight for weight in weights if not is_split(weight)]
        known = self.sum(torch.tensor([int(w.grad is not None) for w in weights]))
        for weight in (w for w, n in zip(weights, known.tolist(), strict=True) if n and w.grad is None):
            weight.grad = torch.zeros_like(weight)
        for bucket in _buckets([w.grad for w in weights if w.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            with _together():
                dist.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def gather(self, value: T) -> list[T]:
        """Every rank's plain value or tensors on the CPU, in the order of the ranks.

        Raises:
            RankLost: another rank does not take part.
        """
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(found, value)
        return found

    def same(self, value: T) -> T:
        """Rank 0's value.

        Raises:
            RankLost: another rank does not take part.
        """
        if self.size == 1:
            return value
        held = [value]
        with _together():
            dist.broadcast_object_list(held)
        return held[0]

    def align(self, modules: nn.Module) -> None:
        """Gives every rank rank 0's weights and buffers.

        Raises:
            RankLost: another rank does not take part.
        """
        if self.size > 1:
            for tensor in modules.state_dict().values():
                with _together():
                    dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until all ranks are here.

        Raises:
            RankLost: another rank does not come.
        """
        self.sum(torch.zeros(1))

    def main_first(self, work: Callable[[], T]) -> T:
        """What ``work`` gives; the other ranks begin once rank 0 is done, and find what it left in a cache.

        There is no time-out: to tokenise a corpus takes longer than any sum.

        Raises:
            RankLost: rank 0 failed.
        """
        if self.size == 1:
            return work()
        # A machine's first rank is as good as rank 0 where machines share no disk; each waits for its own.
        store, key = _store(), f"ltm-pyro/first/{next(_COUNTER)}/{self.rank - self.local_rank}"
        if self.local_rank == 0:
            try:
                result = work()
            except BaseException:
                store.set(key, "failed")
                raise
            store.set(key, "done")
            return result
        with _together():
            while not store.check([key]):
                time.sleep(0.2)
            if store.get(key) == b"failed":
                raise RankLost(f"rank {self.rank - self.local_rank} could not prepare what this one needs")
        return work()

    def first_to_say(self, message: str) -> bool:
        """Whether no other rank has said the same before: what goes wrong for all alike is printed once."""
        if self.size == 1:
            return True
        try:
            return int(_store().add(f"ltm-pyro/said/{zlib.crc32(message.encode())}", 1)) == 1
        except RuntimeError:
            return True  # the store went away with rank 0


_COUNTER = itertools.count()  # of the waits for rank 0, which all ranks meet in the same order


def present_ranks() -> Ranks:
    """The ranks that this process has joined; alone where it has joined none."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    launched = _launched() or Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size(), launched.local_rank)


@contextmanager
def joined_ranks(*, timeout: float = 600.0) -> Iterator[Ranks]:
    """Joins the other processes that torchrun or srun has started, if it has; inside, `present_ranks` knows them.

    Sums of tensors on the CPU go through gloo, on CUDA through NCCL.

    Args:
        timeout: seconds that a rank waits for the others to take part in a sum before it gives up.

    Raises:
        LTMError: the environment names no place to meet, or the others do not come.
    """
    launched = _launched()
    if launched is None or launched.size == 1:
        yield Ranks()
        return
    if not dist.is_available():
        raise LTMError("this torch was built without torch.distributed: install another build, or start one process")
    backend = "cpu:gloo"
    if torch.cuda.is_available():
        backend += ",cuda:nccl"
        torch.cuda.set_device(launched.local_rank % torch.cuda.device_count())
    try:
        dist.init_process_group(
            backend, rank=launched.rank, world_size=launched.size, timeout=timedelta(seconds=timeout)
        )
    except (RuntimeError, ValueError) as error:
        raise LTMError(
            f"rank {launched.rank} of {launched.size} cannot meet the others ({_reason(error)}): check MASTER_ADDR and "
            "MASTER_PORT, and that all of them were started"
        ) from error
    try:
        yield launched
        _part(launched)
    except SystemExit as end:
        if end.code in (None, 0, 130):  # a command that came to its end on all ranks
            _part(launched)
        raise
    finally:
        dist.destroy_process_group()


def _part(ranks: Ranks) -> None:
    """Rank 0 may be where the others meet, so it does not go before them, nor wait for ever for one that is lost."""
    with suppress(RuntimeError):
        store, key = _store(), "ltm-pyro/parted"
        store.add(key, 1)
        for _ in range(600 if ranks.is_main else 0):
            if store.add(key, 0) >= ranks.size:
                break
            time.sleep(0.1)


def is_split(tensor: Tensor) -> bool:
    """Whether the ranks each hold a part of the tensor (`ltm_pyro.sharding`)."""
    known = sys.modules.get("torch.distributed.tensor")  # importing it takes more than a second
    return known is not None and isinstance(tensor, known.DTensor)


def _launched() -> Ranks | None:
    """What torchrun, or srun of Slurm, says of this process; None where neither has started it."""
    env = os.environ
    try:
        if "RANK" in env and "WORLD_SIZE" in env:
            return Ranks(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)))
        # Of all Slurm's variables, these are srun's alone: the shell of an allocation is one process, not many.
        if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in env:
            _meet_through_slurm()
            return Ranks(int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_LOCALID"]))
    except (ValueError, KeyError) as error:
        raise LTMError(
            f"the environment's RANK, WORLD_SIZE and LOCAL_RANK, or srun's, are not numbers ({error}): start the "
            "processes by torchrun or srun"
        ) from error
    return None


def _meet_through_slurm() -> None:
    """Sets MASTER_ADDR and MASTER_PORT, which torchrun would: the step's first machine, a port by the job's number."""
    env = os.environ
    if "MASTER_ADDR" not in env:
        nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_NODELIST", "localhost"))
        if "[" in nodes:
            try:
                listed = subprocess.run(
                    ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=60
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise LTMError(
                    f"scontrol cannot list the machines {nodes} ({error}): set MASTER_ADDR to the first of them"
                ) from error
            nodes = listed.stdout.split()[0]
        env["MASTER_ADDR"] = nodes.split(",")[0]
    env.setdefault("MASTER_PORT", str(20_000 + int(env.get("SLURM_JOB_ID", 0)) % 20_000))


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


@contextmanager
def _together() -> Iterator[None]:
    """What torch says of a rank that is gone, as one line."""
    try:
        yield
    except RuntimeError as error:
        raise _lost(error) from error


@contextmanager
def noticing_loss() -> Iterator[None]:
    """What torch says of a rank that is gone, as one line; around work that fails for other reasons, too."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise _lost(error) from error
        raise


def _lost(error: RuntimeError) -> RankLost:
    return RankLost(f"another rank ended, or has not answered ({_reason(error)}); its own message says why")


def _reason(error: BaseException) -> str:
    """The first sentence of an error's message, without the places in torch's own code that gloo begins with."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[\S+:\d+\] ", "", line).split(". ")[0]


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in runs of one type and device that are no larger than `_BUCKET_BYTES`, single larger ones aside."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        alike = bucket and (bucket[0].dtype, bucket[0].device) == (tensor.dtype, tensor.device)
        if bucket and (not alike or size + tensor.nbytes > _BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
