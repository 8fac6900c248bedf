"""A folder of NIfTI volumes and a table of labels.

``labels.csv`` (or the only ``.csv``) has a row a study: a column ``study`` or ``StudyInstanceUID`` with the name of
the file (its ending may be left out), any of ``C1`` to ``C7`` and ``patient_overall`` with 1, 0 or nothing, and
perhaps ``patient``. Volumes ``<study>.nii`` or ``.nii.gz`` lie in the folder itself or in ``images``. Where vertebrae
were outlined, ``<study>_labels.nii.gz`` lies beside the volume, or ``<study>.nii.gz`` in ``labels``; where fractures
were, ``<study>_fracture.nii.gz``, or ``<study>.nii.gz`` in ``fractures``. Masks may be on any grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS, OTHER_BONE, THORACIC
from cspine.cases import Case, LevelTruth
from cspine.errors import CspineError, NoImagesError, StudyError, StudyWarning, UsageError
from cspine.studies.label_table import (
    OVERALL_COLUMNS,
    PATIENT_COLUMNS,
    STUDY_COLUMNS,
    Row,
    Table,
    find_table,
    read_table,
    safe_name,
)
from cspine.studies.masks import mask_on, visible_fractions, with_known_places
from cspine.studies.study import open_study
from cspine.volume import Source, Volume

VOLUME_FOLDERS, MASK_FOLDERS, FRACTURE_FOLDERS = ("", "images"), ("", "labels"), ("", "fractures")
MASK_END, FRACTURE_END = "_labels", "_fracture"
ENDINGS = (".nii.gz", ".nii")
_LEVEL_COLUMNS = tuple(level.name.lower() for level in LEVELS)

Flags = tuple[bool | None, ...]


@dataclass(frozen=True, slots=True)
class StudyLabels:
    """A row of the table.

    Attributes:
        fractured: C1 to C7, None where nothing is said.
        overall: any of them, None where nothing is said.
        patient: whose study it is, or empty.
    """

    fractured: Flags
    overall: bool | None
    patient: str = ""


def is_nifti_folder(path: Path) -> bool:
    """Whether NIfTI volumes lie in the folder or in its ``images``."""
    return bool(_volumes(path))


@dataclass(frozen=True, slots=True)
class NiftiFolder:
    """Volumes with a table of labels; a ``LabelledStudies``.

    Attributes:
        path: the folder.
        studies: names of the studies with a row and a volume, in order.
        rows: the labels of each.
        volumes: the file of each.
        masks: outlined vertebrae, for those that have them.
        fractures: outlined fractures, for those that have them.
        patients: whose study it is, where the table says so.
        faults: what is wrong with single studies that are therefore not in ``studies``.
        warnings: what a reader of the labels must know.
    """

    path: Path
    studies: tuple[str, ...]
    rows: Mapping[str, StudyLabels]
    volumes: Mapping[str, Path]
    masks: Mapping[str, Path]
    fractures: Mapping[str, Path]
    patients: Mapping[str, str]
    faults: Mapping[str, CspineError]
    warnings: tuple[StudyWarning, ...] = ()

    @classmethod
    def open(cls, path: str | Path) -> NiftiFolder:
        """Read the table and look what is there; no volume is opened.

        Raises:
            UsageError: no table, several, or one without a column that is needed.
            DamagedFileError: the table cannot be read.
            NoImagesError: no row has a volume.
        """
        path = Path(path)
        table_path = find_table(path)
        if table_path is None:
            raise UsageError(
                "NIfTI volumes need a table of labels beside them",
                where=str(path),
                fix="Write labels.csv with the columns study, C1 to C7 and patient_overall",
            )
        table = read_table(table_path)
        table.require(STUDY_COLUMNS)
        volumes = _volumes(path)
        masks, fractures = _files(path, MASK_FOLDERS, MASK_END), _files(path, FRACTURE_FOLDERS, FRACTURE_END)
        if not masks:
            table.require((*_LEVEL_COLUMNS, *OVERALL_COLUMNS))
        rows, faults = _rows(table, volumes)
        for stem in volumes.keys() - rows.keys() - faults.keys():
            faults[stem] = StudyError(f"a volume without a row in {table.name}", where=volumes[stem].name)
        if not rows:
            raise NoImagesError(
                f"none of the {len(table.rows)} rows of {table.name} names a volume of the folder",
                where=str(path),
                fix="Give the name of the file in the column study",
            )
        name = {stem: safe_name(stem) for stem in {*volumes, *faults}}
        rows, warnings = _believed({name[stem]: row for stem, row in rows.items()})
        return cls(
            path=path,
            studies=tuple(sorted(rows)),
            rows=rows,
            volumes={name[stem]: file for stem, file in volumes.items()},
            masks={name[stem]: file for stem, file in masks.items() if stem in name},
            fractures={name[stem]: file for stem, file in fractures.items() if stem in name},
            patients={study: row.patient for study, row in rows.items() if row.patient},
            faults={name[stem]: fault for stem, fault in sorted(faults.items())},
            warnings=warnings,
        )

    @property
    def kind(self) -> Literal["nifti"]:
        """What sort of folder it is."""
        return "nifti"

    @property
    def held_back(self) -> frozenset[str]:
        """Studies that the data set itself keeps for validation: none."""
        return frozenset()

    def labels(self) -> dict[str, tuple[bool, ...]]:
        """For each study whether C1 to C7 are known to be fractured, and whether any is."""
        return {
            name: (*(flag is True for flag in row.fractured), row.overall is True or True in row.fractured)
            for name, row in self.rows.items()
        }

    def files(self, name: str) -> tuple[Path, ...]:
        """The files of a study's images."""
        return (self.volumes[name],)

    def case(self, name: str, *, threads: int | None = None) -> Case:
        """A study with what is known of it; see ``Case``.

        Args:
            name: one of ``studies``.
            threads: cores to decode on; all by default.

        Raises:
            CspineError: the study cannot be used; of the kinds of ``open_study``, or what ``faults`` says.
        """
        if name in self.faults:
            raise self.faults[name]
        if name not in self.rows:
            raise StudyError("no such study in the folder", where=name)
        volume = open_study(self.volumes[name], threads=threads)
        # Results are named after the study, not after the file.
        volume = replace(volume, source=_named(volume.source, name))
        row = self.rows[name]
        known = {level: flag for level, flag in zip(LEVELS, row.fractured, strict=True) if flag is not None}
        fracture = mask_on(self.fractures[name], volume, last=255) > 0 if name in self.fractures else None
        mask = self._mask(name, volume)
        labels = None if mask is None else _as_written(mask)
        shown = dict.fromkeys(LEVELS, math.nan) if labels is None else visible_fractions(labels)
        levels = {level: LevelTruth(shown[level], flag, place_known=not flag) for level, flag in known.items()}
        overall = row.overall if True not in row.fractured else True
        case = Case(name, volume, labels, fracture, levels=levels, overall=overall, patient=self.patients.get(name, ""))
        return case if labels is None else with_known_places(case)

    def vertebrae(self, name: str, volume: Volume) -> NDArray[np.uint8] | None:
        """The mask with thoracic vertebrae told apart (8..19 = T1..T12) on the grid of the images; None without.

        Raises:
            StudyError: the mask cannot be read, has other labels, or does not lie on the images.
        """
        mask = self._mask(name, volume)
        return mask if mask is not None and _tells_apart(mask) else None

    def _mask(self, name: str, volume: Volume) -> NDArray[np.uint8] | None:
        return mask_on(self.masks[name], volume) if name in self.masks else None


