"""Solids placed in the world, for organs: balls, rods, flattened tubes that follow the spine, boxes.

Unlike ``shapes``, which draws vertebrae in their own frame, these take coordinates as three broadcastable arrays
(see ``textures.coordinates``), so that a large field costs little, and know the world box in which they lie.
Distances are first-order approximations in mm, negative inside (I. Quilez, "Distance functions").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cspine.phantoms.textures import Coordinates, Float

Vector = NDArray[np.float64]


class Part(Protocol):
    """A solid in the world."""

    @property
    def box(self) -> tuple[Vector, Vector]:
        """Lower and upper corner (x, y, z) mm of a box that holds it."""
        ...

    def distance(self, where: Coordinates) -> Float:
        """Signed distance in mm, broadcastable to ``[z, y, x]``."""
        ...


@dataclass(frozen=True, slots=True)
class Ball:
    """An ellipsoid in the frame ``pose`` (4x4, local → world), with half axes ``radii`` mm."""

    pose: NDArray[np.float64]
    radii: tuple[float, float, float]

    @property
    def box(self) -> tuple[Vector, Vector]:
        """World box."""
        reach = np.sqrt(((self.pose[:3, :3] * np.asarray(self.radii)) ** 2).sum(axis=1))
        return self.pose[:3, 3] - reach, self.pose[:3, 3] + reach

    def distance(self, where: Coordinates) -> Float:
        """Signed distance, mm."""
        squares = [(local / np.float32(r)) ** 2 for local, r in zip(_local(self.pose, where), self.radii, strict=True)]
        inverse = [np.float32(1 / (r * r)) for r in self.radii]
        k0 = np.sqrt(squares[0] + squares[1] + squares[2])
        k1 = np.sqrt(squares[0] * inverse[0] + squares[1] * inverse[1] + squares[2] * inverse[2])
        return np.asarray(k0 * (k0 - 1) / np.maximum(k1, np.float32(1e-4)), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Block:
    """A box with rounded edges in the frame ``pose``; ``half`` sizes include the rounding."""

    pose: NDArray[np.float64]
    half: tuple[float, float, float]
    rounding: float = 2.0

    @property
    def box(self) -> tuple[Vector, Vector]:
        """World box."""
        reach = np.abs(self.pose[:3, :3]) @ np.asarray(self.half)
        return self.pose[:3, 3] - reach, self.pose[:3, 3] + reach

    def distance(self, where: Coordinates) -> Float:
        """Signed distance, mm."""
        r = np.float32(self.rounding)
        q = [
            np.abs(v) - np.float32(h - self.rounding) for v, h in zip(_local(self.pose, where), self.half, strict=True)
        ]
        beyond = [np.maximum(v, 0) ** 2 for v in q]
        inside = np.minimum(np.maximum(np.maximum(q[0], q[1]), q[2]), 0)
        return np.asarray(np.sqrt(beyond[0] + beyond[1] + beyond[2]) + inside - r, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Rod:
    """A rod from ``a`` to ``b`` (world mm) with radii ``ra`` and ``rb``.

    ``flat`` above 1 squeezes it along ``normal``, below 1 stretches it.
    """

    a: Vector
    b: Vector
    ra: float
    rb: float
    flat: float = 1.0
    normal: tuple[float, float, float] = (0.0, 0.0, 1.0)

    @property
    def box(self) -> tuple[Vector, Vector]:
        """World box."""
        reach = max(self.ra, self.rb) / min(self.flat, 1.0)
        return np.minimum(self.a, self.b) - reach, np.maximum(self.a, self.b) + reach

    def distance(self, where: Coordinates) -> Float:
        """Signed distance, mm."""
        axis = np.asarray(self.b - self.a, dtype=np.float64)
        length2 = max(float(axis @ axis), 1e-6)
        q = [w - np.float32(c) for w, c in zip(where, self.a, strict=True)]
        t = np.clip(sum(v * np.float32(c / length2) for v, c in zip(q, axis, strict=True)), 0, 1)
        q = [v - t * np.float32(c) for v, c in zip(q, axis, strict=True)]
        if self.flat != 1.0:
            across = sum(v * np.float32(n) for v, n in zip(q, self.normal, strict=True))
            off = np.float32(self.flat**2 - 1) * across * across
        else:
            off = np.float32(0)
        d = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2 + off) - (np.float32(self.ra) + t * np.float32(self.rb - self.ra))
        # A squeezed rod's distance grows faster across it; halve the excess so that edges stay as sharp as elsewhere.
        return np.asarray(
            d if self.flat <= 1 else np.minimum(d, d * np.float32(0.5 + 0.5 / self.flat)), dtype=np.float32
        )


@dataclass(frozen=True)
class Tube:
    """A body whose axial section is an ellipse that changes with height: muscles, airway, the trunk.

    Nodes are ordered by rising ``z``. Angles in radians turn the section about z; ``bend`` (1/mm) curves it to a
    crescent towards +y of its own frame; ``power`` above 2 makes it boxier. ``flat_ends`` cuts at the end nodes.
    """

    z: Vector
    x: Vector
    y: Vector
    rx: Vector
    ry: Vector
    angle: Vector = field(default_factory=lambda: np.zeros(1))
    bend: Vector = field(default_factory=lambda: np.zeros(1))
    power: float = 2.0

    @property
    def box(self) -> tuple[Vector, Vector]:
        """World box."""
        reach = np.maximum(self.rx, self.ry) + np.abs(self.bend) * self.rx**2
        low = np.array([(self.x - reach).min(), (self.y - reach).min(), self.z[0]])
        return low, np.array([(self.x + reach).max(), (self.y + reach).max(), self.z[-1]])

    def _at(self, z: Float, values: Vector) -> Float:
        if values.size == 1:
            return np.asarray(values, dtype=np.float32).reshape(1, 1, 1)
        return np.interp(z, self.z, values).astype(np.float32)

    def distance(self, where: Coordinates) -> Float:
        """Signed distance, mm."""
        x, y, z = where
        u, v = x - self._at(z, self.x), y - self._at(z, self.y)
        rx, ry = self._at(z, self.rx), self._at(z, self.ry)
        if np.any(self.angle):
            angle = self._at(z, self.angle)
            c, s = np.cos(angle), np.sin(angle)
            u, v = c * u + s * v, c * v - s * u
        if np.any(self.bend):
            v = v - self._at(z, self.bend) * np.minimum(u * u, (1.3 * rx) ** 2)
        if self.power == 2.0:
            a, b = (u / rx) ** 2, (v / ry) ** 2
            k0 = np.sqrt(a + b)
            d = k0 * (k0 - 1) / np.maximum(np.sqrt(a / (rx * rx) + b / (ry * ry)), np.float32(1e-4))
        else:
            p = np.float32(self.power)
            k0 = (np.abs(u / rx) ** p + np.abs(v / ry) ** p) ** (1 / p)
            d = (k0 - 1) * np.minimum(rx, ry)
        beyond = np.maximum(np.float32(self.z[0]) - z, z - np.float32(self.z[-1]))
        return np.asarray(np.maximum(d, beyond), dtype=np.float32)


def rods(
    points: ArrayLike,
    radii: ArrayLike,
    *,
    flat: float = 1.0,
    normal: tuple[float, float, float] = (0.0, 0.0, 1.0),
) -> list[Rod]:
    """A chain of rods through ``points`` (n, 3): vessels, ribs, clavicles."""
    p = np.asarray(points, dtype=np.float64)
    r = np.broadcast_to(np.asarray(radii, dtype=np.float64), len(p))
    return [Rod(p[i], p[i + 1], float(r[i]), float(r[i + 1]), flat, normal) for i in range(len(p) - 1)]


def curve(points: ArrayLike, count: int) -> Vector:
    """``count`` points of the Catmull-Rom spline through ``points`` (n, 3), ends included."""
    p = np.asarray(points, dtype=np.float64)
    p = np.vstack([2 * p[0] - p[1], p, 2 * p[-1] - p[-2]])
    place = np.linspace(0, len(p) - 3 - 1e-9, count)
    i = place.astype(int)
    t = (place - i)[:, None]
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    return np.asarray(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))


def frame_at(
    pose: NDArray[np.float64], center: ArrayLike, rotation_deg: ArrayLike = (0.0, 0.0, 0.0)
) -> NDArray[np.float64]:
    """A frame at ``center`` of the frame ``pose``, turned about its x, y and z axes in that order (degrees)."""
    rx, ry, rz = np.radians(np.asarray(rotation_deg, dtype=np.float64))
    about_x = np.array([[1, 0, 0], [0, np.cos(rx), -np.sin(rx)], [0, np.sin(rx), np.cos(rx)]])
    about_y = np.array([[np.cos(ry), 0, np.sin(ry)], [0, 1, 0], [-np.sin(ry), 0, np.cos(ry)]])
    about_z = np.array([[np.cos(rz), -np.sin(rz), 0], [np.sin(rz), np.cos(rz), 0], [0, 0, 1]])
    out = np.eye(4)
    out[:3, :3] = pose[:3, :3] @ about_z @ about_y @ about_x
    out[:3, 3] = pose[:3, :3] @ np.asarray(center, dtype=np.float64) + pose[:3, 3]
    return out


def smooth_min(first: Float, second: Float, blend: float) -> Float:
    """Union of two distances, its seam filleted over about ``blend`` mm."""
    if blend <= 0:
        return np.asarray(np.minimum(first, second))
    h = np.maximum(np.float32(blend) - np.abs(first - second), 0)
    return np.asarray(np.minimum(first, second) - h * h * np.float32(0.25 / blend), dtype=np.float32)


def _local(pose: NDArray[np.float64], where: Coordinates) -> list[Float]:
    """Coordinates in the frame ``pose``; axes that stay parallel to the world's keep their small arrays."""
    out = []
    for axis in range(3):
        total: Float | None = None
        for row in range(3):
            weight = pose[row, axis]
            if abs(weight) > 1e-6:
                term = (where[row] - np.float32(pose[row, 3])) * np.float32(weight)
                total = term if total is None else total + term
        out.append(np.zeros((1, 1, 1), dtype=np.float32) if total is None else total)
    return out
