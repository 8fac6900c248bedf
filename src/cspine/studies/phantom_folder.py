"""A folder of phantoms as ``cspine phantom`` (or ``plant``) writes it in the layouts ``nifti`` and ``dicom``.

``studies/`` holds the scans, ``truth/<name>.json`` all that is true of each, ``truth/<name>.labels.nii.gz`` and
``truth/<name>.fracture.nii.gz`` the masks. The layout ``rsna2022`` is read as that data set, by ``studies.rsna``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS, THORACIC, Level
from cspine.cases import Case, LevelTruth, SliceBox
from cspine.errors import CspineError, DamagedFileError, NoImagesError, StudyError, StudyWarning
from cspine.studies.masks import mask_on
from cspine.studies.study import open_study
from cspine.volume import Volume

# Notes of the settings that the folder was made with.
PHANTOMS_NOTE, PLANTED_NOTE = "phantoms.json", "planted.json"
STUDIES_FOLDER, TRUTH_FOLDER = "studies", "truth"
_TRUTH_FIELDS = {field.name for field in fields(LevelTruth)}


def is_phantom_folder(path: Path) -> bool:
    """Whether a folder was written by ``cspine phantom`` or ``plant``, studies and truth apart."""
    noted = any((path / name).is_file() for name in (PHANTOMS_NOTE, PLANTED_NOTE))
    return noted and (path / STUDIES_FOLDER).is_dir() and (path / TRUTH_FOLDER).is_dir()


@dataclass(frozen=True, slots=True)
class PhantomFolder:
    """Phantoms with all that is true of them; a ``LabelledStudies``.

    Attributes:
        path: the folder.
        studies: names of the finished phantoms, in order.
        truths: what their files in ``truth`` say.
        images: the file or folder of each.
        patients: whose study it is; all planted in one scan are one patient.
        faults: what is wrong with single studies that are therefore not in ``studies``.
    """

    path: Path
    studies: tuple[str, ...]
    truths: Mapping[str, Mapping[str, Any]]
    images: Mapping[str, Path]
    patients: Mapping[str, str]
    faults: Mapping[str, CspineError]

    @classmethod
    def open(cls, path: str | Path) -> PhantomFolder:
        """Read what is true of each phantom; no image is opened.

        Raises:
            NoImagesError: none is finished.
        """
        path = Path(path)
        images = _images(path / STUDIES_FOLDER)
        truths: dict[str, Mapping[str, Any]] = {}
        faults: dict[str, CspineError] = {}
        for file in sorted((path / TRUTH_FOLDER).glob("*.json")):
            name = file.stem
            try:
                truth = _read(file)
                if name not in images:
                    raise NoImagesError("truth without images", where=file.name, fix="Make the phantom again")
                truths[name] = truth
            except CspineError as error:
                faults[name] = error
        for name in images.keys() - truths.keys() - faults.keys():
            faults[name] = StudyError(
                f"images without truth in {TRUTH_FOLDER}", where=images[name].name, fix="Finish it: same command again"
            )
        if not truths:
            raise NoImagesError("no phantom is finished", where=str(path), fix="Run cspine phantom to its end")
        planted = (path / PLANTED_NOTE).is_file()
        patients = dict.fromkeys(truths, "the scan") if planted else {}
        return cls(path, tuple(sorted(truths)), truths, images, patients, dict(sorted(faults.items())))

    @property
    def kind(self) -> Literal["phantoms"]:
        """What sort of folder it is."""
        return "phantoms"

    @property
    def warnings(self) -> tuple[StudyWarning, ...]:
        """What a reader of the labels must know: nothing, they are true."""
        return ()

    @property
    def held_back(self) -> frozenset[str]:
        """Studies that the data set itself keeps for validation: none."""
        return frozenset()

    def labels(self) -> dict[str, tuple[bool, ...]]:
        """For each study whether C1 to C7 are fractured, and whether any is."""
        found = {}
        for name, truth in self.truths.items():
            flags = [bool(truth["levels"].get(level.name, {}).get("fractured")) for level in LEVELS]
            found[name] = (*flags, any(flags))
        return found

    def files(self, name: str) -> tuple[Path, ...]:
        """The files of a study's images."""
        images = self.images[name]
        return tuple(sorted(images.iterdir())) if images.is_dir() else (images,)

    def case(self, name: str, *, threads: int | None = None) -> Case:
        """A phantom as it was made: mask, fracture voxels, truth of every level, boxes and body centres.

        Args:
            name: one of ``studies``.
            threads: cores to decode on; all by default.

        Raises:
            CspineError: it cannot be read, or what ``faults`` says.
        """
        if name in self.faults:
            raise self.faults[name]
        if name not in self.truths:
            raise StudyError("no such phantom in the folder", where=name)
        truth = self.truths[name]
        volume = open_study(self.images[name], threads=threads)
        volume = replace(volume, source=replace(volume.source, name=name))
        labels, fracture = (self._mask(name, part, volume) for part in ("labels", "fracture"))
        thoracic = {THORACIC - 1 + int(key[1:]): _point(value) for key, value in truth.get("thoracic_mm", {}).items()}
        try:
            return Case(
                name=name,
                volume=volume,
                labels=labels,
                fracture=None if fracture is None else fracture > 0,
                levels={Level[key]: _level(value) for key, value in truth["levels"].items()},
                boxes=_boxes(truth, volume),
                thoracic_mm=thoracic or None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _spoiled(f"{name}.json", error) from error

    def vertebrae(self, name: str, volume: Volume) -> NDArray[np.uint8] | None:
        """None: phantoms come with the centres of their thoracic vertebrae instead."""
        del name, volume
        return None

    def _mask(self, name: str, part: str, volume: Volume) -> NDArray[np.uint8] | None:
        file = self.path / TRUTH_FOLDER / f"{name}.{part}.nii.gz"
        return mask_on(file, volume) if file.is_file() else None


def _images(folder: Path) -> dict[str, Path]:
    """The scan of each phantom: a NIfTI file, or a folder of DICOM."""
    found = {}
    for item in sorted(folder.iterdir()):
        if not item.name.startswith("."):
            found[item.name if item.is_dir() else item.name.removesuffix(".gz").removesuffix(".nii")] = item
    return found


def _read(file: Path) -> Mapping[str, Any]:
    try:
        truth: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(truth, dict) or not isinstance(truth["levels"], dict):
            raise ValueError("no table of levels")
    except (OSError, ValueError, KeyError) as error:
        raise _spoiled(file.name, error) from error
    return truth


def _spoiled(name: str, error: Exception) -> DamagedFileError:
    return DamagedFileError(
        f"the truth of a phantom cannot be read: {error}", where=name, fix="Remove it and run cspine phantom again"
    )


def _point(values: Any) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _level(values: Mapping[str, Any]) -> LevelTruth:
    """The truth of a level; keys of a newer cspine are left out."""
    known: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in _TRUTH_FIELDS
    }
    return LevelTruth(**known)


def _boxes(truth: Mapping[str, Any], volume: Volume) -> tuple[SliceBox, ...]:
    """Boxes on the volume as it was opened: slices that a tilted gantry shifted were moved onto a straight grid."""
    grid = np.asarray(truth["affine_lps"], dtype=np.float64)
    moves = not np.allclose(grid, volume.affine, atol=1e-3)
    out = []
    for box in truth["boxes"]:
        z, low, high = box["slice_index"], (box["x_min"], box["y_min"]), (box["x_max"], box["y_max"])
        if moves:
            ends = np.array([[*low, z], [*high, z]], dtype=np.float64) - (0.5, 0.5, 0)
            at = volume.to_index(ends @ grid[:3, :3].T + grid[:3, 3]) + (0.5, 0.5, 0)
            z = round(float(at[:, 2].mean()))
            size = volume.shape[2], volume.shape[1]
            low, high = (tuple(np.clip(np.rint(corner[:2]), 0, size).astype(int).tolist()) for corner in at)
            if not 0 <= z < volume.shape[0] or low[0] >= high[0] or low[1] >= high[1]:
                continue
        level = None if box["level"] is None else Level[box["level"]]
        out.append(SliceBox(z, low[0], low[1], high[0], high[1], level))
    return tuple(out)
