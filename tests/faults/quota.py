"""A disk that is full after so many bytes: a stub at the file layer, under every way in which Python opens a file."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Quota:
    """Counts the bytes written and the other calls that need room; from ``after`` of them on there is none left.

    Args:
        folder: only what lies inside is counted.
        after: bytes, a new file, folder or name and an fsync counting as one; None never fails.
        number: of the error.
    """

    def __init__(self, folder: Path, after: int | None = None, number: int = errno.ENOSPC):
        self.folder = str(folder.absolute())
        self.after = after
        self.number = number
        self.used = 0

    def inside(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self.folder)

    def take(self, size: int = 1) -> int:
        """How many of so many bytes still fit.

        Raises:
            OSError: none.
        """
        left = size if self.after is None else max(min(size, self.after - self.used), 0)
        if size and not left:
            raise OSError(self.number, os.strerror(self.number))
        self.used += left
        return left


class _File(io.FileIO):
    """A file whose writes end, maybe in the middle, where the disk is full."""

    def __init__(self, path: Any, mode: str, quota: Quota):
        if any(letter in mode for letter in "wax") and not os.path.exists(path):
            quota.take()
        super().__init__(path, mode)
        self.quota = quota

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        return super().write(view[: self.quota.take(len(view))])


@contextmanager
def full_disk(quota: Quota) -> Iterator[Quota]:
    """Context in which files inside the quota's folder are opened, written, made and renamed under it."""
    real_open, real_fsync, real_mkdir, real_os_open, real_pwrite = io.open, os.fsync, os.mkdir, os.open, os.pwrite
    renames = {name: getattr(os, name) for name in ("rename", "replace")}

    def opened(
        path: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *rest: Any, **options: Any
    ) -> Any:
        if not quota.inside(path) or not any(letter in mode for letter in "wax+"):
            return real_open(path, mode, buffering, encoding, *rest, **options)
        raw = _File(path, mode.replace("b", "").replace("t", ""), quota)
        file: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return file if "b" in mode else io.TextIOWrapper(file, encoding=encoding or "utf-8", write_through=True)

    def fsync(descriptor: int) -> None:
        quota.take()
        real_fsync(descriptor)

    def mkdir(path: Any, *rest: Any, **options: Any) -> None:
        if quota.inside(path) and not os.path.exists(path):
            quota.take()
        real_mkdir(path, *rest, **options)

    def os_open(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if quota.inside(path) and flags & os.O_CREAT and not os.path.exists(path):
            quota.take()
        return real_os_open(path, flags, *rest, **options)

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        return real_pwrite(descriptor, data[: quota.take(len(data))], offset)

    def renamed(real: Any) -> Any:
        def call(source: Any, target: Any, **options: Any) -> None:
            if quota.inside(target):
                quota.take()
            real(source, target, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", opened)
        patch.setattr("builtins.open", opened)
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "mkdir", mkdir)
        patch.setattr(os, "open", os_open)
        patch.setattr(os, "pwrite", pwrite)
        for name, real in renames.items():
            patch.setattr(os, name, renamed(real))
        yield quota
