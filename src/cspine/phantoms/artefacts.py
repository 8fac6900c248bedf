"""What the rays meet outside and inside the field, and the artefacts that follow from it.

A scan disturbs an image by what lies in its plane, be it inside the field or not: shoulders starve the detector and
dense bones harden the beam. So a coarse overview of the whole patient is drawn first, and artefacts come from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cspine.phantoms.grid import Grid
from cspine.phantoms.projector import projector
from cspine.phantoms.scanner import Scanner

Float = NDArray[np.float32]

OVERVIEW_SIZE = 100
OVERVIEW_PIXEL_MM = 5.0
OVERVIEW_SLICE_MM = 5.0
OVERVIEW_ANGLES = 48
METAL_SIZE = 160
METAL_PIXEL_MM = 1.25
METAL_ANGLES = 150
# Linear attenuation of water at the mean energy of a filtered 120 kV beam, per mm.
WATER_PER_MM = 0.0195
# Attenuation through the middle of a neck, and the least that a bow-tie filter leaves anywhere.
REFERENCE_ATTENUATION = 3.2
BOWTIE_ATTENUATION = 1.6
LARGEST_AMPLITUDE = 6.0
BONE_FROM_HU = 250.0
# HU of amalgam and crowns: beyond any scale.
METAL_HU = 12000.0
# HU of metal error for a millimetre of path lost, at full strength.
METAL_ERROR_HU = 14000.0
# HU of hardening error for a squared bone path of one (100 mm of 1000 HU), at full strength.
HARDENING_HU = 900.0


class Renderer(Protocol):
    """What can be scanned: a phantom scene."""

    @property
    def spine(self) -> Any:
        """Poses, shapes and landmarks of the vertebrae."""
        ...

    def render(self, grid: Grid) -> Any:
        """Values on ``grid``: ``hu``, ``labels``, ``fracture`` and ``metal``, all ``[z, y, x]``."""
        ...


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole patient, coarsely, over the slices of a scan.

    Attributes:
        grid: axes along the patient's.
        across: attenuation of rays along x, a row: ``[z, y]``.
        along: attenuation of rays along y, a column: ``[z, x]``.
        hardening: HU of beam hardening error at unit strength, ``[z, y, x]``.
    """

    grid: Grid
    across: Float
    along: Float
    hardening: Float


def look_over(scene: Renderer, field: Grid) -> Overview:
    """Draw and project the patient over the z range of ``field``."""
    corners = _corners(field)
    low, high = corners[:, 2].min() - 1, corners[:, 2].max() + 1
    center = np.array([pose[:3, 3] for pose in scene.spine.poses.values()]).mean(axis=0)
    size = OVERVIEW_SIZE * OVERVIEW_PIXEL_MM
    depth = max(high - low, 2 * OVERVIEW_SLICE_MM)
    spacing = (OVERVIEW_PIXEL_MM, OVERVIEW_PIXEL_MM, depth / np.ceil(depth / OVERVIEW_SLICE_MM))
    grid = Grid.axis_aligned((center[0], center[1], (low + high) / 2), (size, size, depth), spacing)
    hu = np.asarray(scene.render(grid).hu, dtype=np.float32)
    density = np.asarray(np.maximum(hu, -1000) / 1000 + 1, dtype=np.float32)
    return Overview(
        grid,
        across=density.sum(axis=2) * np.float32(WATER_PER_MM * OVERVIEW_PIXEL_MM),
        along=density.sum(axis=1) * np.float32(WATER_PER_MM * OVERVIEW_PIXEL_MM),
        hardening=_hardening(hu, density),
    )


def _hardening(hu: Float, density: Float) -> Float:
    """Error of an uncorrected bone beam, HU: the square of the bone path goes missing; and a little cupping."""
    rays = projector(OVERVIEW_SIZE, OVERVIEW_ANGLES)
    scale = np.float32(OVERVIEW_PIXEL_MM / 100)
    bone = rays.project(np.maximum(hu - BONE_FROM_HU, 0) / 1000) * scale
    water = rays.project(density) * scale
    error = -(bone**2) - np.float32(0.02) * np.maximum(water - 1.5, 0) ** 2
    out = rays.reconstruct(error) / scale * np.float32(HARDENING_HU / 10)
    # What is missing on average is corrected by the scanner's calibration; the pattern is not.
    inside = density > 0.5
    mean = (out * inside).sum(axis=(1, 2), keepdims=True) / np.maximum(inside.sum(axis=(1, 2), keepdims=True), 1)
    return np.asarray(out - 0.7 * mean, dtype=np.float32)


