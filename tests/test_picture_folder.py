"""Single pictures: labels by a table or by folder, studies and patients, masks, and what is wrong with one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from cspine.anatomy import Level
from cspine.cases import Pictures
from cspine.errors import DamagedFileError, IntensityError, NoImagesError, StudyError, UsageError
from cspine.phantoms.write import write_dicom
from cspine.studies.labelled import LabelledStudies, open_labelled
from cspine.studies.picture_folder import PictureFolder
from labelled_factory import neck, picture, write_picture, write_rows


def opened(folder: Path) -> PictureFolder:
    found = open_labelled(folder)
    assert isinstance(found, PictureFolder)
    assert isinstance(found, LabelledStudies)
    return found


def test_folders_named_fractured_and_normal(tmp_path: Path) -> None:
    for number, name in enumerate(("fractured/a.png", "Not Fractured/b.jpg", "fractured/deep/c.png")):
        write_picture(tmp_path / name, picture(number))
    folder = opened(tmp_path)
    # A name with a space is no name for a folder of samples.
    assert folder.studies[0].startswith("Not-Fractured_b-")
    assert folder.studies[1:] == ("fractured_a", "fractured_deep_c")
    assert sorted(flags[-1] for flags in folder.labels().values()) == [False, True, True]
    case = folder.case("fractured_a")
    np.testing.assert_array_equal(case.volume.hu[0], picture(0))
    assert case.pictures == Pictures((True,), (None,), grey=True)
    assert case.volume.spacing == (1, 1, 1)
    assert (case.labels, case.levels, case.patient_fractured) == (None, {}, True)
    assert [warning.code for warning in folder.warnings] == ["pictures-without-study"]


def test_a_table_says_study_patient_level_and_place(tmp_path: Path) -> None:
    for number in range(4):
        write_picture(tmp_path / f"p{number}.png", picture(number))
    rows = [
        {"file": "p0.png", "label": "fractured", "study": "s", "patient": "x", "level": "C5", "slice": 9},
        {"file": "p1", "label": 0, "study": "s", "patient": "x", "level": "", "slice": 10},
        {"file": "p2.png", "label": "normal", "study": "t", "patient": "x", "level": "C4 C5", "slice": 1},
        {"file": "p3.png", "label": "", "study": "", "patient": "", "level": "", "slice": ""},
    ]
    write_rows(tmp_path / "labels.csv", rows)
    folder = opened(tmp_path)
    assert folder.studies == ("p3", "s", "t")
    case = folder.case("s")
    assert case.pictures == Pictures((True, False), ((Level.C5,), None), grey=True)
    np.testing.assert_array_equal(case.volume.hu, [picture(0), picture(1)])
    assert folder.labels()["s"] == (False, False, False, False, True, False, False, True)
    assert folder.labels()["p3"] == (False,) * 8
    assert folder.patients["s"] == folder.patients["t"]
    assert folder.case("p3").pictures == Pictures((None,), (None,), grey=True)


def test_pictures_of_a_study_are_ordered_by_number_not_by_text(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        write_picture(tmp_path / "normal" / f"1.2.840.7_{number}.png", picture(number))
    folder = opened(tmp_path)
    assert folder.studies == ("1.2.840.7",)
    assert folder.case("1.2.840.7").volume.source.files == ("1.2.840.7_9.png", "1.2.840.7_10.png", "1.2.840.7_100.png")


def test_pictures_of_several_sizes_get_that_of_the_largest(tmp_path: Path) -> None:
    write_picture(tmp_path / "small.png", np.full((20, 20), 200, np.uint8))
    write_picture(tmp_path / "large.png", picture(0, (40, 60)))
    row = {"label": 1, "study": "s", "x": 5, "y": 5, "width": 10, "height": 5}
    write_rows(tmp_path / "labels.csv", [{"file": "small.png", **row}, {"file": "large.png", **row}])
    case = opened(tmp_path).case("s")
    assert case.volume.shape == (2, 40, 60)
    assert (case.volume.hu[1, :, 10:50] == 200).all()
    assert (case.volume.hu[1, :, :10] == 0).all()
    boxes = [(box.slice_index, box.x_min, box.y_min, box.x_max, box.y_max) for box in case.boxes]
    assert boxes == [(0, 5, 5, 15, 10), (1, 20, 10, 40, 20)]


def test_masks_of_vertebrae_and_fractures(tmp_path: Path) -> None:
    mask, broken = np.zeros((40, 32), np.uint8), np.zeros((40, 32), np.uint8)
    mask[5:20, 4:12], broken[6:9, 5:7] = 4, 255
    only = np.where(mask > 0, 255, 0).astype(np.uint8)
    for name, values in (("a", picture(0)), ("b", picture(1)), ("c", picture(2))):
        write_picture(tmp_path / f"{name}.png", values)
    for name, values in (("am", mask), ("af", broken), ("bm", only)):
        write_picture(tmp_path / "masks" / f"{name}.png", values)
    row = {"study": "s", "mask": "", "fracture_mask": "", "level": ""}
    rows = [
        {"file": "a.png", "label": 1, **row, "mask": "masks/am.png", "fracture_mask": "af.png"},
        {"file": "b.png", "label": 0, **row, "mask": "bm", "level": "C6"},
        {"file": "c.png", "label": 0, **row},
    ]
    write_rows(tmp_path / "labels.csv", rows)
    folder = opened(tmp_path)
    # What is outlined and what is not are cases apart, of one patient.
    assert folder.studies == ("s", "s.part-1")
    assert folder.patients["s"] == folder.patients["s.part-1"]
    case = folder.case("s")
    np.testing.assert_array_equal(case.labels, [mask, np.where(mask > 0, 6, 0)])
    np.testing.assert_array_equal(case.fracture, [broken > 0, np.zeros_like(broken, bool)])
    assert folder.case("s.part-1").labels is None
    assert not folder.faults


def test_two_boxes_are_two_rows(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", picture(0))
    rows = [{"file": "a.png", "label": 1, "x": x, "y": 1, "width": 3, "height": 4} for x in (1, 20)]
    write_rows(tmp_path / "labels.csv", rows)
    folder = opened(tmp_path)
    assert not folder.faults
    assert len(folder.case("a").boxes) == 2


def test_dicom_slices_are_hu_and_know_their_study(tmp_path: Path) -> None:
    case = neck(1)
    part = replace(case, volume=case.volume.crop(slice(30, 34), slice(None), slice(None)))
    numbers = write_dicom(part, tmp_path / "fractured", shuffle=False)
    folder = opened(tmp_path)
    uid = pydicom.dcmread(tmp_path / "fractured" / "1.dcm", stop_before_pixels=True).StudyInstanceUID
    assert folder.studies == (uid,)
    read = folder.case(uid)
    assert read.pictures == Pictures((True,) * 4, (None,) * 4, grey=False)
    assert read.volume.spacing[:2] == pytest.approx(case.volume.spacing[:2])
    order = np.argsort(numbers)
    np.testing.assert_array_equal(read.volume.hu, np.maximum(part.volume.hu[order], -1024))
    assert not folder.warnings


def test_hu_and_grey_levels_do_not_mix(tmp_path: Path) -> None:
    case = neck(1)
    write_dicom(replace(case, volume=case.volume.crop(slice(30, 32), slice(None), slice(None))), tmp_path / "dcm")
    write_picture(tmp_path / "a.png", picture(0))
    rows = [{"file": name, "label": 1, "study": "s"} for name in ("dcm/1.dcm", "a.png")]
    write_rows(tmp_path / "labels.csv", rows)
    folder = opened(tmp_path)
    with pytest.raises(IntensityError, match="are of one study"):
        folder.case("s")
    assert [str(fault) for fault in folder.faults.values()] == ["a picture without a row in labels.csv (dcm/2.dcm)"]


def test_a_split_of_the_data_set_is_kept(tmp_path: Path) -> None:
    for part, names in (("train", "abc"), ("val", "de"), ("test", "f")):
        for name in names:
            write_picture(tmp_path / part / "normal" / f"{name}.png", picture(ord(name)))
    folder = opened(tmp_path)
    assert folder.held_back == {"val_normal_d", "val_normal_e", "test_normal_f"}


def test_a_split_with_a_patient_on_both_sides_is_not_kept(tmp_path: Path) -> None:
    for number in range(12):
        for part, k in (("train", 1), ("val", 2)):
            write_picture(tmp_path / part / "normal" / f"case{number:02d} ({k})-turned{k}.png", picture(k))
    folder = opened(tmp_path)
    assert folder.held_back == frozenset()
    assert [warning.code for warning in folder.warnings] == ["pictures-without-study", "split-straddles-patients"]
    assert len(folder.studies) == 24
    assert len(set(folder.patients.values())) == 12


def test_few_groups_of_names_say_nothing_of_patients(tmp_path: Path) -> None:
    for number in range(20):
        write_picture(tmp_path / "normal" / f"slice_{number}.png", picture(number))
    folder = opened(tmp_path)
    assert folder.patients == {}
    assert "may lie on both sides" in folder.warnings[0].message


def test_what_is_wrong_with_one_picture_stops_no_other(tmp_path: Path) -> None:
    for name in ("a", "b", "x/c", "y/c", "extra"):
        write_picture(tmp_path / f"{name}.png", picture(0))
    rows = [
        {"file": "a.png", "label": 1, "level": ""},
        {"file": "b.png", "label": 1, "level": ""},
        {"file": "b.png", "label": 0, "level": ""},
        {"file": "gone.png", "label": 1, "level": ""},
        {"file": "c.png", "label": 1, "level": ""},
        {"file": "x/c.png", "label": "2", "level": ""},
        {"file": "y/c.png", "label": 1, "level": "L5"},
    ]
    write_rows(tmp_path / "labels.csv", rows)
    folder = opened(tmp_path)
    assert folder.studies == ("a",)
    said = {fault.where: (type(fault), fault.message) for fault in folder.faults.values()}
    assert said == {
        "labels.csv, row 4": (StudyError, "the picture is in the table twice, first in labels.csv, row 3"),
        "labels.csv, row 5": (NoImagesError, "a row without a picture"),
        "labels.csv, row 6": (UsageError, "2 pictures are called so"),
        "labels.csv, row 7, column label": (DamagedFileError, "expected 1 or 0, fractured or normal, got '2'"),
        "labels.csv, row 8, column level": (DamagedFileError, "expected levels C1 to C7, got 'L5'"),
        "extra.png": (StudyError, "a picture without a row in labels.csv"),
    }


def test_a_damaged_picture_or_mask_is_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", picture(0))
    write_picture(tmp_path / "b.png", picture(0))
    write_picture(tmp_path / "m.png", np.full((40, 32), 200, np.uint8))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    rows = [{"file": "a.png", "label": 1, "mask": ""}, {"file": "b.png", "label": 1, "mask": "m.png"}]
    write_rows(tmp_path / "labels.csv", rows)
    folder = opened(tmp_path)
    with pytest.raises(DamagedFileError, match=r"a\.png"):
        folder.case("a")
    with pytest.raises(DamagedFileError, match=r"values 0 to 9, got 200.*m\.png"):
        folder.case("b")
    write_picture(tmp_path / "m.png", np.zeros((10, 10), np.uint8))
    with pytest.raises(DamagedFileError, match=r"32x40 pixels, got 10x10.*m\.png"):
        folder.case("b")


def test_nothing_that_has_a_label(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", picture(0))
    write_rows(tmp_path / "labels.csv", [{"file": "b.png", "label": 1}])
    with pytest.raises(NoImagesError, match="no picture of the folder has a label"):
        open_labelled(tmp_path)
    write_rows(tmp_path / "labels.csv", [{"picture": "a.png", "label": 1}])
    with pytest.raises(UsageError, match="expected a column file or"):
        open_labelled(tmp_path)


@pytest.mark.shared_data
def test_real_slices_with_their_table(shared_data: Path) -> None:
    folder = opened(shared_data / "rsna2022" / "slices")
    assert sum(len(group) for group in folder.pictures.values()) == 60
    flags = [item.fractured for group in folder.pictures.values() for item in group]
    assert (flags.count(True), flags.count(False)) == (27, 33)
    assert not folder.faults
    name = next(name for name, group in folder.pictures.items() if group[0].fractured)
    case = folder.case(name)
    assert case.pictures is not None
    assert case.volume.shape[1:] == (512, 512)
    assert {box.slice_index for box in case.boxes} == {k for k, f in enumerate(case.pictures.fractured) if f}


@pytest.mark.shared_data
def test_real_dicom_slices_by_folder(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "rsna2022" / "dicom" / "1.2.826.0.1.3680043.13203"
    folder = tmp_path / "normal"
    folder.mkdir()
    for path in sorted(source.iterdir())[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    found = opened(tmp_path)
    assert found.studies == (source.name,)
    case = found.case(source.name)
    assert case.pictures == Pictures((False,) * 3, (None,) * 3, grey=False)
    assert case.volume.hu.min() >= -1024
