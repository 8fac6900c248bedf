"""A small labelled scan for the planting tests: C5 and C6 of the mean man in muscle and air, blurred and noisy."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

from cspine.phantoms.fractures import Fracture, plan_fracture
from cspine.phantoms.planting_solid import Solid, solid_of
from cspine.phantoms.template import template_of
from cspine.volume import Volume

LEVELS = (5, 6)
PITCH_MM = 17.5
BLUR_MM, NOISE_HU = 0.5, 14.0
MUSCLE_HU, CORTEX_HU, CORE_HU = 55.0, 1150.0, 380.0


def centre_of(level: int) -> np.ndarray:
    """Body centre, LPS mm."""
    return np.array([1.0, -2.0, 0.5 * PITCH_MM * (1 if level == 5 else -1)])


@cache
def scan(spacing: tuple[float, float, float] = (0.6, 0.6, 1.0), noise: float = NOISE_HU) -> tuple[Volume, Volume]:
    """(CT, labels on its grid): two vertebrae 17.5 mm apart, ``spacing`` (x, y, z) mm, slices as thick as apart."""
    rng = np.random.default_rng(7)
    size = np.array([74.0, 92.0, 62.0])
    fine = min(spacing[2], 1.0)
    step = np.array([spacing[0], spacing[1], fine])
    count = np.round(size / step).astype(int)
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = (-36.0, -26.0, -30.5)
    z, y, x = np.indices(count[::-1]).astype(np.float32)
    world = np.stack([x, y, z], -1) * step.astype(np.float32) + affine[:3, 3].astype(np.float32)
    hu = np.where(np.hypot(world[..., 0] / 34.0, (world[..., 1] - 19.0) / 42.0) < 1, MUSCLE_HU, -1000.0)
    labels = np.zeros(hu.shape, np.uint8)
    grain = ndimage.gaussian_filter(rng.standard_normal(hu.shape), 1.2 / step[::-1])
    for level in LEVELS:
        sdf = template_of(level).shape.sample((world - centre_of(level)).astype(np.float32))
        inside = sdf < 0
        bone = np.where(sdf > -1.1, CORTEX_HU, CORE_HU + 90.0 * grain / grain.std())
        hu = np.where(inside & (labels == 0), bone, hu)
        labels[inside & (labels == 0)] = level
    thick = round(spacing[2] / fine)
    hu = ndimage.gaussian_filter(hu, (0.0, BLUR_MM / spacing[1], BLUR_MM / spacing[0]))
    if thick > 1:
        hu = ndimage.uniform_filter1d(hu, thick, axis=0)[thick // 2 :: thick]
        labels = labels[thick // 2 :: thick]
        affine[:3, 3] += affine[:3, 2] * (thick // 2)
        affine[:3, 2] *= thick
    field = ndimage.gaussian_filter(rng.standard_normal(hu.shape), (0.3, 0.6, 0.6))
    hu = hu + noise * field / field.std()
    return Volume(np.rint(hu).astype(np.int16), affine), Volume(labels, affine)


@cache
def coarse(spacing: tuple[float, float, float] = (0.6, 0.6, 1.0)) -> Volume:
    """The labels at 2 mm, as a locator gives them."""
    return scan(spacing)[1].resampled(2.0, order=0)


@cache
def solid(level: int = 5, spacing: tuple[float, float, float] = (0.6, 0.6, 1.0)) -> Solid:
    """A vertebra of the scan found with the coarse labels."""
    return solid_of(scan(spacing)[0], coarse(spacing), level)


def broken(kind: str, severity: float, *, level: int = 5, seed: int = 0, chronic: bool = False) -> Fracture:
    """A planned fracture of the scan's vertebra."""
    rng = np.random.default_rng(seed)
    return plan_fracture(rng, level, solid(level).marks, type=kind, severity=severity, chronic=chronic, side="left")
