"""The voxels of vertebrae and evidence on the slices of the source series.

Masks lie on grids of their own; each voxel of a source slice takes the value that is nearest to its centre in the
patient. So it does not matter whether slices were reversed, oblique, uneven, or resampled to be judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS, Level
from cspine.inference.evidence import FLOOR, SHARE_OF_PEAK
from cspine.reports.dicom_source import SourceSeries
from cspine.reports.dicom_writing import series_of
from cspine.reports.images import ScalarField
from cspine.reports.inputs import ReportInput

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Patch:
    """The part of one source slice in which a segment has voxels.

    Attributes:
        slice_index: index into ``SourceSeries.instances``.
        row, column: of the first voxel.
        mask: bool ``[y, x]``.
    """

    slice_index: int
    row: int
    column: int
    mask: Mask


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: a vertebra, or the evidence found in it.

    Attributes:
        number: SegmentNumber, from 1.
        level: the vertebra.
        evidence: evidence of a fracture rather than the vertebra itself.
        patches: where it has voxels, in slice order; never empty.
    """

    number: int
    level: Level
    evidence: bool
    patches: tuple[Patch, ...]

    @property
    def label(self) -> str:
        """``C2``, or ``C2 evidence``."""
        return f"{self.level.name} evidence" if self.evidence else self.level.name

    @property
    def tracking(self) -> str:
        """Part of a result, for ``result_uid``, that SEG and SR call by the same tracking UID."""
        return f"track-{self.label}"


def segments(report: ReportInput) -> tuple[Segment, ...]:
    """The vertebrae that have voxels in the source slices, C1 first, then the evidence of levels that have some.

    Raises:
        UsageError: the input was no DICOM.
    """
    series = series_of(report)
    found: list[tuple[Level, bool, tuple[Patch, ...]]] = []
    if report.labels is not None:
        patches: dict[int, list[Patch]] = {}
        for index, row, column, values in _nearest(report.labels, series):
            for value in np.unique(values[values > 0]):
                patches.setdefault(int(value), []).append(Patch(index, row, column, values == value))
        found += [(level, False, tuple(patches[level])) for level in LEVELS if level in patches]
    for item in report.findings.levels:
        field = report.evidence.get(item.level)
        if field is not None and item.evidence:
            found.append((Level[item.level], True, _evidence_patches(field, series)))
    kept = [entry for entry in found if entry[2]]
    return tuple(Segment(k + 1, *entry) for k, entry in enumerate(kept))


def _nearest(field: ScalarField, series: SourceSeries) -> Iterator[tuple[int, int, int, NDArray[np.uint8]]]:
    """Labels of the vertebrae at the voxel centres of the source: slice, first row, first column, values ``[y, x]``."""
    wanted = np.asarray(field.values)
    wanted = np.where((wanted >= LEVELS[0]) & (wanted <= LEVELS[-1]), wanted, 0).astype(np.uint8)
    occupied = np.argwhere(wanted)
    if not len(occupied):
        return
    low, high = occupied.min(axis=0), occupied.max(axis=0)
    for index, row, column, points in _windows(series, field.affine, low - 0.5, high + 0.5):
        zyx = np.rint(_index_of(points, field.affine)).astype(int)
        inside = ((zyx >= low) & (zyx <= high)).all(axis=-1)
        values = np.zeros(inside.shape, np.uint8)
        values[inside] = wanted[tuple(zyx[inside].T)]
        if values.any():
            yield index, row, column, values


def _evidence_patches(field: ScalarField, series: SourceSeries) -> tuple[Patch, ...]:
    """Voxels whose evidence, linear between cells, reaches the share of the peak that boxes are drawn from."""
    values = np.asarray(field.values, dtype=np.float32)
    cut = max(FLOOR, SHARE_OF_PEAK * float(values.max()))
    cells = np.argwhere(values >= cut)
    if not len(cells):
        return ()
    patches = []
    for index, row, column, points in _windows(series, field.affine, cells.min(axis=0) - 1.0, cells.max(axis=0) + 1.0):
        mask = field.at(points) >= cut
        if mask.any():
            patches.append(Patch(index, row, column, mask))
    return tuple(patches) or _strongest_voxel(field, series)


