"""Frames follow the vertebra; stacks show its left on the right side of the array, whatever the storage."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.inference import stacks
from cspine.inference.evidence import EvidenceMap, boxes
from cspine.inference.stacks import Frame
from cspine.volume import Source, Volume
from oracle import make_patient

ORDERS = list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))


def stored(volume: Volume, order: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same scan with its voxels in another order in memory."""
    hu = volume.hu.transpose(order)
    affine = volume.affine.copy()
    # Axis a of the new array (z, y, x order) is axis order[a] of the old one.
    affine[:3, :3] = np.stack([volume.affine[:3, 2 - order[2 - k]] for k in range(3)], axis=1)
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, 2 - axis] * (hu.shape[axis] - 1)
            affine[:3, 2 - axis] *= -1
            hu = np.flip(hu, axis)
    return Volume(hu, affine, volume.source)


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("zyx", angles, degrees=True).as_matrix()


def ball_volume(points: dict[str, np.ndarray]) -> Volume:
    """Balls of different HU at LPS points."""
    affine = np.array([[0.8, 0, 0, -60], [0, 0.7, 0, -50], [0, 0, 1.1, -55], [0, 0, 0, 1]])
    grid = np.stack(np.meshgrid(np.arange(100), np.arange(150), np.arange(150), indexing="ij")[::-1], axis=-1)
    world = grid @ affine[:3, :3].T + affine[:3, 3]
    hu = np.zeros(world.shape[:3], np.int16)
    for k, point in enumerate(points.values()):
        hu[np.linalg.norm(world - point, axis=-1) < 3.5] = 600 + 200 * k
    return Volume(hu, affine)


def test_the_stack_has_the_agreed_shape_and_places() -> None:
    points = {"left": np.array([20.0, 10, 0]), "back": np.array([0.0, 30, 0]), "up": np.array([0.0, 5, 12])}
    volume = ball_volume(points)
    frame = Frame(np.zeros(3), np.eye(3))
    mask = Volume(np.ones((4, 4, 4), np.float32), np.diag([2.0, 2, 2, 1]))
    stack = stacks.sample_stack(volume, mask, frame, 1)
    assert stack.shape == (24, 4, 128, 160)
    assert stack.dtype == np.float32
    assert stack[:, :3].min() >= -1
    assert stack[:, :3].max() <= 1
    for point in points.values():
        stack = stacks.sample_stack(ball_volume({"one": point}), mask, frame, 1)
        plane, row, column = np.argwhere(stack[:, 1] > -0.3).mean(axis=0)
        local = [(column - 79.5) * 0.55, -16 + (row + 0.5) * 0.55, (plane - 11.5) * 1.6]
        np.testing.assert_allclose(local, point, atol=0.9)


def test_neighbour_channels_lie_half_a_plane_below_and_above() -> None:
    hu = np.repeat(np.arange(200, dtype=np.float32)[:, None, None] * 5, 20, axis=1).repeat(20, axis=2)
    volume = Volume(hu, np.array([[10.0, 0, 0, -100], [0, 10, 0, -100], [0, 0, 0.5, -50], [0, 0, 0, 1]]))
    mask = Volume(np.zeros((2, 2, 2), np.float32), np.eye(4))
    stack = stacks.sample_stack(volume, mask, Frame(np.zeros(3), np.eye(3)), 1)
    below, at, above = (stack[:, k, 60, 80] for k in range(3))
    # 5 HU every 0.5 mm: 0.8 mm is 8 HU, and 900 HU are one unit.
    np.testing.assert_allclose(at - below, 8 / 900, atol=1e-4)
    np.testing.assert_allclose(above - at, 8 / 900, atol=1e-4)


