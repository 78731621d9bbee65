"""What a tokenizer.json from anywhere may hold: known parts, bounded sizes, and patterns that cannot take for ever.

The library ``tokenizers`` runs no code of a file, but it believes its numbers, and its regular expressions backtrack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm_pyro.data.files import first_line
from ltm_pyro.data.patterns import check_pattern
from ltm_pyro.errors import LTMError
from ltm_pyro.untrusted import MEBI, parse_json, printable, read_bytes, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["MAX_VOCABULARY", "check_gpt2", "check_tokenizer", "read_tokenizer", "refused_by_the_library"]

MAX_VOCABULARY = 1 << 20
"""Ids lie below it; the largest vocabularies in use have about a quarter of it."""

_MOST_BYTES = 64 * MEBI
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_KNOWN = {
    "normalizer": (
        *("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend"),
        *("Replace", "Sequence", "Strip", "StripAccents"),
    ),
    "pre_tokenizer": (
        *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Delimiter", "Digits", "FixedLength", "Metaspace"),
        *("Punctuation", "Sequence", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit"),
    ),
    "post_processor": ("BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"),
    "decoder": (
        *("BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Replace", "Sequence", "Strip"),
        "WordPiece",
    ),
}


def read_tokenizer(path: Path) -> Backend:
    """The tokenizer in a file of at most 64 MiB, after `check_tokenizer`.

    Raises:
        LTMError: it is refused here or by the library.
        OSError: it cannot be read.
    """
    from tokenizers import Tokenizer as Backend

    content = read_bytes(path, most=_MOST_BYTES)
    check_tokenizer(parse_json(content, "the file"))
    with refused_by_the_library():
        return Backend.from_str(content.decode("utf-8"))


def check_tokenizer(content: Any) -> None:
    """Holds the content of a tokenizer.json against what may be in one.

    Raises:
        LTMError: a part is of an unknown kind, an id or a count out of range, or a pattern refused (`check_pattern`).
    """
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise LTMError("it has no table `model`")
    model = content["model"]
    if "type" in model and model["type"] not in _MODELS:
        raise LTMError(f"unknown model {_shown(model['type'])}, known are {', '.join(_MODELS)}")
    _check_vocabulary(model.get("vocab"))
    for name in ("merges", "added_tokens"):
        listed = (model if name == "merges" else content).get(name)
        # Byte-pair encoding makes each entry by one merge, some files list a few ways to the same.
        if isinstance(listed, (list, str)) and len(listed) > 4 * MAX_VOCABULARY:
            raise LTMError(f"{name} has {len(listed)} entries, more than {4 * MAX_VOCABULARY}")
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise LTMError("added_tokens is no list")
    for token in added:
        if not isinstance(token, dict):
            raise LTMError("an added token is no table")
        _check_id(token.get("id"))
    for section, known in _KNOWN.items():
        for part in _tables(content.get(section)):
            kind = part.get("type")
            if isinstance(kind, str) and kind not in known:
                raise LTMError(f"unknown {section} {_shown(kind)}, known are {', '.join(known)}")
            if isinstance(part.get("Regex"), str):
                check_pattern(part["Regex"])


def check_gpt2(folder: Path) -> None:
    """Holds GPT-2's two files against the same bounds.

    Raises:
        LTMError: they are out of them.
        OSError: one cannot be read.
    """
    _check_vocabulary(read_json(folder / "vocab.json", most=_MOST_BYTES))
    read_bytes(folder / "merges.txt", most=_MOST_BYTES)


@contextmanager
def refused_by_the_library() -> Iterator[None]:
    """Inside, whatever the library raises is an `LTMError`: a bare Exception, or a panic, which is not even one.

    Raises:
        LTMError: with the first line of the library's message.
    """
    try:
        yield
    except LTMError:
        raise
    except Exception as error:
        raise LTMError(printable(first_line(error))[:200]) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise LTMError(f"the library panics: {printable(first_line(error))[:200]}") from error


def _check_vocabulary(vocabulary: Any) -> None:
    if isinstance(vocabulary, (list, dict)) and len(vocabulary) > MAX_VOCABULARY:
        raise LTMError(f"the vocabulary has {len(vocabulary)} entries, more than {MAX_VOCABULARY}")
    if isinstance(vocabulary, dict):
        for entry in vocabulary.values():
            _check_id(entry)
    elif not isinstance(vocabulary, list):  # of Unigram, whose ids are its places
        raise LTMError("it has no vocabulary")


def _check_id(value: Any) -> None:
    if type(value) is not int or not 0 <= value < MAX_VOCABULARY:
        raise LTMError(f"the token id {_shown(value)} is no number in 0 … {MAX_VOCABULARY - 1}")


def _tables(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every table in a value, at any depth; the depth of the file is bounded."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _tables(part)


def _shown(value: Any) -> str:
    return repr(printable(str(value)[:40]))
