"""Planting fractures in a scan: what changes is the fracture, and nothing else shows that a tool was there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from typer.testing import CliRunner

from cspine.anatomy import Level
from cspine.errors import ShapeError, StudyError, UsageError
from cspine.phantoms.breakage import changed
from cspine.phantoms.crush import Chips
from cspine.phantoms.fractures import break_all
from cspine.phantoms.grid import Grid
from cspine.phantoms.planting import plant, planted_case, whole_vertebrae
from cspine.phantoms.planting_change import Change, breaks, change_of
from cspine.phantoms.planting_compose import Canvas, composed, retouched
from cspine.phantoms.planting_scan import grain_of
from cspine.phantoms.planting_set import PlantedSet
from cspine.phantoms.planting_solid import touches_border
from cspine.phantoms.write import write_nifti
from cspine.training.samples import classifier_sample
from cspine.volume import Volume
from planting_factory import BLUR_MM, CORTEX_HU, MUSCLE_HU, NOISE_HU, broken, centre_of, coarse, scan, solid

THIN, THICK = (0.6, 0.6, 1.0), (0.6, 0.6, 3.0)


# --- where material came from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "severity"), [("spinous-process", 0.7), ("burst", 0.5), ("wedge", 0.5)])
def test_tracing_a_break_changes_nothing_else(kind: str, severity: float) -> None:
    bone, fracture = solid(), broken(kind, severity)
    points = np.random.default_rng(1).uniform((-25, -12, -14), (25, 45, 12), (20000, 3)).astype(np.float32)
    plain = break_all((fracture,), points, bone.sample)
    traced = break_all((fracture,), points, bone.sample, trace=True)
    assert plain.source is None
    for name in ("sdf", "depth", "lucency", "density", "region"):
        assert np.array_equal(getattr(plain, name), getattr(traced, name)), name
    known = np.isfinite(traced.source[:, 0])
    inside = known & (traced.sdf < 0)
    # Bone keeps its depth below the surface it had where it came from.
    assert np.allclose(bone.sample(traced.source[inside]), traced.depth[inside], atol=1e-4)
    assert (np.linalg.norm(traced.source - points, axis=1)[inside] > 0.5).any()


def test_splinters_come_from_nowhere() -> None:
    chips = Chips(((0.0, 0.0, 20.0),), ((1.5, 1.5, 1.5),), ((0.0, 0.0, 0.0),), (True,))
    points = np.array([[0, 0, 20.0], [0, 0, 0]], dtype=np.float32)
    result = changed((chips,), points, lambda p: (np.linalg.norm(p, axis=1) - 5).astype(np.float32), trace=True)
    assert np.isnan(result.source[0]).all()
    assert np.array_equal(result.source[1], points[1])


# --- the solid and the scan -----------------------------------------------------------------------------------------


def test_solid_follows_the_bone_though_its_labels_are_coarse() -> None:
    bone, (volume, labels) = solid(), scan()
    points = Grid(volume.affine, volume.shape).points()
    found, true = bone.shape.sample(points) < 0, labels.hu == 5
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.9
    assert np.linalg.norm(bone.pose[:3, 3] - centre_of(5)) < 2.0
    assert abs(bone.muscle - MUSCLE_HU) < 12
    assert bone.cortex > 0.5 * CORTEX_HU > bone.trabecular


def test_scan_is_measured() -> None:
    grain = grain_of(scan()[0])
    assert grain.blur == pytest.approx(BLUR_MM, rel=0.3)
    assert grain.noise == pytest.approx(NOISE_HU, rel=0.25)
    noise = grain.draw(np.random.default_rng(0), (12, 60, 60))
    assert noise.std() == pytest.approx(grain.noise, rel=0.1)
    assert np.array_equal(noise, grain.draw(np.random.default_rng(0), (12, 60, 60)))


def test_what_is_not_there_cannot_be_broken() -> None:
    volume, labels = scan()
    with pytest.raises(ShapeError):
        plant(volume, labels, {3: (broken("lamina", 0.5),)}, np.random.default_rng(0))
    cut = volume.crop(slice(30, None), slice(None), slice(None))
    assert touches_border(labels, 6, cut)
    assert not touches_border(labels, 5, volume)
    with pytest.raises(StudyError, match="no vertebra"):
        planted_case(volume, Volume(np.zeros_like(labels.hu), labels.affine), seed=0, name="empty")


# --- planting -------------------------------------------------------------------------------------------------------


def test_nothing_to_break_leaves_every_voxel() -> None:
    volume, labels = scan()
    planted = plant(volume, coarse(), {}, np.random.default_rng(0))
    assert np.array_equal(planted.volume.hu, volume.hu)
    assert not planted.fracture.any()
    assert planted.labels.shape == volume.shape
    assert (planted.labels == labels.hu).mean() > 0.95


@pytest.mark.parametrize("kind", ["burst", "spinous-process", "lamina", "facet", "transverse-process", "teardrop"])
def test_a_break_changes_its_vertebra_only(kind: str) -> None:
    volume, labels = scan()
    planted = plant(volume, coarse(), {5: (broken(kind, 0.7),)}, np.random.default_rng(1), solids={5: solid()})
    changed_voxels = planted.volume.hu != volume.hu
    assert planted.volume.hu.dtype == volume.hu.dtype
    assert planted.fracture.sum() * volume.voxel_volume > 20
    away = ndimage.distance_transform_edt(labels.hu != 5, sampling=volume.spacing[::-1])
    assert away[changed_voxels].max() < 12
    # The neighbour stays as it is, but for its very surface.
    inner = ndimage.binary_erosion(labels.hu == 6, iterations=2)
    assert (changed_voxels & inner).mean() < 1e-3
    assert planted.contrast[5] > 3 * planted.noise
    assert (planted.labels[planted.fracture] > 0).all()


def test_same_seed_same_bytes() -> None:
    volume, _ = scan()
    twice = [
        plant(volume, coarse(), {5: (broken("burst", 0.6),)}, np.random.default_rng(3), solids={5: solid()}).volume.hu
        for _ in range(2)
    ]
    assert np.array_equal(*twice)


def test_thick_slices_fade_a_hairline() -> None:
    depth = {}
    for spacing in (THIN, THICK):
        volume, _ = scan(spacing, 0.0)
        hairline = broken("facet", 0.0, seed=4)
        planted = plant(volume, coarse(spacing), {5: (hairline,)}, np.random.default_rng(1), solids={5: solid()})
        depth[spacing] = float((volume.hu.astype(float) - planted.volume.hu).max())
    assert 0 < depth[THICK] < 0.8 * depth[THIN]


def test_moved_bone_keeps_its_texture_and_clefts_have_noise() -> None:
    volume, _ = scan()
    grain = grain_of(volume)
    change = change_of(solid(), (broken("spinous-process", 0.9, seed=2),), Grid(volume.affine, volume.shape), grain)
    canvas = Canvas.cut(volume, change.box, float(np.abs(change.shift).max()))
    after = composed(canvas, change, solid(), grain, np.random.default_rng(0))
    core = ndimage.binary_erosion(change.moved > 0.95)
    start = np.array([s.start for s in canvas.inner(change.box)])
    places = np.rint(np.argwhere(core) + start + canvas.steps(change)[core]).astype(int).T
    there = detail(canvas.hu)[tuple(places)]
    here = detail(after)[core]
    assert np.sqrt(np.mean(here**2)) == pytest.approx(np.sqrt(np.mean(there**2)), rel=0.12)
    empty = ndimage.binary_erosion(change.void > 0.97)
    assert empty.sum() > 20
    assert abs(after[empty].mean() - MUSCLE_HU) < 35
    alike = np.std(detail(grain.draw(np.random.default_rng(5), (9, 40, 40))))
    assert np.std(detail(after)[empty]) == pytest.approx(alike, rel=0.4)


def test_an_old_fracture_is_no_fracture() -> None:
    volume, _ = scan()
    old = broken("lamina", 0.6, chronic=True)
    planted = plant(volume, coarse(), {5: (old,)}, np.random.default_rng(1), solids={5: solid()})
    assert not planted.fracture.any()
    assert (planted.volume.hu != volume.hu).any()


# --- the tool leaves no trace ---------------------------------------------------------------------------------------


def detail(values: np.ndarray) -> np.ndarray:
    """What is finer than about a voxel."""
    return values - ndimage.gaussian_filter(values.astype(np.float32), 0.7)


def texture(hu: np.ndarray, touched: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Gradients, Laplacian and noise around a pretended break, and how they differ from the rest of the bone."""
    gradients = [hu - np.roll(hu, 1, axis) for axis in range(3)]
    laplacian = 6 * hu - sum(np.roll(hu, step, axis) for axis in range(3) for step in (-1, 1))
    fine = hu - ndimage.uniform_filter(hu, (1, 3, 3))
    images = [*gradients, laplacian, fine, detail(hu)]

    def of(where: np.ndarray) -> np.ndarray:
        energy = [np.log1p(np.mean(image[where] ** 2)) for image in images]
        quiet = [np.log1p(np.median(np.abs(image[where]))) for image in images]
        alike = [np.mean((fine * np.roll(fine, 1, a))[where]) / np.mean(fine[where] ** 2) for a in range(3)]
        return np.array([*energy, *quiet, *alike])

    return np.concatenate([of(touched), of(touched) - of(rest)])


