"""Fractures and their look-alikes, applied to a toy vertebra made of a few solids."""

from __future__ import annotations

import itertools
import pickle
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.errors import UsageError
from cspine.phantoms.breakage import Extent, Motion, Roughness, Surface, changed
from cspine.phantoms.confounders import Canals, Cavity, Growth, vertebra_confounders
from cspine.phantoms.fracture_types import FractureType, draw_type, frequencies
from cspine.phantoms.fractures import Fracture, break_all, break_bone, plan_fracture
from cspine.phantoms.shapes import Shape, capsule, ellipsoid, rounded_box
from cspine.phantoms.spine import Spine, build_spine, sample_anatomy
from cspine.phantoms.study_plan import RSNA_2022_ANY, RSNA_2022_PREVALENCE, draw_levels, plan_study

SPACING = 1.0
UNIQUE_TO_AXIS = {FractureType.DENS_I, FractureType.DENS_II, FractureType.DENS_III, FractureType.HANGMAN}
EVERYWHERE = [(level, kind) for level in (1, 2, 5) for kind in frequencies(level)]


@cache
def toy_landmarks(level: int) -> dict[str, np.ndarray]:
    """Landmarks as ``build_spine`` names them, placed by hand."""
    left = {
        "body_left": (9, 0, 0),
        "pedicle_left": (9.5, 8, 1),
        "lamina_left": (8, 23, -2),
        "pillar_left": (16, 13, 0),
        "facet_superior_left": (16, 13, 8),
        "facet_inferior_left": (16, 13, -8),
        "transverse_tip_left": (27, 8, -2),
        "foramen_left": (14, 3, 0),
        "lateral_mass_left": (19, 5.5, -1),
        "anterior_arch_left": (11, -5, 0),
        "posterior_arch_left": (16, 24, 0),
        "pars_left": (15, 11, 2),
    }
    marks = {
        "canal": (0, 16, 0),
        "body_superior": (0, 0, 6.5),
        "body_inferior": (0, 0, -6.5),
        "body_anterior": (0, -8, 0),
        "body_posterior": (0, 8, 0),
        "spinous_base": (0, 26, -3),
        "spinous_tip": (0, 40, -10),
        "anterior_tubercle": (0, -8, 0),
        "posterior_tubercle": (0, 32, 0),
        "dens_base": (0, 0, 13),
        "dens_tip": (0, 0, 28),
    }
    right = {name[:-4] + "right": (-x, y, z) for name, (x, y, z) in left.items()}
    wanted = {**marks, **left, **right}
    upper = {1: "body pedicle lamina pillar spinous dens pars", 2: "anterior posterior_ lateral"}
    absent = tuple(upper.get(level, "anterior posterior_ lateral dens pars").split())
    return {name: np.array(at, dtype=float) for name, at in wanted.items() if not name.startswith(absent)}


def toy_vertebra(points: np.ndarray, level: int) -> np.ndarray:
    """Signed distance of the toy at points (N, 3), interpolated as a real one's."""
    return toy_shape(level).sample(points)


@cache
def toy_shape(level: int) -> Shape:
    step = 0.7
    axes = [np.arange(low, high, step, dtype=np.float32) for low, high in ((-33, 33), (-17, 50), (-20, 34))]
    x, y, z = axes
    points = np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], -1)
    return Shape(toy_solids(points, level), np.array([x[0], y[0], z[0]], dtype=np.float32), step)


