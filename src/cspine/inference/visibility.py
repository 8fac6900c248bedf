"""How much of a vertebra the field of view holds.

A vertebra is taken to fill a box: from ``-below`` to ``+above`` mm of its body centre along the spine (``REACH_MM``),
30 mm to either side, and from 12 mm in front of the centre to 45 mm behind it, where it sinks as posterior elements
do (``SINK``).

    visible_fraction = share of that box inside the field of view,

Points of its core (the body and the canal, where there is always tissue) that lie in air count as outside: scans are
padded where nothing was reconstructed, beyond a round field, or after a tilt was straightened. But when the core is
tissue and the vertebra's mask is clear of all faces of the field the vertebra is whole whatever its size, and the
fraction is 1. The reach is a mean over adults (Gilad and Nissan, Spine 1986; Panjabi et al., Spine 1991), so the
value is good to about 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

# Reach along the spine, mm above and below the body centre, by label; thoracic as label 8.
REACH_MM = {1: (9, 9), 2: (18, 9), 3: (9, 9), 4: (9, 9), 5: (9, 9), 6: (9, 9), 7: (9, 10), 8: (10, 11)}
# Posterior elements sink by this much a millimetre, from this far behind the body centre on; C1 is level.
SINK, SINK_FROM_MM, SINK_TO_MM = 0.25, 8.0, 53.0
SIDE_MM = 30.0
FRONT_MM, BACK_MM = 12.0, 45.0
# The core, mm: to either side, in front and behind.
CORE_SIDE_MM, CORE_FRONT_MM, CORE_BACK_MM = 12.0, 5.0, 25.0
# A mask with fewer voxels than this says nothing about being whole.
MIN_MASK_VOXELS = 150
# A level whose centre is outside the field is less than half visible, by the rule of what may be judged.
CENTRE_OUTSIDE_MAX = 0.49
# A centre nearer than this to the field's end may be the rim of one outside.
EDGE_MM = 2.5


@dataclass(frozen=True, slots=True)
class Field:
    """The scanned box, and where in it nothing was scanned.

    Attributes:
        affine: index ``(x, y, z)`` → LPS mm.
        shape: ``(z, y, x)``.
        void: bool ``[Z, Y, X]`` on a grid around the body, True without tissue; None when unknown.
        void_affine: affine of ``void``.
    """

    affine: Float
    shape: tuple[int, int, int]
    void: NDArray[np.bool_] | None = None
    void_affine: Float | None = None

    def in_void(self, points: Float) -> NDArray[np.bool_]:
        """``(n,)``: which LPS points ``(n, 3)`` lie in air or padding; so does what the grid leaves out."""
        if self.void is None or self.void_affine is None:
            return np.zeros(len(points), dtype=bool)
        inverse = np.linalg.inv(self.void_affine)
        index = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)[:, ::-1]
        known = ((index >= 0) & (index < self.void.shape)).all(axis=1)
        z, y, x = np.where(known[:, None], index, 0).T
        return np.asarray(~known | self.void[z, y, x])

    def depth_mm(self, points: Float) -> Float:
        """``(n, 6)``: distance of LPS points ``(n, 3)`` to the outer faces -x, +x, -y, +y, -z, +z; positive inside."""
        inverse = np.linalg.inv(self.affine)
        index = points @ inverse[:3, :3].T + inverse[:3, 3]
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        size = np.array(self.shape[::-1])
        low = (index + 0.5) * spacing
        high = (size - 0.5 - index) * spacing
        return np.asarray(np.stack([low, high], axis=-1).reshape(len(points), 6))


def distance_to_ends(points: Float, view: Field) -> tuple[Float, Float]:
    """Millimetres of field above (towards the head) and below each LPS point."""
    depth = view.depth_mm(points)
    return depth[:, 5], depth[:, 4]


def centre_inside(centre: Float, view: Field) -> bool:
    """Whether a body centre (LPS mm) lies clearly inside what was scanned; see ``EDGE_MM``."""
    near = centre + np.array([[0, 0, -EDGE_MM], [0, 0, 0], [0, 0, EDGE_MM]])
    return bool(view.depth_mm(near).min() > 0 and not view.in_void(near).any())


def visible_fraction(
    label: int, positions: Float, order: int, labels: NDArray[np.uint8], affine: Float, view: Field
) -> float:
    """Fraction of the vertebra ``order`` of a chain inside the field; formula in the module's docstring.

    Args:
        label: 1..7 cervical, 8 and up thoracic.
        positions: ``(n, 3)`` LPS mm, head to chest.
        order: which of them.
        labels: uint8 mask on the locator's grid; ``affine`` is its geometry.
        affine: index → LPS mm.
        view: field of view.
    """
    upper, lower = positions[max(order - 1, 0)], positions[min(order + 1, len(positions) - 1)]
    points, core = _box_points(label, positions[order], upper - lower, view)
    if label < 8 and not view.in_void(points[core]).any() and _mask_is_whole(labels == label, affine, view):
        return 1.0
    return geometric_fraction(label, positions[order], upper - lower, view)


def _mask_is_whole(mask: NDArray[np.bool_], affine: Float, view: Field) -> bool:
    """True when the mask is big enough to trust and none of its voxels is next to a face of the field."""
    voxels = np.argwhere(mask)[:, ::-1]
    if len(voxels) < MIN_MASK_VOXELS:
        return False
    depth = view.depth_mm(voxels @ affine[:3, :3].T + affine[:3, 3])
    return bool(depth.min() > 1.5 * np.linalg.norm(affine[:3, :3], axis=0).max())


def _box_points(label: int, centre: Float, along: Float, view: Field) -> tuple[Float, NDArray[np.bool_]]:
    """LPS points ``(n, 3)`` that fill the vertebra's assumed reach, and which of them are its core."""
    above, below = REACH_MM[min(label, 8)]
    up = along / np.linalg.norm(along) if np.linalg.norm(along) > 0 else np.array([0.0, 0.0, 1.0])
    axes = view.affine[:3, :3] / np.linalg.norm(view.affine[:3, :3], axis=0)
    back = axes[:, 1] - up * (axes[:, 1] @ up)
    back /= max(float(np.linalg.norm(back)), 1e-6)
    left = np.cross(back, up)
    spans = (np.linspace(-below, above, 23), np.linspace(-FRONT_MM, BACK_MM, 20), np.linspace(-SIDE_MM, SIDE_MM, 11))
    grid = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 3)
    behind, side = grid[:, 1], np.abs(grid[:, 2])
    core = (behind > -CORE_FRONT_MM) & (behind < CORE_BACK_MM) & (side < CORE_SIDE_MM)
    if label > 1:
        grid[:, 0] -= SINK * np.clip(behind - SINK_FROM_MM, 0, SINK_TO_MM - SINK_FROM_MM)
    return centre + grid @ np.stack([up, back, left]), core


def geometric_fraction(label: int, centre: Float, along: Float, view: Field) -> float:
    """Share of the vertebra's assumed reach inside the field, 0..1; ``along`` points up the spine."""
    points, core = _box_points(label, centre, along, view)
    inside = view.depth_mm(points).min(axis=1) > 0
    # The core stands for its slice: where it is void, nothing of the vertebra was scanned at that height.
    full = inside[core] & ~view.in_void(points[core])
    return min(float(inside.mean()), float(full.mean()))


def assumed_fraction(label: int, centre: Float, along: Float, view: Field) -> float:
    """As ``geometric_fraction`` for a level that was not found; below one half by definition."""
    return min(CENTRE_OUTSIDE_MAX, geometric_fraction(label, centre, along, view))
