"""What the reading room is prepared from: every voxel, box and surface stays where it is in the patient."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cspine.anatomy import LEVELS
from cspine.errors import OutputError, StudyError
from cspine.reports.images import ScalarField
from cspine.volume import Volume
from cspine.web import viewing_files
from cspine.web.viewing_facts import FACTS_FILE, PLANES, ViewFacts, ViewGrid
from cspine.web.viewing_files import prepare_view, read_slice
from cspine.web.viewing_grid import labels_on, shown_part
from cspine.web.viewing_mesh import surface_net, to_mz3
from report_factory import FakePrediction, center_of, make_findings, make_volume, with_marker
from viewing_factory import judged, prepared

Points = NDArray[np.float64]
MARKER = (center_of(2)[0] + 12.0, center_of(2)[1] + 9.0, center_of(2)[2] - 3.0)


def center_of_mass(values: NDArray[Any], affine: NDArray[np.float64]) -> Points:
    """LPS millimetres of the middle of what is not 0."""
    zyx = np.argwhere(values > 0).mean(axis=0)
    return np.asarray(affine[:3, :3] @ zyx[::-1] + affine[:3, 3])


def opened(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values ``[z, y, x]`` and LPS affine of a NIfTI file, as nibabel has them."""
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
    return np.asarray(image.dataobj).T, np.diag([-1.0, -1, 1, 1]) @ image.affine


def turned(volume: Volume) -> Volume:
    """The same scan stored with its axes in another order and direction."""
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_world([volume.shape[2] - 1, 0, volume.shape[0] - 1])
    affine[:3, :3] = np.stack([volume.affine[:3, 1], -volume.affine[:3, 0], -volume.affine[:3, 2]], axis=1)
    return Volume(np.ascontiguousarray(volume.hu[::-1, :, ::-1].transpose(0, 2, 1)), affine, volume.source)


def test_the_view_is_int16_hounsfield_units_and_lies_where_the_scan_lies(tmp_path: Path) -> None:
    prepared(tmp_path, with_marker(make_volume(), MARKER))
    hu, affine = opened(tmp_path / "ct.nii.gz")
    assert hu.dtype == np.int16
    assert hu.min() == 40
    assert np.linalg.norm(center_of_mass(hu > 1500, affine) - MARKER) < 0.5


def test_outlines_and_evidence_lie_on_the_same_grid_in_the_right_place(tmp_path: Path) -> None:
    facts, findings = prepared(tmp_path)
    labels, affine = opened(tmp_path / "labels.nii.gz")
    evidence, _ = opened(tmp_path / "evidence.nii.gz")
    assert labels.shape == evidence.shape == facts.grid.shape
    for level in LEVELS[:6]:
        assert np.linalg.norm(center_of_mass(labels == level.value, affine) - center_of(level.index)) < 1
    assert not (labels == 7).any()
    strongest = findings.levels[1].evidence[0].box_mm
    middle = (np.array(strongest[:3]) + strongest[3:]) / 2
    around_c2 = np.where(labels == 2, evidence, 0)
    assert np.linalg.norm(center_of_mass(around_c2 > 200, affine) - middle) < 3


def test_axes_stored_otherwise_give_the_same_view(tmp_path: Path) -> None:
    volume = with_marker(make_volume(), MARKER)
    _, prediction = judged(volume)
    for name, one in (("as-is", volume), ("turned", turned(volume))):
        prepare_view(one, prediction, tmp_path / name)
        hu, affine = opened(tmp_path / name / "ct.nii.gz")
        assert (np.diag(affine)[:3] > 0).all()
        assert np.linalg.norm(center_of_mass(hu > 1500, affine) - MARKER) < 0.5


def test_facts_say_where_keys_lead(tmp_path: Path) -> None:
    volume, _ = judged()
    facts, findings = prepared(tmp_path)
    strongest = max(findings.levels[1].evidence, key=lambda one: one.score).box_mm
    middle = (np.array(strongest[:3]) + strongest[3:]) / 2
    assert facts.levels[1].jump_mm == pytest.approx(middle)
    assert facts.levels[0].jump_mm == pytest.approx(center_of(0))
    assert facts.levels[6].jump_mm is None
    assert [one.level for one in facts.evidence] == ["C2", "C2", "C4"]
    for one in facts.evidence:
        assert facts.grid.source_of(one.view_slice) == one.slice_index
        assert volume.to_world([0, 0, one.slice_index])[2] == pytest.approx(one.at_mm[2])


