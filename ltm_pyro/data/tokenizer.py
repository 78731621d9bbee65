"""Tokenizer: text to ids by byte-level BPE, trained here or loaded, with an end-of-text id.

``tokenizers`` is imported when a tokenizer is made, not when this module is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm_pyro.data.cutting import may_be_cut
from ltm_pyro.data.files import first_line, optional_import
from ltm_pyro.data.tokenizer_file import check_gpt2, check_tokenizer, read_tokenizer, refused_by_the_library
from ltm_pyro.errors import LTMError
from ltm_pyro.untrusted import exists, local_path

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["END_OF_TEXT", "Tokenizer", "well_formed"]

END_OF_TEXT = "<|endoftext|>"
_OTHER_ENDS = ("<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|im_end|>")
_SURROGATES = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """The text with each lone surrogate (half of a broken escape, not a character) replaced by U+FFFD."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


class Tokenizer:
    """Text to token ids and back; byte-level, ``decode(encode(text)) == text`` for every valid Unicode text.

    A special token's name written inside a text is text: it never becomes the special id. Lone surrogates are
    encoded as U+FFFD.

    Args:
        backend: a `tokenizers.Tokenizer`, which this object then owns.

    Raises:
        LTMError: it has no end-of-text token.
    """

    def __init__(self, backend: Backend) -> None:
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        ends = [backend.token_to_id(name) for name in (END_OF_TEXT, *_OTHER_ENDS)]
        known = [i for i in ends if i is not None]
        if not known:
            raise LTMError(
                f"the tokenizer has no end-of-text token: add the special token {END_OF_TEXT} (or one of "
                f"{', '.join(_OTHER_ENDS)}) to it"
            )
        self._backend = backend
        self.end_of_text: int = known[0]
        """The id that ends every document and stands before its first token."""

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Trains a byte-level BPE; the same texts give the same tokenizer, there is nothing random in it.

        Ids are the end-of-text token (0), the 256 bytes, then the merges. Little text may give fewer than
        ``vocab_size`` tokens.

        Raises:
            LTMError: ``vocab_size`` has no room for the 256 bytes and the end-of-text token.
        """
        if vocab_size < 257:
            raise LTMError(
                f"vocab_size={vocab_size}: a byte-level vocabulary needs at least 257 entries (256 bytes and "
                f"{END_OF_TEXT}); raise it"
            )
        _import()
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, trainers

        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        backend.train_from_iterator((well_formed(text) for text in texts), trainer)
        return cls(backend)

    @classmethod
    def load(cls, path_or_name: str | Path) -> Tokenizer:
        """Loads a file, a folder, or, where no such path exists, the hub model of that name.

        A file is a ``tokenizer.json``; a folder holds one, or GPT-2's ``vocab.json`` and ``merges.txt``. Neither is
        trusted (`ltm_pyro.data.tokenizer_file`).

        Raises:
            LTMError: nothing is there, or it is no sound tokenizer.
        """
        _import()
        path = local_path(path_or_name)
        if exists(path) and path.is_dir():
            path = _inside(path)
        if not exists(path):
            return cls._from_hub(str(path_or_name))
        try:
            backend = _gpt2(path) if path.is_dir() else read_tokenizer(path)
        except (LTMError, OSError) as error:
            raise LTMError(f"{path}: not a sound tokenizer ({first_line(error)}); fetch or write it again") from error
        try:
            return cls(backend)
        except LTMError as error:
            raise LTMError(f"{path}: {error}") from error

    @classmethod
    def _from_hub(cls, name: str) -> Tokenizer:
        if name.startswith((".", "/", "~")) or name.endswith((".json", "/")) or name.count("/") > 1:
            raise LTMError(
                f"{name}: no such file or folder; give a tokenizer.json, a folder with one (or with "
                "vocab.json and merges.txt), a hub name, or `train`"
            )
        from tokenizers import Tokenizer as Backend

        try:
            with refused_by_the_library():  # every failure of the hub client comes as its own class, too
                backend = Backend.from_pretrained(name)
        except LTMError as error:
            raise LTMError(
                f"{name}: no such file, and no tokenizer of that name could be had from the hub "
                f"({first_line(error)}); check the name and the connection, or give a local tokenizer.json"
            ) from error
        try:
            check_tokenizer(json.loads(backend.to_str()))
            return cls(backend)
        except LTMError as error:
            raise LTMError(f"{name}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """The ids of one text, with no special token added.

        Raises:
            LTMError: the tokenizer has no way to write it.
        """
        with self._answers():
            ids: list[int] = self._backend.encode(well_formed(text), add_special_tokens=False).ids
            return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        clean = [well_formed(text) for text in texts]
        with self._answers():
            return [e.ids for e in self._backend.encode_batch_fast(clean, add_special_tokens=False)]

    @cached_property
    def cuts_texts(self) -> bool:
        """Whether a text may be cut into parts (`ltm_pyro.data.cutting.cut`) that are encoded one by one."""
        return may_be_cut(self._content)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; special tokens are left out and broken characters become U+FFFD.

        Raises:
            LTMError: an id is not in the vocabulary.
        """
        wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise LTMError(f"token id {wrong}: expected 0 … {self.vocab_size - 1}; is this another run's tokenizer?")
        with self._answers():
            text: str = self._backend.decode(list(ids), skip_special_tokens=True)
            return text

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Inside, what the library refuses is an `LTMError` that says whose tokenizer it is."""
        try:
            with refused_by_the_library():
                yield
        except LTMError as error:
            raise LTMError(f"the tokenizer cannot do this ({error}); use one that is byte-level") from error

    @cached_property
    def vocab_size(self) -> int:
        """One more than the greatest id: the number of classes a decoder needs."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def pieces(self) -> list[bytes] | None:
        """The bytes of each id, none for special tokens; None where the tokenizer is not byte-level."""
        from tokenizers import decoders

        if not isinstance(self._backend.decoder, decoders.ByteLevel):
            return None
        special = {i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}
        tokens = (None if i in special else self._backend.id_to_token(i) for i in range(self.vocab_size))
        return [b"" if token is None else _bytes(token) for token in tokens]

    @cached_property
    def characters(self) -> list[int] | None:
        """Characters that begin in each id's bytes, 0 for special tokens; None where the tokenizer is not byte-level.

        A byte-level token may hold a part of a character, which is counted where its first byte is; so the counts of a
        text's ids add up to the text's length, and so do those of its pieces.
        """
        if self.pieces is None:
            return None
        return [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self.pieces]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the tokenizer's content: the same wherever it was loaded from."""
        return hashlib.sha256(json.dumps(self._content, sort_keys=True).encode()).hexdigest()

    @property
    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._backend.to_str())
        return content

    def save(self, path: str | Path) -> None:
        """Writes a ``tokenizer.json`` for `load`; a kill leaves the old file or the new one, never half."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(self._backend.to_str())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        size, end = self.vocab_size, self.end_of_text
        return f"Tokenizer(vocab_size={size}, end_of_text={end}, digest={self.digest[:12]})"


def _import() -> Any:
    return optional_import("tokenizers", "tokenizing text")


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's letters: a printable byte is its own, the others take what comes after 255 in order."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _bytes(token: str) -> bytes:
    """Bytes of a byte-level token; an added token outside the letters is its own text."""
    if not all(letter in _BYTES for letter in token):
        return token.encode()
    return bytes(_BYTES[letter] for letter in token)


def _inside(folder: Path) -> Path:
    """What to load from a folder: its tokenizer.json, or the folder itself where it has GPT-2's two files."""
    if (folder / "tokenizer.json").exists():
        return folder / "tokenizer.json"
    if all((folder / name).exists() for name in ("vocab.json", "merges.txt")):
        return folder
    raise LTMError(
        f"{folder}: holds no tokenizer.json, and not both vocab.json and merges.txt; give a folder that does"
    )


def _gpt2(folder: Path) -> Backend:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    check_gpt2(folder)
    with refused_by_the_library():
        backend = Backend(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend.add_special_tokens([END_OF_TEXT])
    return backend
