"""Boxes of evidence on the source's own images, whatever order, direction or grid the volume was judged in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import Level
from cspine.findings import Evidence
from cspine.reports.dicom_segments import axes_of
from cspine.reports.dicom_source import SourceSeries
from cspine.reports.dicom_writing import series_of
from cspine.reports.inputs import ReportInput

# A box through which the source's images cut at an angle may be a line in them; it is drawn at least this large.
MIN_SIDE_PX = 4.0

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A box on one source image.

    Attributes:
        level: the vertebra that it speaks of.
        slice_index: index into ``SourceSeries.instances``.
        box_px: x_min, y_min, x_max, y_max in that image, where 0, 0 is the outer corner of the first pixel and 1, 1
            its opposite corner: the convention of DICOM's image-relative coordinates (PS3.3 C.18.6.1.1).
        score: of the evidence, 0..1, for ranking.
    """

    level: Level
    slice_index: int
    box_px: Box
    score: float

    @property
    def outline(self) -> tuple[tuple[float, float], ...]:
        """Corners ``(x, y)`` around the box, the first again at the end."""
        x0, y0, x1, y1 = self.box_px
        return (x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)


def marks_of(report: ReportInput) -> tuple[Mark, ...]:
    """All evidence of the findings on source images, level by level, strongest first.

    A slice that was filled in between its neighbours is marked on the nearer of them; what lies beside every image is
    left out.

    Raises:
        UsageError: the input was no DICOM.
    """
    series = series_of(report)
    provenance = report.findings.provenance.input
    if provenance is None:
        return ()
    affine = np.asarray(provenance.affine, dtype=np.float64)
    marks: dict[tuple[Level, int, Box], Mark] = {}
    for item in report.findings.levels:
        for evidence in item.evidence:
            placed = _placed(evidence, affine, series)
            if placed is not None:
                mark = Mark(Level[item.level], placed[0], placed[1], evidence.score)
                marks.setdefault((mark.level, mark.slice_index, mark.box_px), mark)
    return tuple(marks.values())


def _placed(evidence: Evidence, affine: NDArray[np.float64], series: SourceSeries) -> tuple[int, Box] | None:
    """The source image nearest to a box, and the box around its shadow in that image."""
    x0, y0, x1, y1 = evidence.box_px
    # Voxel k spans k - 0.5 to k + 0.5 as an index, k to k + 1 in pixels of a box.
    index = np.array([[x, y, evidence.slice_index] for x in (x0 - 0.5, x1 - 0.5) for y in (y0 - 0.5, y1 - 0.5)])
    world = index @ affine[:3, :3].T + affine[:3, 3]
    axes, spacing = axes_of(series)
    origins = np.array([instance.position_mm for instance in series.instances])
    depths = (world.mean(axis=0) - origins) @ axes[2]
    nearest = int(np.abs(depths).argmin())
    image = series.instances[nearest]
    pixels = (world - origins[nearest]) @ axes[:2].T / spacing + 0.5
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    grow = np.maximum(MIN_SIDE_PX - (high - low), 0) / 2
    low = np.maximum(low - grow, 0)
    high = np.minimum(high + grow, (image.columns, image.rows))
    if (high <= low).any():
        return None
    return nearest, (_px(low[0]), _px(low[1]), _px(high[0]), _px(high[1]))


def _px(value: float) -> float:
    """Pixels to a hundredth; findings are no finer."""
    return round(float(value), 2)
