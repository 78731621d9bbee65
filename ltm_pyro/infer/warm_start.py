"""PosteriorTable: fitted local parameters by sequence, memory-mapped, to start the next epoch's fast loops from."""

from __future__ import annotations

import json
import math
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from ltm_pyro.errors import LTMError, unwritable
from ltm_pyro.guides.base import LocalParams
from ltm_pyro.untrusted import read_bytes, read_json, refuse_link

__all__ = ["PosteriorTable"]

_FORMAT = 1
_WIDEST = 1 << 28  # entries of a row


class PosteriorTable:
    """One row of local parameters for every sequence met so far, found by the sequence's key (`TokenBatch.keys`).

    What is stored lies in memory until `flush` moves it to the files ``keys.bin`` and ``rows.bin``, and is read back
    from there through a memory map, so that a table may be larger than memory. A trainer flushes after each checkpoint
    and keeps the rows since the last one in the checkpoint itself (`unwritten`), so that a killed run starts from the
    very rows that the uninterrupted one had.

    Args:
        folder: where the table lies; made if it is not there.

    Raises:
        LTMError: the folder cannot be written, or holds something else.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._unwritten: dict[int, npt.NDArray[np.float32]] = {}
        self._untold: set[int] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error, "or choose another folder") from error
        try:
            links = [place for place in (self.folder, *self.folder.iterdir()) if place.is_symlink()]
            self._layout = self._read_layout()
            self._rows_of = self._read_keys()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, LTMError) as error:
            raise LTMError(f"{self.folder} is no table of posteriors ({error}): delete it and run again") from error
        for place in links:
            refuse_link(place)

    def __len__(self) -> int:
        return len(self._rows_of.keys() | self._unwritten.keys())

    def __contains__(self, key: int) -> bool:
        return key in self._unwritten or key in self._rows_of

    def start(self, keys: Int[Tensor, " batch"], local: LocalParams) -> LocalParams:
        """``local`` with the stored values in place of those of every sequence that has been stored before."""
        found = [(place, key) for place, key in enumerate(keys.tolist()) if key in self]
        if not found:
            return local
        self._check_layout(local)
        stored = self._as_local(self._read([key for _, key in found]))
        index = torch.tensor([place for place, _ in found], device=keys.device)
        return {
            name: value.detach().index_copy(0, index, stored[name].to(value.device, value.dtype))
            for name, value in local.items()
        }

    def store(self, keys: Int[Tensor, " batch"], local: LocalParams) -> None:
        """Remembers fitted values in place of those stored before; what is not finite is no start, and is left out."""
        if not local:
            return
        self._check_layout(local)
        parts = [local[name].detach().float().reshape(len(keys), -1) for name in sorted(local)]
        rows = torch.cat(parts, dim=1).cpu().numpy()
        self._unwritten |= {key: row for key, row in zip(keys.tolist(), rows, strict=True) if np.isfinite(row).all()}
        self._untold |= set(keys.tolist())

    def unwritten(self) -> dict[str, Tensor]:
        """What is not in the files yet: ``keys`` (M,) and ``local.<name>`` (M, …); empty if all is."""
        return self._named(list(self._unwritten))

    def untold(self) -> dict[str, Tensor]:
        """What was stored here since this was last called, in the form of `unwritten`: what other ranks do not have."""
        told, self._untold = [key for key in self._unwritten if key in self._untold], set()
        return self._named(told)

    def _named(self, keys: list[int]) -> dict[str, Tensor]:
        if not keys:
            return {}
        local = self._as_local(np.stack([self._unwritten[key] for key in keys]))
        return {"keys": torch.tensor(keys), **{f"local.{name}": value for name, value in local.items()}}

    def load_unwritten(self, saved: dict[str, Tensor]) -> None:
        """Takes back what `unwritten` gave, and forgets what was stored in memory since."""
        self._unwritten = {}
        self.add_unwritten(saved)

    def add_unwritten(self, saved: dict[str, Tensor]) -> None:
        """Adds what `unwritten` or another rank's `untold` gave, which replaces what was stored before."""
        if saved:
            local = {name.removeprefix("local."): value for name, value in saved.items() if name != "keys"}
            self.store(saved["keys"], local)
        self._untold = set()

    def flush(self, *, write: bool = True) -> None:
        """Moves all rows into the files.

        Args:
            write: False where another rank, whose table is equal to this one, writes them.

        Raises:
            LTMError: the disk is full or not writable; what was in the files before is still there.
        """
        if not self._unwritten:
            return
        width = self._width
        new = sorted(key for key in self._unwritten if key not in self._rows_of)  # alike on all ranks
        first = len(self._rows_of)
        places = self._rows_of | {key: first + i for i, key in enumerate(new)}
        try:
            if write:
                with _opened(self.folder / "rows.bin") as file:
                    for key, row in self._unwritten.items():
                        file.seek(4 * width * places[key])
                        file.write(np.ascontiguousarray(row, "<f4").tobytes())
                with _opened(self.folder / "keys.bin") as file:
                    file.seek(8 * first)
                    file.write(np.array(new, "<i8").tobytes())
        except OSError as error:
            raise unwritable(self.folder, error, "and resume the run") from error
        self._rows_of = places
        self._unwritten = {}

    def clear(self, *, write: bool = True) -> None:
        """Forgets everything, in the files too unless another rank does that (``write``)."""
        self._unwritten, self._rows_of, self._layout = {}, {}, None
        try:
            for name in ("layout.json", "keys.bin", "rows.bin") if write else ():
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error, "and resume the run") from error

    @property
    def _width(self) -> int:
        assert self._layout is not None
        return sum(map(math.prod, self._layout.values()))

    def _as_local(self, rows: npt.NDArray[np.float32]) -> LocalParams:
        """(M, entries) rows as local parameters (M, …), which stand in a row in the order of their names."""
        assert self._layout is not None
        names = sorted(self._layout)
        parts = torch.from_numpy(rows).split([math.prod(self._layout[name]) for name in names], dim=1)
        return {name: part.reshape(-1, *self._layout[name]) for name, part in zip(names, parts, strict=True)}

    def _read(self, keys: list[int]) -> npt.NDArray[np.float32]:
        """(keys, entries) stored rows; the newest of each."""
        result = np.empty((len(keys), self._width), np.float32)
        if written := [i for i, key in enumerate(keys) if key not in self._unwritten]:
            shape = (len(self._rows_of), self._width)
            rows = np.memmap(self.folder / "rows.bin", dtype="<f4", mode="r", shape=shape)
            result[written] = rows[[self._rows_of[keys[i]] for i in written]]
        for i in set(range(len(keys))).difference(written):
            result[i] = self._unwritten[keys[i]]
        return result

    def _check_layout(self, local: LocalParams) -> None:
        layout = {name: list(value.shape[1:]) for name, value in local.items()}
        if self._layout is None:
            path = self.folder / "layout.json"
            # A kill leaves the whole file or none; every rank writes it, each under a name of its own until then.
            aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
            try:
                aside.write_text(json.dumps({"format": _FORMAT, "local": layout}), encoding="utf-8")
                aside.replace(path)
            except OSError as error:
                raise unwritable(path, error, "and resume the run") from error
            self._layout = layout
        elif self._layout != layout:
            raise LTMError(
                f"{self.folder} holds posteriors of another guide or prior ({self._layout}, here {layout}): use "
                "another folder, or delete it"
            )

    def _read_layout(self) -> dict[str, list[int]] | None:
        path = self.folder / "layout.json"
        if not path.exists():
            return None
        about: Any = read_json(path)
        if about["format"] != _FORMAT:
            raise ValueError(f"format {about['format']}, expected {_FORMAT}")
        layout: dict[str, list[int]] = about["local"]
        sizes = [size for shape in layout.values() for size in shape]
        if not all(type(size) is int and 0 < size < _WIDEST for size in sizes) or not layout:
            raise ValueError("its layout has no sizes")
        if sum(map(math.prod, layout.values())) >= _WIDEST:
            raise ValueError("its rows are too wide")
        return layout

    def _read_keys(self) -> dict[int, int]:
        path = self.folder / "keys.bin"
        if self._layout is None or not path.exists():
            return {}
        # Rows are written first: a kill between the two files leaves rows without keys, which are written again.
        content = read_bytes(path)
        keys = np.frombuffer(content, "<i8", count=len(content) // 8)
        whole = min(len(keys), (self.folder / "rows.bin").stat().st_size // (4 * self._width))
        places = {int(key): place for place, key in enumerate(keys[:whole])}
        if len(places) < whole:
            raise ValueError("a key stands in it twice")
        return places


def _opened(path: Path) -> Any:
    """The file for writing at any place, made if it is not there."""
    path.touch()
    return path.open("r+b")
