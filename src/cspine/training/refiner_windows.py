"""Random windows of refiner samples, each with a coarse mask as the locator might have drawn it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import BACKGROUND, OTHER_BONE, THORACIC, Level
from cspine.inference.locate import SPACING_MM as COARSE_MM
from cspine.inference.locate import normalise
from cspine.inference.refine import PARITY, soft_masks
from cspine.training.locator_windows import cut_window, random_tone, random_turn, thick_slices
from cspine.training.recipe import RefinerAugment, RefinerStage
from cspine.training.samples import REFINER_SPACING_MM, RefinerSample

# Fine voxels along a coarse one.
STEP = round(COARSE_MM / REFINER_SPACING_MM)
# A window may reach this far, as a share of its size, beyond what was scanned: inference pads too.
OUTSIDE = 0.12
# Coarse voxels over which displacement and raggedness change.
WARP_KNOTS, RAGGED_KNOTS = 12, 4
# Blur of a mask before it is cut anew, coarse voxels: thin processes lose most.
MASK_BLUR = 0.7
# Chance that a ball of leaking mask swaps neighbours instead of taking other bone.
SWAP = 0.5
# Thick slices, in mm, that are simulated.
THICK_MM = (2, 5)

Array = NDArray[Any]
Labels = NDArray[np.uint8]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True)
class RefinerWindow:
    """What the refiner trains on.

    Attributes:
        image: float32 ``[3, Z, Y, X]``, as ``inference.refine.refiner_input`` gives it.
        labels: uint8 ``[Z, Y, X]``, 0..3: background, odd vertebra, even vertebra, other bone.
    """

    image: NDArray[np.float32]
    labels: Labels


def draw_refiner_window(
    sample: RefinerSample, stage: RefinerStage, rng: np.random.Generator, *, plain: bool = False
) -> RefinerWindow:
    """One window of ``stage.window`` voxels around cervical bone.

    Args:
        sample: a scan at 1 mm.
        stage: size and augmentation of the recipe.
        rng: source of chance.
        plain: the image is as scanned (for validation); the coarse mask is drawn at random in any case.
    """
    augment = stage.augment
    size = np.asarray(stage.window)
    matrix = np.eye(3) if plain else random_turn(augment, rng)
    image, labels = cut_window(sample.hu, sample.labels, size, matrix, _place(sample.labels, size, rng))
    if not plain and rng.random() < augment.flip:
        image, labels = (np.ascontiguousarray(part[..., ::-1]) for part in (image, labels))
    if not plain:
        if rng.random() < augment.thick_slices:
            image = thick_slices(image, int(rng.integers(THICK_MM[0], THICK_MM[1] + 1)))
        image = random_tone(image, augment, rng)
    coarse, affine, absent = coarse_mask(labels, augment, rng)
    masks = soft_masks(coarse, affine, np.eye(4), stage.window)
    # A vertebra that the mask does not name is none that can be outlined.
    known = np.where(np.isin(labels, absent), np.uint8(OTHER_BONE), labels)
    return RefinerWindow(np.concatenate([normalise(image)[None], masks]), PARITY[known])


def coarse_mask(
    labels: Labels, augment: RefinerAugment, rng: np.random.Generator
) -> tuple[Labels, NDArray[np.float64], list[int]]:
    """A mask at 2 mm as the locator and its chain might give it: displaced, ragged, with holes and leaks.

    Args:
        labels: the truth at 1 mm, ``[z, y, x]``, values of ``cspine.anatomy``.
        augment: how far from the truth.
        rng: source of chance.

    Returns:
        The mask, its affine in index units ``(x, y, z)`` of ``labels``, and the label values left out of it.
    """
    phase = rng.integers(0, STEP, 3)
    coarse = np.array(labels[tuple(slice(int(k), None, STEP) for k in phase)])
    affine = np.diag([STEP, STEP, STEP, 1.0])
    affine[:3, 3] = phase[::-1] + rng.uniform(-0.5, 0.5, 3)
    coarse = _warped(coarse, augment, rng)
    present = [int(label) for label in np.unique(coarse) if Level.C1 <= label <= Level.C7]
    absent = [label for label in present if rng.random() < augment.absent]
    coarse[np.isin(coarse, absent)] = OTHER_BONE
    coarse = _ragged(coarse, augment, rng)
    for _ in range(rng.poisson(augment.holes)):
        box, ball = _ball(coarse, augment, rng)
        coarse[box][ball] = BACKGROUND
    for _ in range(rng.poisson(augment.leaks)):
        _leak(coarse, augment, rng)
    return coarse, affine, absent


def _place(labels: Array, size: Array, rng: np.random.Generator) -> Array:
    """Index zyx (float) of the sample that becomes the middle of the window, near cervical bone."""
    thin = np.asarray(labels[::4, ::4, ::4])
    spine = np.argwhere((thin > BACKGROUND) & (thin < THORACIC)) * 4
    shape = np.asarray(labels.shape)
    target = spine[rng.integers(len(spine))] if len(spine) else shape / 2
    start = np.round(target + rng.uniform(-0.35, 0.35, 3) * size - size / 2)
    slack = np.floor(OUTSIDE * size * rng.random(3))
    start = np.clip(start, np.minimum(-slack, 0), np.maximum(shape - size + slack, 0))
    return np.asarray(start + (size - 1) / 2)


def _smooth_noise(shape: tuple[int, ...], knots: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise of about unit spread that changes over ``knots`` voxels: random values at knots, linear between."""
    from cspine.volume import Volume

    count = [n // knots + 2 for n in shape]
    values = Volume(rng.standard_normal(count, dtype=np.float32), np.eye(4))
    affine = np.diag([1 / knots, 1 / knots, 1 / knots, 1.0])
    affine[:3, 3] = rng.uniform(0, 0.9, 3)
    z, y, x = shape
    return np.asarray(values.resampled_to(affine, (z, y, x), fill=0.0).hu)


def _warped(coarse: Labels, augment: RefinerAugment, rng: np.random.Generator) -> Labels:
    """The mask displaced smoothly, each axis on its own."""
    from scipy import ndimage

    spread = rng.uniform(*augment.warp_mm) / COARSE_MM
    grid = np.indices(coarse.shape, dtype=np.float32)
    moved = grid + spread * np.stack([_smooth_noise(coarse.shape, WARP_KNOTS, rng) for _ in range(3)])
    return np.asarray(ndimage.map_coordinates(coarse, moved, order=0, mode="nearest"))


def _ragged(coarse: Labels, augment: RefinerAugment, rng: np.random.Generator) -> Labels:
    """Vertebrae grown and shrunk from place to place; thin processes come and go."""
    from scipy import ndimage

    parity = PARITY[coarse]
    blurred = [ndimage.gaussian_filter((parity == side).astype(np.float32), MASK_BLUR) for side in (1, 2)]
    level = rng.uniform(*augment.ragged) * _smooth_noise(coarse.shape, RAGGED_KNOTS, rng) + rng.normal(0, 0.07)
    wins = np.argmax(blurred, 0)
    bone = np.maximum(*blurred) > np.clip(0.5 + level, 0.08, 0.92)
    out = np.where(parity == 3, coarse, BACKGROUND).astype(np.uint8)
    # Only parity matters to what is made of this: any odd and any even label stands for the others.
    out[bone] = np.where(wins[bone] == 0, Level.C1, Level.C2)
    return out


def _ball(coarse: Labels, augment: RefinerAugment, rng: np.random.Generator) -> tuple[Box, NDArray[np.bool_]]:
    """A box of the mask and a ball in it, around a random voxel of bone (of anything when there is none)."""
    bone = np.flatnonzero(coarse)
    chosen = int(bone[rng.integers(len(bone))]) if len(bone) else int(rng.integers(coarse.size))
    centre = np.array(np.unravel_index(chosen, coarse.shape))
    radius = rng.uniform(*augment.ball_mm) / COARSE_MM
    low = np.maximum(np.floor(centre - radius), 0).astype(int)
    high = np.minimum(np.ceil(centre + radius) + 1, coarse.shape).astype(int)
    z, y, x = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    sides = np.ogrid[z, y, x]
    square = sum((side - c) ** 2 for side, c in zip(sides, centre, strict=True))
    return (z, y, x), np.asarray(square <= radius**2)


def _leak(coarse: Labels, augment: RefinerAugment, rng: np.random.Generator) -> None:
    """In a ball, other bone becomes a vertebra, or vertebrae swap; changes ``coarse``."""
    box, ball = _ball(coarse, augment, rng)
    part = coarse[box]
    if rng.random() < SWAP:
        side = rng.integers(2)
        vertebra = ball & (part != BACKGROUND) & (part != OTHER_BONE)
        part[vertebra] = (Level.C1, Level.C2)[side]
    else:
        part[ball & (part == OTHER_BONE)] = (Level.C1, Level.C2)[rng.integers(2)]
