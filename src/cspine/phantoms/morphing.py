"""Solids of one level laid over each other point by point, and mixed: shape between shapes.

Corresponding points (landmarks and surface points that ``fitting`` found) carry one solid into another by a thin-plate
spline (Bookstein, "Principal warps", 1989). A mixture is the weighted mean of the signed distances, each taken where
its own spline says, so that processes and arches meet instead of fading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.shapes import Float, Shape
from cspine.phantoms.template import LENGTHS, Points, Template, template_of
from cspine.phantoms.vertebra import Landmarks

# Surface points that steer a spline besides the landmarks; a spline is worked out every so many mm.
CONTROLS = 44
_COARSE_MM = 5.0
# How far a spline may pass its points by (mm squared, in the kernel's units): fits are good to about 0.7 mm.
_SMOOTHING = 3.0
_MARGIN_MM = 5.0


@dataclass(frozen=True)
class Source:
    """A solid of one level with its corresponding points.

    Attributes:
        shape: the solid, local mm.
        marks: landmarks, local mm.
        surface: ``(n, 3)`` points that correspond to the template's surface, local mm.
        size: of its owner against the mean man.
    """

    shape: Shape
    marks: Landmarks
    surface: Points
    size: float

    def controls(self) -> Points:
        """``(k, 3)`` corresponding points at the size of the mean man."""
        places = [at for name, at in self.marks.items() if name not in LENGTHS]
        every = max(1, len(self.surface) // CONTROLS)
        return np.concatenate([np.array(places), self.surface[::every][:CONTROLS]]) / self.size


def template_source(level: int) -> Source:
    """The mean parametric vertebra as a source."""
    template = template_of(level)
    return Source(template.shape, template.marks, template.surface, 1.0)


def spread(template: Template, marks: Landmarks) -> Points:
    """Where landmarks ``marks`` (local mm) would take the control points of ``template``: displacements ``(k, 3)``."""
    from scipy.interpolate import RBFInterpolator

    names = [name for name in template.marks if name not in LENGTHS]
    here = np.array([template.marks[name] for name in names])
    there = np.array([marks[name] for name in names])
    controls = Source(template.shape, template.marks, template.surface, 1.0).controls()
    spline = RBFInterpolator(here, there - here, kernel="thin_plate_spline", smoothing=10 * _SMOOTHING)
    return np.asarray(spline(controls))


@dataclass(frozen=True)
class Mixture:
    """A solid between several.

    Attributes:
        level: 1..7.
        sources: the solids it is mixed from.
        weights: of each, summing to 1.
        controls: where the corresponding points lie in the mixture, local mm.
        size: of the person against the mean man.
    """

    level: int
    sources: Sequence[Source]
    weights: NDArray[np.float64]
    controls: Points
    size: float

    def marks(self) -> Landmarks:
        """Landmarks of the mixture, local mm; they do not depend on any lattice."""
        names = [name for name in self.sources[0].marks if name not in LENGTHS]
        marks = dict(zip(names, self.controls.copy(), strict=False))
        radius = sum(w * s.marks["canal_radius"][0] / s.size for w, s in zip(self.weights, self.sources, strict=True))
        radius = float(radius) * self.size
        if self.level > 1:
            # The canal is as wide as the mixture leaves it.
            radius = float(np.clip(self.at(marks["canal"][None])[0], 0.6 * radius, 1.3 * radius))
        return marks | {"canal_radius": np.full(3, radius)}

    def at(self, points: Points) -> NDArray[np.float64]:
        """Signed distance ``(n,)`` mm at local points ``(n, 3)``."""
        total = np.zeros(len(points))
        for weight, source in zip(self.weights, self.sources, strict=True):
            there = (points + self._spline(source, points)).astype(np.float32)
            total += weight * self.size / source.size * source.shape.sample(there)
        return total

    def lattice(self, spacing: float) -> tuple[Float, Float]:
        """Signed distances ``[z, y, x]`` on a lattice every ``spacing`` mm, and the lattice's corner (x, y, z) mm."""
        low, high = self._box()
        axes = [np.arange(a, b + spacing, spacing) for a, b in zip(low, high, strict=True)]
        coarse = [np.linspace(a[0], a[-1], max(2, int(np.ceil((a[-1] - a[0]) / _COARSE_MM)) + 1)) for a in axes]
        grid = np.stack(np.meshgrid(*coarse, indexing="ij"), axis=-1)
        refine = [_linear(fine, rough) for fine, rough in zip(axes, coarse, strict=True)]
        points = np.empty((len(axes[2]), len(axes[1]), len(axes[0]), 3), dtype=np.float32)
        values = np.zeros(points.shape[:3], dtype=np.float32)
        for weight, source in zip(self.weights, self.sources, strict=True):
            offset = self._spline(source, grid.reshape(-1, 3)).reshape(grid.shape).astype(np.float32)
            for axis in range(3):
                offset = np.moveaxis(np.tensordot(refine[axis], offset, axes=(1, axis)), 0, axis)
            points[...] = offset.transpose(2, 1, 0, 3)
            points[..., 0] += axes[0].astype(np.float32)
            points[..., 1] += axes[1].astype(np.float32)[:, None]
            points[..., 2] += axes[2].astype(np.float32)[:, None, None]
            values += np.float32(weight * self.size / source.size) * source.shape.sample(points)
        return values, np.asarray(low, dtype=np.float32)

    def _spline(self, source: Source, points: Points) -> Points:
        """How far to go from ``points`` of the mixture to the same places of ``source``, mm."""
        from scipy.interpolate import RBFInterpolator

        there = source.controls() * source.size
        spline = RBFInterpolator(self.controls, there - self.controls, kernel="thin_plate_spline", smoothing=_SMOOTHING)
        return np.asarray(spline(points))

    def _box(self) -> tuple[Points, Points]:
        ends = []
        for source in self.sources:
            # Control points reach almost as far as the solid; what lies beyond them goes along with the nearest.
            own, new = source.controls() * source.size, self.controls
            beyond_low = own.min(axis=0) - source.surface.min(axis=0)
            beyond_high = source.surface.max(axis=0) - own.max(axis=0)
            ends.append((new.min(axis=0) - 1.2 * beyond_low, new.max(axis=0) + 1.2 * beyond_high))
        low = np.min([low for low, _ in ends], axis=0) - _MARGIN_MM
        high = np.max([high for _, high in ends], axis=0) + _MARGIN_MM
        return low, high


def _linear(fine: NDArray[np.float64], coarse: NDArray[np.float64]) -> Float:
    """Matrix ``(fine, coarse)`` of linear interpolation between evenly spaced points."""
    place = np.clip((fine - coarse[0]) / (coarse[1] - coarse[0]), 0, len(coarse) - 1)
    first = np.minimum(place.astype(int), len(coarse) - 2)
    part = place - first
    out = np.zeros((len(fine), len(coarse)), dtype=np.float32)
    rows = np.arange(len(fine))
    out[rows, first] = 1 - part
    out[rows, first + 1] = part
    return out
