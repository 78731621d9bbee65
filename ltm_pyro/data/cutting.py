"""Where a long text may be cut so that the tokens of its parts are those of the whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ltm_pyro.errors import LTMError

__all__ = ["cut", "may_be_cut"]

# GPT-2's pattern has no piece with a space or a line break after something else, and none with an ideograph after a
# full stop; and it looks ahead over white space alone. So a text may be cut before either.
_PLACE = re.compile(r"(?<=[^\W_])[ \n]|(?<=[。！？])[\u3041-\u30fa\u4e00-\u9fff]")
_FARTHEST = 1 << 26  # characters with no such place, which are no text


def may_be_cut(tokenizer: Mapping[str, Any]) -> bool:
    """Whether texts may be cut by `cut` under a tokenizer, given as the content of its tokenizer.json.

    So it is where words are found by GPT-2's pattern and by nothing before it: no normalizer, no added token that is
    read in a text, no space put before the first word.
    """
    words, model = tokenizer.get("pre_tokenizer") or {}, tokenizer["model"]
    return (
        words.get("type") == "ByteLevel"
        and words.get("use_regex", True) is True
        and words.get("add_prefix_space") is False
        and tokenizer.get("normalizer") is None
        and model.get("type") == "BPE"
        and not model.get("dropout")
        and all(token["special"] for token in tokenizer.get("added_tokens") or ())
    )


def cut(blocks: Iterable[str], size: int) -> Iterator[str]:
    """The text, which comes in blocks of any lengths, in parts of at most ``size`` characters.

    A part is longer where the text has no place to cut sooner. The parts depend on the text alone.

    Raises:
        LTMError: there is no such place in 64 million characters.
    """
    held = ""
    for block in blocks:
        held += block
        while len(held) > size:
            at = _last(held, size) or _first(held, size)
            if at is None:
                break
            yield held[:at]
            held = held[at:]
        if len(held) > _FARTHEST:
            raise LTMError(
                f"{_FARTHEST:,} characters of a document have no space after a letter, where they could be cut: this "
                "is no text; take the document out of the source"
            )
    if held:
        yield held


def _last(text: str, most: int) -> int | None:
    """The last place to cut that leaves at most so many characters before it."""
    return next((at for at in range(most, 0, -1) if _PLACE.match(text, at)), None)


def _first(text: str, least: int) -> int | None:
    found = _PLACE.search(text, least)
    return found.start() if found else None
