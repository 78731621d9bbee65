"""Shared by the data tests: two tokenizers, a cache of each test's own, a corpus made of given texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ltm_pyro.data.corpora import Document, digest_of
from ltm_pyro.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class ListCorpus:
    """Documents given in the test."""

    texts: tuple[str, ...]
    name: str = "list"
    labels: tuple[str | None, ...] | None = None

    def documents(self) -> Iterator[Document]:
        labels = self.labels or (None,) * len(self.texts)
        rows = zip(self.texts, labels, strict=True)
        return (Document(text, "list", row, label) for row, (text, label) in enumerate(rows, 1))

    def fingerprint(self) -> str:
        return digest_of(self.texts if self.labels is None else [*self.texts, *map(repr, self.labels)])


@pytest.fixture(scope="session")
def gpt2(shared_data: Path) -> Tokenizer:
    return Tokenizer.load(shared_data / "gpt2_tokenizer")


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    """A byte-level BPE with a few merges."""
    return Tokenizer.train(["the cat sat on the mat and the dog sat on the cat"] * 4, 300)


@pytest.fixture(scope="session")
def make_corpus() -> type[ListCorpus]:
    return ListCorpus


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTM_PYRO_CACHE", str(tmp_path / "cache"))
