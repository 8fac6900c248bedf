"""The locator's side of the data: a volume as the network wants it, and the network's answer as probabilities.

Everything happens on a 2 mm grid, so no full-resolution class volume ever exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cspine.volume import Volume

SPACING_MM = 2.0
MULTIPLE = 16
CLASSES = 10
CHANNELS = CLASSES + 1
HU_MIN, HU_MAX, HU_SCALE = -1000.0, 2000.0, 1000.0
AIR = HU_MIN / HU_SCALE
# Below this (-900 HU) there is no tissue.
VOID = -0.9
# Of networks that halve the grid once more; a bundle says so by a window all of whose sides are multiples of it.
COARSE_MULTIPLE = 32
# Largest window given to the network at once, voxels z, y, x: bounds the memory of its feature maps. The first is
# tall enough (288 mm) to see skull base and thorax at once, without which levels drift.
WINDOW = (144, 160, 160)
OVERLAP = (48, 32, 32)
# Body search: tissue is above this; a margin is kept around it.
BODY_HU = -300.0
BODY_MARGIN_MM = 16.0
MIN_BODY_SHARE = 0.02

Float = NDArray[np.float32]
Network = Callable[[Float], Float]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True)
class LocatorInput:
    """The network's view of a volume.

    Attributes:
        image: float32 ``[Z, Y, X]``, HU/1000 clipped to [-1, 2], 2 mm isotropic; each side a multiple of 16 or 32,
            padded with air behind the last index.
        affine: index ``(x, y, z)`` of ``image`` → LPS mm.
        shape: voxels z, y, x that hold data; the rest is padding.
    """

    image: Float
    affine: NDArray[np.float64]
    shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Located:
    """The locator's answer, without padding.

    Attributes:
        classes: float16 ``[10, Z, Y, X]``, probability of each label value 0..9; sums to 1 along the first axis.
        heat: float16 ``[Z, Y, X]``, 0..1, high at body centres.
        void: bool ``[Z, Y, X]``, voxels without tissue: air, and padding where nothing was scanned.
        affine: index ``(x, y, z)`` → LPS mm of these.
        field_affine: affine of the scanned volume; with ``field_shape`` it says where the field of view ends.
        field_shape: voxels z, y, x of the scanned volume.
    """

    classes: NDArray[np.float16]
    heat: NDArray[np.float16]
    void: NDArray[np.bool_]
    affine: NDArray[np.float64]
    field_affine: NDArray[np.float64]
    field_shape: tuple[int, int, int]


def normalise(hu: NDArray[np.generic]) -> Float:
    """HU of any shape → float32 in [-1, 2]: clipped to [-1000, 2000], divided by 1000."""
    return np.clip(np.asarray(hu, dtype=np.float32), HU_MIN, HU_MAX) / np.float32(HU_SCALE)


def padded(image: Float, multiple: int = MULTIPLE, fill: float = AIR) -> Float:
    """``image`` ``[Z, Y, X]`` with ``fill`` behind each axis up to the next multiple."""
    widths = [(0, -size % multiple) for size in image.shape]
    return image if not any(after for _, after in widths) else np.pad(image, widths, constant_values=fill)


def side_multiple(window: tuple[int, ...]) -> int:
    """What each side of an image must be a multiple of, 16 or 32, for a network that is run in such windows."""
    return MULTIPLE if any(side % COARSE_MULTIPLE for side in window) else COARSE_MULTIPLE


def locator_input(volume: Volume, *, crop: bool = False, multiple: int = MULTIPLE) -> LocatorInput:
    """A canonical volume (``Volume.reoriented``) as the locator takes it.

    Args:
        volume: HU, axes closest to left, posterior, superior.
        crop: leave out air around the body, to save time.
        multiple: what each side of the image is padded to a multiple of.
    """
    coarse = volume.resampled(SPACING_MM)
    if crop:
        coarse = coarse.crop(*body_box(coarse.hu))
    return LocatorInput(padded(normalise(coarse.hu), multiple), coarse.affine, coarse.shape)


def body_box(hu: NDArray[np.generic], spacing_mm: float = SPACING_MM) -> Box:
    """Index ranges z, y, x that hold the largest piece of tissue with a margin; everything when there is none.

    Works on a grid four times coarser, so thin things (table, blanket, tubes) rarely connect or count.
    """
    from scipy import ndimage

    whole = (slice(None), slice(None), slice(None))
    step = 4
    if min(hu.shape) < 4 * step:
        return whole
    tissue = np.asarray(hu[::step, ::step, ::step], dtype=np.float32) > BODY_HU
    pieces, count = ndimage.label(tissue)
    if count == 0:
        return whole
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    largest = int(sizes.argmax())
    if sizes[largest] < MIN_BODY_SHARE * tissue.size:
        return whole
    found = ndimage.find_objects(pieces, largest)[largest - 1]
    margin = math.ceil(BODY_MARGIN_MM / spacing_mm)
    z, y, x = (
        slice(max(0, side.start * step - margin), min(size, side.stop * step + margin))
        for side, size in zip(found, hu.shape, strict=True)
    )
    return z, y, x


def locate(
    volume: Volume,
    network: Network,
    *,
    window: tuple[int, int, int] = WINDOW,
    progress: Callable[[float], None] | None = None,
) -> Located:
    """Run the locator over a canonical volume, in overlapping windows when it is large.

    Args:
        volume: HU, canonical axes.
        network: float32 ``[1, 1, Z, Y, X]`` → float32 ``[1, 11, Z, Y, X]``: ten class logits and a heat logit.
        window: largest block given to the network, voxels z, y, x, multiples of 16; see ``side_multiple``.
        progress: called with the share done, 0..1.
    """
    prepared = locator_input(volume, crop=True, multiple=side_multiple(window))
    classes, heat = _run(prepared.image, network, window, progress)
    z, y, x = (slice(0, size) for size in prepared.shape)
    return Located(
        classes=classes[:, z, y, x],
        heat=heat[z, y, x],
        void=prepared.image[z, y, x] < VOID,
        affine=prepared.affine,
        field_affine=volume.affine,
        field_shape=volume.shape,
    )


def _run(
    image: Float, network: Network, window: tuple[int, int, int], progress: Callable[[float], None] | None
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Class probabilities and heat over a padded image; windows are blended where they overlap."""
    boxes = list(windows(image.shape, window, OVERLAP))
    if len(boxes) == 1:
        answer = probabilities(network(image[None, None])[0])
        if progress:
            progress(1.0)
        return _half(answer[:CLASSES]), _half(answer[CLASSES])
    total = np.zeros((CHANNELS, *image.shape), np.float32)
    norm = np.zeros(image.shape, np.float32)
    weights = [_window_weight([s.stop - s.start for s in box]) for box in boxes]
    for box, weight in zip(boxes, weights, strict=True):
        norm[box] += weight
    for number, (box, weight) in enumerate(zip(boxes, weights, strict=True), start=1):
        answer = probabilities(network(np.ascontiguousarray(image[box])[None, None])[0])
        total[(slice(None), *box)] += answer * (weight / norm[box])
        if progress:
            progress(number / len(boxes))
    return _half(total[:CLASSES]), _half(total[CLASSES])