def noise_amplitude(attenuation: Float, modulation: float) -> Float:
    """Amplitude of noise of rays with the given attenuation, relative to the middle of a neck.

    Photons fall off exponentially with attenuation and noise with their root; ``modulation`` of the tube current
    takes that share of the differences away.
    """
    excess = np.maximum(attenuation, BOWTIE_ATTENUATION) - REFERENCE_ATTENUATION
    amplitude = np.exp(0.5 * (1 - modulation) * excess)
    # Scanners smooth starved projections before they reconstruct them: the worst is not as bad as it would be.
    return np.asarray(amplitude / np.sqrt(1 + (amplitude / LARGEST_AMPLITUDE) ** 2), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class MetalStreaks:
    """HU error of metal, ``[z, y, x]`` on ``grid``."""

    grid: Grid
    error: Float


def streaks_of(scene: Renderer, field: Grid, scanner: Scanner, rng: np.random.Generator) -> MetalStreaks | None:
    """Streaks of dental metal in the slices of ``field``; None when the patient has none there."""
    anatomy = getattr(scene.spine, "anatomy", None)
    if scanner.metal <= 0 or not getattr(anatomy, "dental_metal", False):
        return None
    poses = scene.spine.poses
    corners = _corners(field)
    low = max(corners[:, 2].min(), poses[3][2, 3] - 40)
    high = min(corners[:, 2].max(), poses[1][2, 3] + 40)
    if high <= low:
        return None
    size = METAL_SIZE * METAL_PIXEL_MM
    center = (poses[2][0, 3], poses[2][1, 3] - 25.0, (low + high) / 2)
    grid = Grid.axis_aligned(center, (size, size, high - low), (METAL_PIXEL_MM, METAL_PIXEL_MM, 2.0))
    metal = _metal_on(scene, grid)
    if not metal.any():
        return None
    return MetalStreaks(grid, streak_error(metal, scanner.metal, rng))


def streak_error(metal: Float, strength: float, rng: np.random.Generator) -> Float:
    """HU error that metal throws into its slices.

    Args:
        metal: share of metal, float32 ``[n, METAL_SIZE, METAL_SIZE]``, pixels of ``METAL_PIXEL_MM``.
        strength: 0 (none) to 1 (severe).
        rng: of the noise of starved rays.

    Returns:
        float32, same shape; 0 in the metal itself, and fading towards the border.
    """
    rays = projector(METAL_SIZE, METAL_ANGLES)
    shown = metal.any(axis=(1, 2))
    path = rays.project(metal[shown]) * np.float32(METAL_PIXEL_MM)
    # A ray through metal counts few photons: it reads too little, and it reads noise.
    noise = rng.standard_normal(path.shape, dtype=np.float32)
    wrong = -(path**2) / (path + 6.0) + np.float32(0.6) * noise * np.minimum(path, 8.0)
    error = np.zeros_like(metal)
    error[shown] = rays.reconstruct(wrong / METAL_PIXEL_MM) * np.float32(strength * METAL_ERROR_HU)
    # The metal itself stays what it is: too bright for any scale.
    error[metal > 0] = 0
    error *= _fading(METAL_SIZE)
    return error


def _fading(size: int) -> Float:
    """Weights ``[size, size]`` that fall from 1 to 0 towards the border, where the drawn streaks end."""
    away = np.abs(np.arange(size) - (size - 1) / 2) / (size / 2)
    edge = np.clip((1 - away) / 0.25, 0, 1)
    return np.asarray(edge[:, None] * edge[None, :], dtype=np.float32)


def _metal_on(scene: Renderer, grid: Grid) -> Float:
    """Metal of the scene, drawn only where a coarse look finds the mouth (before the spine)."""
    metal = np.zeros(grid.shape, dtype=np.float32)
    half = (slice(0, grid.shape[0]), slice(0, grid.shape[1] * 5 // 8), slice(0, grid.shape[2]))
    metal[half] = scene.render(grid.sub(half)).metal
    return metal


@dataclass(frozen=True, slots=True)
class Motion:
    """Displacement of each slice, and of its ghost, in pixels; ``share`` of the ghost in the image, 0 to 0.5."""

    shift_x: Float
    shift_y: Float
    ghost_x: Float
    ghost_y: Float
    share: Float


def motion_of(scanner: Scanner, slices: int, rng: np.random.Generator) -> Motion | None:
    """One to three short movements (a swallow, a breath) during the scan, or None."""
    if scanner.motion <= 0:
        return None
    z = np.arange(slices, dtype=np.float32) * np.float32(scanner.spacing)
    parts = np.zeros((5, slices), dtype=np.float32)
    for _ in range(int(rng.integers(1, 4))):
        middle = rng.uniform(0, z[-1])
        length = rng.uniform(3.0, 14.0)
        bump = np.exp(-(((z - middle) / length) ** 2)).astype(np.float32)
        reach = scanner.motion * rng.normal(0, 1.1, size=4) / scanner.pixel
        for row, amount in enumerate(reach):
            parts[row] += np.float32(amount) * bump
        parts[4] = np.maximum(parts[4], np.float32(rng.uniform(0.15, 0.5)) * bump)
    return Motion(*parts)


def _corners(grid: Grid) -> NDArray[np.float64]:
    """World positions of the eight corner voxels."""
    ends = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)
    index = ends * (np.asarray(grid.shape[::-1]) - 1)
    return np.asarray(index @ grid.affine[:3, :3].T + grid.affine[:3, 3])


def interpolation(place: NDArray[np.float64], count: int) -> Float:
    """Matrix ``[len(place), count]`` of linear interpolation at fractional indices, clamped to the ends."""
    place = np.clip(place, 0, count - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(place[:, None] - np.arange(count)[None, :])), dtype=np.float32)