def _tells_apart(mask: NDArray[np.uint8]) -> bool:
    """Whether 8, 9, 10 … are T1, T2, T3 …; masks without a 10 follow ``cspine.anatomy``, where 9 is other bone."""
    return int(mask.max()) > OTHER_BONE


def _as_written(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A mask with values of ``cspine.anatomy``."""
    return np.minimum(mask, np.uint8(THORACIC)) if _tells_apart(mask) else mask


def _named(source: Source, name: str) -> Source:
    return replace(source, name=name)


def _volumes(path: Path) -> dict[str, Path]:
    """Volumes by stem; masks are none."""
    found = _files(path, VOLUME_FOLDERS, "")
    return {stem: file for stem, file in found.items() if not stem.endswith((MASK_END, FRACTURE_END))}


def _files(path: Path, folders: tuple[str, str], end: str) -> dict[str, Path]:
    """NIfTI files by the stem of their study: beside the volumes those that end so, in their own folder any."""
    beside, own = folders
    found = {}
    for folder in (path / beside, *(path / name for name in VOLUME_FOLDERS if name and end), path / own):
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            ending = next((e for e in ENDINGS if file.name.lower().endswith(e)), None)
            if ending is None or file.name.startswith(".") or not file.is_file():
                continue
            stem = file.name[: -len(ending)]
            if end and stem.endswith(end):
                found[stem.removesuffix(end)] = file
            elif not end or folder == path / own != path:
                found[stem] = file
    return found


def _rows(table: Table, volumes: Mapping[str, Path]) -> tuple[dict[str, StudyLabels], dict[str, CspineError]]:
    """The rows that can be used by stem, and what is wrong with the others."""
    rows: dict[str, StudyLabels] = {}
    faults: dict[str, CspineError] = {}
    first: dict[str, Row] = {}
    for row in table.rows:
        stem = _stem(row.text(STUDY_COLUMNS))
        if not stem:
            faults[row.where] = StudyError("a row that names no study", where=row.where)
            continue
        if stem in first:
            rows.pop(stem, None)
            faults[stem] = StudyError(
                f"the study is in the table twice, first in {first[stem].where}",
                where=row.where,
                fix="Remove one of the two rows",
            )
            continue
        first[stem] = row
        try:
            labels = _labels(row)
        except CspineError as error:
            faults[stem] = error
            continue
        if stem in volumes:
            rows[stem] = labels
        else:
            faults[stem] = NoImagesError("a row without a volume", where=row.where, fix="Add the file or drop the row")
    return rows, faults


def _labels(row: Row) -> StudyLabels:
    overall = row.flag(OVERALL_COLUMNS)
    flags = tuple(row.flag((name,)) for name in _LEVEL_COLUMNS)
    if overall is False and True not in flags:
        # A neck without a fracture has none at any level.
        flags = (False,) * len(LEVELS)
    return StudyLabels(flags, overall, row.text(PATIENT_COLUMNS))


def _stem(text: str) -> str:
    """The stem that a cell names: of a file, with its ending or without."""
    text = text.strip().replace("\\", "/").rpartition("/")[2]
    ending = next((e for e in ENDINGS if text.lower().endswith(e)), "")
    return text[: len(text) - len(ending)]


def _believed(rows: Mapping[str, StudyLabels]) -> tuple[dict[str, StudyLabels], tuple[StudyWarning, ...]]:
    """Rows in which the patient's label is not what the levels say; the levels are believed."""
    kept, odd = {}, 0
    for name, row in rows.items():
        says = True if True in row.fractured else False if None not in row.fractured else None
        if says is not None and row.overall is not None and row.overall != says:
            odd += 1
            row = replace(row, overall=says)
        kept[name] = row
    message = f"In {odd} rows patient_overall contradicts the levels; the levels were used."
    return kept, (StudyWarning("overall-contradicts-levels", message),) if odd else ()