def _half(values: Float) -> NDArray[np.float16]:
    """Probabilities as float16; those too small for a normal number become 0, since converting them is slow."""
    out = np.empty(values.shape, np.float16)
    for target, part in zip(out, values, strict=True):
        target[...] = np.where(part < np.finfo(np.float16).smallest_normal, np.float32(0), part)
    return out


def probabilities(logits: Float) -> Float:
    """``[11, …]`` logits → softmax over the ten classes and a sigmoid of the heat, same shape."""
    out = np.array(logits, dtype=np.float32)
    classes = out[:CLASSES]
    classes -= classes.max(axis=0)
    np.exp(classes, out=classes)
    classes /= classes.sum(axis=0)
    # tanh form: no overflow for large negative logits.
    out[CLASSES] = 0.5 * (1.0 + np.tanh(0.5 * out[CLASSES]))
    return out


def windows(shape: tuple[int, ...], window: tuple[int, ...], overlap: tuple[int, ...]) -> Iterator[Box]:
    """Boxes of at most ``window`` that cover ``shape``, evenly spread, neighbours sharing at least ``overlap``.

    Windows that are smaller than two overlaps share half of themselves.
    """
    ranges: list[list[slice]] = []
    for size, wide, share in zip(shape, window, overlap, strict=True):
        if size <= wide:
            ranges.append([slice(0, size)])
            continue
        count = 1 + math.ceil((size - wide) / (wide - min(share, wide // 2)))
        starts = [round(k * (size - wide) / (count - 1)) for k in range(count)]
        ranges.append([slice(start, start + wide) for start in starts])
    z_ranges, y_ranges, x_ranges = ranges
    yield from product(z_ranges, y_ranges, x_ranges)


def _window_weight(sizes: list[int]) -> Float:
    """Rises from the faces of a window inwards, so that the middle of a window has the say."""
    weight = np.ones((1, 1, 1), np.float32)
    for axis, (size, share) in enumerate(zip(sizes, OVERLAP, strict=True)):
        depth = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1.0
        ramp = np.minimum(1.0, depth / (share / 2)).astype(np.float32)
        weight = weight * ramp.reshape([-1 if k == axis else 1 for k in range(3)])
    return weight
