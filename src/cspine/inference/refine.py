"""Masks at 1 mm that follow the bone: the refiner redraws the locator's 2 mm mask from the image.

Vertebrae that touch differ in parity (C1, C3, C5, C7 odd; C2, C4, C6, T1 even), so the network only says
background, odd vertebra, even vertebra or other bone, and never counts. Which odd or even vertebra a voxel belongs to
is read off the nearest voxel of that parity in the locator's mask, which agrees with the level chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import BACKGROUND, OTHER_BONE, THORACIC, Level
from cspine.inference.locate import AIR, normalise, padded, windows
from cspine.inference.relabel import without_crumbs
from cspine.volume import Volume

SPACING_MM = 1.0
# Feature maps are halved three times.
MULTIPLE = 8
# Image, odd mask, even mask.
INPUTS = 3
# Background, odd vertebra, even vertebra, other bone.
ODD, EVEN, OTHER = 1, 2, 3
CLASSES = 4
# Slices may be thick, but voxels that are larger than this along two axes show no outline at 1 mm.
MAX_PIXEL_MM = 2.0
# Kept around the cervical vertebrae of the coarse mask.
MARGIN_MM = 10.0
# Pieces of the coarse column smaller than this share of the largest are strays, which may lie anywhere.
STRAY_SHARE = 0.01
# A voxel farther than this from every coarse voxel of its parity belongs to no vertebra of the chain.
REACH_MM = 9.0
# Pieces of a vertebra smaller than this, mm³, are noise.
CRUMB_MM3 = 25
# Largest block given to the network at once, voxels z, y, x: a whole cervical column of most people.
WINDOW = (192, 160, 128)
OVERLAP = (32, 32, 32)
# Class of each label value 0..9: what the network is to say of it.
PARITY: NDArray[np.uint8] = np.array([0, ODD, EVEN, ODD, EVEN, ODD, EVEN, ODD, EVEN, OTHER], np.uint8)

Float = NDArray[np.float32]
Labels = NDArray[np.uint8]
Affine = NDArray[np.float64]
Network = Callable[[Float], Float]
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Refined:
    """The mask around the cervical column.

    Attributes:
        labels: uint8 ``[Z, Y, X]``, 1 mm isotropic, values of ``cspine.anatomy``.
        affine: index ``(x, y, z)`` → LPS mm.
    """

    labels: Labels
    affine: Affine


def refine(volume: Volume, labels: Labels, affine: Affine, network: Network, *, window: Shape = WINDOW) -> Refined:
    """Redraw the mask of the cervical vertebrae at 1 mm.

    Args:
        volume: HU, any axes and spacing.
        labels: the coarse mask ``[z, y, x]``, values of ``cspine.anatomy``.
        affine: index ``(x, y, z)`` of ``labels`` → LPS mm.
        network: float32 ``[1, 3, Z, Y, X]`` (see ``refiner_input``) → float32 ``[1, 4, Z, Y, X]`` class logits.
        window: largest block given to the network, voxels z, y, x, multiples of 8.

    Returns:
        The mask in a box around the cervical vertebrae, within the field of view. Without a cervical vertebra in
        ``labels``, or with pixels larger than 2 mm, these come back as they are.
    """
    fine = column(volume, labels, affine) if sorted(volume.spacing)[1] <= MAX_PIXEL_MM else None
    if fine is None:
        return Refined(labels, affine)
    image = refiner_input(fine, labels, affine)
    classes = _run(image, network, window)[tuple(slice(0, n) for n in fine.shape)]
    found = assign(classes, fine.affine, labels, affine)
    return Refined(without_crumbs(found, math.ceil(CRUMB_MM3 / SPACING_MM**3), THORACIC), fine.affine)


def column(volume: Volume, labels: Labels, affine: Affine) -> Volume | None:
    """The image around the cervical vertebrae of a coarse mask, 1 mm isotropic; None where there is none."""
    index = np.argwhere(_without_strays((labels >= Level.C1) & (labels <= Level.C7)))
    if not len(index):
        return None
    low, high = index.min(0) - 0.5, index.max(0) + 0.5
    corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1).T[:, ::-1]
    points = volume.to_index(corners @ affine[:3, :3].T + affine[:3, 3])
    margin = MARGIN_MM / np.asarray(volume.spacing)
    first = np.maximum(np.floor(points.min(0) - margin), 0).astype(int)
    last = np.minimum(np.ceil(points.max(0) + margin) + 1, volume.shape[::-1]).astype(int)
    if (last <= first).any():
        return None
    x, y, z = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return volume.crop(z, y, x).resampled(SPACING_MM)


def _without_strays(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pieces of a mask that are large enough to stretch the box."""
    pieces, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count < 2:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    large = (sizes >= STRAY_SHARE * sizes.max()) & (sizes > 0)
    return np.asarray(large[pieces])


