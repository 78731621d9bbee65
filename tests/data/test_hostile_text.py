"""Text files that expand without end, or whose lines do: bounded memory, one line of error; shards that lie."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from ltm_pyro.data import text_files
from ltm_pyro.data.corpora import FileCorpus
from ltm_pyro.data.documents import LongDocument
from ltm_pyro.data.shards import Shard, shard_of
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.data.zstd import ZstdReader
from ltm_pyro.errors import LTMError

MEBI = 1 << 20
_ZEROS = bytes(MEBI)


def bomb(path: Path, mebi: int) -> Path:
    """A compressed file of so many MiB of zeros."""
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(_ZEROS * 64, 1) * (mebi // 64))
    elif path.suffix == ".xz":
        path.write_bytes(lzma.compress(_ZEROS * 64, preset=0) * (mebi // 64))
    else:
        compressor = zstandard.ZstdCompressor().compressobj()
        path.write_bytes(b"".join([compressor.compress(_ZEROS) for _ in range(mebi)] + [compressor.flush()]))
    return path


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_line_that_expands_without_end_is_one_line_of_error(tmp_path: Path, suffix: str) -> None:
    path = bomb(tmp_path / f"bomb.jsonl{suffix}", 640)  # of 640 MiB
    assert path.stat().st_size < 4 * MEBI
    with pytest.raises(LTMError, match=r"bomb.*, line 1: the line has more than 8,388,608 bytes.*max_document_mb"):
        next(FileCorpus(path, longest=8 * MEBI).documents())


def test_a_text_that_expands_beyond_memory_is_kept_on_the_disk(tmp_path: Path) -> None:
    document = next(FileCorpus(bomb(tmp_path / "bomb.txt.gz", 64), unit="file").documents())
    assert isinstance(document, LongDocument)
    assert document.characters == 64 * MEBI


def test_zstd_is_expanded_a_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bomb(tmp_path / "bomb.txt.zst", 1024)
    reader = ZstdReader(path)
    most = 0
    buffer = bytearray(4 * MEBI)
    total = 0
    while count := reader.readinto(buffer):
        most, total = max(most, len(reader._ready)), total + count
    assert total == 1024 * MEBI
    assert most <= 32 * MEBI


def test_a_window_larger_than_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr(text_files, "open_stream", full)
    with pytest.raises(LTMError, match=r"a.txt: takes more memory than there is"):
        list(FileCorpus(tmp_path / "a.txt").documents())


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(LTMError, match=r"pipe.txt: no regular file, so it may never end"):
        FileCorpus(tmp_path / "pipe.txt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "|O"}, "its tokens are of type |O"),
        ({"dtype": "<f8"}, "its tokens are of type <f8"),
        ({"vocab_size": 3}, "the vocabulary ends at"),
        ({"documents": [0, 10**9]}, "not one after another"),
        ({"documents": [0, -5]}, "not one after another"),
        ({"documents": [7, 7]}, "not one after another"),
    ],
)
def test_a_shard_that_lies_is_refused_though_its_digests_fit(
    tmp_path: Path, small: Tokenizer, change: dict[str, Any], words: str
) -> None:
    (tmp_path / "a.txt").write_text("the cat sat")
    shard_of(FileCorpus(tmp_path / "a.txt"), small, tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "shards").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    if "documents" in change:
        (folder / "documents.bin").write_bytes(np.array(change["documents"], "<i8").tobytes())
        manifest["documents_sha256"] = hashlib.sha256((folder / "documents.bin").read_bytes()).hexdigest()
    else:
        manifest |= change
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LTMError) as caught:
        Shard.open(folder)
    assert words in str(caught.value)
