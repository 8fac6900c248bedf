"""What a scan does to a sharp edge and to homogeneous tissue: its blur and its noise, measured on the scan itself.

Edges between air and skin are steps of about a thousand HU, sharper than any scanner resolves: how steep they look
is the point spread. Noise is what varies from voxel to voxel in the quietest soft tissue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from cspine.volume import Volume

Float = NDArray[np.float32]

# In-plane blur (standard deviation, mm) when a scan shows no clean edge, and the range that is believed.
USUAL_BLUR_MM = 0.45
_BLUR_RANGE_MM = (0.25, 1.2)
_AIR_HU, _TISSUE_HU = -850.0, -220.0
_MIN_EDGES = 80
# Muscle, HU, and how far around it is soft tissue; of its voxels the quietest share shows noise, not anatomy.
USUAL_MUSCLE_HU = 55.0
_SOFT_AROUND = 75.0
_QUIET_SHARE = 0.3
_MIN_QUIET = 300
# Noise of a scan with no soft tissue in view, HU.
_USUAL_NOISE = 12.0


@dataclass(frozen=True, slots=True)
class Grain:
    """Resolution and noise of a scan.

    Attributes:
        blur: standard deviation of the in-plane point spread, mm.
        thickness: of a slice, mm: width of the box that its samples are averaged over.
        noise: standard deviation in soft tissue, HU.
        smooth: standard deviation, in voxels along (z, y, x), of the Gaussian that gives white noise the scan's
            correlation from voxel to voxel.
    """

    blur: float
    thickness: float
    noise: float
    smooth: tuple[float, float, float]

    @property
    def edge(self) -> float:
        """How wide a sharp edge looks, mm: full width at half maximum of the point spread in the worst direction."""
        return float(np.hypot(2.355 * self.blur, 0.6 * self.thickness))

    def draw(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> Float:
        """Noise in HU ``[z, y, x]`` like the scan's own."""
        pad = [int(np.ceil(3 * s)) for s in self.smooth]
        white = rng.standard_normal([n + 2 * p for n, p in zip(shape, pad, strict=True)], dtype=np.float32)
        field = ndimage.gaussian_filter(white, self.smooth, mode="wrap")
        field = field[tuple(slice(p, p + n) for n, p in zip(shape, pad, strict=True))]
        return np.asarray(field * np.float32(self.noise / _gain(self.smooth)), dtype=np.float32)


def grain_of(volume: Volume, near: tuple[slice, slice, slice] | None = None, muscle: float = USUAL_MUSCLE_HU) -> Grain:
    """Measure a scan.

    Args:
        volume: CT in HU ``[z, y, x]``, thickest along z.
        near: where the noise matters (the spine); by default the middle of the scan.
        muscle: HU of muscle in this scan.
    """
    box = near if near is not None else tuple(slice(n // 4, max(n // 4 + 1, 3 * n // 4)) for n in volume.shape)
    noise, smooth = _noise(np.asarray(volume.hu[box], dtype=np.float32), muscle)
    declared = volume.source.acquisition.get("thickness")
    thickness = float(declared) if declared else volume.spacing[2]
    return Grain(_blur(volume), float(np.clip(thickness, 0.4, 6.0)), noise, smooth)


def _blur(volume: Volume) -> float:
    """In-plane standard deviation from the steepest step of air-to-tissue edges along x and y.

    A step blurred by a Gaussian s changes by erf(h / (2 sqrt(2) s)) of its height over one pixel h around its middle.
    """
    slices = np.linspace(0, volume.shape[0] - 1, min(volume.shape[0], 10)).round().astype(int)
    widths = []
    for axis, spacing in ((1, volume.spacing[1]), (2, volume.spacing[0])):
        steep = [_steepness(volume.hu[k].astype(np.float32), axis - 1) for k in slices]
        share = np.concatenate(steep)
        if len(share) < _MIN_EDGES:
            continue
        # The steepest pixel pair is centred on the edge only by luck: the upper quartile is nearly.
        top = float(np.clip(np.percentile(share, 75), 0.05, 0.995))
        widths.append(spacing / (2 * np.sqrt(2) * float(special.erfinv(top))))
    blur = float(np.mean(widths)) if widths else max(USUAL_BLUR_MM, 0.4 * float(max(volume.spacing[:2])))
    return float(np.clip(blur, *_BLUR_RANGE_MM))


def _steepness(plane: Float, axis: int) -> Float:
    """Largest change between neighbours as a share of the whole step, of every clean air-to-tissue edge."""
    rows = plane if axis == 1 else plane.T
    half = 3
    before, after = rows[:, : -2 * half], rows[:, 2 * half :]
    steps = []
    for low, high in ((before, after), (after, before)):
        change = np.abs(np.diff(rows, axis=1))
        span = np.stack([change[:, k : k + low.shape[1]] for k in range(2 * half)])
        middle = span.argmax(axis=0)
        clean = (low < _AIR_HU) & (high > _TISSUE_HU) & (high < 250) & ((middle == 2) | (middle == 3))
        steps.append(span.max(axis=0)[clean] / (high - low)[clean])
    return np.concatenate(steps).astype(np.float32)


def _noise(hu: Float, muscle: float) -> tuple[float, tuple[float, float, float]]:
    """Standard deviation of the noise, and the blur that its correlation between neighbours amounts to."""
    rough = hu - ndimage.uniform_filter(hu, (1, 9, 9), mode="nearest")
    mean = ndimage.uniform_filter(hu, (1, 5, 5), mode="nearest")
    power = ndimage.uniform_filter(rough * rough, (1, 5, 5), mode="nearest")
    soft = np.abs(mean - muscle) < _SOFT_AROUND
    if soft.sum() < _MIN_QUIET:
        return _USUAL_NOISE, (0.0, 0.6, 0.6)
    quiet = soft & (power <= np.quantile(power[soft], _QUIET_SHARE))
    variance = float((rough[quiet] ** 2).mean())
    smooth = [_smooth(rough, quiet, axis, variance) for axis in range(3)]
    return float(np.sqrt(max(variance, 1e-4))), (smooth[0], smooth[1], smooth[2])


def _smooth(rough: Float, quiet: NDArray[np.bool_], axis: int, variance: float) -> float:
    """Gaussian blur s, in voxels, whose noise correlates as exp(-1 / (4 s²)) with its neighbour's along ``axis``."""
    if rough.shape[axis] < 2:
        return 0.0
    a, b = np.take(rough, range(rough.shape[axis] - 1), axis), np.take(rough, range(1, rough.shape[axis]), axis)
    both = np.take(quiet, range(rough.shape[axis] - 1), axis)
    correlation = float(np.clip((a * b)[both].mean() / max(variance, 1e-6), 0.0, 0.9)) if both.any() else 0.0
    return 0.0 if correlation < 0.02 else float(1 / (2 * np.sqrt(-np.log(correlation))))


def _gain(smooth: tuple[float, float, float]) -> float:
    """Standard deviation that white noise of unit variance keeps under ``ndimage.gaussian_filter``."""
    gain = 1.0
    for width in smooth:
        if width > 0:
            impulse = np.zeros(2 * int(np.ceil(4 * width)) + 3)
            impulse[len(impulse) // 2] = 1.0
            gain *= float(np.sqrt((ndimage.gaussian_filter1d(impulse, width) ** 2).sum()))
    return gain