def refiner_input(fine: Volume, labels: Labels, affine: Affine) -> Float:
    """What the network sees: ``[3, Z, Y, X]``, each side a multiple of 8, padded behind the last index.

    Args:
        fine: the image at 1 mm, HU.
        labels: the coarse mask ``[z, y, x]``.
        affine: of ``labels``.

    Returns:
        HU / 1000 clipped to [-1, 2], then the odd and the even vertebrae of the coarse mask, 0..1.
    """
    masks = soft_masks(labels, affine, fine.affine, fine.shape)
    channels = [padded(normalise(fine.hu), MULTIPLE, AIR), *(padded(mask, MULTIPLE, 0.0) for mask in masks)]
    return np.stack(channels)


def soft_masks(labels: Labels, affine: Affine, target: Affine, shape: Shape) -> Float:
    """Odd and even vertebrae of a coarse mask, interpolated linearly onto another grid: ``[2, *shape]``, 0..1.

    Args:
        labels: the coarse mask ``[z, y, x]``, values of ``cspine.anatomy``.
        affine: of ``labels``.
        target: affine of the grid that is wanted.
        shape: voxels z, y, x of it.
    """
    parity = PARITY[labels]
    out = np.empty((2, *shape), np.float32)
    for channel, side in zip(out, (ODD, EVEN), strict=True):
        mask = Volume((parity == side).astype(np.float32), affine)
        channel[...] = mask.resampled_to(target, shape, fill=0.0).hu
    return out


def assign(classes: Labels, target: Affine, labels: Labels, affine: Affine) -> Labels:
    """Label of each fine voxel.

    Args:
        classes: ``[Z, Y, X]``, 0..3 as the network answers.
        target: affine of ``classes``.
        labels: the coarse mask ``[z, y, x]``, values of ``cspine.anatomy``.
        affine: of ``labels``.

    Returns:
        uint8, as ``classes``: the label of the nearest coarse voxel of that parity. Where none is near, the vertebra
        is one that the coarse mask does not know, and the voxel is other bone.
    """
    out = np.full(classes.shape, BACKGROUND, np.uint8)
    out[classes == OTHER] = OTHER_BONE
    mapping = np.linalg.solve(affine, target)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    for side in (ODD, EVEN):
        index = np.argwhere(classes == side)
        if not len(index):
            continue
        points = index[:, ::-1] @ mapping[:3, :3].T + mapping[:3, 3]
        place = np.clip(np.rint(points[:, ::-1]).astype(int), 0, np.asarray(labels.shape) - 1)
        out[tuple(index.T)] = _nearest(place, labels, side, spacing)
    return out


def _nearest(place: NDArray[np.intp], labels: Labels, side: int, spacing: NDArray[np.float64]) -> Labels:
    """Label of the nearest coarse voxel of a parity, other bone when none is near, for ``(n, 3)`` indices z, y, x."""
    low, high = place.min(0), place.max(0) + 1
    reach = np.ceil(REACH_MM / spacing).astype(int)
    low, high = np.maximum(low - reach, 0), np.minimum(high + reach, labels.shape)
    part = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    wanted = PARITY[part] == side
    if not wanted.any():
        return np.full(len(place), OTHER_BONE, np.uint8)
    distance, source = ndimage.distance_transform_edt(~wanted, sampling=spacing, return_indices=True)
    at = tuple((place - low).T)
    nearest = part[tuple(axis[at] for axis in source)]
    return np.where(distance[at] <= REACH_MM, nearest, np.uint8(OTHER_BONE))


def _run(image: Float, network: Network, window: Shape) -> Labels:
    """Class of each voxel of a padded input ``[3, Z, Y, X]``.

    Where windows overlap the one counts in which the voxel lies deeper.
    """
    boxes = list(windows(image.shape[1:], _multiples(window), OVERLAP))
    if len(boxes) == 1:
        return _classes(network(image[None]))
    out = np.zeros(image.shape[1:], np.uint8)
    deepest = np.full(image.shape[1:], -1, np.int16)
    for box in boxes:
        answer = _classes(network(np.ascontiguousarray(image[(slice(None), *box)])[None]))
        depth = _depth(answer.shape)
        deeper = depth > deepest[box]
        out[box][deeper] = answer[deeper]
        deepest[box][deeper] = depth[deeper]
    return out


def _multiples(window: Shape) -> Shape:
    z, y, x = (max(MULTIPLE, n // MULTIPLE * MULTIPLE) for n in window)
    return z, y, x


def _classes(answer: Float) -> Labels:
    return np.asarray(answer[0].argmax(0), dtype=np.uint8)


def _depth(shape: tuple[int, ...]) -> NDArray[np.int16]:
    """Voxels to the nearest face of a window."""
    sides = np.ogrid[tuple(slice(0, n) for n in shape)]
    depths = [np.minimum(side, n - 1 - side) for side, n in zip(sides, shape, strict=True)]
    return np.asarray(np.minimum(np.minimum(depths[0], depths[1]), depths[2]), dtype=np.int16)
