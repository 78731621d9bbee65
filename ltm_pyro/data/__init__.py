"""Text to token batches: sources, tokenizers, cached token shards, sequence layouts, the sampler."""

from __future__ import annotations

from ltm_pyro.data.build import Data, build_data, build_evaluation_data, train_tokenizer
from ltm_pyro.data.corpora import Corpus, Document
from ltm_pyro.data.files import TextUnit
from ltm_pyro.data.sampler import Sampler
from ltm_pyro.data.sequences import Layout, SequenceDataset
from ltm_pyro.data.shards import Shard, shard_of
from ltm_pyro.data.sources import open_corpus, split_corpus
from ltm_pyro.data.tokenizer import END_OF_TEXT, Tokenizer

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
