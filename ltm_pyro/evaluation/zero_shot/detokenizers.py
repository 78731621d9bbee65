"""Detokenizers: from the tokenised text of the old language-modelling corpora back to text as people write it.

Each line is joined word by word: a rule says for every mark whether it is written against the word before or after it.
Lines stay lines, and runs of blanks become one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["as_it_is", "lambada", "lm1b", "penn_treebank", "scientific_papers", "wikitext"]

Detokenizer = Callable[[str], str]

_CLITIC = re.compile(r"n't|'(?:s|re|ve|ll|d|m|t)", re.IGNORECASE)
_ELIDED = frozenset({"O", "o", "D", "d", "L", "l"})  # O 'Brien, l 'Italia
_COMPASS_OR_SCALE = frozenset({"C", "F", "K", "N", "S", "E", "W"})  # what follows a degree sign without a blank
_CURLY = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'"})


@dataclass(frozen=True)
class _Rules:
    """Marks by where they are written: against the word before, the word after, both, or in pairs around words."""

    before: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    both: frozenset[str] = frozenset()
    pairs: frozenset[str] = frozenset()


_CLOSING = frozenset({",", ".", ";", ":", "!", "?", ")", "]", "}", "%"})
_OPENING = frozenset({"(", "[", "{", "$", "£", "€", "¥", "#"})
_QUOTES = frozenset({'"', "'"})

_WIKITEXT = _Rules(_CLOSING, _OPENING, frozenset(), _QUOTES)
_PROSE = _Rules(_CLOSING, _OPENING, frozenset({"/"}), _QUOTES)
_PENN = _Rules(after=frozenset({"#"}))


def penn_treebank(text: str) -> str:
    r"""Penn Treebank in Mikolov's preparation: clitics, plural possessives, currencies, ``\/``; N is 1, ``<unk>`` is ?.

    Its case and its punctuation are gone and cannot be brought back.
    """
    return _by_line(text, _penn_line)


def wikitext(text: str) -> str:
    """WikiText, raw or not: ``@-@``, ``@,@``, ``@.@``, punctuation, brackets, quotes, headings; ``<unk>`` stays."""
    return _by_line(text, lambda line: _join(line, _WIKITEXT))


def lm1b(text: str) -> str:
    """The One Billion Word benchmark: punctuation, brackets, quotes, clitics, slashes, currencies."""
    return _by_line(text, lambda line: _join(line, _PROSE))


def lambada(text: str) -> str:
    """LAMBADA: straight quotes for curly ones; its first, tokenised edition is joined, too."""
    return lm1b(text.translate(_CURLY).replace("``", '"').replace("''", '"'))


def scientific_papers(text: str) -> str:
    """PubMed and ArXiv papers, in lower case: as `lm1b`; ``@xmath0`` and ``@xcite`` stay."""
    return lm1b(text)


def as_it_is(text: str) -> str:
    """Text that nobody tokenised: only the blanks around it go."""
    return text.strip()


def _by_line(text: str, undo: Callable[[list[str]], str]) -> str:
    return "\n".join(undo([word for word in re.split(r"[ \t]+", line) if word]) for line in text.split("\n")).strip()


def _penn_line(words: list[str]) -> str:
    plain = (word.replace("\\/", "/").replace("\\*", "*") for word in words)
    return _join([{"N": "1", "<unk>": "?"}.get(word, word) for word in plain], _PENN)


def _join(words: Sequence[str], rules: _Rules) -> str:
    """The words with a blank between two of them wherever neither is written against the other."""
    text, blank = "", False
    for word, to_left, to_right in _placed(words, rules):
        text += (" " if blank and not to_left else "") + word
        blank = not to_right
    return text


def _placed(words: Sequence[str], rules: _Rules) -> Iterator[tuple[str, bool, bool]]:
    """(word, whether it is written against the one before, and against the one after)."""
    left = {mark: words.count(mark) for mark in rules.pairs}  # marks of a kind from here to the line's end
    opened: set[str] = set()
    for place, word in enumerate(words):
        earlier = words[place - 1] if place else ""
        later = words[place + 1] if place + 1 < len(words) else ""
        if word == "'" and word not in opened and earlier[-1:].lower() == "s":
            left[word] = left.get(word, 1) - 1
            yield word, True, False  # the viewers ' opinions
        elif word in rules.pairs:
            left[word] -= 1
            if word in opened:
                opened.remove(word)
                yield word, True, False
            elif left[word]:
                opened.add(word)
                yield word, False, True
            else:  # one without its other half: what stands at an end of the line says which half it is
                yield word, bool(earlier) and not later, not earlier
        elif len(word) == 3 and word[0] == word[2] == "@":
            yield word[1], True, True  # @-@ @,@ @.@
        elif word == "°":
            yield word, True, later in _COMPASS_OR_SCALE
        elif word == "=":
            yield word, False, later == "="  # = = Heading = =
        elif word in rules.both:
            yield word, True, True
        elif word in rules.before or _CLITIC.fullmatch(word) or (word[:1] == "'" and earlier in _ELIDED):
            yield word, True, False
        elif word in rules.after or re.fullmatch(r"[A-Za-z]{0,2}\$", word):
            yield word, False, True  # $, us$
        else:
            yield word, False, False