def toy_solids(points: np.ndarray, level: int) -> np.ndarray:
    """Signed distance of a body, arch and processes that pass through ``toy_landmarks``."""
    marks = toy_landmarks(level)
    if level == 1:
        names = [
            "anterior_tubercle",
            "anterior_arch_left",
            "lateral_mass_left",
            "posterior_arch_left",
            "posterior_tubercle",
        ]
        parts = [ellipsoid(points, marks[f"lateral_mass_{side}"], (6, 8, 8)) for side in ("left", "right")]
    else:
        names = ["body_left", "pillar_left", "lamina_left", "spinous_base"]
        parts = [
            rounded_box(points, (0, 0, 0), (9, 8, 6.5), 2.0),
            capsule(points, marks["spinous_base"], marks["spinous_tip"], 4, 3),
        ]
        parts += [
            capsule(points, marks[f"facet_superior_{side}"] - (0, 0, 3), marks[f"facet_inferior_{side}"] + (0, 0, 3), 5)
            for side in ("left", "right")
        ]
    if level == 2:
        parts.append(capsule(points, (0, 0, 0), marks["dens_tip"] - (0, 0, 5), 5))
    for side in ("left", "right"):
        chain = [marks[name.replace("left", side)] for name in names]
        parts += [capsule(points, a, b, 3.4) for a, b in itertools.pairwise(chain)]
        start = marks[f"lateral_mass_{side}" if level == 1 else f"pillar_{side}"]
        parts.append(capsule(points, start, marks[f"transverse_tip_{side}"], 3))
    return np.minimum.reduce(parts).astype(np.float32)


@cache
def toy_points() -> np.ndarray:
    axes = [np.arange(low, high, SPACING, dtype=np.float32) for low, high in ((-34, 34), (-18, 52), (-22, 36))]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


@cache
def intact(level: int) -> np.ndarray:
    return toy_vertebra(toy_points(), level)


def planned(seed: int, level: int, **options) -> Fracture:
    return plan_fracture(np.random.default_rng(seed), level, toy_landmarks(level), **options)


def broken(fracture: Fracture, points: np.ndarray | None = None):
    where = toy_points() if points is None else points
    return break_bone(fracture, where, lambda p: toy_vertebra(p, fracture.level))


@pytest.mark.parametrize(("level", "kind"), EVERYWHERE)
def test_every_type_breaks_bone_where_it_says(level: int, kind: FractureType) -> None:
    fracture = planned(7, level, type=kind, severity=0.8)
    bone = broken(fracture)
    for values in (bone.sdf, bone.depth, bone.lucency, bone.density):
        assert values.dtype == np.float32
        assert values.shape == (len(toy_points()),)
        assert np.isfinite(values).all()
    assert 0 <= bone.lucency.min() <= bone.lucency.max() <= 1
    voxel = SPACING**3
    assert 20 < bone.region.sum() * voxel < 6000
    before, after = (intact(level) < 0).sum(), (bone.sdf < 0).sum()
    assert 0.72 * before < after < 1.06 * before
    # What is marked lies at bone, old or new.
    assert (np.minimum(bone.depth, intact(level))[bone.region] < 4.5).all()
    if kind is not FractureType.WEDGE:
        gap = (bone.lucency > 0.5) & (intact(level) < 0)
        assert gap.sum() > 10
        assert (bone.sdf[gap] > -0.01).all()


@pytest.mark.parametrize(("level", "kind"), EVERYWHERE)
def test_hairline_moves_nothing_but_the_gap(level: int, kind: FractureType) -> None:
    bone = broken(planned(3, level, type=kind, severity=0.0))
    assert bone.region.any()
    if kind in {FractureType.WEDGE, FractureType.BURST}:
        return
    away = ~bone.region
    np.testing.assert_array_equal((bone.sdf < 0)[away], (intact(level) < 0)[away])
    np.testing.assert_array_equal(bone.depth, intact(level))


@given(seed=st.integers(0, 10_000), choice=st.integers(0, len(EVERYWHERE) - 1), severity=st.floats(0, 1))
@settings(max_examples=8, deadline=None)
def test_drawing_is_point_wise_and_repeatable(seed: int, choice: int, severity: float) -> None:
    level, kind = EVERYWHERE[choice]
    first, again = (planned(seed, level, type=kind, severity=severity) for _ in range(2))
    assert first == again
    part = np.random.default_rng(seed).permutation(len(toy_points()))[:20_000]
    whole = broken(first, toy_points()[:60_000])
    some = np.sort(part[part < 60_000])
    alone = broken(again, toy_points()[some])
    np.testing.assert_allclose(alone.sdf, whole.sdf[some], atol=1e-4)
    np.testing.assert_allclose(alone.depth, whole.depth[some], atol=1e-4)
    assert (alone.region != whole.region[some]).mean() < 1e-3


