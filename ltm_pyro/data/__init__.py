"""Text to token batches: sources, tokenizers, cached token shards, sequence layouts, the sampler.

Names are imported when they are asked for, so that a process that tokenises need not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltm_pyro.data.build import Data, build_data, build_evaluation_data, train_tokenizer
    from ltm_pyro.data.corpora import Corpus, Document
    from ltm_pyro.data.files import TextUnit
    from ltm_pyro.data.sampler import Sampler
    from ltm_pyro.data.sequences import Layout, SequenceDataset
    from ltm_pyro.data.shards import Shard, shard_of
    from ltm_pyro.data.sources import open_corpus, split_corpus
    from ltm_pyro.data.tokenizer import END_OF_TEXT, Tokenizer

_HOMES = {
    "END_OF_TEXT": "tokenizer",
    "Corpus": "corpora",
    "Data": "build",
    "Document": "corpora",
    "Layout": "sequences",
    "Sampler": "sampler",
    "SequenceDataset": "sequences",
    "Shard": "shards",
    "TextUnit": "files",
    "Tokenizer": "tokenizer",
    "build_data": "build",
    "build_evaluation_data": "build",
    "open_corpus": "sources",
    "shard_of": "shards",
    "split_corpus": "sources",
    "train_tokenizer": "build",
}

__all__ = [
    "END_OF_TEXT",
    "Corpus",
    "Data",
    "Document",
    "Layout",
    "Sampler",
    "SequenceDataset",
    "Shard",
    "TextUnit",
    "Tokenizer",
    "build_data",
    "build_evaluation_data",
    "open_corpus",
    "shard_of",
    "split_corpus",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
