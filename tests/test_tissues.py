"""What surrounds the vertebrae of a phantom: fixed in the world, where anatomy says it should be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.phantoms.canal import world
from cspine.phantoms.column import Column
from cspine.phantoms.grid import Grid
from cspine.phantoms.paint import FAR, Field, Lattice, Zoom, union
from cspine.phantoms.parts import Ball, Block, Rod, Tube, curve, frame_at, smooth_min
from cspine.phantoms.spine import Spine, build_spine, sample_anatomy
from cspine.phantoms.textures import Texture, coordinates
from cspine.phantoms.tissues import Painted, Surroundings, build_surroundings


def make_spine(seed: int = 3, **changes: object) -> Spine:
    plain = {
        "scoliosis_deg": 0.0,
        "head_rotation_deg": 0.0,
        "head_tilt_deg": 0.0,
        "head_flexion_deg": 0.0,
        "body_rotation_deg": (0.0, 0.0, 0.0),
        "scale": 1.0,
        "fat": 0.3,
        "age": 40.0,
        "sex": "male",
        "contrast": False,
        "cervical_rib": False,
        "intubated": False,
        "dental_metal": False,
    }
    anatomy = replace(sample_anatomy(np.random.default_rng(seed)), **(plain | changes))  # type: ignore[arg-type]
    return build_spine(anatomy, shape_spacing=3.0)


@pytest.fixture(scope="module")
def spine() -> Spine:
    return make_spine()


@pytest.fixture(scope="module")
def surroundings(spine: Spine) -> Surroundings:
    return build_surroundings(spine, np.random.default_rng(5))


@pytest.fixture(scope="module")
def whole(surroundings: Surroundings) -> tuple[Grid, Painted]:
    grid = Grid.axis_aligned((0, 0, -10), (300, 300, 240), 2.5)
    return grid, surroundings.paint(grid)


def value_at(grid: Grid, values: np.ndarray, point: np.ndarray) -> float:
    index = np.linalg.solve(grid.affine, [*point, 1.0])[:3].round().astype(int)
    return float(values[index[2], index[1], index[0]])


def test_arrays_have_the_grids_shape_and_plausible_values(whole: tuple[Grid, Painted]) -> None:
    grid, painted = whole
    for values in (painted.soft_hu, painted.bone_sdf, painted.bone_scale, painted.metal):
        assert values.shape == grid.shape
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
    assert painted.soft_hu.min() >= -1300
    assert painted.soft_hu.max() < 1500
    assert painted.bone_sdf.max() <= FAR
    assert ((painted.metal >= 0) & (painted.metal <= 1)).all()


def test_same_seed_same_bytes(spine: Spine, surroundings: Surroundings) -> None:
    again = build_surroundings(spine, np.random.default_rng(5))
    grid = Grid.axis_aligned((0, 0, 10), (200, 200, 30), (2, 2, 3))
    for first, second in zip(vars_of(surroundings.paint(grid)), vars_of(again.paint(grid)), strict=True):
        assert first.tobytes() == second.tobytes()


def vars_of(painted: Painted) -> tuple[np.ndarray, ...]:
    return painted.soft_hu, painted.bone_sdf, painted.bone_scale, painted.metal


def test_a_place_has_the_same_value_on_a_crop(surroundings: Surroundings) -> None:
    large = Grid.axis_aligned((0, 0, 0), (160, 160, 24), 1.0)
    small = large.sub((slice(4, 20), slice(30, 120), slice(50, 140)))
    a = surroundings.paint(large).soft_hu[4:20, 30:120, 50:140]
    b = surroundings.paint(small).soft_hu
    assert np.median(np.abs(a - b)) < 6
    assert np.mean(np.abs(a - b) > 60) < 0.03


def test_a_place_has_the_same_value_on_a_rotated_grid(surroundings: Surroundings) -> None:
    straight = Grid.axis_aligned((0, 0, 0), (120, 120, 12), 1.0)
    turned = Grid(frame_at(np.eye(4), (0, 0, 0), (14.0, 0.0, 0.0)) @ straight.affine, straight.shape)
    hu = surroundings.paint(turned).soft_hu
    points = turned.points().reshape(-1, 3)
    inside = np.abs(points[:, 2]) < 5
    index = np.linalg.solve(straight.affine, np.c_[points[inside], np.ones(inside.sum())].T)[:3].round().astype(int)
    keep = ((index >= 0) & (index < np.array(straight.shape[::-1])[:, None])).all(axis=0)
    reference = surroundings.paint(straight).soft_hu[index[2, keep], index[1, keep], index[0, keep]]
    assert np.median(np.abs(hu.reshape(-1)[inside][keep] - reference)) < 10


def test_outside_is_air_and_the_neck_is_not(whole: tuple[Grid, Painted], spine: Spine) -> None:
    grid, painted = whole
    front = spine.poses[5][:3, 3] - [0, 110, 0]
    assert value_at(grid, painted.soft_hu, front) == pytest.approx(-1000, abs=1)
    for level in range(3, 8):
        assert value_at(grid, painted.soft_hu, spine.poses[level][:3, 3] + [0, 45, 0]) > -150


def test_the_cord_lies_in_fluid(surroundings: Surroundings, spine: Spine) -> None:
    for level in (3, 5, 7):
        center = world(spine, level, "canal")
        grid = Grid.axis_aligned(center, (30, 30, 3), 0.75)
        hu = surroundings.paint(grid).soft_hu
        assert value_at(grid, hu, center) == pytest.approx(39, abs=9)
        ring = value_at(grid, hu, center + [0, 5.6, 0])
        assert ring < 34


def test_a_tablet_of_disc_lies_between_bodies(surroundings: Surroundings, spine: Spine) -> None:
    for level in (3, 4, 5):
        middle = (world(spine, level, "body_inferior") + world(spine, level + 1, "body_superior")) / 2
        grid = Grid.axis_aligned(middle, (6, 6, 2), 1.0)
        assert 50 < value_at(grid, surroundings.paint(grid).soft_hu, middle) < 130


def test_the_airway_is_open_from_pharynx_to_trachea(surroundings: Surroundings, spine: Spine) -> None:
    column = Column.of(spine)
    for level in (2, 7, 9):
        middle = column.place(level, 0, -30)
        grid = Grid.axis_aligned(middle, (30, 30, 2), 1.0)
        assert (surroundings.paint(grid).soft_hu < -900).sum() > 40


def test_condyles_sit_in_the_cups_of_c1(surroundings: Surroundings, spine: Spine) -> None:
    for side in ("left", "right"):
        cup = world(spine, 1, f"facet_superior_{side}")
        grid = Grid.axis_aligned(cup + [0, 0, 6], (4, 4, 16), 1.0)
        sdf = surroundings.paint(grid).bone_sdf
        assert value_at(grid, sdf, cup + [0, 0, 6]) < 0
        assert value_at(grid, sdf, cup - [0, 0, 1.5]) > 0


def test_the_canal_enters_the_skull_through_the_foramen_magnum(surroundings: Surroundings, spine: Spine) -> None:
    a, b = world(spine, 1, "canal"), spine.head[:3, :3] @ [0, 8, 30] + spine.head[:3, 3]
    grid = Grid.axis_aligned((a + b) / 2, (30, 40, 60), 1.0)
    sdf = surroundings.paint(grid).bone_sdf
    assert all(value_at(grid, sdf, a + t * (b - a)) > 0 for t in np.linspace(0, 1, 12))


def test_ribs_meet_their_vertebrae(surroundings: Surroundings, spine: Spine) -> None:
    for level in (8, 9, 10):
        for side in ("left", "right"):
            joint = world(spine, level, f"costal_{side}")
            grid = Grid.axis_aligned(joint, (12, 12, 12), 1.0)
            assert surroundings.paint(grid).bone_sdf.min() < -1


def test_bone_never_fills_the_spinal_canal(surroundings: Surroundings, spine: Spine) -> None:
    for level in range(1, 12):
        center = world(spine, level, "canal")
        grid = Grid.axis_aligned(center, (10, 10, 4), 1.0)
        assert surroundings.paint(grid).bone_sdf.min() > 0


def test_contrast_brightens_vessels_only_when_given() -> None:
    plain = make_spine(contrast=False)
    enhanced = make_spine(contrast=True)
    vessel = world(plain, 4, "foramen_left")
    grid = Grid.axis_aligned(vessel, (6, 6, 6), 0.5)
    without = build_surroundings(plain, np.random.default_rng(1)).paint(grid).soft_hu.max()
    with_contrast = build_surroundings(enhanced, np.random.default_rng(1)).paint(grid).soft_hu.max()
    assert without < 110
    assert with_contrast > 150


def test_fillings_only_with_dental_metal() -> None:
    for metal in (False, True):
        person = make_spine(dental_metal=metal, age=30.0)
        head = person.head[:3, 3]
        grid = Grid.axis_aligned(head + [0, -70, -25], (70, 60, 30), 1.0)
        found = build_surroundings(person, np.random.default_rng(2)).paint(grid).metal.max()
        assert (found > 0.5) == metal


def test_a_tube_when_intubated() -> None:
    person = make_spine(intubated=True)
    middle = Column.of(person).place(7, 0, -36)
    grid = Grid.axis_aligned(middle, (24, 24, 1.5), 0.75)
    assert build_surroundings(person, np.random.default_rng(2)).paint(grid).soft_hu.max() > 200


def test_a_cervical_rib_when_the_anatomy_says_so() -> None:
    sdf = {}
    for has in (False, True):
        person = make_spine(cervical_rib=has)
        tip = world(person, 7, "transverse_tip_left")
        grid = Grid.axis_aligned(tip + [3, -3, -2], (8, 8, 8), 1.0)
        sdf[has] = build_surroundings(person, np.random.default_rng(2)).paint(grid).bone_sdf.min()
    assert sdf[True] < 0 < sdf[False]


def test_fat_people_have_more_fat() -> None:
    share = []
    for fat in (0.05, 0.95):
        person = make_spine(fat=fat)
        grid = Grid.axis_aligned(person.poses[4][:3, 3], (220, 220, 6), 2.0)
        hu = build_surroundings(person, np.random.default_rng(8)).paint(grid).soft_hu
        share.append(int(((hu > -130) & (hu < -60)).sum()))
    assert share[1] > 1.6 * share[0]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_any_person_can_be_painted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    person = build_spine(sample_anatomy(rng), shape_spacing=5.0)
    painted = build_surroundings(person, rng).paint(Grid.axis_aligned((0, 0, 0), (240, 240, 240), 8.0))
    assert all(np.isfinite(v).all() for v in vars_of(painted))
    assert (painted.bone_sdf < 0).any()
    assert (painted.soft_hu > 0).any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 30, 30), (40, 1, 40), (3, 200, 5)])
def test_thin_grids(surroundings: Surroundings, shape: tuple[int, int, int]) -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    assert surroundings.paint(Grid(affine, shape)).soft_hu.shape == shape


def test_a_grid_far_away_is_air(surroundings: Surroundings) -> None:
    painted = surroundings.paint(Grid.axis_aligned((3000, -3000, 3000), (20, 20, 20), 2.0))
    assert (painted.soft_hu == -1000).all()
    assert (painted.bone_sdf == FAR).all()


POSE = frame_at(np.eye(4), (2.0, -3.0, 5.0), (20.0, -15.0, 40.0))


@pytest.mark.parametrize(
    "part",
    [
        Ball(POSE, (8.0, 5.0, 11.0)),
        Block(POSE, (8.0, 5.0, 11.0), 2.0),
        Rod(np.array([-5.0, 0, 3]), np.array([6.0, 4, -2]), 4.0, 2.5),
        Rod(np.array([-5.0, 0, 3]), np.array([6.0, 4, -2]), 4.0, 2.5, 0.5, (0.0, 1.0, 0.0)),
        Rod(np.array([-5.0, 0, 3]), np.array([6.0, 4, -2]), 4.0, 2.5, 2.0, (0.0, 1.0, 0.0)),
        Tube(
            np.array([-8.0, 9]),
            np.array([0.0, 3]),
            np.array([1.0, -2]),
            np.array([6.0, 4]),
            np.array([3.0, 5]),
            np.array([0.4]),
        ),
    ],
)
def test_a_part_lies_in_its_box(part: Ball | Block | Rod | Tube) -> None:
    grid = Grid.axis_aligned((0, 0, 0), (60, 60, 60), 1.0)
    distance = np.broadcast_to(part.distance(coordinates(grid)), grid.shape)
    points = grid.points()[distance < 0]
    low, high = part.box
    assert len(points) > 50
    assert (points >= low - 0.01).all()
    assert (points <= high + 0.01).all()


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.1, 4))
def test_smooth_min_is_below_both_by_at_most_a_quarter(a: float, b: float, blend: float) -> None:
    value = float(smooth_min(np.float32(a), np.float32(b), blend))
    assert min(a, b) - blend / 4 - 1e-4 <= value <= min(a, b) + 1e-4


def test_curve_passes_through_its_points() -> None:
    points = np.array([[0.0, 0, 0], [1, 2, 0], [4, 1, 3], [5, 5, 5]])
    assert np.allclose(curve(points, 4), points, atol=1e-6)


def test_union_and_zoom_agree_with_direct_evaluation() -> None:
    grid = Grid.axis_aligned((0, 0, 0), (40, 40, 40), 1.0)
    part = Ball(np.eye(4), (9.0, 9.0, 9.0))
    lattice = Lattice.over(grid, 2.0)
    field = union([part], lattice)
    assert isinstance(field, Field)
    block = (slice(5, 30), slice(0, 40), slice(10, 35))
    zoom = Zoom(lattice, grid)
    span = zoom.span(block)
    cut = zoom.cut(field, span)
    assert cut is not None
    direct = np.minimum(part.distance(coordinates(grid)), FAR)[block]
    near = np.abs(direct) < 3
    assert np.abs(zoom.up(cut, span, block) - direct)[near].max() < 0.3


def test_textures_are_fixed_in_the_world() -> None:
    texture = Texture.random(np.random.default_rng(0), 4.0, 16)
    grid = Grid.axis_aligned((3, 1, 2), (24, 20, 22), 1.0)
    values = texture.at(coordinates(grid))
    assert abs(float(values.std()) - 1) < 0.4
    part = grid.sub((slice(3, 9), slice(2, 12), slice(4, 5)))
    assert np.allclose(texture.at(coordinates(part)), values[3:9, 2:12, 4:5], atol=1e-4)
    scattered = texture.at(tuple(np.ascontiguousarray(grid.points()[..., a]) for a in range(3)))  # type: ignore[arg-type]
    assert np.allclose(scattered, values, atol=1e-3)


@pytest.mark.parametrize("seed", [104, 7, 11])
def test_bone_lies_under_the_skin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    person = build_spine(sample_anatomy(rng), shape_spacing=5.0)
    # Below the jaw, where the only air at -1000 HU next to bone is the room.
    floor = float(person.head[2, 3]) - 80
    grid = Grid.axis_aligned((0, 0, floor - 60), (420, 260, 120), 3.0)
    painted = build_surroundings(person, rng).paint(grid)
    bone = painted.bone_sdf < -0.5
    assert bone.sum() > 500
    assert np.mean(painted.soft_hu[bone] < -990) < 0.006