@settings(max_examples=30)
@given(st.tuples(*[st.floats(-25, 25)] * 3))
def test_frames_are_orthonormal_right_handed_and_follow_a_turned_spine(angles: tuple[float, float, float]) -> None:
    turn = rotation(angles)
    centers = {label: turn @ np.array([0.0, 0, -17.0 * label]) for label in range(3, 7)}
    affine = np.array([[2.5, 0, 0, -70], [0, 2.5, 0, -70], [0, 0, 2.5, -140], [0, 0, 0, 1]])
    grid = np.stack(np.meshgrid(*[np.arange(57)] * 3, indexing="ij")[::-1], axis=-1)
    local = (grid @ affine[:3, :3].T + affine[:3, 3]) @ turn
    labels = np.zeros(grid.shape[:3], np.uint8)
    for label in range(3, 7):
        p = local - np.array([0.0, 0, -17.0 * label])
        labels[(np.abs(p[..., 2]) < 7) & (np.abs(p[..., 0]) < 14) & (p[..., 1] > -10) & (p[..., 1] < 42)] = label
    for label, frame in stacks.frames(centers, labels, affine).items():
        np.testing.assert_allclose(frame.axes.T @ frame.axes, np.eye(3), atol=1e-9)
        assert np.linalg.det(frame.axes) == pytest.approx(1.0)
        np.testing.assert_allclose(frame.origin, centers[label])
        assert np.degrees(np.arccos(np.clip(np.diag(frame.axes.T @ turn), -1, 1))).max() < 8


@given(st.tuples(*[st.floats(-60, 60)] * 3), st.tuples(*[st.floats(-180, 180)] * 3))
def test_world_and_local_are_inverse(point: tuple[float, float, float], angles: tuple[float, float, float]) -> None:
    frame = Frame(np.array([5.0, -7, 30]), rotation(angles))
    np.testing.assert_allclose(frame.to_local(frame.to_world(np.array(point))), point, atol=1e-9)


def test_without_a_mask_the_back_is_the_patients_back() -> None:
    frames = stacks.frames({4: (0.0, 0.0, 0.0)}, np.zeros((4, 4, 4), np.uint8), np.eye(4))
    np.testing.assert_allclose(frames[4].axes, np.eye(3))


def test_a_mask_that_points_aside_does_not_turn_the_frame_far() -> None:
    labels = np.zeros((20, 40, 60), np.uint8)
    labels[5:15, 18:22, 20:60] = 4
    affine = np.array([[2.0, 0, 0, -40], [0, 2, 0, -40], [0, 0, 2, -20], [0, 0, 0, 1]])
    frame = stacks.frames({4: (0.0, 0.0, 0.0)}, labels, affine)[4]
    assert frame.axes[1, 1] > np.cos(np.radians(41))


def test_outside_the_scan_is_air() -> None:
    volume = Volume(np.zeros((4, 4, 4), np.int16), np.eye(4))
    frame = Frame(np.array([500.0, 0, 0]), np.eye(3))
    block = stacks.sample_block(volume, frame, shape=(3, 4, 5), spacing=(1.0, 1.0, 1.0))
    assert block.shape == (3, 4, 5)
    assert (block == -1024).all()


