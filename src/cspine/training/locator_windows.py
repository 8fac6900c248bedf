"""Random windows of locator samples: placed, turned, cut and toned anew at every draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import BACKGROUND, THORACIC
from cspine.inference.locate import normalise
from cspine.training.recipe import LocatorAugment, LocatorStage, WindowAugment
from cspine.training.samples import LOCATOR_SPACING_MM, LocatorSample

AIR = -1000
# A body centre this far outside the field still shows half of its vertebra.
EDGE_VOXELS = 2.0
# Heat that only a known centre leaves.
KNOWN_HEAT = 0.02
Array = NDArray[Any]
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Window:
    """What the locator trains on; all ``[Z, Y, X]``.

    Attributes:
        image: float32, as inference normalises it.
        labels: uint8.
        heat: float32 0..1, Gaussians at body centres.
        known: bool, where ``heat`` is the truth.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    heat: NDArray[np.float32]
    known: NDArray[np.bool_]


def draw_window(sample: LocatorSample, stage: LocatorStage, rng: np.random.Generator, *, plain: bool = False) -> Window:
    """One window of ``stage.window`` voxels.

    Args:
        sample: a scan on the locator's grid.
        stage: size, augmentation and heat of the recipe.
        rng: source of chance.
        plain: no augmentation, and centred on the cervical spine (for validation).
    """
    augment = stage.augment
    size = np.asarray(stage.window)
    hu, labels, start = (sample.hu, sample.labels, 0) if plain else _cut(sample, augment, rng)
    matrix = np.eye(3) if plain else random_turn(augment, rng)
    middle = _place(labels, size, stage.anchored, rng, plain=plain)
    image, mask = cut_window(hu, labels, size, matrix, middle)
    inside = sample.centers[:, :0:-1] - (start, 0, 0)
    # A centre that the field does not show cannot be asked for.
    inside = inside[((inside > -EDGE_VOXELS) & (inside < np.asarray(hu.shape) - 1 + EDGE_VOXELS)).all(1)]
    # Index zyx of the sample → index zyx of the window.
    points = (inside - middle) @ np.linalg.inv(matrix).T + (size - 1) / 2
    heat = draw_heat(points, stage.window, stage.heat_sigma_mm / LOCATOR_SPACING_MM)
    # Of thoracic vertebrae only those with a centre are known, when not all are.
    known = np.ones(stage.window, bool) if sample.thoracic_known else (mask != THORACIC) | (heat > KNOWN_HEAT)
    if not plain and rng.random() < augment.flip:
        image, mask, heat, known = (np.ascontiguousarray(part[..., ::-1]) for part in (image, mask, heat, known))
    if not plain:
        if rng.random() < augment.porous_probability:
            image = porous(image, mask, rng)
        if rng.random() < augment.coarse_probability:
            image = coarsened(image, augment, rng)
        image = random_tone(image, augment, rng)
        if rng.random() < augment.air_outside_probability:
            shown = _disc(stage.window, rng)
            image, mask, heat = np.where(shown, image, np.float32(AIR)), mask * shown, heat * shown
    return Window(normalise(image), mask, heat, known)


