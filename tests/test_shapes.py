"""Signed distances are right where it is easy to know them, and shapes can be sampled anywhere."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cspine.phantoms.shapes import (
    Shape,
    ShapeBuilder,
    capsule,
    ellipsoid,
    rounded_box,
    slab,
    smooth_subtract,
    smooth_union,
    sphere,
    torus,
)

coordinate = st.floats(-20, 20, width=32)
point = st.tuples(coordinate, coordinate, coordinate).map(lambda p: np.array(p, dtype=np.float32))


@given(point)
def test_round_things_agree_with_the_sphere(p: np.ndarray) -> None:
    expected = float(np.linalg.norm(p)) - 5
    assert abs(float(sphere(p, (0, 0, 0), 5)) - expected) < 1e-3
    assert abs(float(capsule(p, (0, 0, 0), (0, 0, 0), 5)) - expected) < 1e-2
    assert abs(float(rounded_box(p, (0, 0, 0), (5, 5, 5), 5)) - expected) < 1e-2


@given(point)
def test_inside_and_outside_of_an_ellipsoid(p: np.ndarray) -> None:
    inside = (p[0] / 3) ** 2 + (p[1] / 4) ** 2 + (p[2] / 6) ** 2
    if abs(inside - 1) > 1e-3:
        assert (float(ellipsoid(p, (0, 0, 0), (3, 4, 6))) < 0) == (inside < 1)


def test_a_slab_is_tall_along_up_and_thin_across() -> None:
    points = np.array([[5, 0, 2.9], [5, 0, 3.1], [5, 0.9, 0], [5, 1.1, 0], [-2, 0, 0]], dtype=np.float32)
    inside = slab(points, (0, 0, 0), (10, 0, 0), (3, 1), (3, 1), (0, 0, 1)) < 0
    assert inside.tolist() == [True, False, True, False, False]


def test_a_torus_has_a_hole() -> None:
    points = np.array([[0, 0, 0], [10, 0, 0], [0, 6, 0], [0, 8, 0]], dtype=np.float32)
    assert (torus(points, (0, 0, 0), (10, 6), 1.5) < 0).tolist() == [False, True, True, False]


@given(st.floats(-5, 5, width=32), st.floats(-5, 5, width=32), st.floats(0.1, 3))
def test_smooth_union_adds_and_never_takes_away(a: float, b: float, blend: float) -> None:
    first, second = np.array([a], np.float32), np.array([b], np.float32)
    joined = float(smooth_union(first, second, blend)[0])
    assert min(a, b) - blend / 4 - 1e-5 <= joined <= min(a, b) + 1e-5
    assert float(smooth_subtract(first, second, blend)[0]) >= max(a, -b) - 1e-5


def ball() -> Shape:
    builder = ShapeBuilder((-8, -8, -8), (8, 8, 8), 0.5)
    where, points = builder.box((-5, -5, -5), (5, 5, 5))
    builder.unite(where, sphere(points, (0, 0, 0), 5), 0)
    return builder.shape()


@given(point)
def test_a_sampled_ball_is_a_ball(p: np.ndarray) -> None:
    shape, expected = ball(), float(np.linalg.norm(p)) - 5
    value = float(shape.sample(p[None])[0])
    if abs(expected) > 0.2:
        assert (value < 0) == (expected < 0)
    if -4 < expected < 2:
        assert abs(value - expected) < 0.15