@pytest.mark.parametrize(
    ("level", "kind"), [(2, FractureType.DENS_II), (5, FractureType.WEDGE), (7, FractureType.SPINOUS_PROCESS)]
)
def test_old_fractures_are_dense_and_unmarked(level: int, kind: FractureType) -> None:
    bone = broken(planned(5, level, type=kind, severity=0.5, chronic=True))
    assert not bone.region.any()
    assert bone.density.max() > 60


def test_fresh_faces_have_no_cortex_and_healed_ones_may() -> None:
    fresh = broken(planned(1, 7, type="spinous-process", severity=0.6))
    face = (np.abs(fresh.sdf) < 0.4) & fresh.region
    assert fresh.depth[face].min() < -2.0
    depths = []
    for seed in range(4):
        old = broken(planned(seed, 7, type="spinous-process", severity=0.6, chronic=True))
        cut = (np.abs(old.sdf) < 0.3) & (np.abs(intact(7)) > 1.5) & (intact(7) < 0)
        depths.append(float(np.median(old.depth[cut])) if cut.any() else -9.0)
    assert max(depths) > -0.6


def test_pieces_move_rigidly_with_their_own_depth() -> None:
    fracture = planned(2, 7, type="spinous-process", severity=1.0)
    motion = fracture.changes[0].pieces[0].motion  # type: ignore[attr-defined]
    tip = toy_landmarks(7)["spinous_tip"].astype(np.float32)[None]
    now = (tip - motion.pivot) @ motion.matrix().T + motion.pivot + motion.shift
    np.testing.assert_allclose(motion.back(now.astype(np.float32)), tip, atol=1e-3)
    bone = broken(fracture, now.astype(np.float32))
    np.testing.assert_allclose(bone.sdf, toy_vertebra(tip, 7), atol=0.05)
    np.testing.assert_allclose(bone.depth, toy_vertebra(tip, 7), atol=0.05)


def test_wedge_lowers_the_front_and_keeps_the_back() -> None:
    for seed in range(3):
        bone = broken(planned(seed, 5, type="wedge", severity=0.9))
        solid, points = bone.sdf < 0, toy_points()
        heights = []
        for y in (-6.0, 6.5):
            column = solid & (np.abs(points[:, 0]) < 2) & (np.abs(points[:, 1] - y) < 0.6)
            heights.append(points[column][:, 2].max())
        assert heights[0] < heights[1] - 1.5
        assert heights[1] >= 4.5
        assert bone.density.max() > 50


def test_severity_drives_displacement() -> None:
    def moved(severity: float) -> float:
        fractures = [planned(seed, 2, type="dens-ii", severity=severity) for seed in range(8)]
        return float(np.mean([np.linalg.norm(f.changes[0].pieces[0].motion.shift) for f in fractures]))

    assert moved(0.0) == 0.0
    assert 0.3 < moved(0.5) < moved(1.0) <= 6.5