def draw_heat(points: Array, shape: Shape, sigma: float) -> NDArray[np.float32]:
    """Gaussians of ``sigma`` voxels, peak 1, the largest where they overlap.

    Args:
        points: ``(n, 3)`` indices z, y, x; those outside the window show as far as they reach in.
        shape: of the window.
        sigma: voxels.
    """
    heat = np.zeros(shape, np.float32)
    reach = 3 * sigma
    for point in points:
        low = np.maximum(np.ceil(point - reach), 0).astype(int)
        high = np.minimum(np.floor(point + reach) + 1, shape).astype(int)
        if (high <= low).any():
            continue
        squares = [((np.arange(a, b) - c) / sigma) ** 2 for a, b, c in zip(low, high, point, strict=True)]
        value = np.exp(-0.5 * (squares[0][:, None, None] + squares[1][:, None] + squares[2])).astype(np.float32)
        part = heat[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        np.maximum(part, value, out=part)
    return heat


def _cut(sample: LocatorSample, augment: LocatorAugment, rng: np.random.Generator) -> tuple[Array, Array, int]:
    """A shorter field of view along z, sometimes; returns also the first slice kept."""
    count = sample.hu.shape[0]
    if rng.random() >= augment.crop_z_probability or count < 32:
        return sample.hu, sample.labels, 0
    length = int(rng.integers(24, count + 1))
    start = int(rng.integers(0, count - length + 1))
    return sample.hu[start : start + length], sample.labels[start : start + length], start


def random_turn(augment: WindowAugment, rng: np.random.Generator) -> NDArray[np.float64]:
    """Window offset (zyx) → sample offset: rotation and scale, or plain identity."""
    if rng.random() >= augment.rotate_probability:
        return np.eye(3)
    from scipy.spatial.transform import Rotation

    angles = rng.uniform(-augment.rotate_degrees, augment.rotate_degrees, 3)
    scale = rng.uniform(*augment.scale) * rng.uniform(0.96, 1.04, 3)
    return np.asarray(Rotation.from_euler("xyz", angles, degrees=True).as_matrix() / scale)


def _place(labels: Array, size: Array, anchored: float, rng: np.random.Generator, *, plain: bool) -> Array:
    """Index zyx (float) of the sample that becomes the middle of the window."""
    shape = np.asarray(labels.shape)
    thin = labels[::3, ::3, ::3]
    spine = np.argwhere((thin > BACKGROUND) & (thin < THORACIC)) * 3
    free = np.maximum(shape - size, 0)
    if len(spine) and (plain or rng.random() < anchored):
        target = (spine.min(0) + spine.max(0)) / 2 if plain else spine[rng.integers(len(spine))]
        jitter = 0 if plain else rng.uniform(-0.3, 0.3, 3) * size
        start = np.round(target + jitter - size / 2)
    else:
        start = np.floor(rng.uniform(0, 1, 3) * (free + 1))
    start = np.clip(start, 0, free)
    # A field smaller than the window sits at its start, as inference pads behind, or anywhere.
    slack = np.maximum(size - shape, 0)
    if not plain:
        start = start - np.where(rng.random() < 0.5, np.floor(rng.uniform(0, 1, 3) * (slack + 1)), 0)
    return np.asarray(start + (size - 1) / 2)


def cut_window(hu: Array, labels: Array, size: Array, matrix: Array, middle: Array) -> tuple[Array, Array]:
    """Window of HU (float32) and labels; air and background outside the scan.

    Args:
        hu: ``[z, y, x]``.
        labels: same shape.
        size: voxels z, y, x of the window.
        matrix: window offset → scan offset, zyx, see ``random_turn``.
        middle: index zyx of the scan that becomes the middle of the window.
    """
    shape = (int(size[0]), int(size[1]), int(size[2]))
    if np.array_equal(matrix, np.eye(3)):
        start = np.round(middle - (size - 1) / 2).astype(int)
        image, mask = np.full(shape, AIR, np.float32), np.zeros(shape, np.uint8)
        low, high = np.maximum(start, 0), np.minimum(start + size, hu.shape)
        if (high > low).all():
            source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            target = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
            image[target], mask[target] = hu[source], labels[source]
        return image, mask
    from scipy import ndimage

    offset = middle - matrix @ ((size - 1) / 2)
    low, high = _reach(matrix, offset, size, hu.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    offset = offset - low
    image = ndimage.affine_transform(
        np.asarray(hu[box], np.float32), matrix, offset, shape, order=1, mode="constant", cval=AIR
    )
    mask = ndimage.affine_transform(np.asarray(labels[box]), matrix, offset, shape, order=0, mode="constant", cval=0)
    return image, mask


def _reach(matrix: Array, offset: Array, size: Array, shape: Shape) -> tuple[Array, Array]:
    """First and last index of the sample that a turned window touches, at least one voxel."""
    corners = np.array(np.meshgrid(*([0, n - 1] for n in size), indexing="ij")).reshape(3, -1).T @ matrix.T + offset
    low = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, np.asarray(shape) - 1)
    high = np.clip(np.ceil(corners.max(0)).astype(int) + 2, low + 1, shape)
    return low, high


def random_tone(image: Array, augment: WindowAugment, rng: np.random.Generator) -> Array:
    """Contrast, offset, noise and blur, as scanners differ."""
    from scipy import ndimage

    inside = image > AIR
    if rng.random() < augment.blur_probability:
        image = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.9, 3))
    image = (image - AIR) * rng.uniform(*augment.contrast) + AIR + rng.uniform(-augment.shift_hu, augment.shift_hu)
    sigma = rng.uniform(0, augment.noise_hu) * (rng.random() < 0.5)
    if sigma > 1:
        image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)
    return np.asarray(np.where(inside, image, AIR), dtype=np.float32)


