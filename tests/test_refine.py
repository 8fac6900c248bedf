"""Masks at 1 mm: every voxel of bone goes to the right vertebra, and lies where the patient has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cspine.anatomy import LEVELS, OTHER_BONE, Level
from cspine.errors import BundleError
from cspine.evaluation.metrics import dice
from cspine.inference.predictor import Predictor
from cspine.inference.refine import PARITY, REACH_MM, assign, column, refine, refiner_input
from cspine.volume import Volume
from oracle import OracleNetwork, OracleRuntime, follow_bone, make_patient, oracle_bundle, paint
from oracle import centers as spine_centers
from test_stacks import stored

# Coarse voxels lie half a fine voxel before the fine ones they hold.
COARSE = np.diag([2.0, 2.0, 2.0, 1.0])
COARSE[:3, 3] = 0.5
FINE = np.eye(4)


def touching() -> NDArray[np.uint8]:
    """C1 to C7 and T1 as slabs of 14 mm without a gap between them, 1 mm, from head (last index) to chest."""
    labels = np.zeros((8 * 14, 24, 20), np.uint8)
    for order, label in enumerate(range(1, 9)):
        top = len(labels) - 14 * order
        labels[top - 14 : top, 4:20, 4:16] = label
    return labels


def test_touching_vertebrae_are_parted_by_parity() -> None:
    truth = touching()
    found = assign(PARITY[truth], FINE, truth[::2, ::2, ::2], COARSE)
    assert np.array_equal(found, truth)


@pytest.mark.parametrize("shift", [-2, 2])
def test_a_coarse_mask_that_is_off_by_a_voxel_misnames_nothing(shift: int) -> None:
    truth = touching()
    coarse = np.roll(truth[::2, ::2, ::2], shift // 2, axis=0)
    coarse[:2] = coarse[-2:] = 0
    assert np.array_equal(assign(PARITY[truth], FINE, coarse, COARSE), truth)


def test_a_process_that_the_coarse_mask_lacks_is_added() -> None:
    truth = touching()
    coarse = truth[::2, ::2, ::2].copy()
    coarse[:, 6:] = 0
    assert np.array_equal(assign(PARITY[truth], FINE, coarse, COARSE), truth)


def test_bone_far_from_any_vertebra_of_its_parity_is_other_bone() -> None:
    truth = touching()
    coarse = truth[::2, ::2, ::2].copy()
    coarse[coarse == Level.C1] = 0
    found = assign(PARITY[truth], FINE, coarse, COARSE)
    assert set(np.unique(found[truth == Level.C1])) == {OTHER_BONE}
    assert np.array_equal(found[truth > 1], truth[truth > 1])
    nothing = assign(PARITY[truth], FINE, np.zeros_like(coarse), COARSE)
    assert set(np.unique(nothing)) == {0, OTHER_BONE}


def test_other_bone_stays() -> None:
    classes = np.full((4, 4, 4), 3, np.uint8)
    assert (assign(classes, FINE, np.ones((2, 2, 2), np.uint8), COARSE) == OTHER_BONE).all()


def test_the_network_sees_the_image_and_both_parities() -> None:
    truth = touching()
    volume = Volume(np.where(truth > 0, 500, 0).astype(np.int16), FINE)
    image = refiner_input(volume, truth[::2, ::2, ::2], COARSE)
    assert image.shape == (3, 112, 24, 24)
    assert image.dtype == np.float32
    inside = (slice(4, 108), slice(6, 18), slice(6, 14))
    odd, even = (PARITY[truth] == side for side in (1, 2))
    assert (image[1][inside][odd[inside]] >= 0.25).all()
    assert (image[2][inside][even[inside]] >= 0.25).all()
    np.testing.assert_allclose((image[1] + image[2])[inside], 1, atol=1e-5)
    # Padding behind the last index: air, and no vertebra.
    assert (image[0, :, :, 20:] == -1).all()
    assert not image[1:, :, :, 20:].any()


def test_the_box_keeps_a_margin_and_ends_at_the_field() -> None:
    patient = make_patient(z_mm=(-72.0, 8.0))
    fine = column(patient.volume, *on_coarse_grid(patient.labels))
    assert fine is not None
    assert fine.spacing == pytest.approx((1, 1, 1))
    points = patient.labels.to_world(np.argwhere(np.isin(patient.labels.hu, LEVELS))[:, ::-1])
    index = fine.to_index(points)
    # Cervical vertebrae reach the field's top and bottom; across there is room.
    assert (index > -1).all()
    assert (index < np.array(fine.shape[::-1])).all()
    assert index[:, :2].min() > 8
    assert (index[:, :2].max(0) < np.array(fine.shape[:0:-1]) - 8).all()
    ends = patient.volume.to_world([[0, 0, 0], [0, 0, len(patient.volume.hu) - 1]])[:, 2]
    assert fine.affine[2, 3] >= ends[0] - 1
    assert fine.to_world([0, 0, fine.shape[0] - 1])[2] <= ends[1] + 1


def test_strays_do_not_stretch_the_box() -> None:
    patient = make_patient(spacing=(2.0, 2.0, 2.0))
    coarse, affine = on_coarse_grid(patient.labels)
    clean = column(patient.volume, coarse, affine)
    dirty = coarse.copy()
    dirty[3:5, 3:5, 3:5] = Level.C7
    stretched = column(patient.volume, dirty, affine)
    assert clean is not None
    assert stretched is not None
    assert stretched.shape == clean.shape


def test_without_a_cervical_vertebra_nothing_is_redrawn() -> None:
    labels = np.full((4, 4, 4), 8, np.uint8)
    volume = Volume(np.zeros((8, 8, 8), np.int16), np.eye(4))

    def never(image: NDArray[np.float32]) -> NDArray[np.float32]:
        raise AssertionError("asked for a scan without a neck")

    found = refine(volume, labels, COARSE, never)
    assert found.labels is labels
    assert np.array_equal(found.affine, COARSE)


def test_pixels_too_large_to_show_an_outline_leave_the_mask_alone() -> None:
    patient = make_patient(spacing=(4.0, 4.0, 3.0))
    coarse, affine = on_coarse_grid(patient.labels)
    asked: list[int] = []

    def noting(image: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(1)
        return follow_bone(image)

    assert refine(patient.volume, coarse, affine, noting).labels is coarse
    assert not asked
    thick = make_patient(spacing=(1.0, 1.0, 5.0))
    refine(thick.volume, *on_coarse_grid(thick.labels), noting)
    assert asked


def on_coarse_grid(labels: Volume) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    coarse = labels.resampled(2.0, order=0)
    return coarse.hu, coarse.affine


def scan(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> tuple[Volume, Volume]:
    """The made-up neck, with a rib on the left, on any grid: HU and truth."""
    z, y, x = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    points = np.stack([x, y, z], -1) @ affine[:3, :3].T + affine[:3, 3]
    labels = paint(points, spine_centers())
    labels[np.linalg.norm(points - (22, 10, -60), axis=-1) < 4] = OTHER_BONE
    hu = np.where(labels > 0, 500, 40).astype(np.int16)
    return Volume(hu, affine), Volume(labels, affine)


def grid(
    spacing: tuple[float, float, float], degrees: tuple[float, float, float]
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """A field of 90 x 90 x 170 mm around the made-up neck."""
    size = np.array([90.0, 90.0, 170.0])
    axes = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * np.asarray(spacing)
    count = np.round(size / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = np.array([0, 15, -65]) - axes @ ((count - 1) / 2)
    return affine, (int(count[2]), int(count[1]), int(count[0]))


@pytest.mark.parametrize(
    ("spacing", "degrees"),
    [
        ((1, 1, 1), (0, 0, 0)),
        ((0.7, 0.7, 1.0), (0, 0, 0)),
        ((0.9, 1.1, 2.5), (0, 0, 0)),
        ((0.9, 0.9, 1.5), (18, -9, 12)),
    ],
)
def test_the_mask_lies_where_the_patient_has_the_bone(
    spacing: tuple[float, float, float], degrees: tuple[float, float, float]
) -> None:
    volume, truth = scan(*grid(spacing, degrees))
    coarse, coarse_affine = on_coarse_grid(truth)
    found = refine(volume, coarse, coarse_affine, follow_bone)
    z, y, x = np.meshgrid(*[np.arange(n) for n in found.labels.shape], indexing="ij")
    points = np.stack([x, y, z], -1) @ found.affine[:3, :3].T + found.affine[:3, 3]
    wanted = paint(points, spine_centers())
    overlap = dice(wanted, found.labels, tuple(LEVELS))
    assert min(overlap.values()) > (0.85 if spacing[2] > 2 else 0.93)
    for level in LEVELS:
        gap = points[found.labels == level].mean(0) - points[wanted == level].mean(0)
        # A slice of 2.5 mm more or less of a spinous process moves the middle of the whole.
        assert np.abs(gap).max() < (1.5 if spacing[2] > 2 else 0.6)
    # What lies beside the spine is on the patient's left still, and no vertebra.
    rib = points[found.labels == OTHER_BONE]
    np.testing.assert_allclose(np.median(rib, axis=0), (22, 10, -60), atol=1)


def test_orders_of_storage_make_no_difference() -> None:
    volume, truth = scan(*grid((1.0, 1.0, 1.0), (0, 0, 0)))
    coarse, affine = on_coarse_grid(truth)
    one = refine(volume, coarse, affine, follow_bone)
    other = refine(stored(volume, (1, 0, 2), (True, False, True)).reoriented(), coarse, affine, follow_bone)
    assert np.array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.affine, other.affine)


def test_windows_give_what_the_whole_gives() -> None:
    volume, truth = scan(*grid((1.0, 1.0, 1.0), (0, 0, 0)))
    coarse, affine = on_coarse_grid(truth)
    whole = refine(volume, coarse, affine, follow_bone)
    sizes: list[tuple[int, ...]] = []

    def small(image: NDArray[np.float32]) -> NDArray[np.float32]:
        sizes.append(image.shape)
        return follow_bone(image)

    parts = refine(volume, coarse, affine, small, window=(72, 67, 48))
    assert np.array_equal(whole.labels, parts.labels)
    assert len(sizes) > 4
    assert {shape[2:] for shape in sizes} == {(72, 64, 48)}


def test_crumbs_go_and_fragments_stay() -> None:
    volume, truth = scan(*grid((1.0, 1.0, 1.0), (0, 0, 0)))
    coarse, affine = on_coarse_grid(truth)
    middle = volume.to_index(spine_centers()[4]).round().astype(int)
    hu = volume.hu.copy()
    hu[middle[2], middle[1] - 14, middle[0]] = 500
    fragment = (middle[2], middle[1] - 14, middle[0] + 8)
    hu[tuple(slice(k - 2, k + 3) for k in fragment)] = 500
    grown = coarse.copy()
    around = Volume(coarse, affine).to_index(spine_centers()[4]).round().astype(int)
    grown[around[2] - 2 : around[2] + 3, around[1] - 8 : around[1], around[0] - 4 : around[0] + 7] = 4
    found = refine(Volume(hu, volume.affine), grown, affine, follow_bone)
    at = Volume(found.labels, found.affine)

    def label(index_zyx: tuple[int, ...]) -> int:
        x, y, z = at.to_index(volume.to_world(index_zyx[::-1])).round().astype(int)
        return int(found.labels[z, y, x])

    assert label((middle[2], middle[1] - 14, middle[0])) == 0
    assert label(fragment) == Level.C4


def test_a_bundle_with_a_refiner_outlines_at_1_mm(tmp_path: Path) -> None:
    patient = make_patient(spacing=(1.5, 1.5, 1.5), bead_on=6)
    plain = Predictor(oracle_bundle(tmp_path / "plain"), OracleRuntime(patient)).predict_full(patient.volume)
    bundle = oracle_bundle(tmp_path / "refined", refiner=True)
    fine = Predictor(bundle, OracleRuntime(patient)).predict_full(patient.volume)
    assert np.linalg.norm(plain.labels_affine[:3, 0]) == pytest.approx(2)
    assert np.linalg.norm(fine.labels_affine[:3, 0]) == pytest.approx(1)
    assert "outline" not in plain.findings.provenance.seconds
    assert "outline" in fine.findings.provenance.seconds
    assert plain.findings.provenance.bundle is not None
    assert fine.findings.provenance.bundle is not None
    assert plain.findings.provenance.bundle.precision == "locator f32, classifier f32"
    assert fine.findings.provenance.bundle.precision == "locator f32, refiner f32, classifier f32"
    # The classifier is given the same as without.
    assert fine.logits == plain.logits
    assert fine.findings.levels == plain.findings.levels
    truth = patient.labels.resampled_to(fine.labels_affine, fine.labels.shape, order=0, fill=0).hu
    assert min(dice(truth, fine.labels, tuple(LEVELS)).values()) > 0.9


def test_a_scan_without_a_neck_is_not_outlined(tmp_path: Path) -> None:
    chest = make_patient(z_mm=(-175.0, -160.0), spacing=(2.0, 2.0, 2.0), count=3)
    predictor = Predictor(oracle_bundle(tmp_path, refiner=True), OracleRuntime(chest))
    prediction = predictor.predict_full(chest.volume)
    assert prediction.findings.status == "refused"
    assert "outline" not in prediction.findings.provenance.seconds


def test_a_refiner_of_another_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = make_patient(spacing=(2.0, 2.0, 2.0))
    answer = OracleNetwork.__call__

    def flat(self: OracleNetwork, inputs: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        return {"refiner": np.zeros((1, 4, 2, 2, 2), np.float32)} if self.stage == "refiner" else answer(self, inputs)

    monkeypatch.setattr(OracleNetwork, "__call__", flat)
    with pytest.raises(BundleError, match="'refiner' of shape"):
        Predictor(oracle_bundle(tmp_path, refiner=True), OracleRuntime(patient)).predict(patient.volume)


def test_the_reach_is_shorter_than_a_vertebra_and_its_neighbour() -> None:
    # Else C3 could be taken for C5 where C3 is missing.
    assert REACH_MM < 15
