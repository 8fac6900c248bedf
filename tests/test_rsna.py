"""The RSNA 2022 folder: boxes and masks land where they belong in the patient, and every wrong cell is named."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cspine.anatomy import LEVELS, THORACIC, Level
from cspine.cases import Case
from cspine.errors import CspineError, DamagedFileError, GeometryError, NoImagesError, StudyError, UsageError
from cspine.studies import open_study
from cspine.studies.rsna import RsnaFolder, is_rsna_folder, visible_fractions, with_owned_boxes
from cspine.studies.rsna_tables import read_boxes, read_studies
from rsna_factory import Study, flipped, studies, write_rsna_folder, write_sagittal
from training_factory import block_case

BROKEN = block_case(3)


def world_of_boxes(case: Case) -> np.ndarray:
    """Extent of each box in LPS mm, ``[n, (low, high), 3]``, in order of height."""
    extents = []
    for box in case.boxes:
        corners = [
            case.volume.to_world([x, y, box.slice_index])
            for x in (box.x_min, box.x_max - 1)
            for y in (box.y_min, box.y_max - 1)
        ]
        extents.append([np.min(corners, axis=0), np.max(corners, axis=0)])
    return np.asarray(sorted(extents, key=lambda extent: extent[0][2]))


def world_of_fracture(case: Case) -> np.ndarray:
    """Extent of the fracture in each slice, as ``world_of_boxes``."""
    extents = []
    for k in np.flatnonzero(case.fracture.any(axis=(1, 2))):
        index = np.argwhere(case.fracture[k])[:, ::-1]
        points = case.volume.to_world(np.column_stack([index, np.full(len(index), k)]))
        extents.append([points.min(axis=0), points.max(axis=0)])
    return np.asarray(sorted(extents, key=lambda extent: extent[0][2]))


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("axes", [(), (1,), (2,), (1, 2)])
def test_boxes_and_masks_land_on_the_fracture_whatever_way_files_are_numbered_and_stored(
    tmp_path: Path, head_first: bool, axes: tuple[int, ...]
) -> None:
    study = Study(flipped(BROKEN, axes), head_first=head_first)
    (uid,) = write_rsna_folder(tmp_path, [study])
    case = RsnaFolder.open(tmp_path).case(uid)
    np.testing.assert_allclose(world_of_boxes(case), world_of_fracture(BROKEN), atol=1e-3)
    assert np.array_equal(case.labels, BROKEN.labels)
    assert {level: truth.fractured for level, truth in case.levels.items()} == {
        level: truth.fractured for level, truth in BROKEN.levels.items()
    }
    # What the boxes hold of the broken vertebrae surrounds the fracture.
    assert case.fracture[BROKEN.fracture].mean() > 0.95


def test_a_box_is_given_to_the_broken_vertebra_it_overlaps_most(tmp_path: Path) -> None:
    (uid,) = write_rsna_folder(tmp_path, [Study(BROKEN)])
    case = RsnaFolder.open(tmp_path).case(uid)
    broken = {level for level, truth in BROKEN.levels.items() if truth.fractured}
    assert {box.level for box in case.boxes} == broken
    for level in LEVELS:
        assert case.levels[level].place_known
        assert case.levels[level].types == ()


def test_without_boxes_nobody_knows_where_a_fracture_is(tmp_path: Path) -> None:
    (uid,) = write_rsna_folder(tmp_path, [Study(BROKEN, boxed=False)])
    case = RsnaFolder.open(tmp_path).case(uid)
    for truth in case.levels.values():
        assert truth.place_known is not truth.fractured
    assert not case.fracture.any()


def test_without_a_mask_level_and_share_in_view_are_unknown(tmp_path: Path) -> None:
    (uid,) = write_rsna_folder(tmp_path, [Study(BROKEN, mask=False)])
    case = RsnaFolder.open(tmp_path).case(uid)
    assert case.labels is None
    assert case.fracture is None
    assert {box.level for box in case.boxes} == {None}
    assert all(math.isnan(truth.visible_fraction) for truth in case.levels.values())
    with pytest.raises(StudyError, match="outlined"):
        with_owned_boxes(case)


def test_thoracic_vertebrae_are_one_label(tmp_path: Path) -> None:
    (uid,) = write_rsna_folder(tmp_path, [Study(BROKEN)])
    labels = np.where(BROKEN.labels == 7, np.uint8(11), BROKEN.labels)
    write_sagittal(labels, BROKEN.volume.affine, tmp_path / "segmentations" / f"{uid}.nii")
    folder = RsnaFolder.open(tmp_path)
    case = folder.case(uid)
    assert np.array_equal(case.labels == THORACIC, BROKEN.labels == 7)
    assert case.levels[Level.C7].visible_fraction == 0
    assert folder.vertebrae(uid, case.volume).max() == 11


def test_a_vertebra_that_the_field_cuts_is_seen_in_part() -> None:
    whole, cut = (
        BROKEN.labels,
        BROKEN.labels[np.flatnonzero((BROKEN.labels == 7).any(axis=(1, 2))).mean().astype(int) :],
    )
    assert set(visible_fractions(whole).values()) == {1.0}
    shown = visible_fractions(cut)
    assert [shown[level] for level in LEVELS[:6]] == [1.0] * 6
    assert shown[Level.C7] == pytest.approx(0.5, abs=0.2)
    assert visible_fractions(np.where(cut == 7, 0, cut))[Level.C7] == 0
    assert visible_fractions(np.where(cut == 7, cut, 0))[Level.C7] == 0.5


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_rsna_folder(folder, studies(3))
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(published, tmp_path / "rsna")


def test_studies_come_in_order_with_what_they_have(published: Path) -> None:
    folder = RsnaFolder.open(published)
    assert is_rsna_folder(published)
    assert not is_rsna_folder(published / "train_images")
    assert list(folder.studies) == sorted(study.uid for study in studies(3))
    assert not folder.faults
    assert not folder.warnings
    assert len(folder.masks) == 2


@pytest.mark.parametrize("name", ["train.csv", "train_bounding_boxes.csv", "train_images"])
def test_a_missing_part_of_the_layout_is_named(folder: Path, name: str) -> None:
    (folder / name).rename(folder / "elsewhere")
    with pytest.raises(UsageError, match=name):
        RsnaFolder.open(folder)


def test_no_folder_at_all() -> None:
    with pytest.raises(UsageError, match="no such folder"):
        RsnaFolder.open("nowhere")


def changed(path: Path, row: int, column: str, value: str) -> None:
    """Overwrite one cell; row 1 is the head, as in messages."""
    with path.open(newline="") as stream:
        rows = list(csv.reader(stream))
    rows[row - 1][rows[0].index(column)] = value
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


@pytest.mark.parametrize(
    ("table", "row", "column", "value", "message"),
    [
        ("train.csv", 1, "C3", "C33", r"missing: C3 \(train.csv\)"),
        ("train.csv", 3, "C5", "2", r"expected 0 or 1, got '2' \(train.csv, row 3, column C5\)"),
        (
            "train.csv",
            2,
            "patient_overall",
            "",
            r"0 or 1, got '' \(train.csv, row 2, column patient_overall\)",
        ),
        ("train.csv", 4, "StudyInstanceUID", "../secret", r"expected a UID.*train.csv, row 4, column StudyInst"),
        ("train_bounding_boxes.csv", 1, "slice_number", "slice", "missing: slice_number"),
        ("train_bounding_boxes.csv", 2, "width", "wide", r"expected a number, got 'wide' .*row 2, column width"),
        ("train_bounding_boxes.csv", 2, "height", "0", r"above 0, got 0 .*row 2, column height"),
        ("train_bounding_boxes.csv", 3, "x", "nan", r"expected a number, got 'nan' .*row 3, column x"),
        ("train_bounding_boxes.csv", 3, "slice_number", "1.5", r"number of a file, got 1.5 .*row 3"),
    ],
)
def test_a_wrong_cell_is_named_by_file_row_and_column(
    folder: Path, table: str, row: int, column: str, value: str, message: str
) -> None:
    changed(folder / table, row, column, value)
    with pytest.raises(DamagedFileError, match=message):
        RsnaFolder.open(folder)


def test_a_study_that_is_in_the_table_twice(folder: Path) -> None:
    text = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(DamagedFileError, match=r"twice, first in train.csv, row 2 \(train.csv, row 5"):
        RsnaFolder.open(folder)


def test_an_overall_label_that_contradicts_its_levels_is_said_and_the_levels_used(folder: Path) -> None:
    changed(folder / "train.csv", 2, "patient_overall", "0")
    opened = RsnaFolder.open(folder)
    assert [warning.code for warning in opened.warnings] == ["overall-contradicts-levels"]
    assert "train.csv, row 2" in opened.warnings[0].message
    uid = next(iter(opened.rows))
    assert opened.case(uid).patient_fractured


def rename_one(folder: Path) -> str:
    study = sorted((folder / "train_images").iterdir())[0]
    study.rename(study.with_name("1.2.3"))
    return study.name


def test_a_row_without_images_and_images_without_a_row_leave_the_others_alone(folder: Path) -> None:
    uid = rename_one(folder)
    opened = RsnaFolder.open(folder)
    assert len(opened.studies) == 2
    assert set(opened.faults) == {uid, "1.2.3"}
    with pytest.raises(NoImagesError, match=r"row without images in train_images \(train.csv, row"):
        opened.case(uid)
    with pytest.raises(StudyError, match=r"images without a row in train.csv \(train_images/1.2.3\)"):
        opened.case("1.2.3")


def test_a_folder_that_is_no_uid_is_not_repeated(folder: Path) -> None:
    (folder / "train_images" / "DOE^JANE").mkdir()
    opened = RsnaFolder.open(folder)
    assert set(opened.faults) == {"folder-1"}
    assert "DOE" not in str(opened.faults["folder-1"])


def test_tables_alone_are_not_enough(folder: Path) -> None:
    shutil.rmtree(folder / "train_images")
    (folder / "train_images").mkdir()
    with pytest.raises(NoImagesError, match="none of the 3 studies"):
        RsnaFolder.open(folder)


def boxed_study(folder: Path) -> tuple[str, int]:
    """The study of the first box and its slice number."""
    row = next(csv.DictReader((folder / "train_bounding_boxes.csv").open()))
    return row["StudyInstanceUID"], int(row["slice_number"])


def box_of_another(folder: Path) -> str:
    changed(folder / "train_bounding_boxes.csv", 2, "StudyInstanceUID", "1.2.3.4")
    return "1.2.3.4"


def box_of_no_slice(folder: Path) -> str:
    changed(folder / "train_bounding_boxes.csv", 2, "slice_number", "999")
    return boxed_study(folder)[0]


def box_outside(folder: Path) -> str:
    changed(folder / "train_bounding_boxes.csv", 2, "x", "600")
    return boxed_study(folder)[0]


def foreign_mask(folder: Path) -> str:
    uid = next((folder / "segmentations").glob("*.nii")).stem
    affine = BROKEN.volume.affine.copy()
    affine[:3, 3] += 1000
    write_sagittal(BROKEN.labels, affine, folder / "segmentations" / f"{uid}.nii")
    return uid


def odd_labels(folder: Path) -> str:
    uid = next((folder / "segmentations").glob("*.nii")).stem
    write_sagittal(BROKEN.labels * 30, BROKEN.volume.affine, folder / "segmentations" / f"{uid}.nii")
    return uid


def torn_mask(folder: Path) -> str:
    path = next((folder / "segmentations").glob("*.nii"))
    path.write_bytes(path.read_bytes()[:5000])
    return path.stem


def torn_slice(folder: Path) -> str:
    uid = sorted((folder / "train_images").iterdir())[0].name
    path = folder / "train_images" / uid / "7.dcm"
    path.write_bytes(path.read_bytes()[:3000])
    return uid


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (box_of_another, StudyError, r"train.csv does not list \(train_bounding_boxes.csv, row 2\)"),
        (box_of_no_slice, StudyError, r"999.dcm .*row 2"),
        (box_outside, StudyError, r"outside its image of \d+ x \d+ pixels \(train_bounding_boxes.csv, row 2\)"),
        (foreign_mask, GeometryError, "does not lie on the images"),
        (odd_labels, DamagedFileError, "labels 0 to 19, got 210"),
        (torn_mask, DamagedFileError, "cut off"),
        (torn_slice, DamagedFileError, "7.dcm"),
    ],
)
def test_what_is_wrong_with_one_study_is_its_own(
    folder: Path, spoil: Callable[[Path], str], kind: type[CspineError], message: str
) -> None:
    uid = spoil(folder)
    opened = RsnaFolder.open(folder)
    with pytest.raises(kind, match=message):
        opened.case(uid)
    opened.case(next(other for other in opened.studies if other != uid and other != boxed_study(folder)[0]))


def test_a_study_that_nobody_knows(published: Path) -> None:
    with pytest.raises(StudyError, match="no such study"):
        RsnaFolder.open(published).case("1.2")


@pytest.mark.shared_data
def test_the_published_tables_are_read_whole(shared_data: Path) -> None:
    rows = read_studies(shared_data / "rsna2022" / "train.csv")
    boxes = read_boxes(shared_data / "rsna2022" / "train_bounding_boxes.csv")
    assert len(rows) == 2019
    assert sum(row.overall for row in rows.values()) == 961
    assert [sum(row.of(level) for row in rows.values()) for level in LEVELS] == [146, 285, 73, 108, 162, 277, 393]
    assert all(row.overall == any(row.fractured) for row in rows.values())
    assert len(boxes) == 235
    assert sum(len(of_study) for of_study in boxes.values()) == 7217
    assert boxes.keys() <= rows.keys()


@pytest.mark.shared_data
def test_boxes_land_on_published_slices_whatever_way_they_are_numbered(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "rsna2022"
    (tmp_path / "train_images").symlink_to(source / "dicom")
    published = [uid.name for uid in sorted((source / "dicom").iterdir())]
    table = (source / "train.csv").read_text()
    # Some of these slices are of studies that the table leaves out: they were published for testing.
    table += "".join(f"{uid},0,0,0,0,0,0,0,0\n" for uid in published if f"\n{uid}," not in table)
    (tmp_path / "train.csv").write_text(table)
    rows = ["StudyInstanceUID,x,y,width,height,slice_number"]
    rows += [f"{uid},100,200,30,20,{n}" for uid in published for n in (1, 3, 5)]
    (tmp_path / "train_bounding_boxes.csv").write_text("\n".join(rows) + "\n")
    folder = RsnaFolder.open(tmp_path)
    assert set(folder.studies) == set(published)
    for uid in published:
        case = folder.case(uid)
        volume = open_study(source / "dicom" / uid)
        for box, number in zip(case.boxes, (1, 3, 5), strict=True):
            assert volume.source.files[box.slice_index] == f"{number}.dcm"
            assert (box.x_min, box.y_min, box.x_max, box.y_max) == (100, 200, 130, 220)
