"""New voxel values where a break changes a scan: every voxel keeps texture that the scan has, with its own noise.

A voxel's value is the sum of what it showed, what the piece that is there now showed at its old place (a B-spline,
at the voxel's own resolution, never averaged again), blood, and splinters, by their shares. Detail that the spline
took is given back; where different things mix, noise is lost, and as much is added with the scan's own correlation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.phantoms.grid import Box
from cspine.phantoms.planting_change import Change
from cspine.phantoms.planting_scan import Grain
from cspine.phantoms.planting_solid import Solid
from cspine.phantoms.shapes import Float
from cspine.volume import Volume

# Blood and oedema in a fresh cleft are about as bright as muscle: HU to add to it.
_BLOOD_HU = (-12.0, 18.0)
# Shares below this change nothing that could be seen; voxels with more than the other show the piece alone, nearly.
_LEAST, _CORE = 2e-3, 0.6
# Degree of the B-spline; how far a piece is sharpened at most, if it has so many voxels.
_ORDER = 5
_MOST_SHARP, _ENOUGH = 0.25, 20
# Differences above this many times their median are edges of bone: sharpening is measured on the others.
_QUIET = 3.0
# A piece has moved as a whole when even what moved least moved this share of the median.
_WHOLE = 0.4
# A piece whose voxels move along z by amounts that differ less than this, in slices, moves along z as a whole.
_LEVEL = 2.0
# Soft tissue that fills what bone left outside itself: HU from muscle, and the width over which it is averaged, mm.
_SOFT_HU = (-170.0, 80.0)
_SOFT_MM = 2.5
# Over this distance two copies of one noise no longer resemble each other, mm.
_COHERENT_MM = 0.8


@dataclass(frozen=True)
class Canvas:
    """Part of a scan with room around it.

    Attributes:
        hu: float32 ``[z, y, x]``.
        start: index ``(z, y, x)`` of its first voxel in the scan.
        affine: of the scan.
        spline: coefficients of the B-spline through ``hu``.
    """

    hu: Float
    start: NDArray[np.int_]
    affine: NDArray[np.float64]
    spline: Float

    @classmethod
    def cut(cls, volume: Volume, box: Box, room_mm: float) -> Canvas:
        """The voxels of ``box`` and ``room_mm`` around it."""
        room = np.ceil(room_mm / np.asarray(volume.spacing[::-1])).astype(int) + 3
        first = np.maximum([s.start for s in box] - room, 0)
        last = np.minimum([s.stop for s in box] + room, volume.shape)
        hu = volume.hu[tuple(slice(a, b) for a, b in zip(first, last, strict=True))].astype(np.float32)
        return cls(hu, first, volume.affine, _spline(hu))

    def inner(self, box: Box) -> Box:
        """``box`` of the scan as index ranges here."""
        z, y, x = (slice(s.start - int(a), s.stop - int(a)) for s, a in zip(box, self.start, strict=True))
        return z, y, x

    def steps(self, change: Change) -> Float:
        """The movement of every voxel of a change in voxels, ``[z, y, x, 3]`` in the order (z, y, x).

        Pieces that moved as a whole are taken to have moved by whole voxels, half a voxel off at most: then they keep
        their texture to the last bit, but for what a rotation turns.
        """
        turn = np.linalg.inv(self.affine[:3, :3]).astype(np.float32)
        steps = np.asarray((change.shift @ turn.T)[..., ::-1], dtype=np.float32)
        core = change.moved > _CORE
        pieces, count = ndimage.label(core)
        if not count:
            return steps
        _, nearest = ndimage.distance_transform_edt(~core, return_indices=True)
        owner = pieces[tuple(nearest)]
        for piece in range(1, count + 1):
            own = steps[pieces == piece]
            length = np.linalg.norm(own, axis=1)
            if np.quantile(length, 0.05) < _WHOLE * np.median(length):
                continue
            middle = np.median(own, axis=0)
            steps[owner == piece] += np.rint(middle) - middle
            # Slices are not band limited, so nothing between them can be made up: a slight tilt is left out.
            if np.ptp(np.quantile(own[:, 0], (0.05, 0.95))) < _LEVEL:
                steps[owner == piece, 0] = np.rint(middle[0])
        return steps


def composed(canvas: Canvas, change: Change, solid: Solid, grain: Grain, rng: np.random.Generator) -> Float:
    """HU float32 of the voxels of ``change.box`` after the break."""
    here = canvas.hu[canvas.inner(change.box)]
    moved, void, made = (np.clip(part, 0, 1) for part in (change.moved, change.void, change.made))
    stays = np.clip(1 - moved - void - made, 0, 1)
    brought = _brought(canvas, change)
    blood = solid.muscle + rng.uniform(*_BLOOD_HU)
    fill = change.deep * blood + (1 - change.deep) * _soft(canvas, solid.muscle)[canvas.inner(change.box)]
    # New bone is mostly chips of cortex, thinner than the scan resolves.
    splinter = 0.6 * solid.cortex + 0.4 * solid.trabecular
    out = stays * here + moved * brought + void * fill + made * splinter + change.density
    alike = np.exp(-np.square(np.linalg.norm(change.shift, axis=-1) / _COHERENT_MM))
    have = stays**2 + moved**2 + 2 * stays * moved * alike
    touched = (moved > _LEAST) | (void > _LEAST) | (made > _LEAST)
    out = out + np.sqrt(np.clip(1 - have, 0, 1)) * touched * grain.draw(rng, here.shape)
    changed = touched | (np.abs(change.density) > 1)
    return np.asarray(np.where(changed, out, here), dtype=np.float32)


def retouched(canvas: Canvas, change: Change) -> Float:
    """The voxels of ``change.box`` as whole as they were, but handled as ``composed`` handles a moved piece.

    The piece is carried away and back again: interpolated twice, its texture made up, laid over itself with the same
    shares.
    """
    inner = canvas.inner(change.box)
    here = canvas.hu[inner]
    moved = np.clip(change.moved, 0, 1)
    chosen, core = moved > _LEAST, moved > _CORE
    if not core.any():
        return here.copy()
    steps = _fraction(canvas.steps(change)[core])
    back = np.where(chosen, _there_and_back(canvas.spline, steps)[inner], here)
    back = _sharpened(back, core, [_energy(part[core]) for part in _edges(here)])
    return np.asarray(np.where(chosen, (1 - moved) * here + moved * back, here), dtype=np.float32)


def _brought(canvas: Canvas, change: Change) -> Float:
    """What the moved pieces showed where they were, in the voxels where they are."""
    inner = canvas.inner(change.box)
    out = canvas.hu[inner].copy()
    chosen, core = change.moved > _LEAST, change.moved > _CORE
    if not chosen.any():
        return out
    steps = canvas.steps(change)
    places = (np.argwhere(chosen) + np.array([s.start for s in inner]) + steps[chosen]).T
    found = ndimage.map_coordinates(canvas.spline, places, np.float32, order=_ORDER, mode="mirror", prefilter=False)
    out[chosen] = found
    if not core.any():
        return out
    at = np.clip(np.rint(places).astype(int), 0, np.array(canvas.hu.shape)[:, None] - 1)[:, core[chosen]]
    return _sharpened(out, core, [_energy(part[tuple(at)]) for part in _edges(canvas.hu)])


def _fraction(steps: Float) -> NDArray[np.float64]:
    """Offset (z, y, x) that, gone there and back, costs as much detail as the parts of a voxel in ``steps`` (n, 3)."""
    return np.asarray(np.sqrt(np.mean((steps - np.rint(steps)) ** 2, axis=0) / 2), dtype=np.float64)


def _there_and_back(spline: Float, steps: NDArray[np.float64]) -> Float:
    """Moved by ``steps`` voxels and back: interpolated twice."""
    there = ndimage.shift(spline, steps, np.float32, order=_ORDER, mode="mirror", prefilter=False)
    back = ndimage.shift(_spline(there), -steps, np.float32, order=_ORDER, mode="mirror", prefilter=False)
    return np.asarray(back)


def _edges(values: Float) -> list[Float]:
    """Differences between neighbours along z, y and x."""
    return [np.asarray(values - np.roll(values, 1, axis), dtype=np.float32) for axis in range(values.ndim)]


def _quiet(values: Float) -> NDArray[np.bool_]:
    """Which of some differences (n,) are texture and noise rather than the edge of a cortex."""
    size = np.abs(values)
    return np.asarray(size <= _QUIET * np.median(size))


def _energy(values: Float) -> float:
    return float(np.mean(values[_quiet(values)] ** 2))


def _sharpened(values: Float, core: NDArray[np.bool_], wanted: list[float]) -> Float:
    """``values`` sharpened along every axis until differences between neighbours in ``core`` are as strong as wanted.

    Interpolation between voxels softens along the axes on which it was off their centres, anatomy and noise alike.
    Subtracting g times the second difference gives that back; g solves a quadratic equation.
    """
    if core.sum() < _ENOUGH:
        return values
    out = values
    for axis, energy in enumerate(wanted):
        second = np.roll(out, 1, axis) + np.roll(out, -1, axis) - 2 * out
        first, third = ((part - np.roll(part, 1, axis))[core] for part in (out, second))
        quiet = _quiet(first)
        m00, m01, m11 = (float(np.mean(part[quiet])) for part in (first * first, first * third, third * third))
        gain = (m01 + np.sqrt(max(m01**2 + m11 * max(energy - m00, 0.0), 0.0))) / max(m11, 1e-6)
        out = np.asarray(out - min(max(gain, 0.0), _MOST_SHARP) * second, dtype=np.float32)
    return out


def _spline(values: Float) -> Float:
    return np.asarray(ndimage.spline_filter(values, order=_ORDER, output=np.float32, mode="mirror"))


def _soft(canvas: Canvas, muscle: float) -> Float:
    """Mean of the soft tissue around every voxel, bone and air left out; muscle where there is none."""
    spacing = np.linalg.norm(canvas.affine[:3, :3], axis=0)[::-1]
    soft = (canvas.hu > muscle + _SOFT_HU[0]) & (canvas.hu < muscle + _SOFT_HU[1])
    width = _SOFT_MM / spacing
    weight = ndimage.gaussian_filter(soft.astype(np.float32), width)
    total = ndimage.gaussian_filter(np.where(soft, canvas.hu, 0.0).astype(np.float32), width)
    return np.asarray((total + 0.02 * muscle) / (weight + 0.02), dtype=np.float32)
