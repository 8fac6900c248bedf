"""A scene is a function of place: any grid shows the same patient, with truth that fits what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from cspine.anatomy import OTHER_BONE, THORACIC
from cspine.phantoms.fractures import plan_fracture
from cspine.phantoms.grid import Grid
from cspine.phantoms.scene import Ideal, Scene, make_scene

COARSE = 1.2


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(11, fractures="none", shape_spacing=COARSE)


@pytest.fixture(scope="module")
def neck() -> Grid:
    return Grid.axis_aligned((0, 10, -5), (130, 120, 210), 2.0)


@pytest.fixture(scope="module")
def drawn(scene: Scene, neck: Grid) -> Ideal:
    return scene.render(neck)


def test_same_seed_same_bytes(neck: Grid) -> None:
    small = Grid.axis_aligned((0, 0, 0), (60, 60, 20), 2.0)
    first = make_scene(3, shape_spacing=COARSE).render(small)
    second = make_scene(3, shape_spacing=COARSE).render(small)
    assert np.array_equal(first.hu, second.hu) and np.array_equal(first.labels, second.labels)


def test_every_kind_of_bone_is_there(drawn: Ideal) -> None:
    assert set(range(1, 8)) <= set(np.unique(drawn.labels).tolist())
    assert {THORACIC, OTHER_BONE} <= set(np.unique(drawn.labels).tolist())


def test_bone_is_denser_than_what_surrounds_it(drawn: Ideal) -> None:
    vertebra = (drawn.labels >= 1) & (drawn.labels <= THORACIC)
    assert np.median(drawn.hu[vertebra]) > 200
    assert drawn.hu.min() >= -1100 and drawn.hu.max() < 3500


def test_labels_sit_on_their_poses(scene: Scene, neck: Grid, drawn: Ideal) -> None:
    for level in range(3, 8):
        index = np.linalg.solve(neck.affine, np.append(scene.spine.poses[level][:3, 3], 1))[:3]
        x, y, z = np.round(index).astype(int)
        around = drawn.labels[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2]
        assert np.bincount(around.ravel(), minlength=10).argmax() == level


def test_grids_agree_about_a_place(scene: Scene) -> None:
    fine = Grid.axis_aligned((0, 0, 0), (40, 40, 24), 1.0)
    box = (slice(4, 20), slice(6, 30), slice(10, 36))
    whole, part = scene.render(fine), scene.render(fine.sub(box))
    assert np.array_equal(whole.labels[box], part.labels)
    assert np.abs(whole.hu[box] - part.hu).mean() < 8


def test_without_fractures_nothing_is_marked(drawn: Ideal) -> None:
    assert not drawn.fracture.any()


def test_a_fracture_is_marked_where_it_is(scene: Scene) -> None:
    spine = scene.spine
    broken = plan_fracture(np.random.default_rng(1), 5, spine.landmarks[5], type="lamina", severity=0.8, side="left")
    hurt = make_scene(11, fractures=(broken,), shape_spacing=COARSE)
    pose = spine.poses[5]
    lamina = pose[:3, :3] @ spine.landmarks[5]["lamina_left"] + pose[:3, 3]
    grid = Grid.axis_aligned(pose[:3, 3], (110, 110, 60), 0.8)
    marked = np.argwhere(hurt.render(grid).fracture)[:, ::-1]
    assert len(marked) > 20
    world = marked @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    distance = np.linalg.norm(world - lamina, axis=1)
    assert distance.min() < 4
    assert distance.max() < 60


def test_an_old_fracture_is_not_marked() -> None:
    whole = make_scene(11, fractures="none", shape_spacing=COARSE)
    old = plan_fracture(
        np.random.default_rng(1), 6, whole.spine.landmarks[6], type="spinous-process", severity=0.6, chronic=True
    )
    scene = make_scene(11, fractures=(old,), shape_spacing=COARSE)
    grid = Grid.axis_aligned(whole.spine.poses[6][:3, 3] + (0, 20, -8), (60, 90, 60), 1.0)
    assert not scene.render(grid).fracture.any()
