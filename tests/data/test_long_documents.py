"""Documents longer than memory, and how much memory reading takes."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ltm_pyro.data import long_text, text_files
from ltm_pyro.data.chunks import ChunkStore
from ltm_pyro.data.corpora import Corpus, FileCorpus, HeldOut, LongDocument, uniform_of
from ltm_pyro.data.cutting import cut
from ltm_pyro.data.prepare import join, prepare_chunks
from ltm_pyro.data.sources import open_corpus
from ltm_pyro.data.tokenizer import Tokenizer
from ltm_pyro.errors import LTMError

LETTERS = st.text(st.sampled_from("ab 'st\n\t 12.,é中。か\U0001f600\u00a0_-"), max_size=200)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=300) | LETTERS, st.integers(1, 40))
def test_parts_of_a_text_have_the_tokens_of_the_whole(small: Tokenizer, text: str, size: int) -> None:
    text = text.encode("utf-8", "replace").decode()
    parts = list(cut([text], size))
    assert "".join(parts) == text
    assert [token for part in parts for token in small.encode(part)] == small.encode(text)


def test_parts_of_real_text_have_gpt2s_tokens(gpt2: Tokenizer, shared_data: Path) -> None:
    with gzip.open(shared_data / "tinyshakespeare.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read(200_000)
    assert gpt2.cuts_texts
    parts = list(cut([text], 1000))
    assert len(parts) > 150
    assert [token for part in parts for token in gpt2.encode(part)] == gpt2.encode(text)


@given(LETTERS, st.integers(1, 40), st.lists(st.integers(0, 200), max_size=5))
def test_parts_do_not_depend_on_how_the_text_comes(text: str, size: int, places: list[int]) -> None:
    bounds = [0, *sorted(places), 10_000]
    assert list(cut([text[a:b] for a, b in pairwise(bounds)], size)) == list(cut([text], size))


def test_a_text_without_any_place_to_cut_is_refused_when_it_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltm_pyro.data.cutting._FARTHEST", 100)
    with pytest.raises(LTMError, match=r"100 characters of a document have no space after a letter.*take the document"):
        list(cut(["x" * 60, "y" * 60], 10))


@pytest.mark.parametrize(
    ("change", "cuts"),
    [
        ({}, True),
        ({"normalizer": {"type": "NFC"}}, False),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}}, False),
        ({"pre_tokenizer": {"type": "Whitespace"}}, False),
    ],
)
def test_only_texts_of_tokenizers_that_are_known_to_allow_it_are_cut(
    tmp_path: Path, small: Tokenizer, change: dict[str, Any], cuts: bool
) -> None:
    small.save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | change))
    assert Tokenizer.load(tmp_path).cuts_texts is cuts


def everything(corpus: Corpus) -> list[tuple[str, int, str]]:
    return [(d.text, d.row, "".join(d.blocks())) for d in corpus.documents()]


@pytest.mark.parametrize("unit", ["file", "block", "line", "auto"])
@pytest.mark.parametrize("seed", range(6))
def test_long_lines_and_blocks_are_read_as_short_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: Any, seed: int
) -> None:
    draw = random.Random(seed)
    ends = ["\n", "\r\n", "\r", "\n\n", "\n \r\n", " ", "", "é", "中", "\U0001f600"]
    text = "".join(draw.choice(["ab cd", "  ", "é" * 7, *ends]) + draw.choice(ends) for _ in range(60))
    (tmp_path / "a.txt").write_bytes(("\ufeff" + text).encode())
    expected = everything(FileCorpus(tmp_path / "a.txt", unit=unit))
    monkeypatch.setattr(text_files, "_PEEK", 5)
    monkeypatch.setattr(long_text, "_IN_MEMORY", 8)
    monkeypatch.setattr(long_text, "_BLOCK", 3)
    corpus = FileCorpus(tmp_path / "a.txt", unit="line" if unit == "auto" else unit)
    found = everything(corpus)
    if unit != "auto":
        assert found == expected
    assert any(isinstance(document, LongDocument) for document in corpus.documents())
    for document in corpus.documents():
        assert document.draw("labels") == uniform_of(document.text, "labels")
    held = [document.text for side in ("train", "validation") for document in HeldOut(corpus, 0.5, side).documents()]  # type: ignore[arg-type]
    assert sorted(held) == sorted(text for text, _, _ in found)


def test_a_bad_byte_of_a_long_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_PEEK", 4)
    (tmp_path / "a.txt").write_bytes(b"one\ntwo three \xe9 four\n")
    with pytest.raises(LTMError, match=r"a\.txt, line 2, byte 14: not UTF-8 \(byte 0xe9\)"):
        everything(FileCorpus(tmp_path / "a.txt", unit="line"))


def test_a_line_of_json_that_is_too_long_is_named_with_the_mend(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "short"}\n{"text": "' + "x" * 2_000_000 + '"}\n')
    assert len(everything(open_corpus(str(path), max_document_mb=3))) == 2
    with pytest.raises(LTMError, match=r"a\.jsonl, line 2: .* more than 1,000,000 bytes.*raise data.max_document_mb"):
        everything(open_corpus(str(path), max_document_mb=1))


def test_zstd_of_several_frames_is_read_to_the_end(tmp_path: Path, small: Tokenizer) -> None:
    lines = [json.dumps({"text": f"document {i}"}) + "\n" for i in range(50)]
    raw = "".join(lines).encode()
    packer = zstandard.ZstdCompressor()
    frames = [packer.compress(raw[at : at + 97]) for at in range(0, len(raw), 97)]  # they end inside lines
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(frames))
    assert [d.text for d in FileCorpus(path).documents()] == [f"document {i}" for i in range(50)]
    store = ChunkStore(tmp_path / "chunks")
    assert prepare_chunks(store, FileCorpus(path), small, workers=1, characters=100).documents == 50
    (tmp_path / "joined").mkdir()
    assert join(store, tmp_path / "joined").num_documents == 50
    path.write_bytes(b"".join(frames)[:-5])
    with pytest.raises(LTMError, match="damaged or cut short"):
        list(FileCorpus(path).documents())


READING = """
import sys
from pathlib import Path
from ltm_pyro.data.chunks import ChunkStore
from ltm_pyro.data.corpora import FileCorpus
from ltm_pyro.data.prepare import prepare_chunks
from ltm_pyro.data.tokenizer import Tokenizer

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

