"""Cases of a set on disk, so that the next bundle is judged without drawing them again."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cspine.anatomy import Level
from cspine.cases import Case, LevelTruth, SliceBox
from cspine.errors import OutputError
from cspine.evaluation.running import CaseSet
from cspine.volume import Source, Volume


@dataclass(frozen=True, slots=True)
class KeptCases:
    """A set whose cases are made once and then read; a ``running.CaseSet``.

    Attributes:
        cases: the set.
        folder: a file a case goes there, ``<name>.npz``. Names say all that makes a case but the version of cspine.
    """

    cases: CaseSet
    folder: Path

    @property
    def count(self) -> int:
        """How many."""
        return self.cases.count

    def name(self, number: int) -> str:
        """Name of case ``number``."""
        return self.cases.name(number)

    def case(self, number: int) -> Case:
        """Case ``number``; made and kept when it is not there or cannot be read.

        Raises:
            OutputError: the folder cannot be written.
        """
        path = self.folder / f"{self.name(number)}.npz"
        kept = read_case(path)
        if kept is not None:
            return kept
        case = self.cases.case(number)
        write_case(case, path)
        return case


def write_case(case: Case, path: Path) -> None:
    """Write a case as one compressed file, whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    truth = {
        "name": case.name,
        "acquisition": case.volume.source.acquisition,
        "levels": {level.name: asdict(found) for level, found in case.levels.items()},
        "boxes": [asdict(box) for box in case.boxes],
    }
    masks = {"labels": case.labels, "fracture": case.fracture}
    arrays: dict[str, Any] = {name: mask for name, mask in masks.items() if mask is not None}
    part = path.parent / f".{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            np.savez_compressed(
                stream, hu=case.volume.hu, affine=case.volume.affine, truth=np.array(json.dumps(truth)), **arrays
            )
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot keep a case: {error}", where=str(path)) from error


def read_case(path: Path) -> Case | None:
    """A case that ``write_case`` wrote; None when there is none or it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        truth = json.loads(str(arrays["truth"]))
        source = Source(kind="phantom", name=truth["name"], acquisition=truth["acquisition"])
        return Case(
            name=truth["name"],
            volume=Volume(arrays["hu"], arrays["affine"], source),
            labels=arrays.get("labels"),
            fracture=arrays.get("fracture"),
            levels={Level[name]: _level(found) for name, found in truth["levels"].items()},
            boxes=tuple(_box(box) for box in truth["boxes"]),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _level(found: Mapping[str, Any]) -> LevelTruth:
    """JSON has lists where truth has tuples."""
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    return LevelTruth(**fields)


def _box(found: Mapping[str, Any]) -> SliceBox:
    level = found["level"]
    return SliceBox(**{**found, "level": None if level is None else Level(level)})
