"""A cache of folders keyed by content: each appears whole, by a rename; a damaged one is built again."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ltm_pyro.errors import LTMError
from ltm_pyro.locks import try_lock
from ltm_pyro.untrusted import exists, local_path

__all__ = ["HashedFile", "cached_folder", "default_cache_dir", "hashed_file", "known_cache", "unwritable"]

T = TypeVar("T")

_STALE_SECONDS = 24 * 3600


def default_cache_dir() -> Path:
    """``$LTM_PYRO_CACHE``, or ``~/.cache/ltm-pyro``."""
    return Path(os.environ.get("LTM_PYRO_CACHE") or "~/.cache/ltm-pyro").expanduser()


def known_cache(cache_dir: str | None) -> Path | None:
    """The cache that a run's config.json names, where it is one; else None, the user's own, with a warning.

    A config.json may come from anybody, so no folder becomes a cache because one says so.
    """
    if cache_dir is None:
        return None
    folder = local_path(cache_dir)
    if any(exists(folder / name) and (folder / name).is_dir() for name in ("shards", "tokenizers")):
        return folder
    warnings.warn(f"the run's data.cache_dir, {folder}, is no cache here: using your own", stacklevel=2)
    return None


def cached_folder(folder: Path, build: Callable[[Path], object], load: Callable[[Path], T]) -> T:
    """What ``load`` makes of a folder, which ``build`` fills first where it is missing or damaged.

    ``build`` works in a temporary sibling, so that a kill leaves no half folder; of processes that race one
    wins and all load the same.

    Args:
        folder: where it lies in the cache.
        build: fills an empty folder.
        load: reads a filled one, raising LTMError where it is damaged.

    Raises:
        LTMError: from ``build``, or the cache cannot be written.
    """
    if folder.exists():
        with suppress(LTMError):  # damaged: built again and replaced below
            return load(folder)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        with _locked(temporary):
            _remove_stale(folder.parent)
            build(temporary)
            return _publish(temporary, folder, load)
    except OSError as error:
        raise unwritable(folder.parent, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unwritable(folder: Path, error: OSError) -> LTMError:
    """The error for a cache folder that cannot be written."""
    return LTMError(
        f"{folder}: the cache cannot be written ({error.strerror or error}); free some space there, or set another "
        "folder with cache_dir or $LTM_PYRO_CACHE"
    )


def _publish(temporary: Path, folder: Path, load: Callable[[Path], T]) -> T:
    while True:
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return load(folder)
        with suppress(LTMError):  # another process was faster …
            return load(folder)
        aside = temporary.with_suffix(".old")  # … or what lies there is damaged
        with suppress(FileNotFoundError):
            folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _remove_stale(parent: Path) -> None:
    """Leftovers of killed processes, a day old by the clock.

    A clock that was set may call so old what another process works in; but that one holds its lock.
    """
    limit = time.time() - _STALE_SECONDS
    for left in (*parent.glob(".*.tmp"), *parent.glob(".*.old")):
        with suppress(OSError):
            if left.stat().st_mtime < limit:
                with _locked(left) as free:
                    if free is not False:
                        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool | None]:
    """Context that holds a folder's lock, and what `try_lock` said of it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        yield None
        return
    try:
        yield try_lock(descriptor)
    finally:
        os.close(descriptor)


class HashedFile:
    """Writes bytes to a file and hashes them on the way."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Appends the bytes."""
        self._file.write(data)
        self._hash.update(data)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what was written."""
        return self._hash.hexdigest()


@contextmanager
def hashed_file(path: Path) -> Iterator[HashedFile]:
    """A new file to write, flushed to the disk at the end."""
    with path.open("wb") as file:
        yield HashedFile(file)
        file.flush()
        os.fsync(file.fileno())