@cache
def pretended(count: int = 24) -> list[tuple[Change, Canvas]]:
    """Breaks that are not made, on both vertebrae of a scan, and the voxels around them."""
    spacing = (0.7, 0.7, 1.2)
    volume, _ = scan(spacing)
    grain, grid = grain_of(volume), Grid(volume.affine, volume.shape)
    kinds = ("spinous-process", "facet", "lamina", "pillar", "transverse-process")
    out = []
    for k in range(count):
        level = 5 + k % 2
        fracture = broken(kinds[k % len(kinds)], 0.75, level=level, seed=k)
        change = change_of(solid(level), (fracture,), grid, grain)
        if change is not None and (change.moved > 0.6).sum() >= 40:
            out.append((change, Canvas.cut(volume, change.box, float(np.abs(change.shift).max()))))
    return out


def auc_of_touched(tool: Callable[[Canvas, Change], np.ndarray]) -> tuple[float, float]:
    """Cross-validated AUC of telling touched from untouched bone, and its standard error (Hanley and McNeil, 1982)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, touched, group = [], [], []
    for number, (change, canvas) in enumerate(pretended()):
        here = canvas.hu[canvas.inner(change.box)]
        region = (change.moved > 0.5) | (change.region > 0.2)
        rest = (change.before < 1) & (change.moved < 0.01)
        for hu, mark in ((tool(canvas, change), 1), (here, 0)):
            features.append(texture(np.rint(hu), region, rest))
            touched.append(mark)
            group.append(number)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=1000))
    score = cross_val_predict(
        model, np.array(features), touched, groups=group, cv=GroupKFold(4), method="predict_proba"
    )[:, 1]
    n = len(touched) / 2
    assert n >= 16
    # At an AUC of 0.5, Q1 = Q2 = 1/3.
    return float(roc_auc_score(touched, score)), float(np.sqrt((0.25 + 2 * (n - 1) / 12) / n**2))


def smoothing(canvas: Canvas, change: Change) -> np.ndarray:
    """A crude tool: the piece is resampled as if blurred by half a voxel."""
    here = canvas.hu[canvas.inner(change.box)]
    return np.where(change.moved > 0.5, ndimage.gaussian_filter(here, 0.5), here)


def test_a_classifier_cannot_tell_that_the_tool_was_there() -> None:
    # The same bone with and without the tool, in one scan: far harder to pass than with bones that differ.
    auc, error = auc_of_touched(retouched)
    assert auc < 0.5 + error


def test_a_crude_tool_would_be_noticed() -> None:
    auc, error = auc_of_touched(smoothing)
    assert auc > 0.5 + 5 * error


def test_the_untouched_twin_shows_no_fracture() -> None:
    volume, _ = scan()
    pretended = {5: (broken("spinous-process", 0.9),)}
    twin = plant(volume, coarse(), {}, np.random.default_rng(0), retouch=pretended, solids={5: solid()})
    assert not twin.fracture.any()
    assert not twin.contrast
    difference = np.abs(twin.volume.hu.astype(float) - volume.hu)
    assert 0 < difference.max() < 15 * NOISE_HU
    # What resampling changes stays below the scan's own noise.
    assert difference[difference > 0].mean() < NOISE_HU


# --- cases, folders, the command ------------------------------------------------------------------------------------


def test_a_planted_case_trains_a_classifier() -> None:
    volume, _ = scan()
    solids = whole_vertebrae(volume, coarse())
    assert sorted(solids) == [5, 6]
    case = planted_case(volume, coarse(), seed=5, rate=1.0, name="planted-5", solids=solids)
    again = planted_case(volume, coarse(), seed=5, rate=1.0, name="planted-5")
    assert np.array_equal(case.volume.hu, again.volume.hu)
    assert case.levels == again.levels
    truth = case.levels[Level.C5]
    assert truth.fractured
    assert truth.types
    assert truth.displacement_mm > 0
    assert truth.visible_fraction == 1.0
    assert {box.level for box in case.boxes} == {Level.C5, Level.C6}
    sample = classifier_sample(case)
    assert [v.label for v in sample.vertebrae] == [5, 6]
    assert all(v.fractured for v in sample.vertebrae)
    assert set(np.unique(sample.points[:, 0])) == {5, 6}


def test_rate_zero_breaks_nothing() -> None:
    case = planted_case(scan()[0], coarse(), seed=9, rate=0.0, name="whole")
    assert not case.patient_fractured
    assert not case.fracture.any()
    assert case.boxes == ()


def test_a_fracture_that_misses_the_bone_is_noticed() -> None:
    bone = solid()
    assert breaks(bone, broken("spinous-process", 0.5))
    at = bone.shape.origin[1] + bone.shape.spacing * np.arange(bone.shape.values.shape[1])
    gone = bone.shape.values.copy()
    gone[:, at > centre_of(5)[1] + 20.0] = 9.0  # no laminae and no process
    assert not breaks(replace(bone, shape=replace(bone.shape, values=gone)), broken("spinous-process", 0.5))


def test_command_writes_studies_with_their_truth(tmp_path: Path) -> None:
    from cspine.cli.app import app

    volume, _ = scan()
    write_nifti(volume.hu, volume.affine, tmp_path / "neck.nii.gz")
    write_nifti(coarse().hu, coarse().affine, tmp_path / "labels.nii.gz")
    arguments = ["plant", str(tmp_path / "neck.nii.gz"), "-o", str(tmp_path / "out"), "--labels"]
    arguments += [str(tmp_path / "labels.nii.gz"), "--rate", "1"]
    result = CliRunner().invoke(app, [*arguments, "--count", "1"])
    assert result.exit_code == 0, result.output
    truth = json.loads((tmp_path / "out" / "truth" / "neck-planted-000000.json").read_text())
    assert truth["fractured"]
    assert truth["levels"]["C5"]["types"]
    assert (tmp_path / "out" / "studies" / "neck-planted-000000.nii.gz").is_file()
    assert (tmp_path / "out" / "truth" / "neck-planted-000000.fracture.nii.gz").is_file()
    assert (tmp_path / "out" / "truth.csv").is_file()
    again = CliRunner().invoke(app, [*arguments, "--count", "1"])
    assert "0 made, 1 were there" in again.output
    other = CliRunner().invoke(app, [*arguments, "--seed", "3"])
    assert other.exit_code == UsageError.exit_code


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rate"):
        PlantedSet(tmp_path, "neck", rate=1.5)
    with pytest.raises(UsageError, match="studies"):
        PlantedSet(tmp_path, "neck").missing(0)


@pytest.mark.shared_data
def test_a_real_neck_can_be_broken(shared_data: Path) -> None:
    from cspine.inference.bundle import Bundle
    from cspine.inference.predictor import Predictor
    from cspine.studies import open_study

    volume = open_study(shared_data / "ct" / "head_c1_c5_intubated.nii.gz")
    found = Predictor(Bundle.default(), threads=1).predict_full(volume)
    labels = Volume(found.labels, found.labels_affine)
    solids = whole_vertebrae(volume, labels)
    assert len(solids) >= 3
    case = planted_case(volume, labels, seed=1, rate=0.8, name="real", solids=solids)
    assert case.patient_fractured
    assert len(classifier_sample(case).vertebrae) == len(solids)