root, tokenizer = Path(sys.argv[2]), Tokenizer.load(sys.argv[3])
small = Path(sys.argv[4])
for text, folder in ((small, "warm"), (Path(sys.argv[1]), "chunks")):
    before = peak()
    corpus = FileCorpus(text, unit=sys.argv[5])
    if sys.argv[6] == "read":
        print(sum(sum(map(len, document.blocks())) for document in corpus.documents()))
    else:
        print(prepare_chunks(ChunkStore(root / folder), corpus, tokenizer, workers=0).characters)
print(peak() - before)
"""


def growth(path: Path, warm: Path, root: Path, tokenizer: Tokenizer, unit: str, what: str) -> float:
    """MiB by which a process grows over the second of two texts."""
    tokenizer.save(root / "tokenizer.json")
    command = [sys.executable, "-c", READING, path, root, root / "tokenizer.json", warm, unit, what]
    shown = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout.split()
    assert int(shown[1]) > 10_000_000
    return float(shown[2])


@pytest.mark.parametrize("unit", ["file", "line"])
def test_a_document_of_forty_megabytes_takes_far_less_memory(tmp_path: Path, small: Tokenizer, unit: str) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 1_800_000)
    (tmp_path / "warm.txt").write_text("the cat sat on the mat " * 1_000_000)  # 23 MB: more than lies in memory
    assert growth(tmp_path / "a.txt", tmp_path / "warm.txt", tmp_path, small, unit, "read") < 12


@pytest.mark.slow
def test_tokenising_more_takes_no_more_memory(tmp_path: Path, small: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat " * 900_000)
    (tmp_path / "warm.txt").write_text("the cat sat on the mat " * 300_000)
    assert growth(tmp_path / "a.txt", tmp_path / "warm.txt", tmp_path, small, "file", "tokenise") < 40


@pytest.mark.parametrize("rows", [2000, 1_000_000])
def test_parquet_is_read_piece_by_piece(tmp_path: Path, small: Tokenizer, rows: int) -> None:
    draw = random.Random(0)
    texts = [draw.randbytes(500).hex() for _ in range(1000)]
    for name, count in (("warm", 11), ("a", 51)):
        table = pa.table({"text": texts * count, "other": ["x" * 10] * (1000 * count)})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=rows, use_dictionary=False)
    # 51 MB of text, in 26 row groups or in one: less than half of what 40 MB more would take, read whole.
    assert growth(tmp_path / "a.parquet", tmp_path / "warm.parquet", tmp_path, small, "auto", "read") < 35
