r"""The text of a row: one of its columns, or a template of several, as ``Question: {question}\nAnswer: {answer}``."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter

from ltm_pyro.errors import LTMError

__all__ = ["columns_of", "text_of"]


def columns_of(column: str) -> list[str]:
    r"""Names of the columns that ``column`` reads: itself, or, where it has a brace, those of a template.

    In a template ``{name}`` stands for a column, ``{{`` and ``}}`` for braces, and ``\n`` for a line break.

    Raises:
        LTMError: the template is not well formed.
    """
    return [column] if "{" not in column else list(dict.fromkeys(name for _, name in _pieces(column) if name))


def text_of(record: Mapping[str, object], column: str, where: str, mend: str = "choose another with `column`") -> str:
    """The row's text; empty, which is no document, where a column that it needs is null.

    Args:
        record: a row that has the columns.
        column: one column or a template (`columns_of`).
        where: the row, for messages.
        mend: how to choose another column, for messages.

    Raises:
        LTMError: a value is not text.
    """
    values = {}
    for name in columns_of(column):
        value = record[name]
        if value is None:
            return ""
        if not isinstance(value, str):
            raise LTMError(f"{where}: column {name!r} holds {type(value).__name__}, not text; {mend}")
        values[name] = value
    if "{" not in column:
        return values[column]
    return "".join(literal + (values[name] if name else "") for literal, name in _pieces(column))


def _pieces(template: str) -> list[tuple[str, str | None]]:
    """(text, name of the column after it) of each piece; None after the last text."""
    try:
        pieces = list(Formatter().parse(template.replace("\\n", "\n")))
    except ValueError as error:
        raise LTMError(
            f"column={template!r}: {error}; write {{name}} for a column, {{{{ and }}}} for braces"
        ) from error
    if any(name == "" or form or conversion for _, name, form, conversion in pieces):
        raise LTMError(f"column={template!r}: expected just the name of a column between braces, as in {{question}}")
    if not any(name for _, name, _, _ in pieces):
        raise LTMError(f"column={template!r} names no column: write it between braces, as in {{question}}")
    return [(literal, name) for literal, name, _, _ in pieces]
