"""A drawn column has its vertebrae in order, apart, on their landmarks, and the same for the same person."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cspine.phantoms.spine import Anatomy, Spine, build_spine, sample_anatomy

SPACING = 1.2


def person(seed: int) -> Anatomy:
    return sample_anatomy(np.random.default_rng(seed))


@pytest.fixture(scope="module", params=[0, 1, 2])
def spine(request: pytest.FixtureRequest) -> Spine:
    return build_spine(person(request.param), SPACING)


def world(spine: Spine, level: int, name: str) -> np.ndarray:
    pose = spine.poses[level]
    return np.asarray(pose[:3, :3] @ spine.landmarks[level][name] + pose[:3, 3])


def distance(spine: Spine, level: int, point: np.ndarray) -> float:
    pose = spine.poses[level]
    local = (point - pose[:3, 3]) @ pose[:3, :3]
    return float(spine.shapes[level].sample(local[None].astype(np.float32))[0])


def test_same_person_same_bytes() -> None:
    first, second = build_spine(person(5), SPACING), build_spine(person(5), SPACING)
    assert all(np.array_equal(first.poses[k], second.poses[k]) for k in first.poses)
    assert all(np.array_equal(first.shapes[k].values, second.shapes[k].values) for k in first.shapes)


def test_people_differ() -> None:
    assert person(1) != person(2)
    assert not np.allclose(build_spine(person(1), SPACING).poses[1], build_spine(person(2), SPACING).poses[1])


def test_vertebrae_descend_at_human_distances(spine: Spine) -> None:
    centers = np.array([spine.poses[level][:3, 3] for level in sorted(spine.poses)])
    steps = np.linalg.norm(np.diff(centers, axis=0), axis=1)
    assert (np.diff(centers[:, 2]) < 0).all()
    assert 14 < steps[0] < 30, "C1 to C2"
    assert ((steps[1:6] > 10) & (steps[1:6] < 25)).all(), "C2 to C7"


@pytest.mark.parametrize("name", ["body_left", "lamina_right", "pillar_left", "spinous_base"])
def test_landmarks_lie_in_or_on_bone(spine: Spine, name: str) -> None:
    for level in range(3, 8):
        assert distance(spine, level, world(spine, level, name)) < 2.0, f"{name} of {level}"


def test_canal_and_foramina_are_open(spine: Spine) -> None:
    for level in range(1, 8):
        assert distance(spine, level, world(spine, level, "canal")) > 3.0
    for level in range(3, 7):
        assert distance(spine, level, world(spine, level, "foramen_left")) > 0.5


def test_the_dens_stands_behind_the_arch_of_c1(spine: Spine) -> None:
    dens, arch = world(spine, 2, "dens_tip"), world(spine, 1, "anterior_tubercle")
    assert arch[1] < dens[1] - 4
    middle = (world(spine, 2, "dens_base") + dens) / 2
    assert distance(spine, 2, middle) < 0
    assert distance(spine, 1, middle) > 0


def test_neighbours_do_not_swallow_each_other(spine: Spine) -> None:
    for level in range(2, 8):
        for neighbour in (level - 1, level + 1):
            if neighbour in spine.shapes:
                assert distance(spine, neighbour, spine.poses[level][:3, 3]) > 0


def test_left_is_left(spine: Spine) -> None:
    for level in range(1, 8):
        left, right = world(spine, level, "transverse_tip_left"), world(spine, level, "transverse_tip_right")
        assert left[0] - right[0] > 40


def test_head_rotation_turns_c1_on_c2() -> None:
    straight = replace(person(3), head_rotation_deg=0.0)
    turned = replace(straight, head_rotation_deg=30.0)
    a, b = build_spine(straight, SPACING), build_spine(turned, SPACING)
    between = [s.poses[2][:3, :3].T @ s.poses[1][:3, :3] for s in (a, b)]
    angle = np.degrees(np.arccos((np.trace(between[0].T @ between[1]) - 1) / 2))
    assert 15 < angle < 25


def test_fusion_bridges_the_disc() -> None:
    base = replace(person(4), fused=())
    fused = replace(base, fused=(5,))
    for anatomy, solid in ((base, False), (fused, True)):
        spine = build_spine(anatomy, SPACING)
        between = (world(spine, 5, "body_inferior") + world(spine, 6, "body_superior")) / 2
        assert (min(distance(spine, 5, between), distance(spine, 6, between)) < 0.3) == solid