def _strongest_voxel(field: ScalarField, series: SourceSeries) -> tuple[Patch, ...]:
    """The source voxel nearest to the strongest cell, for evidence that lies between slices far apart."""
    cell = np.unravel_index(int(np.asarray(field.values).argmax()), field.values.shape)[::-1]
    world = field.affine[:3, :3] @ np.asarray(cell, dtype=np.float64) + field.affine[:3, 3]
    axes, spacing = axes_of(series)
    offsets = world - np.array([instance.position_mm for instance in series.instances])
    index = int(np.abs(offsets @ axes[2]).argmin())
    column, row = np.rint(axes[:2] @ offsets[index] / spacing).astype(int)
    instance = series.instances[index]
    if not (0 <= row < instance.rows and 0 <= column < instance.columns):
        return ()
    return (Patch(index, int(row), int(column), np.ones((1, 1), np.bool_)),)


def axes_of(series: SourceSeries) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along a row (x), a column (y) and the normal, and mm between columns and rows ``(x, y)``."""
    along_row, along_column = np.asarray(series.orientation, dtype=np.float64).reshape(2, 3)
    axes = np.stack([along_row, along_column, np.cross(along_row, along_column)])
    return axes, np.array([series.pixel_spacing[1], series.pixel_spacing[0]])


def _windows(
    series: SourceSeries, affine: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> Iterator[tuple[int, int, int, NDArray[np.float64]]]:
    """The parts of source slices that may meet a box of another grid, with the places of their voxel centres.

    Args:
        series: the source.
        affine: of the other grid, index (x, y, z) to LPS mm.
        low: first corner of the box, index (z, y, x).
        high: last corner.

    Yields:
        slice, first row, first column, LPS mm ``[y, x, 3]``.
    """
    axes, spacing = axes_of(series)
    corners = np.array([[x, y, z] for z in (low[0], high[0]) for y in (low[1], high[1]) for x in (low[2], high[2])])
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    for index, instance in enumerate(series.instances):
        place = (world - np.asarray(instance.position_mm)) @ axes.T
        if place[:, 2].min() > 0 or place[:, 2].max() < 0:
            continue
        pixels = place[:, :2] / spacing
        first = np.maximum(np.floor(pixels.min(axis=0)).astype(int), 0)
        stop = np.minimum(np.ceil(pixels.max(axis=0)).astype(int) + 1, (instance.columns, instance.rows))
        if (stop <= first).any():
            continue
        x = np.arange(first[0], stop[0])[None, :, None] * spacing[0] * axes[0]
        y = np.arange(first[1], stop[1])[:, None, None] * spacing[1] * axes[1]
        yield index, int(first[1]), int(first[0]), np.asarray(instance.position_mm) + x + y


def _index_of(points: NDArray[np.float64], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fractional indices (z, y, x) of LPS points ``[..., 3]``."""
    inverse = np.linalg.inv(affine)
    return np.asarray((points @ inverse[:3, :3].T + inverse[:3, 3])[..., ::-1])


def overlap(parts: Sequence[Segment]) -> bool:
    """Whether evidence shares voxels with anything else."""
    solid: dict[int, list[Patch]] = {}
    for part in parts:
        for patch in part.patches:
            others = solid.setdefault(patch.slice_index, [])
            if part.evidence and any(_meet(patch, other) for other in others):
                return True
            others.append(patch)
    return False


def _meet(one: Patch, other: Patch) -> bool:
    top, left = max(one.row, other.row), max(one.column, other.column)
    bottom = min(one.row + one.mask.shape[0], other.row + other.mask.shape[0])
    right = min(one.column + one.mask.shape[1], other.column + other.mask.shape[1])
    if bottom <= top or right <= left:
        return False
    parts = (
        patch.mask[top - patch.row : bottom - patch.row, left - patch.column : right - patch.column]
        for patch in (one, other)
    )
    return bool(np.logical_and(*parts).any())
