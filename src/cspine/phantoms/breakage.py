"""How bone breaks: rough surfaces, pieces that move, clefts between them, and what of it a CT would show.

Everything is point-wise in a vertebra's local frame (millimetres, +x left, +y posterior, +z superior): a break maps
points of the broken bone back to where that material lay in the unbroken one, and asks a sampler for the signed
distance there. So breaks work on any grid, and compose: the broken bone is again a bone to sample.

Numbers are kept as float32: a vertebra has millions of points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Values = NDArray[np.float32]
Vector = tuple[float, float, float]
SampleDistance = Callable[[Points], Values]

# A cleft is drawn this far (mm) to either side of its faces in the fracture truth.
REGION_MM = 1.0
# Outside its extent a cut is "closed" by this much (mm); deeper than any cervical bone is thick from its middle.
CLOSED_MM = -6.0
# Width (mm) over which `lucency` goes from bone to gap at a face.
SOFT_MM = 0.4
# How far (mm) from a surface its roughness is still worked out.
_RELIEF_MM = 5.0
# Closing half gap of the uncut part of an incomplete fracture.
_HINGE_MM = -2.0


@dataclass
class BrokenBone:
    """A bone at N points, after everything that happened to it.

    Attributes:
        sdf: float32 (N,), signed distance in mm to the bone as it is now, negative inside; cut faces included.
        depth: float32 (N,), signed distance to the surface of the unbroken bone where the material came from:
            cortex follows it, so fresh cut faces have none.
        lucency: float32 (N,), 0..1, weight of blood and oedema where bone is missing.
        density: float32 (N,), HU to add to bone (sclerosis, impaction).
        region: bool (N,), acute fracture, as a reader would outline it.
        source: float32 (N, 3), where the material now at each point lay in the unbroken bone, local mm; NaN where it
            is new (splinters, outgrowths). None when nobody asked (see ``changed``).
    """

    sdf: Values
    depth: Values
    lucency: Values
    density: Values
    region: NDArray[np.bool_]
    source: Points | None = None

    @classmethod
    def intact(cls, sdf: Values, source: Points | None = None) -> BrokenBone:
        """A whole bone with the given signed distance (N,), sampled at ``source`` (N, 3) when that is to be known."""
        zero = np.zeros_like(sdf)
        return cls(sdf, sdf.copy(), zero, zero.copy(), np.zeros(sdf.shape, dtype=bool), source)

    def take(self, index: NDArray[np.intp]) -> BrokenBone:
        """The values at some of the points (copies)."""
        source = None if self.source is None else self.source[index]
        return BrokenBone(
            self.sdf[index], self.depth[index], self.lucency[index], self.density[index], self.region[index], source
        )

    def put(self, index: NDArray[np.intp], other: BrokenBone) -> None:
        """Overwrites the values at some of the points."""
        self.sdf[index], self.depth[index] = other.sdf, other.depth
        self.lucency[index], self.density[index] = other.lucency, other.density
        self.region[index] = other.region
        if self.source is not None and other.source is not None:
            self.source[index] = other.source


SampleBone = Callable[[Points], BrokenBone]


class Change(Protocol):
    """One thing that happened to a bone: a break, a crush, a canal, an outgrowth."""

    def apply(self, points: Points, bone: SampleBone) -> BrokenBone:
        """The bone (N,) at points (N, 3) after the change, given how to sample it before."""
        ...


def changed(changes: tuple[Change, ...], points: Points, sample: SampleDistance, *, trace: bool = False) -> BrokenBone:
    """The bone after all ``changes``, first to last, at ``points`` float32 (N, 3).

    Args:
        changes: what happened, in order.
        points: local millimetres.
        sample: signed distance (N,) of the unbroken bone at any points (N, 3).
        trace: also tell where the material came from (``BrokenBone.source``).
    """
    if not changes:
        source = np.array(points, dtype=np.float32) if trace else None
        return BrokenBone.intact(np.asarray(sample(points), dtype=np.float32), source)
    return changes[-1].apply(points, lambda moved: changed(changes[:-1], moved, sample, trace=trace))


def smoothstep(values: NDArray[np.floating]) -> Values:
    """0 below 0, 1 above 1, smooth between (3t² - 2t³)."""
    t = np.clip(values, 0.0, 1.0).astype(np.float32)
    return np.asarray(t * t * (3.0 - 2.0 * t))


@dataclass(frozen=True)
class Roughness:
    """A jagged height field over a plane: a few warped waves, long and high to short and low.

    Attributes:
        waves: (wave number along u, along v in radians per mm, phase, amplitude in mm, warp in radians) each.
    """

    waves: tuple[tuple[float, float, float, float, float], ...] = ()

    @classmethod
    def draw(cls, rng: np.random.Generator, height: float, *, longest: float = 14.0, count: int = 6) -> Roughness:
        """Random waves of wavelength ``longest`` down to about 1.3 mm; ``height`` is the longest wave's amplitude.

        Amplitudes fall with wavelength to the power 0.9: fracture surfaces are nearly self-affine with a
        roughness exponent of 0.8 (Bouchaud, J. Phys. Condens. Matter 1997).
        """
        lengths = longest * (1.3 / longest) ** (np.arange(count) / max(count - 1, 1))
        waves = []
        for length in lengths:
            angle, phase = rng.uniform(0, 2 * np.pi, 2)
            wave = 2 * np.pi / (length * rng.uniform(0.8, 1.25))
            amplitude = height * (length / longest) ** 0.9 * rng.uniform(0.6, 1.2)
            waves.append((wave * np.cos(angle), wave * np.sin(angle), phase, float(amplitude), rng.uniform(0.8, 2.2)))
        return cls(tuple((float(a), float(b), float(c), d, float(e)) for a, b, c, d, e in waves))

    def height(self, u: Values, v: Values) -> Values:
        """Height in mm over plane coordinates u, v in mm (same shapes)."""
        total = np.zeros_like(u)
        for along_u, along_v, phase, amplitude, warp in self.waves:
            bend = np.sin(u * (-0.43 * along_v) + v * (0.43 * along_u) + phase)
            total += amplitude * np.sin(u * along_u + v * along_v + phase + warp * bend)
        return total


@dataclass(frozen=True)
class Surface:
    """A fracture surface: a plane or a bowl through ``origin``, rough, with a gap.

    Attributes:
        origin: a point on it.
        normal: unit vector towards the side that belongs to the piece.
        gap: width in mm where it is open.
        curvature: 1/mm along the two tangents; positive bends the surface towards ``normal``.
        roughness: deviation from the smooth surface.
        gap_noise: how the gap varies, in mm, over the surface.
        hinge: (direction in the plane in radians, distance in mm): beyond it the bone is unbroken. None: all through.
    """

    origin: Vector
    normal: Vector
    gap: float
    curvature: tuple[float, float] = (0.0, 0.0)
    roughness: Roughness = field(default_factory=Roughness)
    gap_noise: Roughness = field(default_factory=Roughness)
    hinge: tuple[float, float] | None = None

    def tangents(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Two unit vectors in the plane; the first is as horizontal as can be."""
        normal = np.asarray(self.normal, dtype=np.float64)
        helper = np.array([0.0, 0.0, 1.0]) if abs(normal[2]) < 0.9 else np.array([0.0, -1.0, 0.0])
        first = np.cross(normal, helper)
        first /= np.linalg.norm(first)
        return first.astype(np.float32), np.cross(normal, first).astype(np.float32)

    def level(self, points: Points) -> tuple[Values, Values]:
        """Signed distance (positive on the piece's side) and half gap, both float32 (N,) in mm.

        Farther than ``_RELIEF_MM`` from the smooth surface its relief is left out: nothing depends on it there.
        """
        relative = points - np.asarray(self.origin, dtype=np.float32)
        first, second = self.tangents()
        u, v = relative @ first, relative @ second
        signed = relative @ np.asarray(self.normal, dtype=np.float32)
        if any(self.curvature):
            along_u, along_v = (np.float32(k) for k in self.curvature)
            signed -= np.float32(0.5) * (along_u * u * u + along_v * v * v)
            signed /= np.sqrt(1 + np.square(along_u * u) + np.square(along_v * v))
        half = np.full_like(signed, 0.5 * self.gap)
        near = np.flatnonzero(np.abs(signed) < _RELIEF_MM)
        u, v = u[near], v[near]
        signed[near] -= self.roughness.height(u, v)
        half[near] = self._half_gap(u, v)
        return signed, half

    def _half_gap(self, u: Values, v: Values) -> Values:
        half = np.maximum(0.5 * self.gap + self.gap_noise.height(u, v), 0.3 * self.gap)
        if self.hinge is not None:
            angle, distance = self.hinge
            beyond = smoothstep((np.cos(angle) * u + np.sin(angle) * v - (distance - 1.5)) / 3.0)
            half += beyond * (_HINGE_MM - half)
        return np.asarray(half, dtype=np.float32)


