"""Muscles of the neck and shoulders, as tubes along the column in three groups.

Sections follow axial anatomy (Gray's Anatomy, 41st ed., ch. 29; numbers read off axial CT of average men). Muscles
that touch lie in different groups where possible: where two groups come equally near, a seam of fat is drawn, which
gives the fascial planes that a reader looks for. Nodes are (level, left, back, half width, half depth, angle, bend) as
in ``Column.tube``, for the left side; the right one is the mirror image.
"""

from __future__ import annotations

import numpy as np

from cspine.phantoms.column import Column
from cspine.phantoms.parts import Part

# Three groups; a seam of fat is drawn where the two nearest groups are equally far.
Groups = tuple[tuple[Part, ...], tuple[Part, ...], tuple[Part, ...]]
Nodes = tuple[tuple[float, ...], ...]

_MUSCLES: tuple[tuple[str, int, Nodes], ...] = (
    (
        "trapezius",
        0,
        (
            (-0.4, 9, 68, 8, 1.2, -18, -0.004),
            (0.8, 12, 65, 11, 1.8, -20, -0.004),
            (2, 16, 58, 15, 2.4, -22, -0.004),
            (4, 20, 54, 20, 3.0, -24, -0.004),
            (5.5, 26, 54, 27, 4.0, -24, -0.004),
            (7, 50, 51, 50, 7, -15, -0.002),
            (8, 74, 51, 72, 8.5, -10, -0.0008),
            (9.5, 70, 61, 66, 8.0, -8, -0.0008),
            (11, 46, 68, 44, 5.5, -5, 0),
            (14, 34, 68, 32, 5.0, 0, 0),
        ),
    ),
    (
        "splenius",
        1,
        (
            (-0.5, 51, 14, 7, 3, -60, 0),
            (0.4, 46, 27, 13, 3.5, -56, -0.01),
            (1, 41, 35, 17, 3.8, -50, -0.01),
            (2, 35, 38, 19, 4.2, -44, -0.01),
            (3.5, 28, 41, 20, 4.4, -38, -0.008),
            (5, 23, 45, 20, 4.6, -32, -0.008),
            (7, 16, 53, 14, 4.4, -24, -0.004),
            (9, 10, 60, 8, 3.5, -12, 0),
            (11, 5, 63, 4, 2, 0, 0),
        ),
    ),
    (
        "semispinalis capitis",
        0,
        (
            (-0.8, 17, 60, 13, 4, -10, 0),
            (0.3, 17, 56, 16, 7.5, -14, -0.004),
            (1.2, 16, 52, 15, 8, -16, -0.004),
            (2, 14, 45, 13, 7.8, -18, -0.004),
            (3.5, 13.5, 40, 12, 7.5, -24, -0.006),
            (5, 14, 38, 11, 7, -26, -0.008),
            (7, 17, 43, 11, 6.5, -24, -0.006),
            (9, 20, 47, 10, 6, -15, 0),
            (12, 20, 49, 8, 5, -10, 0),
        ),
    ),
    (
        "semispinalis cervicis",
        1,
        (
            (1.6, 8, 33, 5, 5, 0, 0),
            (2.4, 10, 31, 8, 7, -20, 0),
            (3.5, 11, 28, 9, 6.5, -25, 0),
            (5, 11.5, 27.5, 9.5, 6.5, -25, 0),
            (7, 13, 33, 10, 7, -20, 0),
            (9, 13, 37, 10, 8, -15, 0),
            (15, 13, 38, 10, 9, -10, 0),
        ),
    ),
    (
        "rectus capitis posterior",
        0,
        (
            (-0.6, 14, 44, 10, 4, -15, 0),
            (0.5, 13, 42, 10, 5.5, -20, 0),
            (1.2, 11, 39, 8, 5.5, -20, 0),
            (1.8, 8, 34, 4, 4, 0, 0),
        ),
    ),
    (
        "obliquus capitis",
        1,
        (
            (-0.2, 30, 33, 8, 5, -35, 0),
            (0.7, 31, 25, 8, 7, -35, 0),
            (1.3, 25, 25, 11, 6, -35, 0),
            (1.8, 15, 28, 9, 5, -20, 0),
        ),
    ),
    (
        "longissimus",
        2,
        (
            (-0.3, 44, 14, 4, 4, 0, 0),
            (1.5, 36, 20, 6, 4.5, -50, 0),
            (3.5, 29, 25, 7, 5, -45, 0),
            (5, 28, 25, 7, 5.5, -40, 0),
            (7, 31, 30, 9, 6, -35, 0),
            (9, 33, 34, 10, 9, -20, 0),
            (15, 34, 38, 13, 12, -10, 0),
        ),
    ),
    (
        "levator scapulae",
        2,
        (
            (1.0, 37, 9, 4, 4, 0, 0),
            (2.5, 41, 12, 5.5, 8, 0, 0),
            (4, 42, 16, 6, 10, 10, 0),
            (5.5, 44, 22, 7, 12, 20, 0),
            (7, 50, 31, 8, 12, 35, 0),
            (8.5, 60, 41, 9, 8, 40, 0),
            (9.5, 70, 47, 7, 5, 40, 0),
        ),
    ),
    (
        "scalenus medius",
        0,
        (
            (2.5, 31, 3, 4, 4, 0, 0),
            (4, 33, 5, 5.5, 7, 20, 0),
            (5.5, 35, 6, 7, 10, 25, 0),
            (7, 42, 6, 9, 12, 25, 0),
            (8.4, 48, 2, 9, 9, 0, 0),
        ),
    ),
    (
        "scalenus anterior",
        1,
        (
            (3.4, 26, -3, 3, 3, 0, 0),
            (5, 28, -9, 5, 5.5, 30, 0),
            (6.5, 33, -13, 6, 6.5, 30, 0),
            (8.3, 38, -24, 6, 6, 20, 0),
        ),
    ),
    (
        "longus colli",
        0,
        (
            (0.9, 5, -11, 4, 3, 0, 0),
            (2.5, 7, -12.5, 6, 3.6, 10, 0),
            (4, 10, -12, 7.5, 4.2, 20, 0),
            (6, 12, -11.5, 7, 4.2, 25, 0),
            (8, 10, -13, 6, 3.2, 25, 0),
            (10.5, 7, -14, 4, 2, 15, 0),
        ),
    ),
    (
        "longus capitis",
        2,
        (
            (-0.4, 8, -13, 6, 4, 0, 0),
            (1, 11, -15, 7, 5, 10, 0),
            (2.5, 15, -13, 6.5, 4.8, 20, 0),
            (4, 19, -9, 5, 3.6, 35, 0),
            (5.6, 22, -5, 2.5, 2, 30, 0),
        ),
    ),
    (
        "sternocleidomastoid",
        0,
        (
            (-0.1, 55, 12, 11, 5, 80, 0),
            (1.5, 55, 7, 13, 5.5, 76, -0.006),
            (3, 52, -1, 16, 6.2, 74, -0.008),
            (4.5, 47, -11, 17, 6.4, 68, -0.010),
            (6, 39, -24, 17, 6.2, 56, -0.010),
            (7.2, 32, -36, 17, 5.4, 35, -0.008),
            (8.3, 23, -46, 15, 4.6, 18, 0),
            (9.3, 16, -56, 7, 4, 10, 0),
        ),
    ),
    (
        "strap muscles",
        1,
        (
            (3.6, 9, -47, 8, 2.6, 20, 0),
            (5, 14, -48, 11, 2.6, 30, -0.01),
            (6.5, 14, -49, 12, 2.8, 24, -0.01),
            (8, 12, -53, 12, 2.8, 12, 0),
            (9.4, 12, -62, 9, 2.4, 5, 0),
        ),
    ),
    ("erector spinae", 1, ((9.5, 20, 41, 6, 5, 0, 0), (12, 22, 42, 12, 9, -8, 0), (16, 24, 44, 18, 12, -8, 0))),
    (
        "pectoralis",
        0,
        (
            (9.4, 80, -50, 34, 3, 20, 0),
            (10.2, 76, -64, 54, 8, 20, 0.002),
            (11.5, 74, -76, 62, 12, 18, 0.002),
            (13, 72, -86, 62, 12, 16, 0.002),
            (16, 68, -94, 58, 11, 14, 0.002),
        ),
    ),
    ("supraspinatus", 1, ((8.2, 100, 32, 20, 5, -16, 0), (9.0, 110, 34, 36, 12, -16, 0), (10, 112, 38, 32, 7, -16, 0))),
    (
        "infraspinatus",
        2,
        ((9.6, 116, 50, 26, 6, -28, 0), (10.6, 114, 54, 40, 11, -28, 0), (14, 104, 60, 38, 11, -28, 0)),
    ),
    (
        "subscapularis",
        1,
        ((9.2, 108, 14, 22, 6, -32, 0), (10.5, 106, 20, 42, 12, -34, 0), (14, 98, 34, 38, 11, -34, 0)),
    ),
    (
        "deltoid",
        2,
        (
            (8.4, 150, 16, 16, 18, -20, 0),
            (9.3, 176, 8, 22, 34, 0, 0),
            (10.2, 188, 4, 26, 42, 0, 0),
            (12, 198, 4, 24, 42, 0, 0),
            (16, 206, 8, 16, 36, 0, 0),
        ),
    ),
    (
        "arm",
        1,
        (
            (9.5, 150, -6, 12, 18, 0, 0),
            (10.4, 156, 0, 22, 34, 0, 0),
            (12, 170, 6, 26, 36, 0, 0),
            (16, 188, 10, 26, 34, 0, 0),
        ),
    ),
)

_OF_THE_SHOULDER = {"supraspinatus", "infraspinatus", "subscapularis", "deltoid", "arm"}


def build_muscles(column: Column, shoulders: Column, rng: np.random.Generator, *, bulk: float) -> Groups:
    """Every muscle, with small differences of size and place from person to person and side to side.

    Args:
        column: the spine's line.
        shoulders: the same, raised or lowered with the shoulders.
        rng: source of the variation.
        bulk: factor on sections, 1 = average man.
    """
    groups: tuple[list[Part], list[Part], list[Part]] = ([], [], [])
    for name, group, nodes in _MUSCLES:
        along = shoulders if name in _OF_THE_SHOULDER else column
        size = float(rng.normal(1.0, 0.07))
        for side in (1, -1):
            own = size * float(rng.normal(1.0, 0.04))
            shift = rng.normal(0, 0.7, 2)
            varied = [
                (n[0], n[1] + shift[0], n[2] + shift[1], n[3] * own, n[4] * own * float(rng.normal(1, 0.04)), *n[5:])
                for n in nodes
            ]
            groups[group].append(along.tube(varied, side=side, bulk=bulk))
    return tuple(groups[0]), tuple(groups[1]), tuple(groups[2])
