"""NIfTI is read as its header says; what the header does not say is refused or warned of."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.errors import DamagedFileError, GeometryError, IntensityError, TooLargeError, UsageError
from cspine.studies import open_study
from cspine.volume import Volume
from dicom_factory import phantom_hu, write_series

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (30, 26, 20)  # x, y, z
SPACING = (2.0, 2.5, 3.0)


def codes(volume: Volume) -> list[str]:
    return [warning.code for warning in volume.warnings]


def make_affine(axes: np.ndarray | None = None) -> np.ndarray:
    """Index to LPS, the middle of the grid at the origin."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if axes is None else axes) * SPACING
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return affine


def sampled(affine: np.ndarray, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    index = np.stack(np.indices(shape), axis=-1)
    return phantom_hu(index @ affine[:3, :3].T + affine[:3, 3])


def write(
    path: Path, values: np.ndarray, affine: np.ndarray, *, cls: type = nibabel.Nifti1Image, unit: str = "mm"
) -> Path:
    image = cls(values, LPS @ affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


def truth(volume: Volume) -> np.ndarray:
    z, y, x = np.indices(volume.shape)
    return phantom_hu(volume.to_world(np.stack([x, y, z], axis=-1)))


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("cls", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64, ">i2"])
def test_kinds_of_nifti(tmp_path: Path, name: str, cls: type, dtype: str) -> None:
    path = write(tmp_path / name, sampled(make_affine()).astype(dtype), make_affine(), cls=cls)
    volume = open_study(path)
    np.testing.assert_array_equal(volume.hu, truth(volume))
    assert volume.hu.dtype == np.int16
    assert volume.spacing == pytest.approx(SPACING)
    assert (volume.source.kind, volume.source.name) == ("nifti", "scan")
    assert volume.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert codes(volume) == []


@settings(max_examples=20)
@given(st.permutations(range(3)), st.tuples(*[st.sampled_from([-1, 1])] * 3), st.floats(-0.4, 0.4))
def test_any_orientation(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], signs: tuple[int, ...], turn: float
) -> None:
    axes = np.zeros((3, 3))
    axes[order, range(3)] = signs
    axes = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]) @ axes
    affine = make_affine(axes)
    volume = open_study(write(tmp_path_factory.getbasetemp() / "any.nii", sampled(affine), affine))
    # The header keeps float32, so a voxel on the very edge of the ball may fall on the other side.
    assert (volume.hu != truth(volume)).mean() < 1e-3
    assert (np.diag(volume.affine)[:3] > 0).all()


def test_scale_of_the_header_is_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image((sampled(make_affine()) + 1024).astype(np.int16), LPS @ make_affine())
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1, -1024)
    path = tmp_path / "a.nii"
    with path.open("wb") as stream:
        image.header.write_to(stream)
        stream.write(np.asarray(image.dataobj, dtype=np.int16).tobytes(order="F"))
    volume = open_study(path)
    np.testing.assert_array_equal(volume.hu, truth(volume))


def test_fractions_stay_float32(tmp_path: Path) -> None:
    values = sampled(make_affine()).astype(np.float32) + np.float32(0.25)
    volume = open_study(write(tmp_path / "a.nii.gz", values, make_affine()))
    assert volume.hu.dtype == np.float32
    np.testing.assert_allclose(volume.hu, truth(volume) + 0.25)


def test_zero_to_one_is_refused_unless_scaled(tmp_path: Path) -> None:
    values = (sampled(make_affine()) + 1024) / np.float32(4096)
    path = write(tmp_path / "unit.nii.gz", values.astype(np.float32), make_affine())
    with pytest.raises(IntensityError, match="scale"):
        open_study(path)
    volume = open_study(path, scale=(4096, -1024))
    assert codes(volume) == ["scale-given"]
    np.testing.assert_allclose(volume.hu, truth(volume), atol=0.01)


@pytest.mark.parametrize("scale", ["1", "0,5", "a,b", "nan,1", "1,2,3"])
def test_a_scale_that_is_none(tmp_path: Path, scale: str) -> None:
    path = write(tmp_path / "a.nii", sampled(make_affine()), make_affine())
    with pytest.raises(UsageError, match="SLOPE,INTERCEPT"):
        open_study(path, scale=scale)


def test_values_that_are_no_numbers_become_air(tmp_path: Path) -> None:
    values = sampled(make_affine()).astype(np.float32)
    values[0, 0, 0], values[1, 0, 0], values[2, 0, 0] = np.nan, np.inf, -np.inf
    volume = open_study(write(tmp_path / "a.nii", values, make_affine()))
    assert codes(volume) == ["replaced-non-finite"]
    assert "3 voxels" in volume.warnings[0].message
    assert np.isfinite(volume.hu).all()
    assert (volume.hu == -1024).sum() == 3


def test_nothing_but_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntensityError):
        open_study(write(tmp_path / "a.nii", np.full(SHAPE, np.nan, np.float32), make_affine()))


@pytest.mark.parametrize("shape", [(30, 26, 20, 3), (30, 26), (30, 26, 1)])
def test_only_3d_is_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError, match="3D"):
        open_study(write(tmp_path / "a.nii", np.zeros(shape, np.int16), make_affine()))


def test_a_fourth_axis_of_one_is_nothing(tmp_path: Path) -> None:
    volume = open_study(write(tmp_path / "a.nii", sampled(make_affine())[..., None], make_affine()))
    np.testing.assert_array_equal(volume.hu, truth(volume))