@dataclass(frozen=True)
class Extent:
    """Where a break reaches: within ``radius`` of a chain of points. Outside, the bone is as before.

    Attributes:
        path: two or more points, mm.
        radius: in mm.
        fade: mm over which the cut closes towards the radius.
        taper: movement dies away along the first stretch of the path (bone still held at its other end); otherwise
            the whole piece moves as one.
    """

    path: tuple[Vector, ...]
    radius: float
    fade: float = 1.0
    taper: bool = False

    def weights(self, points: Points) -> tuple[Values, Values]:
        """(cut, movement) weights 0..1, float32 (N,) each; movement is 0 wherever the cut is not fully open."""
        distance, along = _from_segment(points, self.path[0], self.path[1])
        for start, end in zip(self.path[1:-1], self.path[2:], strict=True):
            distance = np.minimum(distance, _from_segment(points, start, end)[0])
        cut = np.clip((self.radius - distance) / self.fade, 0.0, 1.0)
        move = smoothstep((self.radius - self.fade - distance) / 1.5)
        if self.taper:
            move = move * (1.0 - smoothstep((np.abs(along) - 0.15) / 0.85))
        return cut.astype(np.float32), move.astype(np.float32)


def _from_segment(points: Points, start: Vector, end: Vector) -> tuple[Values, Values]:
    """Distance to a segment in mm, and how far along it (0 at ``start``, 1 at ``end``; beyond as well)."""
    first = np.asarray(start, dtype=np.float32)
    axis = np.asarray(end, dtype=np.float32) - first
    relative = points - first
    along = relative @ axis / np.float32(max(float(axis @ axis), 1e-6))
    relative -= np.clip(along, 0.0, 1.0)[:, None] * axis
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", relative, relative))), np.asarray(along, dtype=np.float32)


