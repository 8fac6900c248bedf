"""A volume stays where it is in the patient, whatever is done to its array."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cspine.errors import GeometryError
from cspine.volume import AIR_HU, Source, Volume

ORIENTATIONS = [
    (order, signs) for order in permutations(range(3)) for signs in product((-1, 1), repeat=3)
]  # all 48 ways to store three axes


def unit_axes(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    axes = np.zeros((3, 3))
    for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
        axes[row, column] = sign
    return axes


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    out = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        out = out @ turn
    return out


@st.composite
def volumes(draw: st.DrawFn, *, turned: float = 0.3) -> Volume:
    """Any of 48 orientations, turned by up to ``turned`` radians, with any spacing and origin."""
    order, signs = draw(st.sampled_from(ORIENTATIONS))
    spacing = [draw(st.floats(0.3, 4)) for _ in range(3)]
    small = tuple(draw(st.floats(-turned, turned)) for _ in range(3))
    affine = np.eye(4)
    affine[:3, :3] = rotation(small) @ unit_axes(order, signs) * spacing
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    shape = [draw(st.integers(2, 7)) for _ in range(3)]
    hu = np.random.default_rng(draw(st.integers(0, 99))).permutation(np.prod(shape)).reshape(shape).astype(np.int16)
    names = tuple(f"slice {k}" for k in range(shape[0]))
    return Volume(hu, affine, Source(kind="dicom", sop_instance_uids=names, files=names))


def values_by_place(volume: Volume) -> dict[tuple[float, ...], int]:
    """Every voxel as world place (to a micrometre) and value."""
    z, y, x = np.indices(volume.shape)
    world = np.round(volume.to_world(np.stack([x, y, z], axis=-1)), 3).reshape(-1, 3) + 0.0
    return dict(zip(map(tuple, world.tolist()), volume.hu.ravel().tolist(), strict=True))


def same_places(one: Volume, other: Volume) -> None:
    first, second = values_by_place(one), values_by_place(other)
    assert len(first) == len(second)
    for place, value in second.items():
        # A place may round to either side of a micrometre.
        near = [p for p in first if first[p] == value]
        assert np.abs(np.subtract(near, place)).max(axis=1).min() < 0.01


@given(volumes())
def test_reoriented_moves_no_voxel_and_runs_left_back_head(volume: Volume) -> None:
    moved = volume.reoriented()
    same_places(volume, moved)
    assert (np.diag(moved.affine)[:3] > 0).all()
    assert moved.spacing[0] * moved.spacing[1] * moved.spacing[2] == pytest.approx(volume.voxel_volume)


@given(volumes(turned=0.0))
def test_slice_names_follow_their_slices(volume: Volume) -> None:
    moved = volume.reoriented()
    if not moved.source.files:
        assert abs(volume.affine[2, 2]) < 1e-9, "another axis became z"
        return
    for k, name in enumerate(moved.source.files):
        assert set(moved.hu[k].ravel()) == set(volume.hu[int(name.split()[1])].ravel())
    assert moved.source.sop_instance_uids == moved.source.files


@given(volumes(), st.data())
def test_crop_keeps_places_and_slice_names(volume: Volume, data: st.DataObject) -> None:
    ranges = []
    for count in volume.shape:
        start = data.draw(st.integers(0, count - 1))
        ranges.append(slice(start, data.draw(st.integers(start + 1, count))))
    part = volume.crop(*ranges)
    whole = values_by_place(volume)
    assert part.hu.base is not None, "a crop is a view"
    for place, value in values_by_place(part).items():
        near = min(whole, key=lambda p: np.abs(np.subtract(p, place)).max())
        assert whole[near] == value
    assert part.source.files == volume.source.files[ranges[0]]


def test_crop_refuses_steps() -> None:
    with pytest.raises(GeometryError):
        Volume(np.zeros((4, 4, 4), np.int16), np.eye(4)).crop(slice(0, 4, 2), slice(None), slice(None))


@given(volumes())
def test_through_simpleitk_and_back(volume: Volume) -> None:
    image = volume.to_sitk()
    back = Volume.from_sitk(image)
    np.testing.assert_array_equal(back.hu, volume.hu)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-6)
    corner = [volume.shape[2] - 1, volume.shape[1] - 1, volume.shape[0] - 1]
    assert image.TransformIndexToPhysicalPoint(corner) == pytest.approx(volume.to_world(corner).tolist(), abs=1e-5)


@given(volumes())
def test_world_and_index_are_inverse(volume: Volume) -> None:
    points = np.random.default_rng(0).uniform(-5, 9, (2, 3, 3))
    np.testing.assert_allclose(volume.to_index(volume.to_world(points)), points, atol=1e-6)


def ramp(affine: np.ndarray, shape: tuple[int, int, int]) -> Volume:
    """A volume whose HU is a linear function of the world."""
    blank = Volume(np.zeros(shape, np.float32), affine)
    z, y, x = np.indices(shape)
    world = blank.to_world(np.stack([x, y, z], axis=-1))
    return Volume((world @ [2.0, -1.0, 0.5]).astype(np.float32), affine)


@given(volumes(), st.floats(0.4, 1.9))
def test_resampled_keeps_the_world(volume: Volume, factor: float) -> None:
    big = ramp(volume.affine, (12, 14, 16))
    out = big.resampled(tuple(s * factor for s in big.spacing))
    z, y, x = np.indices(out.shape)
    world = out.to_world(np.stack([x, y, z], axis=-1))
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(out.hu[inner], (world @ [2.0, -1.0, 0.5])[inner], atol=2e-2)
    # The same field of view: edges, not centres, coincide (up to the rounding of the voxel count).
    assert out.to_world([-0.5] * 3) == pytest.approx(big.to_world([-0.5] * 3), abs=1e-6)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::5], ids=str)
def test_shrinking_averages_in_every_orientation(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = unit_axes(order, signs) * [1.0, 2.0, 0.5]
    out = ramp(affine, (24, 12, 18)).resampled(4.0)
    z, y, x = np.indices(out.shape)
    world = out.to_world(np.stack([x, y, z], axis=-1))
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(out.hu[inner], (world @ [2.0, -1.0, 0.5])[inner], atol=0.8)


def test_resampled_labels_take_the_nearest() -> None:
    labels = Volume(np.arange(27, dtype=np.uint8).reshape(3, 3, 3), np.eye(4))
    out = labels.resampled(0.5, order=0)
    assert out.hu.dtype == np.uint8
    assert set(out.hu.ravel()) == set(range(27))


def test_resampled_outside_is_air_and_forgets_slices() -> None:
    volume = Volume(np.zeros((4, 4, 4), np.int16), np.eye(4), Source(kind="dicom", files=("a",) * 4))
    shifted = np.eye(4)
    shifted[:3, 3] = 100
    out = volume.resampled_to(shifted, (2, 2, 2))
    assert (out.hu == AIR_HU).all()
    assert out.source.files == ()


def test_a_sheared_grid_is_resampled_where_it_lies() -> None:
    affine = np.eye(4)
    affine[1, 2] = 0.4
    sheared = ramp(affine, (10, 12, 12))
    straight = sheared.resampled_to(np.eye(4), (8, 14, 12))
    z, y, x = np.indices(straight.shape)
    world = straight.to_world(np.stack([x, y, z], axis=-1))
    index = sheared.to_index(world)
    known = ((index >= 0) & (index <= [11, 11, 9])).all(axis=-1)
    assert known.mean() > 0.6
    np.testing.assert_allclose(straight.hu[known], (world @ [2.0, -1.0, 0.5])[known], atol=1e-3)


@pytest.mark.parametrize(
    "affine",
    [np.zeros((4, 4)), np.eye(3), np.full((4, 4), np.nan), np.diag([1.0, 1.0, 0.0, 1.0])],
    ids=["zero", "3x3", "nan", "flat"],
)
def test_an_unusable_affine_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(GeometryError):
        Volume(np.zeros((2, 2, 2), np.int16), affine)


@pytest.mark.parametrize("shape", [(2, 2), (0, 2, 2), (1, 2, 2, 2)])
def test_only_3d_arrays_are_volumes(shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError):
        Volume(np.zeros(shape, np.int16), np.eye(4))
