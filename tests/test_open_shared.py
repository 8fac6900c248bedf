"""Real scans: each of the development sets opens as what it is, or is refused for what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from cspine.errors import IntensityError, NotCtError
from cspine.studies import open_image, open_study
from cspine.volume import Volume

pytestmark = pytest.mark.shared_data


@pytest.mark.parametrize(
    ("name", "shape", "spacing", "codes"),
    [
        ("head_c1_c6_dicom", (85, 512, 512), (0.527, 0.527, 3.0), []),
        ("chest_no_cervical_dicom", (40, 512, 512), (0.883, 0.883, 3.0), []),
        ("head_c1_c5_intubated.nii.gz", (94, 256, 256), (0.938, 0.938, 1.5), []),
        ("chest_from_c6.nii.gz", (191, 167, 233), (1.5, 1.5, 1.5), ["units-assumed-mm"]),
        ("neck_openkbp/pt_100_ct.nii.gz", (128, 128, 128), (5.078, 5.078, 2.5), []),
    ],
)
def test_real_scans_open(
    shared_data: Path, name: str, shape: tuple[int, ...], spacing: tuple[float, ...], codes: list[str]
) -> None:
    volume = open_study(shared_data / "ct" / name)
    assert volume.shape == shape
    assert volume.spacing == pytest.approx(spacing, abs=0.01)
    assert [w.code for w in volume.warnings] == codes
    assert volume.hu.min() >= -1024
    assert (np.diag(volume.affine)[:3] > 0).all()


@pytest.mark.parametrize(
    "name", ["head_c1_c6_dicom", "chest_no_cervical_dicom", "head_c1_c5_intubated.nii.gz", "chest_from_c6.nii.gz"]
)
def test_simpleitk_sees_the_same_place(shared_data: Path, name: str) -> None:
    """Two readers without common code agree on every voxel and where it lies."""
    path = shared_data / "ct" / name
    if path.is_dir():
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
        image = reader.Execute()
    else:
        image = sitk.ReadImage(str(path))
    theirs, ours = Volume.from_sitk(image).reoriented(), open_study(path)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=2e-3)
    np.testing.assert_array_equal(ours.hu, np.maximum(theirs.hu, -1024))


def test_a_tilted_scan_with_two_spacings(shared_data: Path) -> None:
    volume = open_study(shared_data / "ct" / "gantry_tilt_dicom")
    assert [w.code for w in volume.warnings] == ["resampled-uneven-slices", "corrected-gantry-tilt", "thick-slices"]
    assert "18.5 degrees" in volume.warnings[1].message
    assert volume.spacing[2] == pytest.approx(4.0, abs=0.05)


def test_localizers_are_no_volume(shared_data: Path) -> None:
    with pytest.raises(NotCtError, match="localizers"):
        open_study(shared_data / "ct" / "localizers_dicom")


def test_values_from_0_to_1(shared_data: Path) -> None:
    path = shared_data / "ct" / "head_c1_c5_unit_scale.nii.gz"
    with pytest.raises(IntensityError):
        open_study(path)
    volume = open_study(path, scale="4095,-1024")
    assert volume.hu.max() > 2000


def test_rsna_slices(shared_data: Path) -> None:
    folders = sorted(path for path in (shared_data / "rsna2022" / "dicom").iterdir() if path.is_dir())
    assert len(folders) == 6
    for folder in folders:
        volume = open_study(folder)
        assert volume.shape[0] == len(list(folder.glob("*.dcm")))
        assert volume.warnings == ()
        assert 0.3 < volume.spacing[2] <= 1


def test_slices_saved_as_pictures(shared_data: Path) -> None:
    path = sorted((shared_data / "rsna2022" / "slices").rglob("*.png"))[0]
    image = open_image(path)
    assert image.pixels.shape == (512, 512)
    assert 0 <= image.pixels.min() < image.pixels.max() <= 1
