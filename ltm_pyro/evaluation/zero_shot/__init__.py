"""The zero-shot suite: PTB, WikiText, LM1B, LAMBADA, AG News, PubMed and ArXiv, on which nothing was trained."""

from ltm_pyro.evaluation.zero_shot.catalogue import CORPORA, CorpusSpec
from ltm_pyro.evaluation.zero_shot.corpora import FileRows, SuiteCorpus, find_files, from_hub
from ltm_pyro.evaluation.zero_shot.last_word import LastWords, Passage, last_words, passage
from ltm_pyro.evaluation.zero_shot.suite import CorpusResult, score_corpus, suite_corpora

__all__ = [
    "CORPORA",
    "CorpusResult",
    "CorpusSpec",
    "FileRows",
    "LastWords",
    "Passage",
    "SuiteCorpus",
    "find_files",
    "from_hub",
    "last_words",
    "passage",
    "score_corpus",
    "suite_corpora",
]
