"""A folder in exactly the layout of the RSNA 2022 data, of small made-up necks, and a locator that knows the truth."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np

from cspine.anatomy import LEVELS
from cspine.cases import Case
from cspine.phantoms.write import phantom_uid, write_dicom
from cspine.volume import Volume
from training_factory import block_case

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Study:
    """A case as it is published.

    Attributes:
        case: in the storage order of its files: slices along z, boxes in pixels of the files.
        head_first: file numbers count from the head.
        mask: it has a segmentation.
        boxed: it has boxes.
    """

    case: Case
    head_first: bool = False
    mask: bool = True
    boxed: bool = True

    @property
    def uid(self) -> str:
        return phantom_uid(self.case, "study")


def flipped(case: Case, axes: tuple[int, ...]) -> Case:
    """The same patient with rows or columns stored the other way round; array axes 1 (y) and 2 (x)."""
    affine = case.volume.affine.copy()
    for axis in axes:
        affine[:3, 3] += affine[:3, 2 - axis] * (case.volume.shape[axis] - 1)
        affine[:3, 2 - axis] *= -1
    return replace(
        case,
        volume=replace(case.volume, hu=np.flip(case.volume.hu, axes), affine=affine),
        labels=np.flip(case.labels, axes),
        fracture=np.flip(case.fracture, axes),
    )


def write_rsna_folder(folder: Path, studies: Sequence[Study]) -> list[str]:
    """Write the tables, images and segmentations; returns the StudyInstanceUIDs."""
    names = [level.name for level in LEVELS]
    rows: list[list[object]] = [["StudyInstanceUID", "patient_overall", *names]]
    boxes: list[list[object]] = [["StudyInstanceUID", "x", "y", "width", "height", "slice_number"]]
    for study in studies:
        found = [int(study.case.levels[level].fractured) for level in LEVELS]
        rows.append([study.uid, int(any(found)), *found])
        storage = {"storage": "head-first" if study.head_first else "feet-first"}
        source = replace(study.case.volume.source, acquisition=storage)
        stored = replace(study.case, volume=replace(study.case.volume, source=source))
        numbers = write_dicom(stored, folder / "train_images" / study.uid, shuffle=False)
        if study.boxed:
            boxes += [[study.uid, *box[1:], numbers[box[0]]] for box in fracture_boxes(study.case)]
        if study.mask:
            write_sagittal(study.case.labels, study.case.volume.affine, folder / "segmentations" / f"{study.uid}.nii")
    write_table(folder / "train.csv", rows)
    write_table(folder / "train_bounding_boxes.csv", boxes)
    return [study.uid for study in studies]


def fracture_boxes(case: Case) -> list[tuple[int, float, float, float, float]]:
    """``(slice, x, y, width, height)``: one box a slice, around all that is broken in it, as in the published table."""
    found = []
    for k in np.flatnonzero(case.fracture.any(axis=(1, 2))):
        y, x = np.nonzero(case.fracture[k])
        found.append((int(k), float(x.min()), float(y.min()), float(np.ptp(x) + 1), float(np.ptp(y) + 1)))
    return found


def write_sagittal(labels: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write a mask as sagittal slices from the patient's right, top row first: only its affine says where it lies."""
    order = (1, 2, 0)  # memory (i, j, k) = (y, z, x) of [z, y, x]
    data = labels.transpose([2, 1, 0])
    moved = data.transpose(order)[:, ::-1]
    turned = np.eye(4)
    turned[:3, :3] = affine[:3, list(order)]
    turned[:3, 3] = affine[:3, 3] + affine[:3, 2] * (labels.shape[0] - 1)
    turned[:3, 1] *= -1
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(moved), LPS_TO_RAS @ turned), path)


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


class KnowingPredictor:
    """Finds every vertebra where it is; knows the patient by the name of the folder."""

    def __init__(self, studies: Sequence[Study], *, not_judged: Sequence[str] = ()) -> None:
        self.cases = {study.uid: study.case for study in studies}
        self.not_judged = not_judged

    def predict_full(self, volume: Volume) -> SimpleNamespace:
        case = self.cases[volume.source.name]
        levels = [
            SimpleNamespace(
                body_center_mm=case.levels[level].body_center_mm,
                visible_fraction=1.0,
                not_judged="unsure" if level.name in self.not_judged else None,
            )
            for level in LEVELS
        ]
        coarse = Volume(case.labels, case.volume.affine).reoriented().resampled(2.0, order=0)
        findings = SimpleNamespace(levels=levels)
        return SimpleNamespace(labels=coarse.hu, labels_affine=coarse.affine, findings=findings)


def studies(count: int = 4) -> list[Study]:
    """Necks of which the odd ones are without a mask, and every third without boxes, all of them broken somewhere."""
    return [
        Study(block_case(seed), head_first=seed % 2 == 0, mask=seed % 2 == 0, boxed=seed % 3 != 1)
        for seed in range(count)
    ]
