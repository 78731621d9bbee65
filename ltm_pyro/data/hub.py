"""Hub data sets through ``datasets``: ``hf:name[/config][:column]``, downloaded or streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ltm_pyro.data.columns import columns_of, text_of
from ltm_pyro.data.corpora import Document, Split, digest_of, file_digest, labelled_digest
from ltm_pyro.data.files import first_line, missing_column, optional_import
from ltm_pyro.data.labels import as_label
from ltm_pyro.data.tokenizer import well_formed
from ltm_pyro.errors import LTMError
from ltm_pyro.untrusted import exists, local_path

__all__ = ["HubCorpus"]

_SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "test"),
}


@dataclass(frozen=True)
class HubCorpus:
    """One split of a hub data set.

    A name has one part or two (``owner/name``); a third part is the configuration. A name that is the path of
    a local folder is read as such. The training split is ``train``; the validation split is the first there
    is of ``validation``, ``valid``, ``dev`` and ``test``, or else ``train``: ask `has_validation` before.

    Args:
        source: ``hf:name[/config][:column]``.
        column: the text column where the source names none, or a template of several (`columns_of`).
        split: which split to read.
        streaming: read rows from the hub as they are asked for, and keep no copy of the data set.
        label_column: the column that holds the class; None gives no classes. Where it is a ``ClassLabel``, a class has
            the name that the data set gives it, and -1 is unknown.
        exact_split: the name of the split to read; None chooses by ``split``.
        data_dir: the folder of the data set to read; None is all of it.
        revision: the branch, tag or commit to read; None is the main branch.

    Raises:
        LTMError: on first use, where the data set cannot be had or has no such column.
    """

    source: str
    column: str | None = None
    split: Split = "train"
    streaming: bool = False
    label_column: str | None = None
    exact_split: str | None = None
    data_dir: str | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """The source string."""
        return self.source

    @cached_property
    def _parts(self) -> tuple[str, str | None, str]:
        """(name, configuration, column)."""
        body, _, column = self.source.removeprefix("hf:").partition(":")
        if not body:
            raise LTMError(f"{self.source}: no data set named; write hf:name, hf:owner/name or hf:owner/name/config")
        column = column or self.column or "text"
        folder = local_path(body)
        if exists(folder) and folder.is_dir():
            return str(folder), None, column
        pieces = body.split("/")
        if len(pieces) > 3 or not all(pieces):
            raise LTMError(f"{self.source}: expected hf:owner/name[/config][:column], or an existing local folder")
        return "/".join(pieces[:2]), pieces[2] if len(pieces) == 3 else None, column

    @cached_property
    def _splits(self) -> Mapping[str, Any]:
        name, config, _ = self._parts
        datasets = optional_import("datasets", self.source)
        options = {"data_dir": self.data_dir, "revision": self.revision}
        options = {option: value for option, value in options.items() if value is not None}
        try:
            loaded: Mapping[str, Any] = datasets.load_dataset(name, config, streaming=self.streaming, **options)
        except Exception as error:  # the hub client and the builders raise classes of their own
            raise LTMError(
                f"{self.source}: the data set could not be had ({first_line(error)}); check the name, the "
                "configuration (hf:owner/name/config) and the connection, or give a local file"
            ) from error
        return loaded

    @property
    def has_validation(self) -> bool:
        """Whether the data set comes with a split of its own to validate on."""
        return any(split in self._splits for split in _SPLITS["validation"])

    @cached_property
    def _chosen(self) -> str:
        names = (*_SPLITS[self.split], "train") if self.exact_split is None else (self.exact_split,)
        wanted = next((s for s in names if s in self._splits), None)
        if wanted is None:
            there = ", ".join(self._splits) or "none"
            raise LTMError(f"{self.source}: no split {names[-1]}; there is {there}: choose a data set that has one")
        return wanted

    def documents(self) -> Iterator[Document]:
        """The rows of the split in order; empty texts are skipped, lone surrogates replaced by U+FFFD."""
        for row, text, label in self.rows():
            if text and not text.isspace():
                yield Document(well_formed(text), f"{self.source} {self._chosen}", row, label)

    def rows(self) -> Iterator[tuple[int, str, str | None]]:
        """(row, text, label) of every row of the split in order, as it is; a null is the empty text."""
        column = self._parts[2]
        names = columns_of(column)
        rows = self._splits[self._chosen]
        if rows.column_names is not None:
            for name in names:
                if name not in rows.column_names:
                    raise LTMError(missing_column(self.source, name, list(rows.column_names)))
            if self.label_column is not None and self.label_column not in rows.column_names:
                raise LTMError(missing_column(self.source, self.label_column, list(rows.column_names), "label_column"))
            rows = rows.select_columns(list(dict.fromkeys([*names, self.label_column or names[0]])))
        try:
            for row, record in enumerate(rows, 1):
                where = f"{self.source}, row {row}"
                for name in names:
                    if name not in record:
                        raise LTMError(missing_column(self.source, name, list(record)))
                text = text_of(record, column, where, "choose another column with hf:name:column")
                blank = not text or text.isspace()
                yield row, text or "", None if blank else self._label(record, where)
        except LTMError:
            raise
        except Exception as error:
            raise LTMError(
                f"{self.source}: reading broke off ({first_line(error)}); check the connection and run again"
            ) from error

    def _label(self, record: Mapping[str, Any], where: str) -> str | None:
        if self.label_column is None:
            return None
        value = record.get(self.label_column)
        if self._class_names is not None and isinstance(value, int):
            value = self._class_names[value] if value >= 0 else None
        return as_label(value, where, self.label_column)

    @cached_property
    def _class_names(self) -> Sequence[str] | None:
        """Names of the classes that the data set stores as numbers."""
        features = self._splits[self._chosen].features or {}
        names: Sequence[str] | None = getattr(features.get(self.label_column), "names", None)
        return names

    def fingerprint(self) -> str:
        """Columns, split and content: the bytes of a folder or of the downloads, of a stream the commit."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        name, config, column = self._parts
        parts = ["hub", column, self._chosen, *([] if self.data_dir is None else [self.data_dir])]
        rows = self._splits[self._chosen]
        tables = [] if self.streaming else [entry["filename"] for entry in rows.cache_files]
        if Path(name).is_dir():
            parts += [file_digest(path) for path in sorted(Path(name).rglob("*")) if path.is_file()]
        elif tables:
            parts += [file_digest(Path(table)) for table in tables]
        elif self.streaming:
            parts += [name, str(config), _commit(name, self.source, self.revision)]
        else:  # a data set that lies in memory alone
            parts += [d.text if d.label is None else repr((d.text, d.label)) for d in self.documents()]
        return labelled_digest(digest_of(parts), self.label_column)


def _commit(name: str, source: str, revision: str | None) -> str:
    hub = optional_import("huggingface_hub", source)
    try:
        return str(hub.HfApi().dataset_info(name, **({} if revision is None else {"revision": revision})).sha)
    except Exception as error:
        raise LTMError(
            f"{source}: the hub did not say which version it streams ({first_line(error)}); check the "
            "connection, or leave streaming off"
        ) from error
