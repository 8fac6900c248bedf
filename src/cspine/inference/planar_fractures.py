"""From what planar networks say of images to one opinion a vertebra: the mean of the strongest, and where they lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import Level
from cspine.inference.answers import Opinion
from cspine.inference.combiner import logit
from cspine.inference.evidence import EvidenceMap
from cspine.inference.levels import LevelMap
from cspine.inference.planar import Pooling
from cspine.inference.planar_answers import PlaneAnswers
from cspine.inference.planar_grid import ALONG, counts, lines, nearest
from cspine.inference.planar_images import PlaneGrid

Float = NDArray[np.float64]
Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

# An image shows a level when its part of the mask is at least this share of the largest part in any image.
MIN_SHARE = 0.3
# What stands for a vertebra without a mask: so far from its body centre, mm x, y (in front and behind), z.
ALONE_SIDE_MM, ALONE_FRONT_MM, ALONE_BACK_MM, ALONE_HALF_MM = 30.0, 15.0, 45.0, 9.0


@dataclass(frozen=True, slots=True)
class Region:
    """Where evidence for a vertebra may lie.

    Attributes:
        inside: bool ``[z, y, x]``, the vertebra's mask grown by a margin.
        affine: index ``(x, y, z)`` of ``inside`` → LPS mm.
    """

    inside: Mask
    affine: Float


@dataclass(frozen=True, slots=True)
class _View:
    """A region as the images of one plane show it.

    Attributes:
        box: images, rows and columns that meet it.
        inside: bool, of these, the region.
        share: ``(images,)``, how much of it each image of the box shows, 1 for the most.
    """

    box: tuple[slice, slice, slice]
    inside: Mask
    share: Float


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What one plane says of a vertebra: probability, where, and how strongly each image of the box speaks."""

    probability: float
    evidence: EvidenceMap
    strength: Float
    first: int


def opinions(
    answers: Sequence[PlaneAnswers], pooling: Pooling, levels: LevelMap, wanted: Iterable[Level]
) -> dict[Level, Opinion]:
    """What the images say of each level.

    Of the heads that judge the first of these is heard: pixels of fracture, levels broken in an image, a fracture in
    the image, boxes of fractured vertebrae. Planes are averaged; evidence is that of the one that is surer.

    Args:
        answers: of the classifier's planes.
        pooling: how answers become one.
        levels: where the vertebrae are, by any locator.
        wanted: the levels to judge.
    """
    return {level: _opinion(answers, pooling, region_of(levels, level, pooling.margin_mm), level) for level in wanted}


def region_of(levels: LevelMap, level: Level, margin_mm: float) -> Region:
    """The mask of a level grown by a margin; a block about its body centre when it has none."""
    mask = levels.labels == level
    spacing = np.linalg.norm(levels.affine[:3, :3], axis=0)[::-1]
    margin = np.ceil(margin_mm / spacing).astype(int) + 1
    index = np.argwhere(mask)
    if len(index) == 0:
        mask = _block(levels, level)
        index = np.argwhere(mask)
    low = np.maximum(index.min(axis=0) - margin, 0)
    high = np.minimum(index.max(axis=0) + margin + 1, mask.shape)
    part = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    grown = ndimage.distance_transform_edt(~part, sampling=spacing) <= margin_mm
    affine = levels.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low[::-1]
    return Region(np.asarray(grown | part), affine)


def _block(levels: LevelMap, level: Level) -> Mask:
    """Voxels about a body centre; at least the one next to it."""
    shape = levels.labels.shape
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape[::-1]], indexing="ij"), axis=-1)
    centre = np.asarray(levels.cervical()[level].center_mm)
    away = grid @ levels.affine[:3, :3].T + levels.affine[:3, 3] - centre
    x, y, z = np.moveaxis(away, -1, 0)
    near = (np.abs(x) < ALONE_SIDE_MM) & (y > -ALONE_FRONT_MM) & (y < ALONE_BACK_MM) & (np.abs(z) < ALONE_HALF_MM)
    if not near.any():
        near.flat[int((away**2).sum(axis=-1).argmin())] = True
    return np.asarray(near.transpose(2, 1, 0))


def _opinion(answers: Sequence[PlaneAnswers], pooling: Pooling, region: Region, level: Level) -> Opinion:
    said = [(answer, _verdict(answer, pooling, region, level)) for answer in answers]
    probability = float(np.mean([verdict.probability for _, verdict in said]))
    surest, verdict = max(said, key=lambda pair: float(pair[1].evidence.values.max()))
    return Opinion(logit(probability), _types(surest, verdict, pooling.top), verdict.evidence)


def _verdict(answer: PlaneAnswers, pooling: Pooling, region: Region, level: Level) -> _Verdict:
    view = _seen(region, answer.grid)
    if view is None:
        # Outside of what the images show: nothing speaks for a fracture.
        return _Verdict(0.0, EvidenceMap(np.zeros((1, 1, 1), np.float32), region.affine), np.zeros(0), 0)
    if answer.fracture is not None:
        return _by_pixels(answer.fracture[view.box], answer.grid, view, pooling.top)
    if answer.broken is None and answer.slice is None and answer.boxes is not None:
        return _by_boxes(answer.boxes[view.box[0]], answer.grid, view, level)
    strength = _by_images(answer, pooling, view, level)
    top = np.sort(strength)[::-1][: pooling.top]
    return _Verdict(float(top.mean()), _heat(answer, view, strength, region), strength, view.box[0].start)