def thick_slices(image: Array, thick: int) -> NDArray[np.float32]:
    """What slices ``thick`` samples of z apart would show of ``[z, y, x]``: averaged, and interpolated back."""
    count = -(-len(image) // thick)
    whole = np.pad(image, ((0, count * thick - len(image)), (0, 0), (0, 0)), mode="edge")
    slices = whole.reshape(count, thick, *image.shape[1:]).mean(1)
    place = np.clip((np.arange(len(image)) - (thick - 1) / 2) / thick, 0, count - 1)
    low = np.minimum(np.floor(place).astype(int), max(count - 2, 0))
    share = (place - low)[:, None, None].astype(np.float32)
    return np.asarray(slices[low] * (1 - share) + slices[np.minimum(low + 1, count - 1)] * share, dtype=np.float32)


def porous(image: Array, mask: Array, rng: np.random.Generator) -> NDArray[np.float32]:
    """Bone as old people have it: little is left inside the vertebrae, less the lower they are; end plates stay.

    In coarse scans of such necks the bright bands are end plates with a disc between them, not bodies.
    """
    same = np.ones(mask.shape, bool)
    for axis in range(3):
        for step in (1, -1):
            same &= np.roll(mask, step, axis) == mask
    inner = same & (mask > BACKGROUND) & (mask <= THORACIC)
    top, bottom = rng.uniform(0.2, 1.0), rng.uniform(0.0, 0.6)
    left = np.interp(np.arange(THORACIC + 1), [1, THORACIC], [top, min(top, bottom)]).astype(np.float32)
    marrow = np.float32(rng.uniform(20, 120))
    return np.where(inner, marrow + (image - marrow) * left[np.minimum(mask, THORACIC)], image)


def coarsened(image: Array, augment: LocatorAugment, rng: np.random.Generator) -> NDArray[np.float32]:
    """The window as a scan of larger voxels shows it: averaged, sampled coarsely, interpolated back to 2 mm."""
    from scipy import ndimage

    in_plane = rng.uniform(*augment.coarse_mm)
    size = np.array([rng.uniform(LOCATOR_SPACING_MM, augment.coarse_mm[1]), in_plane, in_plane]) / LOCATOR_SPACING_MM
    outside = image <= AIR
    # A box of the voxel's width, as a Gaussian of the same spread.
    sigma = np.sqrt(np.maximum(size**2 - 1, 0) / 12)
    soft = ndimage.gaussian_filter(image, sigma)
    small = ndimage.zoom(soft, np.maximum(np.round(image.shape / size), 2) / image.shape, order=1)
    back = ndimage.zoom(small, np.asarray(image.shape) / small.shape, order=1)
    return np.asarray(np.where(outside, np.float32(AIR), back), dtype=np.float32)


def _disc(shape: Shape, rng: np.random.Generator) -> NDArray[np.bool_]:
    """What a small reconstructed disc shows of a window, ``[1, y, x]``."""
    _, rows, columns = shape
    y, x = np.mgrid[0:rows, 0:columns]
    centre = np.array([rows, columns]) / 2 + rng.uniform(-0.15, 0.15, 2) * (rows, columns)
    return np.asarray(np.hypot(y - centre[0], x - centre[1]) <= rng.uniform(0.42, 0.75) * min(rows, columns))[None]
