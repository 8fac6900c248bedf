"""The point spread of a scan on a grid finer than its voxels: what turns sharp shares into what voxels show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cspine.phantoms.grid import Box, Grid
from cspine.phantoms.planting_scan import Grain
from cspine.phantoms.shapes import Float

# Fine samples are at most this share of the blur apart, within these limits, mm.
_FINE_SHARE, _FINE_MM = 0.65, (0.3, 0.5)
# Slices have soft edges: standard deviation of that as a share of their thickness.
_SLICE_SOFTNESS = 0.12
# The Gaussian ends here, in standard deviations.
_REACH = 2.6
_PROFILE_STEPS = 8


@dataclass(frozen=True, slots=True)
class _Axis:
    """Fine samples along one axis: ``step`` a voxel, ``pad`` more at either end, averaged with ``weights``."""

    step: int
    pad: int
    weights: Float

    @classmethod
    def of(cls, spacing: float, most: float, box: float, blur: float) -> _Axis:
        """Samples at most ``most`` apart, averaged with a box and a Gaussian (standard deviation), all in mm."""
        step = max(1, int(np.ceil(spacing / most - 0.05)))
        fine = spacing / step
        pad = int(np.ceil((box / 2 + _REACH * blur) / fine))
        count = _PROFILE_STEPS * pad
        at = np.arange(-count, count + 1) * fine / _PROFILE_STEPS
        profile = np.exp(-0.5 * (at / blur) ** 2)
        if box > 0:
            slab = np.clip((box / 2 - np.abs(at)) / (fine / _PROFILE_STEPS) + 0.5, 0, 1)
            profile = np.convolve(profile, slab, mode="same")
        weights = profile[::_PROFILE_STEPS]
        return cls(step, pad, (weights / weights.sum()).astype(np.float32))

    def count(self, voxels: int) -> int:
        """Fine samples that ``voxels`` need."""
        return (voxels - 1) * self.step + 1 + 2 * self.pad

    def from_sample(self, k: int, voxels: int) -> slice:
        """Every voxel's ``k``-th sample."""
        return slice(k, k + (voxels - 1) * self.step + 1, self.step)


@dataclass(frozen=True, slots=True)
class PointSpread:
    """A scan's blur, axis by axis (z, y, x): a Gaussian in plane, a box with soft edges across slices."""

    axes: tuple[_Axis, _Axis, _Axis]

    @classmethod
    def of(cls, voxels: Grid, grain: Grain) -> PointSpread:
        """For the voxels of a scan."""
        x, y, z = (float(s) for s in voxels.spacing)
        most = float(np.clip(_FINE_SHARE * grain.blur, *_FINE_MM))
        across = _Axis.of(z, most, grain.thickness, _SLICE_SOFTNESS * grain.thickness)
        return cls((across, _Axis.of(y, most, 0.0, grain.blur), _Axis.of(x, most, 0.0, grain.blur)))

    def fine(self, voxels: Grid) -> Grid:
        """The fine grid that ``voxels`` are averaged from."""
        step = np.array([axis.step for axis in self.axes[::-1]], dtype=np.float64)
        pad = np.array([axis.pad for axis in self.axes[::-1]], dtype=np.float64)
        affine = voxels.affine.copy()
        affine[:3, :3] /= step
        affine[:3, 3] = voxels.affine[:3, 3] - affine[:3, :3] @ pad
        z, y, x = (axis.count(n) for axis, n in zip(self.axes, voxels.shape, strict=True))
        return Grid(affine, (z, y, x))

    def averaged(self, samples: Float, shape: tuple[int, int, int]) -> Float:
        """Means over the point spread at the voxels ``shape``."""
        out = samples
        for number, (axis, voxels) in enumerate(zip(self.axes, shape, strict=True)):
            total = np.zeros((), dtype=np.float32)
            for k, weight in enumerate(axis.weights):
                at = [slice(None)] * 3
                at[number] = axis.from_sample(k, voxels)
                total = total + out[tuple(at)] * weight
            out = total
        return out

    def centres(self, shape: tuple[int, int, int]) -> Box:
        """The fine samples on voxel centres."""
        z, y, x = (axis.from_sample(axis.pad, n) for axis, n in zip(self.axes, shape, strict=True))
        return z, y, x
