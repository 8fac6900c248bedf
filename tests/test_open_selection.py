"""Of all that lies in a folder the series fit for the neck is taken, and it is said why."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import MRImageStorage, SecondaryCaptureImageStorage

from cspine.errors import NoImagesError, NotCtError, UsageError
from cspine.studies import list_series, open_study
from dicom_factory import CORONAL, ROOT, SAGITTAL, Grid, write_localizer, write_series

THIN = Grid(count=40, thickness=1.0)
THICK = Grid(count=8, thickness=5.0)


def as_mr(index: int, ds: FileDataset) -> None:
    ds.Modality = "MR"
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage


def uid(series: str) -> str:
    return f"{ROOT}1.{series}"


def with_kernel(kernel: str):
    def edit(index: int, ds: FileDataset) -> None:
        ds.ConvolutionKernel = kernel

    return edit


def test_thin_before_thick(tmp_path: Path) -> None:
    write_series(tmp_path, THICK, series="1")
    write_series(tmp_path, THIN, series="2")
    source = open_study(tmp_path).source
    assert source.series_uid == uid("2")
    assert "Best of 2" in source.selection
    assert "5 mm apart" in source.selection


@pytest.mark.parametrize(("soft", "bone"), [("Br40", "Br64"), ("STANDARD", "BONEPLUS"), ("FC08", "FC30"), ("B", "YC")])
def test_bone_kernel_before_soft(tmp_path: Path, soft: str, bone: str) -> None:
    write_series(tmp_path, THIN, series="1", edit=with_kernel(soft))
    write_series(tmp_path, THIN, series="2", edit=with_kernel(bone))
    source = open_study(tmp_path).source
    assert source.series_uid == uid("2")
    assert "softer kernel" in source.selection


def test_axial_before_reformatted(tmp_path: Path) -> None:
    write_series(tmp_path, Grid(count=40, thickness=1.0, orientation=SAGITTAL), series="1")
    write_series(tmp_path, THIN, series="2")
    write_series(tmp_path, Grid(count=40, thickness=1.0, orientation=CORONAL), series="3")
    source = open_study(tmp_path).source
    assert source.series_uid == uid("2")
    assert "sagittal" in source.selection
    assert "coronal" in source.selection


def test_the_user_chooses(tmp_path: Path) -> None:
    write_series(tmp_path, THICK, series="1")
    write_series(tmp_path, THIN, series="2")
    source = open_study(tmp_path, series=uid("1")).source
    assert source.series_uid == uid("1")
    assert "named by the user" in source.selection


def test_a_series_that_is_not_there(tmp_path: Path) -> None:
    write_series(tmp_path)
    with pytest.raises(UsageError, match=r"1\.1"):
        open_study(tmp_path, series="1.2.3")


def test_a_localizer_beside_the_series_is_passed_over(tmp_path: Path) -> None:
    write_localizer(tmp_path)
    write_series(tmp_path)
    source = open_study(tmp_path).source
    assert source.series_uid == uid("1")
    assert "localizers" in source.selection


def test_a_localizer_within_the_series_is_left_out(tmp_path: Path) -> None:
    write_localizer(tmp_path / "scout", series="1")
    write_series(tmp_path)
    volume = open_study(tmp_path)
    assert volume.shape[0] == 12
    assert volume.warnings == ()


def test_images_of_other_size_in_the_series_are_left_out_and_counted(tmp_path: Path) -> None:
    write_series(tmp_path)
    write_series(tmp_path / "small", Grid(count=4, rows=24))
    volume = open_study(tmp_path)
    assert volume.shape[0] == 12
    assert [w.code for w in volume.warnings] == ["left-out-images"]
    assert "4 images" in volume.warnings[0].message


def test_two_directions_in_one_series(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", Grid(count=5, orientation=SAGITTAL))
    volume = open_study(tmp_path)
    assert volume.shape == (12, 40, 48)
    assert [w.code for w in volume.warnings] == ["left-out-images"]


def test_two_acquisitions_at_the_same_places_are_told_apart(tmp_path: Path) -> None:
    def second(index: int, ds: FileDataset) -> None:
        ds.AcquisitionNumber = "2"
        ds.SOPInstanceUID += ".2"
        ds.PixelData = ds.PixelData[2:] + b"\0\0"

    write_series(tmp_path / "a")
    write_series(tmp_path / "b", edit=second)
    volume = open_study(tmp_path)
    assert volume.shape[0] == 12
    assert [w.code for w in volume.warnings] == ["left-out-images"]


def test_printed_digits_do_not_split_a_series(tmp_path: Path) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        ds.ImageOrientationPatient = ["0.984808", "0.173648", "0", "-0.173648", "0.984808", f"{1e-6 * index:.7f}"]
        ds.PixelSpacing = [f"{2 + 1e-5 * index:.6f}", "1.75"]

    write_series(tmp_path, Grid(orientation=(0.984808, 0.173648, 0, -0.173648, 0.984808, 0)), edit=edit)
    assert open_study(tmp_path).shape[0] == 12


@pytest.mark.parametrize("what", ["mr", "localizer", "capture", "colour", "mip"])
def test_what_is_no_ct_volume_is_refused_with_its_kind(tmp_path: Path, what: str) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        if what == "capture":
            ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        if what == "colour":
            ds.SamplesPerPixel, ds.PhotometricInterpretation = 3, "RGB"
        if what == "mip":
            ds.ImageType = ["DERIVED", "SECONDARY", "MIP"]

    if what == "localizer":
        write_localizer(tmp_path)
    else:
        write_series(tmp_path, edit=as_mr if what == "mr" else edit)
    kind = {"mr": "MR", "localizer": "localizers", "capture": "captures", "colour": "colour", "mip": "projections"}
    with pytest.raises(NotCtError, match=kind[what]) as caught:
        open_study(tmp_path)
    assert caught.value.exit_code == 3
    assert not list_series(tmp_path)[0].readable


def test_listing_says_what_is_there(tmp_path: Path) -> None:
    write_series(tmp_path, THICK, series="1")
    write_series(tmp_path, THIN, series="2")
    write_localizer(tmp_path)
    write_series(tmp_path, series="4", edit=as_mr)
    first, second, *others = list_series(tmp_path)
    assert (first.series_uid, first.slices, first.orientation, first.readable) == (uid("2"), 40, "axial", True)
    assert first.spacing_mm == pytest.approx(1)
    assert first.coverage_mm == pytest.approx(39)
    assert second.series_uid == uid("1")
    assert {info.reason for info in others} == {"localizers", "images of modality MR"}
    assert "bone kernel Br64" in first.description


@pytest.mark.parametrize("what", ["empty", "text"])
def test_nothing_to_open(tmp_path: Path, what: str) -> None:
    if what == "text":
        (tmp_path / "slice.dcm").write_text("I am not DICOM, whatever my name says.")
    with pytest.raises(NoImagesError):
        open_study(tmp_path)
    with pytest.raises(NoImagesError):
        list_series(tmp_path)


def test_a_text_file_named_dcm(tmp_path: Path) -> None:
    path = tmp_path / "slice.dcm"
    path.write_text("I am not DICOM")
    with pytest.raises(NoImagesError, match=r"slice\.dcm"):
        open_study(path)


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such"):
        open_study(tmp_path / "missing")
