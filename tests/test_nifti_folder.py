"""NIfTI volumes with a table: what is read of them, and what is said of those that cannot be used."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cspine.anatomy import LEVELS, Level
from cspine.cases import Case
from cspine.errors import DamagedFileError, GeometryError, NoImagesError, UsageError
from cspine.phantoms.write import write_nifti
from cspine.studies.labelled import LabelledStudies, open_labelled
from cspine.studies.nifti_folder import NiftiFolder
from labelled_factory import neck, write_nifti_folder, write_rows

BROKEN, INTACT = neck(1, fractured=True), neck(2, fractured=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_nifti_folder(tmp_path, [BROKEN, INTACT], masked=[BROKEN.name], fractures=[BROKEN.name])
    return tmp_path


def test_volumes_masks_and_labels_belong_together(folder: Path) -> None:
    opened = open_labelled(folder)
    assert isinstance(opened, NiftiFolder)
    assert isinstance(opened, LabelledStudies)
    assert (opened.kind, opened.studies, dict(opened.faults)) == ("nifti", (BROKEN.name, INTACT.name), {})
    assert opened.labels() == {BROKEN.name: (True,) * 8, INTACT.name: (False,) * 8}
    case = opened.case(BROKEN.name)
    np.testing.assert_array_equal(case.labels, BROKEN.labels)
    np.testing.assert_array_equal(case.fracture, BROKEN.fracture)
    assert case.volume.source.name == BROKEN.name
    assert all(truth.fractured and truth.place_known and truth.visible_fraction == 1 for truth in case.levels.values())
    plain = opened.case(INTACT.name)
    assert (plain.labels, plain.fracture, plain.patient_fractured) == (None, None, False)
    assert all(math.isnan(truth.visible_fraction) for truth in plain.levels.values())


def test_a_fracture_that_is_not_outlined_has_no_known_place(tmp_path: Path) -> None:
    write_nifti_folder(tmp_path, [BROKEN], masked=[BROKEN.name])
    case = open_labelled(tmp_path).case(BROKEN.name)
    assert not any(truth.place_known for truth in case.levels.values())


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_as_people_write_them(tmp_path: Path, delimiter: str) -> None:
    for name in ("a", "b", "c"):
        write_nifti(INTACT.volume.hu, INTACT.volume.affine, tmp_path / "images" / f"{name}.nii")
    rows = [
        {"StudyInstanceUID": "a.nii", "Patient": "x", "C5": "1", "patient_overall": ""},
        {"StudyInstanceUID": "b.nii.gz", "Patient": "x", "C5": "", "patient_overall": "No"},
        {"StudyInstanceUID": "c", "Patient": "", "C5": "", "patient_overall": "fractured"},
    ]
    write_rows(tmp_path / "labels.csv", rows, delimiter=delimiter)
    opened = open_labelled(tmp_path)
    a, b, c = (opened.case(name) for name in ("a", "b", "c"))
    assert {level: truth.fractured for level, truth in a.levels.items()} == {Level.C5: True}
    assert {level: truth.fractured for level, truth in b.levels.items()} == dict.fromkeys(LEVELS, False)
    assert (c.levels, c.patient_fractured) == ({}, True)
    assert opened.patients == {"a": "x", "b": "x"} and (a.patient, c.patient) == ("x", "")


def test_masks_that_tell_thoracic_vertebrae_apart(tmp_path: Path) -> None:
    labels = BROKEN.labels.copy()
    labels[:2], labels[2:4] = 10, 9
    write_nifti_folder(tmp_path, [BROKEN])
    write_nifti(labels, BROKEN.volume.affine, tmp_path / "labels" / f"{BROKEN.name}.nii.gz")
    opened = open_labelled(tmp_path)
    case = opened.case(BROKEN.name)
    assert (case.labels[:4] == 8).all()
    np.testing.assert_array_equal(opened.vertebrae(BROKEN.name, case.volume), labels)
    # Without a 10 the values are those of cspine: 9 is other bone.
    labels[:2] = 8
    write_nifti(labels, BROKEN.volume.affine, tmp_path / "labels" / f"{BROKEN.name}.nii.gz")
    case = opened.case(BROKEN.name)
    assert (case.labels[2:4] == 9).all()
    assert opened.vertebrae(BROKEN.name, case.volume) is None


def test_masks_on_another_grid_are_brought_to_the_images(tmp_path: Path) -> None:
    write_nifti_folder(tmp_path, [BROKEN])
    part = BROKEN.volume.crop(slice(4, None), slice(3, None), slice(2, None))
    flipped = part.affine.copy()
    flipped[:3, 3] += flipped[:3, 0] * (part.shape[2] - 1)
    flipped[:3, 0] *= -1
    write_nifti(BROKEN.labels[4:, 3:, 2:][:, :, ::-1], flipped, tmp_path / f"{BROKEN.name}_labels.nii.gz")
    labels = open_labelled(tmp_path).case(BROKEN.name).labels
    np.testing.assert_array_equal(labels[4:, 3:, 2:], BROKEN.labels[4:, 3:, 2:])


def test_what_is_wrong_with_one_study_stops_no_other(folder: Path) -> None:
    rows = [
        {"study": BROKEN.name, "C1": "1"},
        {"study": INTACT.name, "C1": "0"},
        {"study": INTACT.name, "C1": "1"},
        {"study": "gone", "C1": "0"},
        {"study": "odd", "C1": "perhaps"},
        {"study": "", "C1": "0"},
    ]
    write_rows(folder / "labels.csv", rows)
    for name in ("odd", "no row"):
        write_nifti(INTACT.volume.hu, INTACT.volume.affine, folder / f"{name}.nii.gz")
    opened = open_labelled(folder)
    assert opened.studies == (BROKEN.name,)
    said = {fault.message: fault.where for fault in opened.faults.values()}
    assert said == {
        "the study is in the table twice, first in labels.csv, row 3": "labels.csv, row 4",
        "a row without a volume": "labels.csv, row 5",
        "expected 1 or 0, fractured or normal, got 'perhaps'": "labels.csv, row 6, column c1",
        "a row that names no study": "labels.csv, row 7",
        "a volume without a row in labels.csv": "no row.nii.gz",
    }
    with pytest.raises(NoImagesError, match="a row without a volume"):
        opened.case("gone")


def test_names_are_safe_as_folders(tmp_path: Path) -> None:
    cases = [replace(INTACT, name=name) for name in ("a b", "a?b", "ok-1")]
    write_nifti_folder(tmp_path, cases)
    opened = open_labelled(tmp_path)
    assert len(set(opened.studies)) == 3
    assert "ok-1" in opened.studies
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") for name in opened.studies)
    assert opened.case(opened.studies[0]).name == opened.studies[0]


def test_the_levels_are_believed_where_patient_overall_contradicts_them(tmp_path: Path) -> None:
    write_nifti_folder(tmp_path, [INTACT])
    text = (tmp_path / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_text(text.replace("0,0\r\n", "0,1\r\n").replace("0,0\n", "0,1\n"))
    opened = open_labelled(tmp_path)
    assert [warning.code for warning in opened.warnings] == ["overall-contradicts-levels"]
    assert opened.case(INTACT.name).patient_fractured is False


@pytest.mark.parametrize(
    ("tables", "error", "says"),
    [
        ({}, UsageError, r"need a table.*labels.csv"),
        ({"a.csv": "study,C1\n", "b.csv": "study,C1\n"}, UsageError, r"2 tables.*Name the one with the labels"),
        ({"labels.csv": "study,C1\n"}, DamagedFileError, "no rows"),
        ({"labels.csv": "study,study,C1\nx,x,1\n"}, DamagedFileError, "named twice"),
        ({"labels.csv": "who,C1\nx,1\n"}, UsageError, "expected a column study or"),
        ({"labels.csv": "study,age\nx,1\n"}, UsageError, "expected a column c1 or"),
        ({"labels.csv": "study,C1\nx,1\n"}, NoImagesError, "none of the 1 rows"),
        ({"labels.csv": "study,C1\n\x00\xff,1\n"}, (DamagedFileError, NoImagesError), "."),
    ],
)
def test_a_table_that_cannot_serve(tmp_path: Path, tables: dict[str, str], error: type[Exception], says: str) -> None:
    write_nifti(INTACT.volume.hu, INTACT.volume.affine, tmp_path / "a.nii.gz")
    for name, text in tables.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(error, match=says):
        open_labelled(tmp_path)


def spoiled(case: Case, folder: Path, values: np.ndarray, affine: np.ndarray) -> NiftiFolder:
    write_nifti_folder(folder, [case])
    write_nifti(values, affine, folder / f"{case.name}_labels.nii.gz")
    return NiftiFolder.open(folder)


def test_masks_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    labels = np.full(INTACT.volume.shape, 40, np.uint8)
    with pytest.raises(DamagedFileError, match="expected labels 0 to 19, got 40"):
        spoiled(INTACT, tmp_path / "a", labels, INTACT.volume.affine).case(INTACT.name)
    away = INTACT.volume.affine.copy()
    away[:3, 3] += 1000
    with pytest.raises(GeometryError, match="does not lie on the images"):
        spoiled(INTACT, tmp_path / "b", INTACT.labels, away).case(INTACT.name)