def _seen(region: Region, grid: PlaneGrid) -> _View | None:
    """The region in the images of a grid; None when no image meets it."""
    # From images to region, the other way round than from the common grid to images.
    by_axis = {axis: (1 / a, -b / a) for axis, (a, b) in lines(grid, region.affine).items()}
    size, shape = counts(grid), region.inside.shape
    places = [nearest(by_axis[axis], size[axis], shape[2 - axis]) for axis in ALONG[grid.plane]]
    hits = [np.flatnonzero(place >= 0) for place in places]
    if any(len(hit) == 0 for hit in hits):
        return None
    box = tuple(slice(int(hit[0]), int(hit[-1]) + 1) for hit in hits)
    turned = region.inside.transpose([2 - axis for axis in ALONG[grid.plane]])
    inside = turned[np.ix_(*(place[part] for place, part in zip(places, box, strict=True)))]
    area = inside.sum(axis=(1, 2)).astype(np.float64)
    return _View((box[0], box[1], box[2]), inside, area / max(float(area.max()), 1.0))


def _part_affine(grid: PlaneGrid, view: _View) -> Float:
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [float(part.start) for part in view.box[::-1]]
    return affine


def _by_pixels(fracture: NDArray[np.float16], grid: PlaneGrid, view: _View, top: int) -> _Verdict:
    """The strongest pixels inside the region."""
    shown = np.where(view.inside, fracture, 0).astype(np.float32)
    inside = np.sort(shown[view.inside])[::-1][:top]
    evidence = EvidenceMap(shown, _part_affine(grid, view))
    probability = float(inside.mean()) if len(inside) else 0.0
    return _Verdict(probability, evidence, shown.max(axis=(1, 2)).astype(np.float64), view.box[0].start)


def _by_boxes(boxes: Sequence[Image], grid: PlaneGrid, view: _View, level: Level) -> _Verdict:
    """The surest box of this level, fractured."""
    shown = np.zeros(view.inside.shape, np.float32)
    strength = np.zeros(len(boxes))
    top, left = view.box[1].start, view.box[2].start
    for number, rows in enumerate(boxes):
        for _, score, x0, y0, x1, y1 in rows[rows[:, 0] == Level.C7 + level]:
            strength[number] = max(strength[number], float(score))
            part = (number, _pixels(y0 - top, y1 - top), _pixels(x0 - left, x1 - left))
            shown[part] = np.maximum(shown[part], score)
    evidence = EvidenceMap(shown, _part_affine(grid, view))
    return _Verdict(float(strength.max(initial=0.0)), evidence, strength, view.box[0].start)


def _pixels(low: float, high: float) -> slice:
    return slice(max(0, round(float(low))), max(0, round(float(high))))


def _by_images(answer: PlaneAnswers, pooling: Pooling, view: _View, level: Level) -> Float:
    """``(images of the box,)``: how strongly each image says that the level is broken."""
    images = view.box[0]
    if answer.broken is not None:
        said = answer.broken[images, level.index].astype(np.float64)
        weight = np.ones(len(said)) if answer.visible is None else answer.visible[images, level.index]
        return np.asarray(said * weight) if pooling.by_visibility else said
    if answer.slice is None:
        return np.zeros(len(view.share))
    weight = view.share if answer.visible is None else answer.visible[images, level.index]
    said = answer.slice[images].astype(np.float64)
    return np.asarray(said * weight if pooling.by_visibility else np.where(view.share >= MIN_SHARE, said, 0.0))


def _heat(answer: PlaneAnswers, view: _View, strength: Float, region: Region) -> EvidenceMap:
    """Heat of each image times how strongly it speaks, in the region; all of the region where there is no heat."""
    images = view.box[0]
    heat = np.ones((len(strength), 1, 1)) if answer.heat is None else answer.heat[images].astype(np.float64)
    weighed = heat * strength[:, None, None]
    by_axis = lines(answer.grid, region.affine)
    places = []
    for k, axis in enumerate(ALONG[answer.grid.plane]):
        place = by_axis[axis][0] * np.arange(region.inside.shape[2 - axis]) + by_axis[axis][1]
        # A cell of heat stands for this many pixels.
        cell = 1.0 if k == 0 else answer.grid.size / weighed.shape[k]
        places.append(place - images.start if k == 0 else (place + 0.5) / cell - 0.5)
    turned = ndimage.map_coordinates(weighed, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")
    back = np.argsort([2 - axis for axis in ALONG[answer.grid.plane]])
    return EvidenceMap(np.where(region.inside, turned.transpose(back), 0).astype(np.float32), region.affine)


def _types(answer: PlaneAnswers, verdict: _Verdict, top: int) -> NDArray[np.float32]:
    """Logit of each type, from the images that speak most strongly; empty for a network that names none."""
    if answer.types is None or not len(verdict.strength):
        return np.empty(0, np.float32)
    strongest = np.argsort(-verdict.strength, kind="stable")[:top] + verdict.first
    return np.array([logit(float(p)) for p in answer.types[strongest].mean(axis=0)], np.float32)