@dataclass(frozen=True)
class Motion:
    """A rigid movement: rotation by ``turn`` (vector, degrees) about ``pivot``, then ``shift`` (mm)."""

    shift: Vector = (0.0, 0.0, 0.0)
    turn: Vector = (0.0, 0.0, 0.0)
    pivot: Vector = (0.0, 0.0, 0.0)

    @property
    def still(self) -> bool:
        """Whether nothing moves."""
        return not any(self.shift) and not any(self.turn)

    def matrix(self) -> NDArray[np.float64]:
        """The 3x3 rotation (Rodrigues)."""
        turn = np.radians(self.turn)
        angle = float(np.linalg.norm(turn))
        if angle < 1e-9:
            return np.eye(3)
        x, y, z = turn / angle
        cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
        return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross))

    def back(self, points: Points) -> Points:
        """Where material now at ``points`` (N, 3) was before."""
        pivot = np.asarray(self.pivot, dtype=np.float32)
        shift = np.asarray(self.shift, dtype=np.float32)
        moved = (points - (pivot + shift)) @ self.matrix().astype(np.float32) + pivot
        return moved.astype(np.float32)

    def reach(self, extent: Extent) -> float:
        """An upper bound, in mm, of how far anything within ``extent`` moves."""
        ends = np.array(extent.path) - np.asarray(self.pivot)
        arm = float(np.linalg.norm(ends, axis=1).max()) + extent.radius
        return float(np.linalg.norm(self.shift) + np.radians(np.linalg.norm(self.turn)) * arm)


@dataclass(frozen=True)
class Piece:
    """A piece of bone that comes off.

    Attributes:
        cuts: its surfaces with a sign: 1 when the piece lies on the normal's side, -1 on the other.
        extent: where it is; must hold all of the piece that moves.
        motion: how it moves.
        combine: how several cuts bound it: "all" (inside every one), "any", or "nearest" (the cut whose origin is
            closest decides: breaks of a ring at two places).
    """

    cuts: tuple[tuple[Surface, int], ...]
    extent: Extent
    motion: Motion = field(default_factory=Motion)
    combine: Literal["all", "any", "nearest"] = "all"

    def level(self, points: Points) -> tuple[Values, Values]:
        """Signed distance, positive inside the piece, and half gap of the deciding cut; float32 (N,) in mm."""
        best, half = self._signed(0, points)
        if self.combine == "nearest":
            nearest = self._from_origin(0, points)
        for index in range(1, len(self.cuts)):
            signed, other = self._signed(index, points)
            if self.combine == "nearest":
                distance = self._from_origin(index, points)
                wins = distance < nearest
                nearest = np.minimum(distance, nearest)
            else:
                wins = signed < best if self.combine == "all" else signed > best
            best, half = np.where(wins, signed, best), np.where(wins, other, half)
        return best, half

    def _signed(self, index: int, points: Points) -> tuple[Values, Values]:
        surface, sign = self.cuts[index]
        signed, half = surface.level(points)
        return (signed if sign > 0 else -signed), half

    def _from_origin(self, index: int, points: Points) -> Values:
        relative = points - np.asarray(self.cuts[index][0].origin, dtype=np.float32)
        return np.asarray(np.einsum("ij,ij->i", relative, relative))
