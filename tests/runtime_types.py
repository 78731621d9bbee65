"""The run-time type check of the tests: annotations as type checkers read them, so that an int is a float, too."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

__all__ = ["checked"]

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