def test_every_slice_of_the_scan_can_be_had_without_loss(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    volume = make_volume((20, 33, 41))
    noisy = Volume(rng.integers(-1024, 3071, volume.shape).astype(np.int16), volume.affine, volume.source)
    prepare_view(noisy, FakePrediction(make_findings(), np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path)
    for number in (0, 7, 19):
        assert (read_slice(tmp_path / "slices.zip", number, (33, 41)) == noisy.hu[number]).all()


def test_a_level_with_boxes_and_no_map_has_them_as_evidence(tmp_path: Path) -> None:
    volume, prediction = judged()
    facts = prepare_view(
        volume, FakePrediction(prediction.findings, prediction.labels, prediction.labels_affine), tmp_path
    )
    evidence = np.load(tmp_path / "evidence.npy")
    for one in facts.evidence:
        x, y, _ = np.linalg.inv(facts.grid.affine)[:3] @ [*one.at_mm, 1]
        assert evidence[one.view_slice, round(y), round(x)] == pytest.approx(255 * one.score, abs=2)


def test_without_a_located_level_the_whole_scan_is_shown(tmp_path: Path) -> None:
    volume = make_volume((30, 40, 50))
    nothing = FakePrediction(make_findings((None,) * 7), np.zeros((3, 3, 3), np.uint8), np.eye(4))
    facts = prepare_view(volume, nothing, tmp_path)
    assert facts.grid.shape == volume.shape
    assert facts.map is None
    assert all(item.mesh is None for item in facts.levels)


@settings(max_examples=30)
@given(slices=st.integers(1, 60), budget=st.integers(2_000, 60_000), limit=st.integers(5, 70))
def test_a_view_is_as_small_as_asked_and_keeps_whole_slices(slices: int, budget: int, limit: int) -> None:
    volume = make_volume((slices, 30, 40))
    empty = ScalarField(np.zeros((1, 1, 1), np.uint8), np.eye(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cspine.web.viewing_grid.MAX_SLICES", limit)
        shown = shown_part(volume, empty, max_voxels=budget)
    z, y, x = shown.volume.shape
    assert z <= limit
    assert z * shown.slices <= slices
    assert z * y * x <= budget * 1.1 + z * (y + x + 1)
    # The first slice of the view is the mean of the first of the scan.
    first = volume.to_world([0, 0, (shown.slices - 1) / 2])[2]
    assert shown.volume.to_world([0, 0, 0])[2] == pytest.approx(first, abs=1e-6)


@given(first=st.integers(0, 50), slices=st.integers(1, 5), count=st.integers(1, 90), at=st.integers(0, 600))
def test_slices_of_scan_and_view_belong_together(first: int, slices: int, count: int, at: int) -> None:
    grid = ViewGrid(shape=(count, 2, 2), spacing=(1, 1, 1), affine=((0,) * 4,) * 4, first_slice=first, slices=slices)
    view = grid.slice_of(at)
    assert 0 <= view < count
    assert grid.slice_of(grid.source_of(view)) == view
    if first <= at < first + count * slices:
        assert abs(grid.source_of(view) - at) < slices
    assert [grid.count(plane) for plane in PLANES] == [count, 2, 2]


def ball(radius: float, spacing: tuple[float, float, float], center: tuple[float, float, float]) -> ScalarField:
    """How far inside a ball each voxel is, 0.5 on its surface; off the origin, so that a lost offset shows."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.array(center) - (radius + 4)
    count = [int(2 * (radius + 4) / step) for step in spacing]
    z, y, x = np.mgrid[: count[2], : count[1], : count[0]]
    world = np.stack([x, y, z], axis=-1) * spacing + affine[:3, 3]
    return ScalarField((0.5 + radius - np.linalg.norm(world - center, axis=-1)).astype(np.float32), affine)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.9, 1.3)])
def test_a_surface_is_closed_looks_outwards_and_holds_the_right_volume(spacing: tuple[float, float, float]) -> None:
    surface = surface_net(ball(9, spacing, (30, -20, 100)))
    assert surface is not None
    assert surface.volume == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.02)
    assert np.abs(np.linalg.norm(surface.points - (30, -20, 100), axis=1) - 9).max() < 0.15
    edges = np.sort(
        np.concatenate([surface.faces[:, [0, 1]], surface.faces[:, [1, 2]], surface.faces[:, [2, 0]]]), axis=1
    )
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()


def test_meshes_are_written_in_ras_for_the_viewer() -> None:
    surface = surface_net(ball(5, (1, 1, 1), (30, -20, 100)))
    assert surface is not None
    data = gzip.decompress(to_mz3(surface))
    magic, inside, faces, points, skip = (
        np.frombuffer(data, "<u2", 2).tolist() + np.frombuffer(data, "<u4", 3, 4).tolist()
    )
    assert (magic, inside, faces, points, skip) == (0x5A4D, 3, len(surface.faces), len(surface.points), 0)
    written = np.frombuffer(data, "<f4", 3 * points, 16 + 12 * faces).reshape(-1, 3)
    assert written.mean(axis=0) == pytest.approx((-30, 20, 100), abs=0.1)
    assert surface_net(ScalarField(np.zeros((4, 4, 4), np.float32), np.eye(4))) is None


def test_outlines_lose_the_staircase_of_a_coarse_mask() -> None:
    target = make_volume((60, 60, 60))
    mask = np.zeros((30, 30, 30), np.uint8)
    mask[10:20, 10:20, 10:20] = 4
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = target.to_world([0, 0, 0])
    painted = labels_on(target, ScalarField(mask, affine))
    assert set(np.unique(painted)) == {0, 4}
    assert (painted == 4).sum() * target.voxel_volume == pytest.approx(20**3, rel=0.08)


def test_the_same_study_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        prepared(tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "a").iterdir() if path.name != viewing_files.SLICES_FILE)
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir() if path.name != viewing_files.SLICES_FILE)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_facts_come_last_and_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, _ = prepared(tmp_path)
    assert ViewFacts.load(tmp_path) == facts
    assert ViewFacts.load(tmp_path / "nowhere") is None
    assert facts.files["ct.nii.gz"] == (tmp_path / "ct.nii.gz").stat().st_size

    def full(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(viewing_files, "_write_slices", full)
    with pytest.raises(OutputError, match="reading room"):
        prepared(tmp_path)
    assert not (tmp_path / FACTS_FILE).exists()
    (tmp_path / FACTS_FILE).write_text('{"version": 2}')
    with pytest.raises(StudyError, match="another version"):
        ViewFacts.load(tmp_path)