@pytest.mark.parametrize("level", range(1, 9))
def test_every_type_is_at_home_in_a_drawn_vertebra(level: int) -> None:
    spine = drawn_spine()
    shape, marks = spine.shapes[level], spine.landmarks[level]
    axes = [np.arange(low, high, 1.3, dtype=np.float32) for low, high in zip(shape.low, shape.high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    whole = shape.sample(points)
    points, whole = points[whole < 4], whole[whole < 4]
    for kind in frequencies(level):
        for severity in (0.1, 0.9):
            fracture = plan_fracture(np.random.default_rng(3), level, marks, type=kind, severity=severity, side="left")
            bone = break_bone(fracture, points, shape.sample)
            share = (bone.region & (whole < 0)).sum() / (whole < 0).sum()
            assert 0.001 < share < 0.45, (kind, severity)
            if kind in {FractureType.TRANSVERSE_PROCESS, FractureType.FACET}:
                assert points[bone.region][:, 0].min() > 0


@cache
def drawn_spine() -> Spine:
    return build_spine(sample_anatomy(np.random.default_rng(5)), shape_spacing=1.2)


def test_several_fractures_of_a_vertebra_compose() -> None:
    first, second = planned(1, 6, type="lamina", severity=0.2), planned(2, 6, type="teardrop", severity=0.5)
    both = break_all((first, second), toy_points(), lambda p: toy_vertebra(p, 6))
    for alone in (broken(first), broken(second)):
        assert (alone.region & ~both.region).sum() < 0.02 * alone.region.sum()
    assert both.region.sum() > broken(first).region.sum()


def test_no_fracture_leaves_the_bone_as_it_was() -> None:
    bone = break_all((), toy_points(), lambda p: toy_vertebra(p, 4))
    np.testing.assert_array_equal(bone.sdf, intact(4))
    np.testing.assert_array_equal(bone.depth, intact(4))
    assert not bone.region.any()
    assert not bone.lucency.any()


def test_fractures_survive_pickling() -> None:
    fracture = planned(4, 5)
    copy = pickle.loads(pickle.dumps(fracture))  # noqa: S301
    assert copy == fracture


@pytest.mark.parametrize(
    "options",
    [{"type": "dens-ii"}, {"type": "jefferson"}, {"type": "greenstick"}, {"severity": 1.5}, {"severity": -0.1}],
)
def test_impossible_requests_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        planned(0, 5, **options)


def test_missing_landmark_is_named() -> None:
    marks = {k: v for k, v in toy_landmarks(5).items() if not k.startswith("lamina")}
    with pytest.raises(UsageError, match="lamina"):
        plan_fracture(np.random.default_rng(0), 5, marks, type="lamina", severity=0.1)


def test_types_fit_their_levels() -> None:
    rng = np.random.default_rng(0)
    for level in range(1, 9):
        assert sum(frequencies(level).values()) == pytest.approx(1.0, abs=0.02)
        drawn = {draw_type(rng, level) for _ in range(200)}
        assert drawn <= set(frequencies(level))
    assert set(frequencies(1)).isdisjoint(UNIQUE_TO_AXIS)
    assert set(frequencies(2)) >= UNIQUE_TO_AXIS
    assert set().union(*(frequencies(level) for level in range(1, 8))) == set(FractureType)


def test_levels_follow_the_prevalence_and_cluster() -> None:
    rng = np.random.default_rng(1)
    drawn = [draw_levels(rng, RSNA_2022_PREVALENCE) for _ in range(4000)]
    have = np.array([[level in levels for level in range(1, 8)] for levels in drawn])
    np.testing.assert_allclose(have.mean(axis=0), RSNA_2022_PREVALENCE, atol=0.02)
    assert have.any(axis=1).mean() == pytest.approx(RSNA_2022_ANY, abs=0.02)
    positive = have[have.any(axis=1)]
    assert (positive.sum(axis=1) > 1).mean() == pytest.approx(0.35, abs=0.04)
    assert (have[:, 0] & have[:, 1]).mean() > 1.8 * have[:, 0].mean() * have[:, 1].mean()


def test_multiplier_scales_the_odds_of_any_fracture() -> None:
    rng = np.random.default_rng(2)
    assert not any(draw_levels(rng, RSNA_2022_PREVALENCE, 0.0) for _ in range(200))
    enriched = np.mean([bool(draw_levels(rng, RSNA_2022_PREVALENCE, 5.0)) for _ in range(3000)])
    assert enriched == pytest.approx(0.82, abs=0.03)


def test_plan_study_is_deterministic_and_valid() -> None:
    landmarks = {level: toy_landmarks(level) for level in range(1, 10)}
    for seed in range(40):
        once, twice = (
            plan_study(np.random.default_rng(seed), landmarks, multiplier=8.0, chronic_rate=0.5) for _ in range(2)
        )
        assert once == twice
        acute = {f.level for f in once if not f.chronic}
        assert acute.isdisjoint({f.level for f in once if f.chronic})
        assert all(f.type in frequencies(f.level) for f in once)
    with pytest.raises(UsageError):
        plan_study(np.random.default_rng(0), landmarks, prevalence=(0.1, 0.2))
    with pytest.raises(UsageError):
        plan_study(np.random.default_rng(0), landmarks, multiplier=-1.0)


@pytest.mark.parametrize("level", [1, 2, 5, 7])
def test_confounders_are_never_marked(level: int) -> None:
    changed_any = False
    for seed in range(4):
        rng = np.random.default_rng(seed)
        odd = vertebra_confounders(rng, level, toy_landmarks(level), degeneration=1.0, unfused=level > 2)
        bone = break_all((), toy_points(), lambda p: toy_vertebra(p, level), odd)
        assert not bone.region.any()
        assert np.isfinite(bone.sdf).all()
        changed_any |= bool(np.abs(bone.sdf - intact(level)).max() > 0.3)
    assert changed_any


def test_canal_cavity_and_growth_do_what_they_say() -> None:
    def at(change, *xyz: float) -> float:
        return float(changed((change,), np.array([xyz], dtype=np.float32), lambda p: toy_vertebra(p, 5)).sdf[0])

    canal = Canals((((0.0, 9.0, 0.0), (0.0, 0.0, 0.0), 1.2, 0.5),))
    assert at(canal, 0, 5, 0) > 0.5
    assert at(canal, 0, -5, 0) < -2
    assert at(Cavity((0.0, 0.0, 5.0), (2.0, 2.0, 2.0)), 0, 0, 5) > 1
    assert at(Growth((0.0, -10.0, 5.0), (2.0, 2.0, 1.5)), 0, -10.5, 5) < 0


@given(st.tuples(*[st.floats(-60, 60)] * 3), st.tuples(*[st.floats(-8, 8)] * 3))
@settings(max_examples=40, deadline=None)
def test_motion_is_rigid(turn: tuple[float, float, float], shift: tuple[float, float, float]) -> None:
    motion = Motion(shift=shift, turn=turn, pivot=(1.0, 2.0, 3.0))
    matrix = motion.matrix()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    points = np.random.default_rng(0).uniform(-10, 10, (20, 3)).astype(np.float32)
    forward = (points - motion.pivot) @ matrix.T + motion.pivot + shift
    np.testing.assert_allclose(motion.back(forward.astype(np.float32)), points, atol=1e-3)


def test_movement_ends_inside_the_cut() -> None:
    points = np.random.default_rng(0).uniform(-20, 20, (5000, 3)).astype(np.float32)
    for taper in (False, True):
        cut, move = Extent(((0, 0, 0), (8, 0, 0), (8, 4, 0)), radius=7.0, fade=2.0, taper=taper).weights(points)
        assert (cut[move > 0] == 1.0).all()
        assert (move[cut == 0] == 0).all()


def test_roughness_is_as_high_as_asked_and_the_surface_carries_it() -> None:
    rough = Roughness.draw(np.random.default_rng(0), 0.8)
    plane = np.random.default_rng(1).uniform(-10, 10, (4000, 2)).astype(np.float32)
    height = rough.height(plane[:, 0], plane[:, 1])
    assert 0.2 < height.std() < 1.2
    surface = Surface((0, 0, 0), (0, 0, 1), gap=0.5, roughness=rough)
    first, second = surface.tangents()
    points = plane[:, :1] * first + plane[:, 1:] * second + height[:, None] * np.array([0, 0, 1], dtype=np.float32)
    signed, half = surface.level(points.astype(np.float32))
    np.testing.assert_allclose(signed, 0, atol=1e-3)
    np.testing.assert_allclose(half, 0.25, atol=1e-6)


def test_hinge_leaves_one_cortex_whole() -> None:
    surface = Surface((0, 0, 0), (1, 0, 0), gap=0.6, hinge=(0.0, 2.0))
    first, _ = surface.tangents()
    _, half = surface.level(np.stack([first * -5, first * 6]).astype(np.float32))
    assert half[0] == pytest.approx(0.3, abs=1e-3)
    assert half[1] < -1.0