def test_colour_is_refused(tmp_path: Path) -> None:
    rgb = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(IntensityError):
        open_study(write(tmp_path / "a.nii", rgb, make_affine()))


def edited(path: Path, **fields: object) -> Path:
    """Write header fields in place."""
    data = bytearray(path.read_bytes())
    header = nibabel.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    path.write_bytes(bytes(data))
    return path


def test_a_missing_affine_is_refused(tmp_path: Path) -> None:
    path = edited(write(tmp_path / "a.nii", sampled(make_affine()), make_affine()), sform_code=0, qform_code=0)
    with pytest.raises(GeometryError, match="sform"):
        open_study(path)


def test_qform_serves_where_sform_is_not_set(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(sampled(make_affine()), None)
    image.header.set_xyzt_units("mm")
    image.set_qform(LPS @ make_affine(), 1)
    image.set_sform(None, 0)
    nibabel.save(image, tmp_path / "a.nii")
    volume = open_study(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.hu, truth(volume))


def test_forms_that_disagree(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(sampled(make_affine()), LPS @ make_affine())
    image.header.set_xyzt_units("mm")
    away = LPS @ make_affine()
    away[0, 3] += 30
    image.set_qform(away, 1)
    image.set_sform(LPS @ make_affine(), 1)
    nibabel.save(image, tmp_path / "a.nii")
    volume = open_study(tmp_path / "a.nii")
    assert codes(volume) == ["sform-qform-disagree"]
    np.testing.assert_array_equal(volume.hu, truth(volume))


def test_forms_that_mirror_each_other_are_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(sampled(make_affine()), LPS @ make_affine())
    image.set_qform(LPS @ make_affine(), 1)
    image.set_sform(LPS @ make_affine() @ np.diag([-1.0, 1, 1, 1]), 1)
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(GeometryError, match="mirror"):
        open_study(tmp_path / "a.nii")


@pytest.mark.parametrize(("unit", "factor", "code"), [("unknown", 1, ["units-assumed-mm"]), ("micron", 1000, [])])
def test_units(tmp_path: Path, unit: str, factor: float, code: list[str]) -> None:
    affine = make_affine()
    stated = affine.copy()
    stated[:3] *= factor
    volume = open_study(write(tmp_path / "a.nii", sampled(affine), stated, unit=unit))
    assert codes(volume) == code
    assert volume.spacing == pytest.approx(SPACING)


def test_metres_that_are_millimetres_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="mm"):
        open_study(write(tmp_path / "a.nii", sampled(make_affine()), make_affine(), unit="meter"))


def test_a_sheared_image_is_straightened(tmp_path: Path) -> None:
    affine = make_affine()
    affine[1, 2] = SPACING[2] * np.tan(np.radians(15))
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    volume = open_study(write(tmp_path / "a.nii", sampled(affine), affine))
    assert codes(volume) == ["corrected-gantry-tilt"]
    axes = volume.affine[:3, :3] / volume.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert ((volume.hu > -500) == (truth(volume) > -500)).mean() > 0.965


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("keep", [0.005, 0.5, 0.99])
def test_a_truncated_file_is_damaged(tmp_path: Path, name: str, keep: float) -> None:
    path = write(tmp_path / name, sampled(make_affine()), make_affine())
    data = path.read_bytes()
    path.write_bytes(data[: max(30, int(keep * len(data)))])
    with pytest.raises(DamagedFileError, match=r"a\.nii"):
        open_study(path)


def test_a_text_file_named_nii(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_text("no image")
    with pytest.raises(DamagedFileError, match="not NIfTI"):
        open_study(path)


def test_huge_sizes_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", sampled(make_affine()), make_affine())
    with pytest.raises(TooLargeError):
        open_study(edited(path, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]))


def test_sizes_beyond_the_end_are_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", sampled(make_affine()), make_affine())
    with pytest.raises(DamagedFileError):
        open_study(edited(path, dim=[3, 300, 300, 300, 1, 1, 1, 1]))


def test_a_bomb_is_inflated_only_to_its_claimed_size(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.nii", sampled(make_affine()), make_affine())
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(plain.read_bytes() + bytes(50_000_000), 1))
    np.testing.assert_array_equal(open_study(path).hu, open_study(plain).hu)


def test_the_only_nifti_of_a_folder_or_zip(tmp_path: Path) -> None:
    folder = tmp_path / "patient"
    folder.mkdir()
    path = write(folder / "ct.nii.gz", sampled(make_affine()), make_affine())
    (folder / "notes.txt").write_text("other")
    assert open_study(folder).source.name == "patient"
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.write(path, "x/ct.nii.gz")
    np.testing.assert_array_equal(open_study(tmp_path / "p.zip").hu, open_study(path).hu)
    write(folder / "ct2.nii.gz", sampled(make_affine()), make_affine())
    with pytest.raises(UsageError, match="2 NIfTI"):
        open_study(folder)


def test_dicom_beside_a_nifti_is_what_is_opened(tmp_path: Path) -> None:
    write(tmp_path / "mask.nii.gz", sampled(make_affine()), make_affine())
    write_series(tmp_path)
    assert open_study(tmp_path).source.kind == "dicom"


def test_a_series_of_a_nifti_is_no_request(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", sampled(make_affine()), make_affine())
    with pytest.raises(UsageError, match="no series"):
        open_study(path, series="1.2.3")
