"""Worse pictures of the same patient: thicker slices, other kernels, fewer photons, metal. For real scans.

Phantoms are scanned by ``phantoms.finishing``; here the scan exists already, and its voxels are changed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import Level
from cspine.evaluation.marks import Marks, present
from cspine.phantoms.artefacts import (
    METAL_HU,
    METAL_PIXEL_MM,
    METAL_SIZE,
    WATER_PER_MM,
    noise_amplitude,
    streak_error,
)
from cspine.phantoms.noise import directional_noise, kernel_plane, white_spectrum
from cspine.volume import Volume

Float = NDArray[np.float32]

# Standard deviation of low-dose noise in the middle of a neck, HU, on a pixel of a usual scan; coarse pixels average
# it away, but a coarse scan at low dose is drawn with at least the second number.
LOW_DOSE_HU, LOW_DOSE_LEAST_HU = 90.0, 45.0
USUAL_PIXEL_MM, USUAL_SLICE_MM = 0.6, 1.0
SHARED_NOISE = 0.4
MODULATION = 0.5
# Blur of a soft kernel and reach of a sharp one, mm and pixels: the larger counts.
KERNEL_MM, KERNEL_PX = 0.8, 0.6
BONE_GAIN, BONE_NOISE_HU = 1.2, 25.0
METAL_SLICE_MM = 2.0
STREAK_STRENGTH = 0.8
LARGEST_HU = 3071.0
Segments = list[tuple[NDArray[np.float64], NDArray[np.float64], float]]


def sliced(volume: Volume, thickness: float) -> Volume:
    """Slices of another thickness, next to each other: averages when thicker, in between linear when thinner.

    Args:
        volume: HU, any axes; z is the slice axis.
        thickness: mm.
    """
    step = volume.spacing[2]
    if thickness <= step:
        return volume.resampled((*volume.spacing[:2], thickness))
    count = int(volume.shape[0] * step / thickness)
    if count < 2:
        return volume
    hu = np.asarray(volume.hu, dtype=np.float32)
    # Integral from the lower face up, so that a slice is the difference of two places, in whole voxels or not.
    total = np.concatenate([np.zeros((1, *hu.shape[1:]), np.float32), np.cumsum(hu + 1024, axis=0, dtype=np.float64)])
    place = np.arange(count + 1) * thickness / step
    low = np.minimum(place.astype(int), volume.shape[0] - 1)
    share = (place - low)[:, None, None]
    edges = total[low] * (1 - share) + total[low + 1] * share
    affine = volume.affine.copy()
    affine[:3, 2] *= thickness / step
    affine[:3, 3] += volume.affine[:3, 2] * (thickness / step - 1) / 2
    source = replace(volume.source, sop_instance_uids=(), files=())
    made = np.diff(edges, axis=0) * (step / thickness) - 1024
    return replace(volume, hu=made.astype(np.float32), affine=affine, source=source)


def filtered(volume: Volume, kernel: Literal["soft", "bone"], rng: np.random.Generator) -> Volume:
    """Another reconstruction kernel, in plane: a blur, or edges made sharper and finer noise."""
    hu = np.asarray(volume.hu, dtype=np.float32)
    sigma = [max(KERNEL_MM / size, KERNEL_PX) for size in volume.spacing[1::-1]]
    smooth = ndimage.gaussian_filter(hu, (0, *sigma))
    if kernel == "soft":
        return replace(volume, hu=smooth)
    grain = rng.standard_normal(hu.shape, dtype=np.float32)
    grain -= ndimage.gaussian_filter(grain, (0, 1, 1))
    return replace(volume, hu=hu + np.float32(BONE_GAIN) * (hu - smooth) + np.float32(BONE_NOISE_HU) * grain)


def noisy(volume: Volume, rng: np.random.Generator) -> Volume:
    """Few photons: noise with the spectrum of a soft kernel, more and in streaks where rays pass the shoulders."""
    hu = np.array(volume.hu, dtype=np.float32)
    _, rows, columns = hu.shape
    pixel = float(np.mean(volume.spacing[:2]))
    plane = kernel_plane("soft", 1.0, pixel, rows, columns)
    scale = USUAL_PIXEL_MM / pixel * np.sqrt(USUAL_SLICE_MM / volume.spacing[2])
    sigma = np.float32(max(LOW_DOSE_LEAST_HU, LOW_DOSE_HU * min(scale, 1.0)))
    white = (white_spectrum(rng, rows, columns), white_spectrum(rng, rows, columns))
    flat = np.ones(rows, np.float32), np.ones(columns, np.float32)
    unit = sigma / max(float(directional_noise(white[0].copy(), white[1].copy(), plane, *flat).std()), 1e-6)
    kept, new = np.float32(SHARED_NOISE), np.float32(np.sqrt(1 - SHARED_NOISE**2))
    for image in hu:
        fresh = (white_spectrum(rng, rows, columns), white_spectrum(rng, rows, columns))
        white = (kept * white[0] + new * fresh[0], kept * white[1] + new * fresh[1])
        density = np.maximum(image, -1000) / 1000 + 1
        across = noise_amplitude(density.sum(axis=1) * np.float32(WATER_PER_MM * volume.spacing[0]), MODULATION)
        along = noise_amplitude(density.sum(axis=0) * np.float32(WATER_PER_MM * volume.spacing[1]), MODULATION)
        image += directional_noise(white[0].copy(), white[1].copy(), plane, across * unit, along * unit)
    return replace(volume, hu=hu)


def with_teeth(volume: Volume, marks: Marks, rng: np.random.Generator) -> Volume | None:
    """Crowns on molars in front of C2 and their streaks; None when C2 is not marked."""
    axis = present(marks, Level.C2)
    if axis is None:
        return None
    crowns: Segments = []
    for side in (-24.0, 22.0):
        for height in (2.0, 14.0):
            place = axis + np.array([side, -48.0 - rng.uniform(0, 12), height + rng.uniform(-3, 3)])
            crowns.append((place, place + np.array([0, 0, 6.0]), 4.0))
    return _with_metal(volume, crowns, rng)


def with_screws(volume: Volume, marks: Marks, rng: np.random.Generator) -> Volume | None:
    """A plate in front of C5 and C6 with two screws in each, and their streaks; None when they are not marked."""
    upper, lower = present(marks, Level.C5), present(marks, Level.C6)
    if upper is None or lower is None:
        return None
    front = np.array([0.0, -11.0, 0.0])
    parts: Segments = [(upper + front + [0, 0, 4], lower + front - [0, 0, 4], 2.5)]
    for body in (upper, lower):
        for side in (-5.0, 5.0):
            parts.append((body + front + [side, 0, 0], body + np.array([0.7 * side, 4.0, 1.0]), 2.0))
    return _with_metal(volume, parts, rng)


def _with_metal(volume: Volume, parts: Segments, rng: np.random.Generator) -> Volume:
    """Draw metal rods (from, to, radius; LPS mm) and the errors of the rays that meet them into a volume."""
    ends = np.array([end for part in parts for end in part[:2]])
    low, high = ends.min(axis=0) - 6, ends.max(axis=0) + 6
    count = int(np.ceil((high[2] - low[2]) / METAL_SLICE_MM))
    affine = np.diag([METAL_PIXEL_MM, METAL_PIXEL_MM, METAL_SLICE_MM, 1.0])
    affine[:2, 3] = (low[:2] + high[:2]) / 2 - METAL_PIXEL_MM * (METAL_SIZE - 1) / 2
    affine[2, 3] = low[2]
    z, y, x = np.indices((count, METAL_SIZE, METAL_SIZE))
    points = np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    metal = np.zeros(x.shape, np.float32)
    for start, stop, radius in parts:
        metal[_distance(points, start, stop) <= radius] = 1.0
    error = streak_error(metal, STREAK_STRENGTH, rng)
    # A scan's voxel holds the mean of the metal in it.
    wide = [
        0.5 * size / own for size, own in zip(volume.spacing, (METAL_PIXEL_MM,) * 2 + (METAL_SLICE_MM,), strict=True)
    ]
    share = ndimage.gaussian_filter(metal, wide[::-1])
    moved = [Volume(part, affine).resampled_to(volume.affine, volume.shape, fill=0.0).hu for part in (error, share)]
    hu = np.asarray(volume.hu, dtype=np.float32) + moved[0]
    hu += moved[1] * (np.float32(METAL_HU) - np.maximum(hu, 0))
    return replace(volume, hu=np.minimum(hu, np.float32(LARGEST_HU)))


def _distance(
    points: NDArray[np.float64], start: NDArray[np.float64], stop: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Millimetres from points ``(…, 3)`` to a segment."""
    along = stop - start
    share = np.clip(((points - start) @ along) / max(float(along @ along), 1e-9), 0, 1)
    return np.asarray(np.linalg.norm(points - start - share[..., None] * along, axis=-1))
