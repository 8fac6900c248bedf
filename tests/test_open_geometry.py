"""Where slices lie is measured; small faults are mended with a warning, large ones refused, nothing is invented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset

from cspine.errors import GeometryError, IntensityError
from cspine.studies import open_study
from cspine.volume import Volume
from dicom_factory import Grid, phantom_hu, write_enhanced, write_series

THIN = Grid(count=30, thickness=1.5)


def codes(volume: Volume) -> list[str]:
    return [warning.code for warning in volume.warnings]


def truth(volume: Volume) -> np.ndarray:
    z, y, x = np.indices(volume.shape)
    return phantom_hu(volume.to_world(np.stack([x, y, z], axis=-1)))


def without(*tags: str) -> Callable[[int, FileDataset], None]:
    def edit(index: int, ds: FileDataset) -> None:
        for tag in tags:
            delattr(ds, tag)

    return edit


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_absent_geometry_is_refused_by_name(tmp_path: Path, tag: str) -> None:
    write_series(tmp_path, edit=without(tag))
    with pytest.raises(GeometryError, match=tag) as caught:
        open_study(tmp_path)
    assert ".dcm" in str(caught.value)


def test_one_slice_without_a_position_is_refused(tmp_path: Path) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        if index == 4:
            del ds.ImagePositionPatient

    write_series(tmp_path, edit=edit)
    with pytest.raises(GeometryError, match="ImagePositionPatient"):
        open_study(tmp_path)


@pytest.mark.parametrize("tag", ["RescaleSlope", "RescaleIntercept"])
def test_absent_rescale_is_refused_unless_given(tmp_path: Path, tag: str) -> None:
    write_series(tmp_path, edit=without(tag))
    with pytest.raises(IntensityError, match=tag):
        open_study(tmp_path)
    volume = open_study(tmp_path, scale="1,-1024")
    np.testing.assert_array_equal(volume.hu, truth(volume))
    assert codes(volume) == ["scale-given"]


def test_another_unit_than_hu_is_refused(tmp_path: Path) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        ds.RescaleType = "Z_EFF"

    write_series(tmp_path, edit=edit)
    with pytest.raises(IntensityError, match="Z_EFF"):
        open_study(tmp_path)


@pytest.mark.parametrize(("slope", "intercept"), [("1", "0"), ("0.001", "0"), ("1", "-2048"), ("16", "-1024")])
def test_values_that_are_not_hu_are_refused(tmp_path: Path, slope: str, intercept: str) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept

    write_series(tmp_path, edit=edit)
    with pytest.raises(IntensityError, match=r"HU|Hounsfield"):
        open_study(tmp_path)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("ImageOrientationPatient", ["1", "0", "0", "1", "0", "0"]),
        ("ImageOrientationPatient", ["2", "0", "0", "0", "2", "0"]),
        ("ImageOrientationPatient", ["0", "0", "0", "0", "0", "0"]),
        ("PixelSpacing", ["0", "0"]),
        ("PixelSpacing", ["999", "999"]),
    ],
)
def test_impossible_geometry_is_refused(tmp_path: Path, tag: str, value: list[str]) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        setattr(ds, tag, value)

    write_series(tmp_path, edit=edit)
    with pytest.raises(GeometryError, match=tag):
        open_study(tmp_path)


def test_missing_slices_are_filled_and_counted(tmp_path: Path) -> None:
    places = [k for k in range(30) if k not in (7, 8, 20)]
    write_series(tmp_path, THIN, places=places)
    volume = open_study(tmp_path)
    assert codes(volume) == ["filled-missing-slices"]
    assert "3 of 30" in volume.warnings[0].message
    assert volume.shape[0] == 30
    assert volume.source.files == ()
    expected = truth(volume)
    np.testing.assert_array_equal(volume.hu[places], expected[places])
    between = np.rint((expected[6].astype(float) * 2 + expected[9]) / 3)
    np.testing.assert_allclose(volume.hu[7], between, atol=1)


def test_a_wide_gap_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, THIN, places=[k for k in range(30) if k not in range(10, 17)])
    with pytest.raises(GeometryError, match=r"12\.0 mm"):
        open_study(tmp_path)


def test_too_many_missing_slices_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, THIN, places=[*range(12), *range(12, 30, 3)])
    with pytest.raises(GeometryError, match=r"missing|uneven"):
        open_study(tmp_path)


def test_uneven_slices_are_resampled(tmp_path: Path) -> None:
    places = np.concatenate([np.arange(0, 15, 1.0), np.arange(15, 30, 1.6)])
    write_series(tmp_path, THIN, places=places.tolist())
    volume = open_study(tmp_path)
    assert codes(volume) == ["resampled-uneven-slices"]
    assert volume.spacing[2] == pytest.approx(1.5, rel=1e-3)
    inside = truth(volume)
    soft = (inside > -900) & (inside < 600) & (volume.hu > -900) & (volume.hu < 600)
    # Linear between slices is exact inside the ball; its edge and the bone's are smeared over one slice.
    assert np.quantile(np.abs(volume.hu - inside)[soft], 0.93) <= 1
    assert ((volume.hu > -500) == (inside > -500)).mean() > 0.99


def test_rounded_positions_are_regular(tmp_path: Path) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        x, y, z = (float(v) for v in ds.ImagePositionPatient)
        ds.ImagePositionPatient = [f"{x:.1f}", f"{y:.1f}", f"{z:.1f}"]

    write_series(tmp_path, Grid(count=40, thickness=0.625), edit=edit)
    volume = open_study(tmp_path)
    assert codes(volume) == []
    assert volume.spacing[2] == pytest.approx(0.625, abs=0.003)


@pytest.mark.parametrize("tilt", [-20.0, 12.5, 25.0])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_gantry_tilt_is_taken_out(tmp_path: Path, tilt: float, axis: str) -> None:
    """Slices lean by ``tilt``, the table moves straight along z: the volume must still be the phantom."""
    angle = np.radians(tilt)
    lean = (1, 0, 0, 0, np.cos(angle), np.sin(angle)) if axis == "x" else (np.cos(angle), 0, np.sin(angle), 0, 1, 0)
    write_series(tmp_path, Grid(count=40, orientation=lean, thickness=1.5, step=(0, 0, 1.5)))
    volume = open_study(tmp_path)
    assert codes(volume) == ["corrected-gantry-tilt"]
    assert f"{abs(tilt):.1f}" in volume.warnings[0].message
    axes = volume.affine[:3, :3] / volume.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert len(volume.source.files) == 40, "slices keep their files: they only moved in their own plane"
    expected = truth(volume)
    soft = (expected > -900) & (expected < 600) & (volume.hu > -900) & (volume.hu < 600)
    assert soft.sum() > 1000
    assert np.quantile(np.abs(volume.hu - expected)[soft], 0.9) <= 3
    assert ((volume.hu > -500) == (expected > -500)).mean() > 0.98


def test_too_steep_a_tilt_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, Grid(step=(0, 2.5, 2.5)))
    with pytest.raises(GeometryError, match="45 degrees"):
        open_study(tmp_path)


def test_slices_out_of_line_are_shifted_back(tmp_path: Path) -> None:
    """The table was moved half way: the second half starts 14 pixels to the side."""
    grid = Grid(count=20)
    moved = np.array([14 * grid.spacing[1], 0, 0])

    class Moved(Grid):
        def position(self, k: float) -> np.ndarray:
            return super().position(k) + (moved if k >= 10 else 0)

    write_series(tmp_path, Moved(count=20))
    volume = open_study(tmp_path)
    assert codes(volume) == ["shifted-slices"]
    expected = truth(volume)
    seen = volume.hu > -1000  # outside the slices there is -1024
    np.testing.assert_array_equal(volume.hu[seen], expected[seen])
    assert seen.sum() > 0.5 * (expected > -1000).sum()


def test_copies_of_a_slice_are_dropped(tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    (tmp_path / "copy.dcm").write_bytes(paths[3].read_bytes())
    volume = open_study(tmp_path)
    assert codes(volume) == ["dropped-duplicate-slices"]
    np.testing.assert_array_equal(volume.hu, truth(volume))


def test_two_different_images_at_one_place_are_refused(tmp_path: Path) -> None:
    def other(index: int, ds: FileDataset) -> None:
        ds.SOPInstanceUID += ".7"
        ds.PixelData = bytes(len(ds.PixelData))

    write_series(tmp_path / "a")
    write_series(tmp_path / "b", places=[4], edit=other)
    with pytest.raises(GeometryError, match="same place"):
        open_study(tmp_path)


def test_all_slices_at_one_place_are_refused(tmp_path: Path) -> None:
    def edit(index: int, ds: FileDataset) -> None:
        ds.ImagePositionPatient = ["0", "0", "0"]

    write_series(tmp_path, edit=edit)
    with pytest.raises(GeometryError):
        open_study(tmp_path)


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_slices_are_no_volume(tmp_path: Path, count: int) -> None:
    paths = write_series(tmp_path, Grid(count=count))
    with pytest.raises(GeometryError, match="at least 3"):
        open_study(tmp_path if count == 2 else paths[0])


def test_enhanced_frames_without_positions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "enhanced.dcm"
    write_enhanced(path)
    data = path.read_bytes()
    # Plane Position Sequence becomes an unknown private one.
    path.write_bytes(data.replace(b"\x20\x00\x13\x91SQ", b"\x21\x00\x13\x91SQ"))
    with pytest.raises(GeometryError, match="ImagePositionPatient"):
        open_study(path)


def test_thick_slices_are_read_with_a_warning(tmp_path: Path) -> None:
    write_series(tmp_path, Grid(thickness=5.0))
    assert codes(open_study(tmp_path)) == ["thick-slices"]


@settings(max_examples=15)
@given(
    st.lists(st.floats(-180, 180), min_size=3, max_size=3),
    st.tuples(st.floats(0.5, 3), st.floats(0.5, 3), st.floats(0.5, 4)),
    st.booleans(),
)
def test_any_direction_lands_where_it_was(
    tmp_path_factory: pytest.TempPathFactory, angles: list[float], sizes: tuple[float, float, float], reverse: bool
) -> None:
    a, b, c = np.radians(angles)
    turn = (
        np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        @ np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
        @ np.array([[1, 0, 0], [0, np.cos(c), -np.sin(c)], [0, np.sin(c), np.cos(c)]])
    )
    step = turn[:, 2] * sizes[2] * (-1 if reverse else 1)
    grid = Grid(10, 16, 18, sizes[:2], sizes[2], tuple(turn[:, :2].T.ravel()), tuple(step))
    folder = tmp_path_factory.mktemp("any")
    # A field that rises along one oblique line, so that any place is told from its mirror images.
    gain = np.array([3.0, -2.0, 1.5]) * 1000 / (np.linalg.norm(np.multiply(sizes, (16, 18, 10))) * 3)

    def values(world: np.ndarray) -> np.ndarray:
        return np.clip(world @ gain, -1000, 1000)

    def edit(index: int, ds: FileDataset) -> None:
        ds.PixelData = (np.rint(values(grid.points(index))) + 1024).astype("<u2").tobytes()

    write_series(folder, grid, edit=edit)
    volume = open_study(folder)
    z, y, x = np.indices(volume.shape)
    assert np.abs(volume.hu - values(volume.to_world(np.stack([x, y, z], axis=-1)))).max() <= 1
    assert (np.diag(volume.affine)[:3] > 0).all()
