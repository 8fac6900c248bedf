"""Does the heat lie on the fracture: the pointing game, and the overlap of boxes.

Both take any map over a vertebra, the evidence of a bundle or the Grad-CAM of a recipe, and the true fracture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import Level
from cspine.errors import UsageError
from cspine.evaluation.evidence_hits import peak_distance
from cspine.evaluation.metrics import Interval, bootstrap_interval
from cspine.inference.evidence import SHARE_OF_PEAK, EvidenceMap

Float = NDArray[np.float64]
# The pointing game's tolerance, of Zhang et al. (2018), is 15 pixels of a photograph; here it is this many mm.
TOLERANCE_MM = 15.0
# Columns and rows of a box in cells of the map: x_min, y_min, x_max, y_max; the cell k spans k - 0.5 to k + 0.5.
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class HeatItem:
    """One fractured vertebra with the map that should point at its fracture.

    Attributes:
        group: what is drawn as one in the bootstrap: the patient or the case.
        level: of the vertebra.
        heat: values of any scale that grow with the heat; only their order and their share of the peak count.
        fracture: centres of the fracture's voxels, LPS mm ``[n, 3]``, n > 0; see ``evidence_hits.fracture_points``.
    """

    group: str
    level: Level
    heat: EvidenceMap
    fracture: Float


@dataclass(frozen=True, slots=True)
class HeatHit:
    """How one map did.

    Attributes:
        group: of the item.
        level: of the item.
        distance_mm: from the strongest cell to the nearest fracture voxel; infinite for a map without heat.
        centre_mm: the same distance from the middle of the map, which knows nothing of the picture.
        box_iou: overlap of the boxes around heat and fracture, 0..1, see ``box_overlap``.
    """

    group: str
    level: Level
    distance_mm: float
    centre_mm: float
    box_iou: float


@dataclass(frozen=True, slots=True)
class HeatFigures:
    """How often heat lies on the fracture; intervals are 95 % bootstraps over whole groups.

    Attributes:
        count: fractured vertebrae.
        tolerance_mm: how close counts as on the fracture.
        pointing: share of vertebrae whose heat is strongest on the fracture (pointing game, Zhang et al., 2018).
        centre: the same share for the middle of each map instead of its peak, the baseline of that paper: heat that
            does no better has not looked.
        box_iou: mean overlap of the boxes around heat and fracture.
        distance_mm: median distance from the peak to the fracture.
        hits: of each vertebra.
    """

    count: int
    tolerance_mm: float
    pointing: Interval
    centre: Interval
    box_iou: Interval
    distance_mm: Interval
    hits: tuple[HeatHit, ...]


def heat_figures(
    items: Sequence[HeatItem], *, tolerance_mm: float = TOLERANCE_MM, share: float = SHARE_OF_PEAK, seed: int = 0
) -> HeatFigures:
    """Pointing game and box overlap over all items.

    Args:
        items: fractured vertebrae with their maps.
        tolerance_mm: how close a peak must be to a fracture voxel.
        share: cells count as heat from this share of the map's peak on, 0..1.
        seed: of the bootstrap.

    Raises:
        UsageError: there are no items, or one has no fracture.
    """
    if not items:
        raise UsageError(
            "expected at least one fractured vertebra with a heat map, got none", fix="Give cases with one"
        )
    return figures_of([heat_hit(item, share=share) for item in items], tolerance_mm=tolerance_mm, seed=seed)


def figures_of(hits: Sequence[HeatHit], *, tolerance_mm: float = TOLERANCE_MM, seed: int = 0) -> HeatFigures:
    """The figures of maps that were looked at before; see ``heat_figures``. ``hits`` must not be empty."""
    distance = np.array([hit.distance_mm for hit in hits])
    centre = np.array([hit.centre_mm for hit in hits])
    overlap = np.array([hit.box_iou for hit in hits])
    groups = np.array([hit.group for hit in hits])

    def interval(values: Float, statistic: Callable[[Float], np.floating]) -> Interval:
        return bootstrap_interval(lambda rows: float(statistic(values[rows])), groups, seed=seed)

    return HeatFigures(
        count=len(hits),
        tolerance_mm=tolerance_mm,
        pointing=interval((distance <= tolerance_mm).astype(np.float64), np.mean),
        centre=interval((centre <= tolerance_mm).astype(np.float64), np.mean),
        box_iou=interval(overlap, np.mean),
        distance_mm=interval(distance, np.median),
        hits=tuple(hits),
    )


def heat_hit(item: HeatItem, *, share: float = SHARE_OF_PEAK) -> HeatHit:
    """How one map did; ``share`` as in ``heat_figures``.

    Raises:
        UsageError: the item has no fracture voxel.
    """
    fracture = np.asarray(item.fracture, dtype=np.float64).reshape(-1, 3)
    if not len(fracture):
        raise UsageError("expected fracture voxels [n, 3], got none", where=item.level.name, fix="Leave the level out")
    warm = bool((item.heat.values > 0).any())
    return HeatHit(
        group=item.group,
        level=item.level,
        distance_mm=peak_distance(item.heat, fracture) if warm else float("inf"),
        centre_mm=peak_distance(_middle(item.heat), fracture),
        box_iou=box_overlap(item.heat, fracture, share=share) if warm else 0.0,
    )


def box_overlap(heat: EvidenceMap, fracture: Float, *, share: float = SHARE_OF_PEAK) -> float:
    """Intersection over union of two boxes in the slice of the map that holds most of the fracture.

    One box is around the fracture's voxels there. The other is around the connected cells of at least ``share`` of
    the whole map's peak that hold that slice's strongest cell, as Zhou et al. (2016) draw theirs; a slice without
    such cells has none, and the overlap is 0. Both are counted in whole cells, so that a coarse map loses nothing by
    being coarse.

    Args:
        heat: the map.
        fracture: LPS mm ``[n, 3]``.
        share: 0..1.
    """
    cells = np.rint((fracture - heat.affine[:3, 3]) @ np.linalg.inv(heat.affine[:3, :3]).T).astype(int)
    cells = cells[((cells >= 0) & (cells < heat.values.shape[::-1])).all(axis=1)]
    if not len(cells):
        return 0.0
    at = int(np.bincount(cells[:, 2]).argmax())
    own = cells[cells[:, 2] == at, :2]
    plane = heat.values[at]
    pieces, _ = ndimage.label(plane >= share * float(heat.values.max()), structure=np.ones((3, 3)))
    piece = pieces[np.unravel_index(int(plane.argmax()), plane.shape)]
    if piece == 0:
        return 0.0
    return _overlap(_box(own), _box(np.argwhere(pieces == piece)[:, ::-1]))


def _middle(heat: EvidenceMap) -> EvidenceMap:
    """A map of the same place whose one warm cell is its middle."""
    values = np.zeros_like(heat.values)
    values[tuple(count // 2 for count in values.shape)] = 1
    return replace(heat, values=values)


def _box(cells: NDArray[np.integer]) -> Box:
    """Around cells ``[n, (x, y)]``."""
    (x_min, y_min), (x_max, y_max) = cells.min(axis=0) - 0.5, cells.max(axis=0) + 0.5
    return float(x_min), float(y_min), float(x_max), float(y_max)


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes of some extent."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return both / (areas - both)
