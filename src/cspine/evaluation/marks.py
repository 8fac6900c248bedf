"""Centres of vertebrae that a person marked in real scans: the file, its scans, and its two halves."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cspine.anatomy import LEVELS, Level
from cspine.errors import UsageError

Half = Literal["development", "test"]
Point = tuple[float, float, float]
Float = NDArray[np.float64]
# Marks may go on below C7, where they tell a doubled C7 from a right one.
ORDER = (*(level.name for level in LEVELS), *(f"T{k}" for k in range(1, 13)))
_SUFFIXES = ("", ".nii.gz", ".nii", ".zip", "_ct.nii.gz", "_ct.nii", "_ct")


class Marks(BaseModel):
    """Marked centres of one scan.

    Attributes:
        levels: LPS mm by name, C1..C7 and T1..T12. C1: midline point of anterior arch and dens at arch height; C2:
            the body below the dens; others: centre of the body.
        confidence: ``sure`` or a word of the one who marked.
        note: for people.
        scale: slope and intercept for files that are not HU.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    levels: dict[str, Point] = Field(min_length=2)
    confidence: str = "sure"
    note: str = ""
    scale: tuple[float, float] | None = None

    def points(self) -> tuple[tuple[str, ...], Float]:
        """Names from head to chest and their centres ``(n, 3)``."""
        names = tuple(name for name in ORDER if name in self.levels)
        return names, np.array([self.levels[name] for name in names])

    def moved(self, motion: Float) -> Marks:
        """The marks of a scan whose content was moved by a 4x4 ``motion``, LPS mm to LPS mm."""
        names, points = self.points()
        there = points @ motion[:3, :3].T + motion[:3, 3]
        return self.model_copy(update={"levels": {n: tuple(p) for n, p in zip(names, there.tolist(), strict=True)}})


def load_marks(path: Path) -> dict[str, Marks]:
    """Marks by scan from ``{"scan": {"levels": {"C1": [x, y, z], …}, "confidence": "sure", "scale": [a, b]}}``.

    Raises:
        UsageError: no such file, not JSON, or not marks; names the scan and key.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"the marks cannot be read: {error.strerror}", where=str(path)) from error
    except ValueError as error:
        raise UsageError("expected JSON with marks by scan", where=str(path)) from error
    if not isinstance(content, dict) or not content:
        raise UsageError("expected an object with marks by scan", where=str(path))
    return {name: _parse(name, entry, path) for name, entry in content.items()}


def _parse(name: str, entry: Any, path: Path) -> Marks:
    try:
        marks = Marks.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in (name, *first["loc"]))
        raise UsageError(f"marks are not usable: {first['msg']}", where=f"{path.name}, {place}") from error
    unknown = sorted(set(marks.levels) - set(ORDER))
    if unknown:
        raise UsageError(f"expected levels C1..C7 and T1..T12, got {unknown[0]!r}", where=f"{path.name}, {name}")
    return marks


def halves(names: Sequence[str], development: Sequence[str] = ()) -> dict[str, Half]:
    """Which half each scan belongs to.

    Numbers in names count as numbers; in that order the 1st, 3rd, 5th … are for development. ``development`` names
    them instead, when it is given.

    Raises:
        UsageError: ``development`` names a scan that is not marked.
    """
    unknown = sorted(set(development) - set(names))
    if unknown:
        raise UsageError(f"no scan {unknown[0]!r} is marked", fix=f"Marked are {', '.join(sorted(names)[:8])} …")
    order = sorted(names, key=_natural)
    chosen = set(development) or set(order[::2])
    return {name: "development" if name in chosen else "test" for name in order}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which ``pt_10`` follows ``pt_9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def scan_path(folder: Path, name: str) -> Path:
    """The study of a marked scan: ``folder/name``, with or without an ending of NIfTI or zip.

    Raises:
        UsageError: nothing of that name.
    """
    for suffix in _SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.exists():
            return path
    raise UsageError(f"no scan for the marks of {name!r}", where=str(folder), fix="Give its folder with --scans DIR")


def present(marks: Marks, level: Level) -> Float | None:
    """The mark of a cervical level ``(3,)``, or None."""
    point = marks.levels.get(level.name)
    return None if point is None else np.array(point)
