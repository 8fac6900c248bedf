"""What every planned fracture needs: landmarks by side, random surfaces, movements by severity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cspine.errors import UsageError
from cspine.phantoms.breakage import Change, Extent, Motion, Piece, Roughness, Surface, Vector
from cspine.phantoms.crush import Chips
from cspine.phantoms.fracture_types import displacement, gap_mm
from cspine.phantoms.shatter import Shatter

Side = Literal["left", "right"]
Landmarks = Mapping[str, Any]
Xyz = NDArray[np.float64]

UP: Xyz = np.array([0.0, 0.0, 1.0])
BACK: Xyz = np.array([0.0, 1.0, 0.0])


@dataclass(frozen=True)
class Draft:
    """A fracture being planned.

    Attributes:
        rng: source of all chance.
        level: label value of the vertebra.
        landmarks: name to local xyz in mm.
        side: the side of one-sided fractures.
        severity: 0..1.
        chronic: old and remodelled.
    """

    rng: np.random.Generator
    level: int
    landmarks: Landmarks
    side: Side
    severity: float
    chronic: bool

    def at(self, name: str, side: Side | None = None) -> Xyz:
        """A landmark, of this or the given side when it comes in pairs.

        Raises:
            UsageError: the vertebra has no such landmark.
        """
        for key in (name, f"{name}_{side or self.side}"):
            if key in self.landmarks:
                return np.asarray(self.landmarks[key], dtype=np.float64)
        raise UsageError(f"vertebra {self.level} has no landmark {name}", fix="Give the landmarks of build_spine.")

    def has(self, name: str) -> bool:
        """Whether the landmark (or its left one) exists."""
        return name in self.landmarks or f"{name}_left" in self.landmarks

    @property
    def lateral(self) -> float:
        """+1 on the left, -1 on the right: the sign of x."""
        return 1.0 if self.side == "left" else -1.0

    def gap(self, most: float = 3.0) -> float:
        """A cleft width in mm; old fractures keep what resorption left of it."""
        return gap_mm(self.rng, self.severity, most)

    def shift(self, most: float) -> float:
        """A displacement in mm, or an angle in degrees."""
        return displacement(self.rng, self.severity, most)

    def jitter(self, mm: float) -> Xyz:
        """A random offset of at most ``mm`` in each direction."""
        return self.rng.uniform(-mm, mm, 3)

    def tilted(self, axis: ArrayLike, degrees: float) -> Xyz:
        """``axis`` as a unit vector, tilted by up to ``degrees`` in a random direction."""
        unit = normalised(axis)
        other = self.rng.normal(size=3)
        other -= unit * (other @ unit)
        angle = np.radians(degrees) * np.sqrt(self.rng.uniform())
        return np.asarray(np.cos(angle) * unit + np.sin(angle) * normalised(other))

    def surface(
        self,
        origin: ArrayLike,
        normal: ArrayLike,
        *,
        gap: float,
        tilt: float = 12.0,
        curvature: tuple[float, float] = (0.0, 0.0),
        rough: float = 1.0,
        hinge: tuple[float, float] | None = None,
    ) -> Surface:
        """A rough surface near the given plane. ``rough`` scales the relief (1: about a millimetre overall)."""
        bend = self.rng.uniform(-0.02, 0.02, 2)
        height = rough * self.rng.uniform(0.35, 0.9)
        return Surface(
            origin=vector(origin),
            normal=vector(self.tilted(normal, tilt)),
            gap=gap,
            curvature=(float(curvature[0] + bend[0]), float(curvature[1] + bend[1])),
            roughness=Roughness.draw(self.rng, height * (0.5 if self.chronic else 1.0)),
            gap_noise=Roughness.draw(self.rng, 0.22 * gap, longest=9.0, count=4),
            hinge=hinge,
        )

    def broken(self, pieces: tuple[Piece, ...]) -> Change:
        """The pieces as a fresh break, or as an old one with rounded, dense, corticated edges."""
        if not self.chronic:
            return Shatter(pieces)
        return Shatter(
            pieces,
            rounding=float(self.rng.uniform(0.8, 1.8)),
            sclerosis=float(self.rng.uniform(150, 420)),
            corticated=bool(self.rng.uniform() < 0.75),
            marked=False,
        )

    def parted(
        self,
        cuts: tuple[tuple[Surface, int], ...],
        extent: Extent,
        motion: Motion,
        combine: Literal["all", "any", "nearest"] = "all",
    ) -> Change:
        """One piece parted by ``cuts``."""
        return self.broken((Piece(cuts, extent, motion, combine),))

    def chips(self, around: ArrayLike, spread: float, *, most: int = 5) -> tuple[Change, ...]:
        """Comminution: splinters about a point, none for slight or old breaks."""
        count = int(self.rng.binomial(most, max(self.severity - 0.4, 0.0)))
        if self.chronic or count == 0:
            return ()
        centres = np.asarray(around, dtype=np.float64) + self.rng.normal(0, spread / 2, (count, 3))
        radii = self.rng.uniform(0.5, 1.7, (count, 3)) * np.array([1.0, 0.8, 1.0])
        turns = self.rng.uniform(-90, 90, (count, 3))
        dense = self.rng.uniform(size=count) < 0.6
        return (
            Chips(
                tuple(vector(c) for c in centres),
                tuple(vector(r) for r in radii),
                tuple(vector(t) for t in turns),
                tuple(bool(d) for d in dense),
            ),
        )


def normalised(value: ArrayLike) -> Xyz:
    """A vector of length 1 (or the head direction, for a vector of no length)."""
    array = np.asarray(value, dtype=np.float64)
    length = float(np.linalg.norm(array))
    return UP.copy() if length < 1e-9 else array / length


def vector(value: ArrayLike) -> Vector:
    """Three plain floats."""
    x, y, z = np.asarray(value, dtype=np.float64).tolist()
    return (x, y, z)


def between(start: ArrayLike, end: ArrayLike, fraction: float) -> Xyz:
    """The point at ``fraction`` of the way."""
    first, last = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    return first + fraction * (last - first)
