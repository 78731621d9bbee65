"""Settings as files: TOML with one table per section, written and read, and the config.json of a run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltm_pyro.config import Settings, read_toml
from ltm_pyro.errors import LTMError
from ltm_pyro.untrusted import exists

__all__ = ["read_settings", "to_toml"]


def read_settings(path: str | Path) -> dict[str, Any]:
    """Sections of settings from a TOML file or a run's config.json, by the file's name.

    Raises:
        LTMError: the file is missing, unreadable, or neither of the two.
    """
    path = Path(path)
    if exists(path) and path.is_dir():
        raise LTMError(f"{path} is a folder: give a TOML file, or a run's {path / 'config.json'}")
    if path.suffix.lower() != ".json":
        return read_toml(path)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
        if not isinstance(settings, dict):
            raise TypeError("settings are no table")
    except OSError as error:
        raise LTMError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LTMError(f"{path} is not the config.json of a run: give one, or a TOML file") from error
    # What a run does not name was the default when it was trained, whatever a preset makes of it now.
    return Settings.from_dict(settings).to_dict()


def to_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Settings as a TOML file that `read_settings` reads back; what is unset is the word ``none``.

    Args:
        sections: plain values by section and key, as from `Settings.to_dict`.
    """
    tables = []
    for section, values in sections.items():
        lines = [f"{_key(name)} = {_value('none' if value is None else value)}" for name, value in values.items()]
        tables.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(tables) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _string(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)  # nan, inf and -inf are TOML, too
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return _string(str(value))


def _string(text: str) -> str:
    # JSON's escapes are TOML's; TOML wants this one more.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
