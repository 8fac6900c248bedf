"""Small folders in every layout of labelled studies, made of the block necks of the training tests."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from cspine.anatomy import LEVELS
from cspine.cases import Case
from cspine.phantoms.cohort import Cohort
from cspine.phantoms.write import write_nifti
from training_factory import block_case

# T1, where the blocks would go on.
T1 = (1.0, 2.0, -137.0)


@cache
def neck(seed: int, *, fractured: bool | None = None) -> Case:
    """A neck of few voxels."""
    case = block_case(seed, spacing=(2.0, 2.0, 2.5), fractured=fractured)
    return replace(case, name=f"neck-{seed}", thoracic_mm={8: T1})


def write_phantoms(folder: Path, count: int, layout: str = "nifti") -> list[Case]:
    """Finished phantoms as ``cspine phantom`` leaves them."""
    cohort = Cohort(folder, layout=layout)  # type: ignore[arg-type]
    cohort.begin()
    cases = [replace(neck(seed), name=cohort.name_of(seed)) for seed in range(count)]
    for seed, case in enumerate(cases):
        cohort.write(case, seed)
    cohort.finish()
    return cases


def write_nifti_folder(
    folder: Path, cases: Sequence[Case], *, masked: Sequence[str] = (), fractures: Sequence[str] = ()
) -> None:
    """Volumes, the masks of some, and a table."""
    rows = []
    for case in cases:
        write_nifti(case.volume.hu, case.volume.affine, folder / f"{case.name}.nii.gz")
        if case.name in masked:
            write_nifti(case.labels, case.volume.affine, folder / f"{case.name}_labels.nii.gz")
        if case.name in fractures:
            write_nifti(case.fracture, case.volume.affine, folder / f"{case.name}_fracture.nii.gz")
        flags = {level.name: int(case.levels[level].fractured) for level in LEVELS}
        rows.append({"study": case.name, **flags, "patient_overall": int(any(flags.values()))})
    write_rows(folder / "labels.csv", rows)


def write_rows(path: Path, rows: Sequence[Mapping[str, object]], *, delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> np.ndarray:
    """Grey levels 0..255 ``[y, x]``, brighter to the right and below, so that nothing is symmetric."""
    rows, columns = size
    y, x = np.mgrid[:rows, :columns]
    return np.clip(4 * x + y + 10 * (seed % 8), 0, 255).astype(np.uint8)


def write_picture(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
