"""Solid shapes as signed distances: millimetres, negative inside.

Primitives take points ``(..., 3)`` in ``(x, y, z)`` mm and return distances ``(...)``. They are exact near the
surface and at least monotonic away from it, which is what drawing cortex and partial volume needs. Formulas:
I. Quilez, "Distance functions" (public article), and J. C. Hart, "Sphere tracing", 1996.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float32]


def _f32(value: ArrayLike) -> Float:
    return np.asarray(value, dtype=np.float32)


def sphere(points: Float, center: ArrayLike, radius: float) -> Float:
    """Distance to a ball."""
    return _f32(np.linalg.norm(points - _f32(center), axis=-1) - np.float32(radius))


def ellipsoid(points: Float, center: ArrayLike, radii: ArrayLike) -> Float:
    """Approximate distance to an ellipsoid with half axes ``radii`` along x, y, z."""
    r = _f32(radii)
    q = points - _f32(center)
    k0 = np.linalg.norm(q / r, axis=-1)
    k1 = np.linalg.norm(q / (r * r), axis=-1)
    return _f32(np.where(k0 > 1e-3, k0 * (k0 - 1) / np.maximum(k1, 1e-6), -r.min()))


def capsule(points: Float, a: ArrayLike, b: ArrayLike, ra: float, rb: float | None = None) -> Float:
    """Distance to a rod from ``a`` to ``b`` whose radius goes linearly from ``ra`` to ``rb``."""
    start, axis = _f32(a), _f32(b) - _f32(a)
    length2 = np.float32(max(float(axis @ axis), 1e-6))
    q = points - start
    t = np.clip((q @ axis) / length2, 0, 1)
    q = q - t[..., None] * axis
    radius = np.float32(ra) + t * np.float32((ra if rb is None else rb) - ra)
    return _f32(np.sqrt(np.einsum("...i,...i->...", q, q)) - radius)


def slab(
    points: Float, a: ArrayLike, b: ArrayLike, radii_a: Sequence[float], radii_b: Sequence[float], up: ArrayLike
) -> Float:
    """A rod with an elliptic section: half widths along ``up`` and across it, changing from ``a`` to ``b``.

    ``radii_*`` are (half height along ``up``, half thickness across). Used for laminae and processes, which are flat.
    """
    start, axis = _f32(a), _f32(b) - _f32(a)
    length = np.float32(max(float(np.linalg.norm(axis)), 1e-3))
    along = axis / length
    tall = _f32(up) - along * np.float32(_f32(up) @ along)
    tall = tall / max(float(np.linalg.norm(tall)), 1e-6)
    across = np.cross(along, tall).astype(np.float32)
    q = points - start
    s = q @ along
    t = np.clip(s / length, 0, 1)
    h = np.float32(radii_a[0]) + t * np.float32(radii_b[0] - radii_a[0])
    w = np.float32(radii_a[1]) + t * np.float32(radii_b[1] - radii_a[1])
    beyond = s - t * length
    u, v = (q @ tall) / h, (q @ across) / w
    e = beyond / np.minimum(h, w)
    k = np.sqrt(u * u + v * v + e * e)
    # First-order distance: implicit value over the length of its gradient.
    g = np.sqrt((u / h) ** 2 + (v / w) ** 2 + (e / np.minimum(h, w)) ** 2)
    return _f32(np.where(k > 1e-3, k * (k - 1) / np.maximum(g, 1e-6), -np.minimum(h, w)))


def rounded_box(points: Float, center: ArrayLike, half: ArrayLike, radius: float) -> Float:
    """A box with half sizes ``half`` (rounding included) and edges rounded by ``radius``."""
    q = np.abs(points - _f32(center)) - (_f32(half) - np.float32(radius))
    outside = np.linalg.norm(np.maximum(q, 0), axis=-1)
    inside = np.minimum(q.max(axis=-1), 0)
    return _f32(outside + inside - np.float32(radius))


def torus(points: Float, center: ArrayLike, radii: Sequence[float], tube: float) -> Float:
    """A ring in the x-y plane with half axes ``radii`` (x, y) and a round tube."""
    q = points - _f32(center)
    scale = _f32([1.0 / radii[0], 1.0 / radii[1]])
    flat = q[..., :2] * scale
    k = np.linalg.norm(flat, axis=-1)
    g = np.linalg.norm(flat * scale, axis=-1)
    ring = np.where(k > 1e-3, k * (k - 1) / np.maximum(g, 1e-6), -min(radii))
    return _f32(np.hypot(ring, q[..., 2]) - np.float32(tube))


def smooth_union(first: Float, second: Float, blend: float) -> Float:
    """Union whose seam is filleted over about ``blend`` mm (polynomial smooth minimum)."""
    if blend <= 0:
        return np.minimum(first, second)
    h = np.maximum(np.float32(blend) - np.abs(first - second), 0) / np.float32(blend)
    return _f32(np.minimum(first, second) - h * h * np.float32(blend / 4))


def smooth_subtract(solid: Float, hole: Float, blend: float) -> Float:
    """``solid`` without ``hole``, the new edge rounded over ``blend`` mm."""
    return -smooth_union(-solid, hole, blend)


@dataclass(frozen=True, slots=True)
class Shape:
    """A solid sampled on a lattice in its own frame.

    Attributes:
        values: float32 ``[z, y, x]`` signed distance in mm.
        origin: ``(x, y, z)`` mm of voxel 0.
        spacing: mm between lattice points.
    """

    values: Float
    origin: Float
    spacing: float

    @property
    def low(self) -> Float:
        """Lower corner, mm."""
        return self.origin

    @property
    def high(self) -> Float:
        """Upper corner, mm."""
        return _f32(self.origin + (np.asarray(self.values.shape[::-1]) - 1) * self.spacing)

    def sample(self, points: Float) -> Float:
        """Signed distance at ``points`` ``(..., 3)`` local mm; beyond the lattice the distance to it is added."""
        from scipy.ndimage import map_coordinates

        index = (points - self.origin) / np.float32(self.spacing)
        limit = _f32(np.asarray(self.values.shape[::-1]) - 1)
        inside = np.clip(index, 0, limit)
        flat = inside.reshape(-1, 3).T[::-1]
        value = map_coordinates(self.values, flat, order=1, output=np.float32, mode="nearest", prefilter=False)
        if not np.array_equal(inside, index):
            excess = np.linalg.norm(index - inside, axis=-1) * np.float32(self.spacing)
            value = value + excess.reshape(-1)
        return _f32(value.reshape(points.shape[:-1]))


class ShapeBuilder:
    """Collects primitives on one lattice; each is evaluated only in the box where it can matter."""

    def __init__(self, low: ArrayLike, high: ArrayLike, spacing: float, *, far: float = 12.0) -> None:
        """Start empty: ``low`` and ``high`` are the corners in mm, ``far`` the distance that empty space gets."""
        self._origin = _f32(low)
        self._spacing = float(spacing)
        count = np.ceil((_f32(high) - self._origin) / spacing).astype(int) + 1
        self._axes = [self._origin[a] + np.arange(count[a], dtype=np.float32) * np.float32(spacing) for a in range(3)]
        self.values: Float = np.full((count[2], count[1], count[0]), far, dtype=np.float32)

    @property
    def spacing(self) -> float:
        """Millimetres between lattice points."""
        return self._spacing

    def box(self, low: ArrayLike, high: ArrayLike, margin: float = 4.0) -> tuple[tuple[slice, slice, slice], Float]:
        """Index ranges and points ``(z, y, x, 3)`` of the lattice within ``margin`` mm of the given box."""
        lo, hi = _f32(low) - margin, _f32(high) + margin
        ranges = []
        for a in range(3):
            first = int(np.searchsorted(self._axes[a], lo[a]))
            last = int(np.searchsorted(self._axes[a], hi[a]))
            ranges.append(slice(first, max(last, first)))
        x, y, z = (self._axes[a][ranges[a]] for a in range(3))
        points = np.empty((len(z), len(y), len(x), 3), dtype=np.float32)
        points[..., 0] = x
        points[..., 1] = y[:, None]
        points[..., 2] = z[:, None, None]
        return (ranges[2], ranges[1], ranges[0]), points

    def unite(self, where: tuple[slice, slice, slice], distance: Float, blend: float) -> None:
        """Add a solid given by its distances in the box ``where``."""
        if distance.size:
            self.values[where] = smooth_union(self.values[where], distance, blend)

    def remove(self, where: tuple[slice, slice, slice], distance: Float, blend: float) -> None:
        """Cut a solid away."""
        if distance.size:
            self.values[where] = smooth_subtract(self.values[where], distance, blend)

    def shape(self) -> Shape:
        """The finished shape."""
        return Shape(self.values, self._origin, self._spacing)
