"""``python -m benchmarks.reproduce.long_documents``: documents of so many tokens, cut out of longer texts."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.reproduce.recipe import spread_over
from ltm_pyro.data.corpora import FileCorpus
from ltm_pyro.data.tokenizer import Tokenizer

__all__ = ["SLACK", "pieces", "write_long_documents"]

SLACK = 15
"""Tokens that a piece may have beyond those asked for, until the next space."""


def pieces(text: str, tokenizer: Tokenizer, tokens: int) -> Iterator[str]:
    """Consecutive parts of ``tokens`` … ``tokens`` + `SLACK` tokens, cut before a space; others are dropped."""
    # Where a part begins with one space, its tokens are those that it had in the whole text.
    words = re.split(r"(?= \S)", text)
    piece: list[str] = []
    count = 0
    for word, ids in zip(words, tokenizer.encode_batch(words), strict=True):
        if count >= tokens:
            if count <= tokens + SLACK:
                yield "".join(piece)
            piece, count = [], 0
        piece.append(word)
        count += len(ids)
    if tokens <= count <= tokens + SLACK:
        yield "".join(piece)


def write_long_documents(
    sources: Sequence[Path], path: Path, tokenizer: Tokenizer, tokens: int, most: int | None
) -> dict[str, int]:
    """Writes a .jsonl of the `pieces` of all texts, of a source at most ``most``, spread over it; how many of each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {}
    with path.open("w", encoding="utf-8") as out:
        for source in sources:
            texts = (document.text for document in FileCorpus(source).documents())
            found = [piece for text in texts for piece in pieces(text, tokenizer, tokens)]
            chosen = spread_over(len(found), most)
            out.writelines(json.dumps({"text": found[index]}) + "\n" for index in chosen)
            written[str(source)] = len(chosen)
    return written


def main() -> None:
    """Cuts the files of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce.long_documents", description=__doc__)
    parser.add_argument("sources", nargs="+", type=Path, metavar="FILE", help=".jsonl or .jsonl.gz, field text")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".jsonl to write")
    parser.add_argument("--tokenizer", required=True, metavar="T", help="path or hub name")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--most", type=int, help="documents of one file")
    options = parser.parse_args()
    tokenizer = Tokenizer.load(options.tokenizer)
    written = write_long_documents(options.sources, options.out, tokenizer, options.tokens, options.most)
    for source, count in written.items():
        print(f"{source}: {count} documents of {options.tokens} to {options.tokens + SLACK} tokens")


if __name__ == "__main__":
    main()
