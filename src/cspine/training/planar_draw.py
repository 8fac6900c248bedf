"""One training image of a planar network: cut from a sample, changed at random, and what is true of it.

Random changes are the ``steps`` of the recipe's pipeline. They see HU, ``[1 + 2 * neighbours, size, size]``, with
label and fracture of every pixel of the middle image as one mask (``label + 16 * fracture level``), before the windows
are applied; so they must leave HU what it is, and the number and size of the images too (``check_steps``).
Pictures of grey levels 0..255 are read as if the first window had made them, and shown alike in all channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cspine.errors import RecipeError
from cspine.imaging.pipeline import OneOf
from cspine.imaging.sample import Sample, Step
from cspine.inference.planar import PlanarView, Plane
from cspine.inference.planar_images import as_channels, grey_as_hu, grey_channels, plane_grid, sample_planes
from cspine.inference.planar_run import MARGIN_MM
from cspine.training.planar_samples import MIN_BROKEN_MM2, MIN_SHOWN_MM2, PlanarSample, boxes_of
from cspine.training.recipe_stages import PlanarStage
from cspine.volume import AIR_HU, Volume

Example = dict[str, NDArray[np.generic]]
Box = tuple[NDArray[np.float64], NDArray[np.float64]]

LEVELS = 7
# A mask holds the label in its lower four bits and the level of a fracture above them.
FRACTURE_UNIT = 16
# Steps that keep HU, and size and number of the images.
STEPS = {
    "as-picture", "contrast", "gamma", "gaussian", "median", "motion-blur", "sharpen", "noise", "keep-body",
    "clip-metal", "flip", "transpose", "shift-scale-rotate", "grid-distortion", "optical-distortion", "elastic",
    "coarse-dropout",
}  # fmt: skip
# What a detector's box is beside the true one, with its margin: mm by which each side lies further out.
DETECTED_MARGIN_MM = (MARGIN_MM - 10.0, MARGIN_MM + 5.0)


@dataclass(frozen=True, slots=True)
class Scan:
    """A sample that was read, with what its sagittal images show.

    Attributes:
        sample: as it was written.
        bone: for each column, whether it shows a cervical vertebra; all do when nothing is outlined.
        broken: for each column, whether it shows a fracture.
        around: smallest and largest LPS corner of C1..C7, or None.
    """

    sample: PlanarSample
    bone: NDArray[np.bool_] = field(init=False)
    broken: NDArray[np.bool_] = field(init=False)
    around: Box | None = field(init=False)

    def __post_init__(self) -> None:
        columns = self.sample.volume.shape[2]
        bone: NDArray[np.bool_] = np.ones(columns, bool)
        broken: NDArray[np.bool_] = np.zeros(columns, bool)
        around = None
        if self.sample.labels is not None:
            cervical = (self.sample.labels > 0) & (self.sample.labels <= LEVELS)
            bone = np.asarray(cervical.any(axis=(0, 1)))
            around = _corners(cervical, self.sample.volume) if bone.any() else None
        if self.sample.fracture is not None:
            broken = np.asarray((self.sample.fracture > 0).any(axis=(0, 1)))
        object.__setattr__(self, "bone", bone)
        object.__setattr__(self, "broken", broken)
        object.__setattr__(self, "around", around)


def _corners(mask: NDArray[np.bool_], volume: Volume) -> Box:
    ends = []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple(k for k in range(3) if k != axis)))
        ends.append((used[0] - 0.5, used[-1] + 0.5))
    z, y, x = ends
    points = volume.to_world(np.array([(a, b, c) for a in x for b in y for c in z]))
    return points.min(axis=0), points.max(axis=0)


def check_steps(stage: PlanarStage) -> None:
    """Refuse a pipeline that planar images cannot go through.

    Raises:
        RecipeError: a step changes the unit or the grid, or describes instead of changing; or a batch of boxes is to
            be mixed.
    """
    for step in _flat(stage.augment.steps):
        if step.kind not in STEPS:
            raise RecipeError(
                f"a planar stage cannot be augmented by {step.kind}: images are windowed after these steps, as they "
                "are in prediction",
                where="augment.steps",
                fix=f"Take any of {', '.join(sorted(STEPS))}",
            )
    if stage.augment.batch and "boxes" in stage.network.heads:
        raise RecipeError("boxes cannot be mixed", where="augment.batch", fix="Remove these steps")
    if stage.augment.features:
        raise RecipeError("a planar network has no use for features", where="augment.features")


def _flat(steps: Iterable[Step]) -> Iterable[Step]:
    for step in steps:
        if isinstance(step, OneOf):
            yield from _flat(step.steps)
        else:
            yield step


def is_alone(sample: PlanarSample) -> bool:
    """Whether the images of a sample are pictures that were labelled one by one, with nothing between them."""
    return sample.grey or sample.image_fractured is not None


def draw_image(
    scan: Scan, stage: PlanarStage, plane: Plane, index: int, rng: np.random.Generator, *, plain: bool = False
) -> Example:
    """One example: ``image`` ``[C, S, S]``, -1 to 1, and what is true of it for the heads of the stage.

    Args:
        scan: what it is cut from.
        stage: view, heads and augmentation.
        plane: axial or sagittal.
        index: slice (axial) or column (sagittal) of the stored scan.
        rng: source of chance.
        plain: without augmentation.

    Returns:
        The image, and for the stage's heads the truth, each with ``…_known`` (0 or 1):
        ``levels`` and ``fracture`` uint8 ``[S, S]``, known ``()``; ``visible`` and ``broken`` ``[7]``, known ``[7]``;
        ``slice`` ``[1]``, known ``[1]``; ``types`` ``[T]``, known ``[1]``; for ``boxes`` ``boxes`` ``[7, 4]`` and
        ``box_labels`` ``[7]``, 0 where there is none.
    """
    view, grey = stage.view, scan.sample.grey
    box = _detected(scan, rng, plain=plain) if view.field == "detected" else None
    planes, mask, pixel_mm = _cut(scan, view, plane, index, box)
    if not plain:
        stack = np.zeros(planes.shape, np.uint8)
        stack[view.neighbours] = mask
        changed = stage.augment.apply(Sample(planes, mask=stack), rng)
        planes = changed.image
        if changed.mask is not None:
            mask = np.asarray(changed.mask[view.neighbours], np.uint8)
    image = grey_channels(planes[view.neighbours], view) if grey else as_channels(planes, view)[0]
    return {"image": np.ascontiguousarray(image), **_truth(scan.sample, stage, plane, index, mask, pixel_mm)}


def _cut(
    scan: Scan, view: PlanarView, plane: Plane, index: int, box: Box | None
) -> tuple[NDArray[np.float32], NDArray[np.uint8], float]:
    """HU ``[n, S, S]`` of an image and its neighbours, the mask ``[S, S]`` of the middle one, and its pixel in mm."""
    sample = scan.sample
    volume, around = sample.volume, view.neighbours
    grid = plane_grid(volume, view, plane, box)
    spacing = volume.spacing[2 if plane == "axial" else 0]
    step = float(np.linalg.norm(grid.affine[:3, 2]))
    # Images of the grid are counted from the edge of the field; this one lies on a slice of the stored scan.
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, 2] * ((index + 0.5) * spacing / step - 0.5)
    grid = replace(grid, affine=affine)
    alone = is_alone(sample)
    part = _slab(volume, plane, index, 0 if alone else int(np.ceil(around * step / spacing)) + 1)
    black: float = AIR_HU
    if sample.grey:
        part, black = grey_as_hu(part, view)
    if alone:
        planes = np.repeat(sample_planes(part, grid, 0, 1, fill=black), 2 * around + 1, axis=0)
    else:
        planes = sample_planes(part, grid, -around, 2 * around + 1, fill=black)
    mask = np.zeros((view.size, view.size), np.uint8)
    for values, unit in ((sample.labels, 1), (sample.fracture, FRACTURE_UNIT)):
        if values is not None:
            flat = _slab(Volume(values, volume.affine), plane, index, 0)
            mask += np.asarray(sample_planes(flat, grid, 0, 1, order=0, fill=0)[0], np.uint8) * np.uint8(unit)
    return np.asarray(planes, np.float32), mask, float(np.linalg.norm(affine[:3, 0]))


def _slab(volume: Volume, plane: Plane, index: int, reach: int) -> Volume:
    """The slices or columns up to ``reach`` around one: little to interpolate in."""
    part, whole = slice(max(index - reach, 0), index + reach + 1), slice(None)
    return volume.crop(part, whole, whole) if plane == "axial" else volume.crop(whole, whole, part)


def _detected(scan: Scan, rng: np.random.Generator, *, plain: bool) -> Box | None:
    """A box as a detector would find it: the true one with an uneven margin; None where nothing is outlined."""
    if scan.around is None:
        return None
    margins = np.full((2, 3), MARGIN_MM) if plain else rng.uniform(*DETECTED_MARGIN_MM, (2, 3))
    return scan.around[0] - margins[0], scan.around[1] + margins[1]


def _truth(
    sample: PlanarSample, stage: PlanarStage, plane: Plane, index: int, mask: NDArray[np.uint8], pixel_mm: float
) -> Example:
    heads = stage.network.heads
    labels, fracture = mask % FRACTURE_UNIT, mask // FRACTURE_UNIT
    seen, outlined = _shown(labels, MIN_SHOWN_MM2, pixel_mm), sample.labels is not None
    named = None if outlined or sample.image_levels is None else sample.image_levels[index]
    if named is not None:
        seen = np.isin(np.arange(1, LEVELS + 1), named)
    told = outlined or named is not None
    broken = _shown(fracture, MIN_BROKEN_MM2, pixel_mm)
    # Levels of which the image may show a fracture that nobody outlined.
    doubtful = np.array([state is not False for state in sample.fractured]) & ~np.asarray(sample.placed, bool)
    doubtful &= seen | (not told)
    says = _says(sample, plane, index, broken, doubtful)
    if says is None and is_alone(sample):
        doubtful = np.ones_like(seen)
    placed = says == 0 or (sample.fracture is not None and not doubtful.any())
    if says == 1 and told and seen.sum() == 1:
        # Of a picture that shows one vertebra it is known which one is broken.
        broken, doubtful = seen, np.zeros_like(seen)
    out: Example = {}
    if "levels" in heads:
        out |= {"levels": np.where(labels > LEVELS + 1, 0, labels).astype(np.uint8), "levels_known": _flag(outlined)}
    if "fracture" in heads:
        out |= {"fracture": (fracture > 0).astype(np.uint8), "fracture_known": _flag(placed)}
    if "visible" in heads:
        out |= {"visible": seen.astype(np.float32), "visible_known": np.full(LEVELS, told, np.float32)}
    if "broken" in heads:
        out |= {"broken": broken.astype(np.float32), "broken_known": (~doubtful | (says == 0)).astype(np.float32)}
    if "slice" in heads:
        out |= {"slice": _flag(says == 1)[None], "slice_known": _flag(says is not None)[None]}
    if "types" in heads:
        out |= _types(sample, stage.network.types, broken, doubtful)
    if "boxes" in heads:
        out |= _boxes(np.where(labels <= LEVELS, labels, 0), seen, broken & stage.network.fractured_boxes)
    return out


def _flag(value: bool) -> NDArray[np.float32]:
    return np.asarray(value, np.float32)


def _shown(values: NDArray[np.uint8], least_mm2: float, pixel_mm: float) -> NDArray[np.bool_]:
    counts = np.bincount(values.ravel(), minlength=LEVELS + 1)[1 : LEVELS + 1]
    return np.asarray(counts >= max(1.0, least_mm2 / pixel_mm**2))


def _says(
    sample: PlanarSample, plane: Plane, index: int, broken: NDArray[np.bool_], doubtful: NDArray[np.bool_]
) -> int | None:
    """Whether the image shows a fracture; None when that is not known."""
    if sample.image_fractured is not None and plane == "axial":
        known = sample.image_fractured[index]
        return None if known is None else int(known)
    if broken.any():
        return 1
    return None if doubtful.any() else 0


def _types(
    sample: PlanarSample, count: int, broken: NDArray[np.bool_], doubtful: NDArray[np.bool_]
) -> dict[str, NDArray[np.float32]]:
    from cspine.training.data import type_names

    names = type_names()
    values = np.zeros(count, np.float32)
    known = not doubtful.any()
    for level in np.flatnonzero(broken):
        shown = [names.index(name) for name in sample.types[level] if name in names]
        # A fracture of a kind that nobody named.
        known &= bool(shown)
        values[[k for k in shown if k < count]] = 1
    return {"types": values, "types_known": _flag(known)[None]}


def _boxes(
    labels: NDArray[np.uint8], seen: NDArray[np.bool_], broken: NDArray[np.bool_]
) -> dict[str, NDArray[np.generic]]:
    corners, names = np.zeros((LEVELS, 4), np.float32), np.zeros(LEVELS, np.int64)
    for label, *box in boxes_of(labels):
        level = int(label) - 1
        if seen[level]:
            corners[level], names[level] = box, level + 1 + LEVELS * int(broken[level])
    return {"boxes": corners, "box_labels": names}
