"""A .zst file as a raw stream that notices when it was cut short (zstandard's own reader ends silently)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm_pyro.errors import LTMError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["ZstdReader"]

# Four bytes may stand for 128 KiB, so this is what bounds the memory that a hostile file can take: 32 MiB.
_CHUNK = 1 << 10


class ZstdReader(io.RawIOBase):
    """Decompresses one frame after another; wrap it in ``io.BufferedReader`` to read lines.

    Raises:
        EOFError: while reading, when the file ends inside a frame or holds something else than zstd frames.
    """

    def __init__(self, path: Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise LTMError(f"{path}: reading .zst needs zstandard: run `pip install zstandard`") from error
        self._file = path.open("rb")
        self._new: Any = zstandard.ZstdDecompressor().decompressobj
        self._error = zstandard.ZstdError
        self._frame: Any = None  # the frame being read; None between frames
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Always: this is a stream for reading."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fills the buffer with decompressed bytes; 0 at the end of the last frame."""
        while not self._ready and self._advance():
            pass
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _advance(self) -> bool:
        chunk = (self._frame.unused_data if self._frame is not None and self._frame.eof else b"") or self._file.read(
            _CHUNK
        )
        if not chunk:
            if self._frame is not None and not self._frame.eof:
                raise EOFError("the file ends inside a zstd frame")
            return False
        if self._frame is None or self._frame.eof:
            self._frame = self._new()
        try:
            self._ready = memoryview(self._frame.decompress(chunk))
        except self._error as error:
            raise EOFError(str(error)) from error
        return True

    def close(self) -> None:
        """Closes the file beneath."""
        if hasattr(self, "_file"):
            self._file.close()
        super().close()
