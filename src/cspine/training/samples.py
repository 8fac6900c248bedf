"""Samples on disk: what training needs of a ``Case``, small and quick to read.

A sample is a folder of uncompressed ``.npy`` files and one ``meta.json``; it appears under its final name only when
it is complete, so readers may look on while a generator writes.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import Level
from cspine.cases import Case
from cspine.errors import OutputError, StudyError
from cspine.inference.stacks import Frame, frames
from cspine.training.splits import Splits, read_splits
from cspine.volume import Volume

FORMAT = 1
LOCATOR_SPACING_MM = 2.0
REFINER_SPACING_MM = 1.0
# Tissue kept around the cervical vertebrae of a refiner sample.
REFINER_MARGIN_MM = 16.0
# A vertebra of which less is in the field is neither a positive nor a negative.
MIN_VISIBLE = 0.3
# One seed in this many is held back for validation.
HELD_BACK = 16
# Names of drawn phantoms and of copies of scans; any other, and any in the splits, is the name of a study.
NUMBERED = ("phantom-", "scan-")

Array = NDArray[Any]
Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class LocatorSample:
    """A scan on the locator's grid.

    Attributes:
        hu: int16 ``[z, y, x]``, 2 mm.
        labels: uint8, same shape, values of ``cspine.anatomy``.
        centers: ``(n, 4)``: label, then index x, y, z of the body centres of all vertebrae in view that are known.
        thoracic_known: False when centres of thoracic vertebrae are missing from ``centers``.
    """

    hu: Array
    labels: Array
    centers: NDArray[np.float64]
    thoracic_known: bool


@dataclass(frozen=True, slots=True)
class RefinerSample:
    """The cervical column at 1 mm.

    Attributes:
        hu: int16 ``[z, y, x]``, ``REFINER_SPACING_MM`` isotropic, canonical axes.
        labels: uint8, same shape, values of ``cspine.anatomy``.
    """

    hu: Array
    labels: Array


@dataclass(frozen=True, slots=True)
class Vertebra:
    """One vertebra of a classifier sample.

    Attributes:
        label: 1..7.
        frame: as inference would find it, from the true 2 mm mask.
        types: names of its fractures.
        fractured: an acute fracture is present.
        severity: 0..1.
        evidence_known: False when it is fractured but nothing says where; it then has no points.
    """

    label: int
    frame: Frame
    types: tuple[str, ...]
    fractured: bool
    severity: float
    evidence_known: bool = True


@dataclass(frozen=True, slots=True)
class ClassifierSample:
    """A scan at full resolution around the cervical column.

    Attributes:
        volume: int16 HU.
        labels: uint8 mask ``[z, y, x]`` on a 2 mm grid.
        labels_affine: of that grid.
        points: ``(n, 4)`` float32: label, then LPS mm of every fracture voxel.
        point_mm: voxel size (x, y, z) of those.
        vertebrae: those that may be judged.
    """

    volume: Volume
    labels: Array
    labels_affine: NDArray[np.float64]
    points: Array
    point_mm: Point
    vertebrae: tuple[Vertebra, ...]


def locator_sample(
    case: Case, thoracic: Mapping[int, Point] | None = None, cervical: Mapping[int, Point] | None = None
) -> LocatorSample:
    """Resample a labelled case to the locator's grid.

    Args:
        case: needs ``labels``.
        thoracic: body centres LPS mm of thoracic vertebrae, keyed 8 (T1) and up; None when unknown.
        cervical: of cervical vertebrae, keyed 1 to 7, beside those that the truth of the levels holds.

    Raises:
        StudyError: the case has no labels.
    """
    labels = _labels_of(case)
    coarse = case.volume.resampled(LOCATOR_SPACING_MM)
    mask = Volume(labels, case.volume.affine).resampled(LOCATOR_SPACING_MM, order=0).hu
    known: dict[int, Point] = dict(cervical or {}) | {
        int(level): truth.body_center_mm for level, truth in case.levels.items() if truth.body_center_mm is not None
    }
    known |= dict(thoracic or {})
    rows = [(label, *coarse.to_index(point)) for label, point in sorted(known.items())]
    centers = np.asarray(rows, dtype=np.float64).reshape(-1, 4)
    hu = stored_hu(coarse.hu)
    return LocatorSample(hu, mask.astype(np.uint8), centers, thoracic is not None)


def refiner_sample(case: Case) -> RefinerSample:
    """The surroundings of C1..C7 on a 1 mm grid.

    Args:
        case: needs ``labels``, with a cervical vertebra in view.

    Raises:
        StudyError: the case has no labels, or no cervical vertebra.
    """
    labels = _labels_of(case)
    index = np.argwhere((labels > 0) & (labels <= Level.C7))
    if not len(index):
        raise StudyError("no cervical vertebra in view", where=case.name, fix="Leave this case out")
    margin = np.ceil(REFINER_MARGIN_MM / np.asarray(case.volume.spacing[::-1])).astype(int)
    low = np.maximum(index.min(0) - margin, 0)
    high = np.minimum(index.max(0) + 1 + margin, labels.shape)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    fine = case.volume.crop(z, y, x).resampled(REFINER_SPACING_MM)
    mask = Volume(labels, case.volume.affine).crop(z, y, x).resampled(REFINER_SPACING_MM, order=0).hu
    return RefinerSample(stored_hu(fine.hu), mask.astype(np.uint8))


def classifier_sample(case: Case, thoracic: Mapping[int, Point] | None = None) -> ClassifierSample:
    """Frames, coarse mask and fracture points of a case.

    Args:
        case: needs ``labels`` and ``fracture``.
        thoracic: as in ``locator_sample``; T1 gives C7 its lower neighbour.

    Raises:
        StudyError: the case has no labels.
    """
    labels = Volume(_labels_of(case), case.volume.affine)
    coarse = labels.resampled(LOCATOR_SPACING_MM, order=0)
    in_view = {
        int(level): truth.body_center_mm
        for level, truth in case.levels.items()
        if truth.body_center_mm is not None and truth.visible_fraction >= MIN_VISIBLE
    }
    if thoracic and 7 in in_view and 8 in thoracic:
        in_view[8] = thoracic[8]
    placed = frames(in_view, coarse.hu, coarse.affine)
    vertebrae = tuple(
        Vertebra(label, placed[label], truth.types, truth.fractured, truth.severity, truth.place_known)
        for label, truth in ((int(level), case.levels[Level(level)]) for level in in_view if level <= Level.C7)
    )
    points = np.zeros((0, 4), np.float32)
    if case.fracture is not None and case.fracture.any():
        index = np.argwhere(case.fracture)
        broken = [int(level) for level, truth in case.levels.items() if truth.fractured]
        owner = fracture_owners(index, labels.hu, labels.spacing, broken)
        points = np.column_stack([owner, case.volume.to_world(index[:, ::-1])]).astype(np.float32)
    hu = stored_hu(case.volume.hu)
    volume = Volume(hu, case.volume.affine)
    return ClassifierSample(volume, coarse.hu, coarse.affine, points, case.volume.spacing, vertebrae)


def stored_hu(hu: Array) -> NDArray[np.int16]:
    """HU as samples hold them; whole numbers are not turned to floats on the way."""
    whole = hu if hu.dtype.kind in "iu" else np.rint(hu)
    return np.asarray(np.clip(whole, -1024, 4000).astype(np.int16))


def _labels_of(case: Case) -> NDArray[np.uint8]:
    if case.labels is None:
        raise StudyError("training the locator needs a label mask", where=case.name, fix="Leave this case out")
    return case.labels


def fracture_owners(index: NDArray[np.intp], labels: Array, spacing: Point, broken: list[int]) -> NDArray[np.uint8]:
    """Label of each fracture voxel: its own, or that of the nearest broken vertebra when it lies in a gap."""
    from scipy import ndimage

    own = np.asarray(labels[tuple(index.T)])
    lost = ~np.isin(own, broken)
    if not broken or not lost.any():
        return own
    low = np.maximum(index.min(0) - 6, 0)
    high = index.max(0) + 7
    part = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    if not np.isin(part, broken).any():
        return own
    nearest = ndimage.distance_transform_edt(
        ~np.isin(part, broken), sampling=spacing[::-1], return_distances=False, return_indices=True
    )
    at = tuple((index[lost] - low).T)
    own = own.copy()
    own[lost] = part[tuple(nearest[(k, *at)] for k in range(3))]
    return own


def write_sample(sample: LocatorSample | RefinerSample | ClassifierSample, folder: Path, name: str) -> Path:
    """Write a sample as ``folder/name``; it appears whole or not at all.

    Raises:
        OutputError: the folder cannot be written.
    """
    target = folder / name
    part = folder / f".{name}.{uuid.uuid4().hex[:8]}"
    try:
        part.mkdir(parents=True)
        arrays, meta = _packed(sample)
        for key, array in arrays.items():
            np.save(part / f"{key}.npy", np.ascontiguousarray(array))
        (part / "meta.json").write_text(json.dumps({"format": FORMAT, **meta}))
        if not target.exists():
            part.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write a training sample: {error}", where=str(target)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _packed(sample: LocatorSample | RefinerSample | ClassifierSample) -> tuple[dict[str, Array], dict[str, Any]]:
    if isinstance(sample, LocatorSample):
        arrays = {"hu": sample.hu, "labels": sample.labels, "centers": sample.centers}
        return arrays, {"kind": "locator", "thoracic_known": sample.thoracic_known}
    if isinstance(sample, RefinerSample):
        return {"hu": sample.hu, "labels": sample.labels}, {"kind": "refiner"}
    arrays = {"hu": sample.volume.hu, "labels": sample.labels, "points": sample.points}
    counts = np.bincount(sample.points[:, 0].astype(int), minlength=8)
    vertebrae = [
        {
            "label": item.label,
            "origin": item.frame.origin.tolist(),
            "axes": item.frame.axes.tolist(),
            "types": list(item.types),
            "fractured": item.fractured,
            "severity": item.severity,
            "evidence_known": item.evidence_known,
            "points": int(counts[item.label]),
        }
        for item in sample.vertebrae
    ]
    meta = {
        "kind": "classifier",
        "affine": sample.volume.affine.tolist(),
        "labels_affine": sample.labels_affine.tolist(),
        "point_mm": list(sample.point_mm),
        "vertebrae": vertebrae,
    }
    return arrays, meta


def read_meta(path: Path) -> dict[str, Any]:
    """The facts of a sample without its arrays.

    Raises:
        StudyError: not a sample, or of another format.
    """
    try:
        meta = json.loads((path / "meta.json").read_text())
    except (OSError, ValueError) as error:
        raise StudyError(f"expected a training sample: {error}", where=str(path), fix="Delete that folder") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise StudyError(f"expected a sample of format {FORMAT}", where=str(path), fix="Delete that folder")
    return meta


def read_locator_sample(path: Path) -> LocatorSample:
    """A sample written by ``write_sample``; arrays are mapped, not read."""
    meta = read_meta(path)
    hu, labels = (np.load(path / f"{key}.npy", mmap_mode="r") for key in ("hu", "labels"))
    return LocatorSample(hu, labels, np.load(path / "centers.npy"), bool(meta["thoracic_known"]))


def read_refiner_sample(path: Path) -> RefinerSample:
    """A sample written by ``write_sample``; arrays are mapped, not read."""
    read_meta(path)
    hu, labels = (np.load(path / f"{key}.npy", mmap_mode="r") for key in ("hu", "labels"))
    return RefinerSample(hu, labels)


def read_classifier_sample(path: Path) -> ClassifierSample:
    """A sample written by ``write_sample``; the scan is mapped, not read."""
    meta = read_meta(path)
    vertebrae = tuple(
        Vertebra(
            item["label"],
            Frame(np.asarray(item["origin"]), np.asarray(item["axes"])),
            tuple(item["types"]),
            item["fractured"],
            item["severity"],
            # Samples from before real labels do not say it: the place of every fracture in them is known.
            item.get("evidence_known", True),
        )
        for item in meta["vertebrae"]
    )
    return ClassifierSample(
        Volume(np.load(path / "hu.npy", mmap_mode="r"), np.asarray(meta["affine"])),
        np.load(path / "labels.npy"),
        np.asarray(meta["labels_affine"]),
        np.load(path / "points.npy"),
        (meta["point_mm"][0], meta["point_mm"][1], meta["point_mm"][2]),
        vertebrae,
    )


def sample_paths(folder: Path, *, held_back: bool, fold: int = 0) -> list[Path]:
    """Finished samples of a folder, in order of name: those that are held back for validation, or the others.

    Where ``splits.json`` lies beside the folder it decides, and ``fold`` is the part held back. Phantoms that were
    drawn for training and copies of scans are not in it: their names end in a number (``phantom-000123``), of which
    every ``HELD_BACK``-th is held back, once and for all.

    Raises:
        UsageError: a sample is of no study in the splits, or they have no such fold.
    """
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and (path / "meta.json").exists())
    splits = read_splits(folder.parent)
    return [path for path in found if _held_back(path.name, splits, fold) is held_back]


def _held_back(name: str, splits: Splits | None, fold: int) -> bool:
    """Whether a sample is for validation."""
    if splits is None or (name not in splits.part_of and name.startswith(NUMBERED)):
        return _by_number(name)
    return splits.held_back(name, fold)


def _by_number(name: str) -> bool:
    """Whether a name's number is one of those held back."""
    digits = name[len(name.rstrip("0123456789")) :]
    return (int(digits) if digits else 1) % HELD_BACK == 0
