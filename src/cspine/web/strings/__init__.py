"""The words that people read: one catalogue, a file for each part of the application.

``en/account.json`` holds the keys that begin with ``account.``, and so on. Another language is another folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LANGUAGE = "en"


def _flat(table: Mapping[str, object], before: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in table.items():
        name = f"{before}.{key}"
        if isinstance(value, Mapping):
            found |= _flat(value, name)
        else:
            found[name] = str(value)
    return found


@cache
def catalogue(language: str = LANGUAGE) -> Mapping[str, str]:
    """All strings of a language by their dotted keys, such as ``account.login.title``."""
    found: dict[str, str] = {}
    for path in sorted((Path(__file__).parent / language).glob("*.json")):
        found |= _flat(json.loads(path.read_text(encoding="utf-8")), path.stem)
    return found


def t(key: str, **values: object) -> str:
    """A string of the catalogue; ``{name}`` in it stands for ``values["name"]``.

    Raises:
        LookupError: no such string, or a value is missing. Templates and code are tried for that by the suite.
    """
    found = catalogue().get(key)
    if found is None:
        raise LookupError(f"no string {key!r} in the catalogue")
    return found.format_map(values) if values else found


def many(key: str, count: int, **values: object) -> str:
    """Like ``t`` with ``{count}``: ``<key>.one`` for 1, ``<key>.other`` else."""
    return t(f"{key}.{'one' if count == 1 else 'other'}", count=count, **values)


def part(prefix: str) -> dict[str, str]:
    """The strings below a key, for scripts: ``part("upload.page")`` gives ``{"drop": …}``, keys without the prefix."""
    start = f"{prefix}."
    return {key.removeprefix(start): text for key, text in catalogue().items() if key.startswith(start)}