@pytest.mark.parametrize(("order", "flips"), ORDERS)
def test_storage_does_not_change_a_stack(order: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    points = {"left": np.array([20.0, 10, 0]), "up": np.array([3.0, 5, 8])}
    volume = _small(ball_volume(points))
    frame = Frame(np.zeros(3), rotation((10, -5, 8)))
    kwargs = {"shape": (20, 40, 40), "spacing": (1.2, 1.2, 1.6), "middle": (5.0, 8.0, 0.0)}
    first = stacks.sample_block(volume, frame, **kwargs)
    second = stacks.sample_block(stored(volume, order, flips), frame, **kwargs)
    np.testing.assert_allclose(first, second, atol=0.5)


def _small(volume: Volume) -> Volume:
    return volume.crop(slice(20, 80), slice(30, 130), slice(30, 130))


def planted(local: tuple[float, float, float], frame: Frame, label: int = 4) -> EvidenceMap:
    """A map with one bright spot at a local place."""
    affine = stacks.evidence_affine(frame, label, (24, 32, 40))
    values = np.full((24, 32, 40), 0.01, np.float32)
    index = np.linalg.solve(affine, np.append(frame.to_world(np.array(local)), 1))[:3]
    z, y, x = np.rint(index[::-1]).astype(int)
    values[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = 0.6
    values[z, y, x] = 0.9
    return EvidenceMap(values, affine)


@pytest.mark.parametrize("local", [(18.0, 20.0, -3.0), (-18.0, 20.0, 4.0), (0.0, 0.0, 0.0), (6.0, 40.0, -12.0)])
@pytest.mark.parametrize("spacing", [(0.5, 0.5, 1.0), (0.9, 0.8, 3.0), (0.4, 0.4, 0.6)])
def test_evidence_comes_back_at_its_voxel(
    local: tuple[float, float, float], spacing: tuple[float, float, float]
) -> None:
    frame = Frame(np.array([12.0, -30.0, 250.0]), rotation((6, -8, 12)))
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing)
    affine[:3, 3] = frame.origin - 60
    shape = tuple(int(120 / s) for s in spacing[::-1])
    volume = Volume(
        np.zeros(shape, np.int16), affine, Source("dicom", sop_instance_uids=tuple(map(str, range(shape[0]))))
    )
    found = boxes(planted(local, frame), volume)
    world = frame.to_world(np.array(local))
    index = volume.to_index(world)
    best = found[0]
    assert abs(best.slice_index - index[2]) * spacing[2] <= spacing[2] / 2 + 1.7
    assert best.sop_instance_uid == str(best.slice_index)
    assert best.box_px[0] - 2.5 / spacing[0] < index[0] < best.box_px[2] + 2.5 / spacing[0]
    assert best.box_px[1] - 2.5 / spacing[1] < index[1] < best.box_px[3] + 2.5 / spacing[1]
    low, high = np.array(best.box_mm[:3]), np.array(best.box_mm[3:])
    assert (low < high).all()
    assert (high - low)[:2].max() < 22
    np.testing.assert_allclose((low + high) / 2, world, atol=max(3.5, spacing[2] / 2 + 1.7))
    assert [box.score for box in found] == sorted((box.score for box in found), reverse=True)
    assert len(found) <= 6


def test_a_map_without_evidence_gives_no_box() -> None:
    frame = Frame(np.zeros(3), np.eye(3))
    quiet = EvidenceMap(np.full((24, 32, 40), 0.05, np.float32), stacks.evidence_affine(frame, 4, (24, 32, 40)))
    assert boxes(quiet, Volume(np.zeros((20, 20, 20), np.int16), np.eye(4))) == ()


def test_evidence_outside_the_scan_gives_no_box() -> None:
    frame = Frame(np.zeros(3), np.eye(3))
    far = Volume(
        np.zeros((20, 20, 20), np.int16), np.array([[1.0, 0, 0, 500], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    assert boxes(planted((10.0, 10.0, 0.0), frame), far) == ()


def test_the_evidence_grid_lies_on_the_stack() -> None:
    frame = Frame(np.array([1.0, 2, 3]), rotation((20, 0, 0)))
    first = stacks.evidence_affine(frame, 5, (24, 32, 40)) @ np.array([0, 0, 0, 1.0])
    # The first cell covers pixels 0..3: its middle is pixel 1.5.
    local = [(1.5 - 79.5) * 0.55, -16 + 2.0 * 0.55, -3 - 11.5 * 1.6]
    np.testing.assert_allclose(first[:3], frame.to_world(np.array(local)), atol=1e-9)


def test_the_made_up_patient_is_asymmetric() -> None:
    patient = make_patient(spacing=(2.0, 2.0, 2.0), z_mm=(-75, 30), bead_on=4)
    mirrored = patient.volume.hu[:, :, ::-1]
    assert (mirrored != patient.volume.hu).any()
