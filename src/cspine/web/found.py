"""What was found in a study, in the few words that answers, lists and figures need; read from its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from cspine.anatomy import LEVELS
from cspine.errors import StudyError
from cspine.findings import Findings, LevelFinding
from cspine.reports import words
from cspine.reports.picture_findings import PictureFindings

FINDINGS_FILE, PICTURES_FILE = "findings.json", "pictures.json"
PATIENT = "patient"
SUBJECTS = (*(level.name for level in LEVELS), PATIENT)
# Studies whose findings are kept in memory: a few hundred bytes each.
_KEPT = 20_000


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of one level, or of the patient.

    Attributes:
        fracture: as stated; None when it was not judged.
        probability: 0 to 1, or None.
        type: of the fracture, or None.
        not_judged: why there is no probability; empty otherwise.
    """

    fracture: bool | None = None
    probability: float | None = None
    type: str | None = None
    not_judged: str = ""


def found_in(folder: Path | None) -> Mapping[str, Found]:
    """What a folder of results says, by ``SUBJECTS``; of pictures there is the patient alone; empty without results.

    The folder of a run never changes once it is there, so what was read is kept.
    """
    return MappingProxyType({}) if folder is None else _read(folder)


@lru_cache(maxsize=_KEPT)
def _read(folder: Path) -> Mapping[str, Found]:
    try:
        if (folder / FINDINGS_FILE).is_file():
            return _of_volume(Findings.load(folder / FINDINGS_FILE))
        if (folder / PICTURES_FILE).is_file():
            return _of_pictures(PictureFindings.load(folder / PICTURES_FILE))
    except StudyError:
        return MappingProxyType({})  # written by a version to come
    return MappingProxyType({})


def _of_volume(findings: Findings) -> Mapping[str, Found]:
    table: dict[str, Found] = {item.level: _level(item) for item in findings.levels}
    patient = findings.patient
    # As in reports: what one level raises is never called clear.
    raised = any(item.fracture for item in findings.levels)
    table[PATIENT] = Found(True if raised else patient.fracture, patient.probability)
    return MappingProxyType(table)


def _level(item: LevelFinding) -> Found:
    why = "" if item.probability is not None else words.why_not(item).rstrip(".")
    return Found(item.fracture, item.probability, item.type, why)


def _of_pictures(findings: PictureFindings) -> Mapping[str, Found]:
    judged = [one for one in findings.pictures if one.probability is not None]
    if not judged:
        return MappingProxyType({PATIENT: Found()})
    highest = max(one.probability or 0.0 for one in judged)
    return MappingProxyType({PATIENT: Found(any(one.fracture for one in judged), highest)})
