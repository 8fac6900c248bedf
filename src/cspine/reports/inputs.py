"""What a report is made from: findings, and whatever pictures of the volume and of the evidence there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cspine.findings import Evidence, Findings
from cspine.reports.boxes import mm_corners
from cspine.reports.images import ScalarField
from cspine.volume import Volume

if TYPE_CHECKING:
    from cspine.reports.dicom_source import SourceSeries


class Grid(Protocol):
    """Values ``[z, y, x]`` with an affine from index ``(x, y, z, 1)`` to LPS millimetres."""

    @property
    def values(self) -> NDArray[Any]:
        """Evidence 0..1."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """4x4."""


class Predicted(Protocol):
    """What ``Predictor.predict_full`` gives: findings together with what they were read from."""

    @property
    def findings(self) -> Findings:
        """The result."""

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Mask ``[z, y, x]`` with the values of ``cspine.anatomy``."""

    @property
    def labels_affine(self) -> NDArray[np.float64]:
        """4x4, index ``(x, y, z, 1)`` → LPS mm, of the mask."""

    @property
    def evidence(self) -> Mapping[str, Grid]:
        """Evidence maps by level name."""


@dataclass(frozen=True, slots=True)
class ReportInput:
    """Everything a report may show.

    Attributes:
        findings: the result.
        volume: the CT with axes closest to left, posterior, superior; None when it could not be opened.
        labels: mask of the vertebrae, or None.
        evidence: maps 0..1 by level name; empty when there are none.
        as_opened: whether slice indices and pixel boxes of the findings are those of ``volume``.
        series: the DICOM series that was judged; None for other input, and where no format asks for it.
        formats: names of all formats written together, so that one object can refer to another.
        link: at which a viewer shows the study; None for no link.
    """

    findings: Findings
    volume: Volume | None = None
    labels: ScalarField | None = None
    evidence: Mapping[str, ScalarField] = field(default_factory=dict)
    as_opened: bool = True
    series: SourceSeries | None = None
    formats: frozenset[str] = frozenset()
    link: str | None = None

    @classmethod
    def of(
        cls,
        prediction: Predicted | Findings,
        volume: Volume | None,
        series: SourceSeries | None = None,
        formats: Iterable[str] = (),
        link: str | None = None,
    ) -> ReportInput:
        """From a prediction or bare findings, and the volume that was judged (any axis order)."""
        beside = frozenset(formats)
        shown = None if volume is None else volume.reoriented()
        same = volume is None or shown is None or bool(np.array_equal(volume.affine, shown.affine))
        if isinstance(prediction, Findings):
            return cls(prediction, shown, as_opened=same, series=series, formats=beside, link=link)
        maps = {name: ScalarField(grid.values, np.asarray(grid.affine)) for name, grid in prediction.evidence.items()}
        labels = ScalarField(prediction.labels, np.asarray(prediction.labels_affine))
        return cls(prediction.findings, shown, labels, maps, same, series, beside, link)

    def place_of(self, evidence: Evidence) -> tuple[int, tuple[float, float, float, float]]:
        """Slice of ``volume`` and box ``x_min, y_min, x_max, y_max`` in its pixels of a piece of evidence."""
        if self.as_opened or self.volume is None:
            return evidence.slice_index, evidence.box_px
        index = self.volume.to_index(mm_corners(evidence.box_mm))
        # A pixel's centre has a whole index; a box of pixels counts edges, which lie half a pixel before it.
        x0, y0, _ = index.min(axis=0) + 0.5
        x1, y1, _ = index.max(axis=0) + 0.5
        return round(float(index[:, 2].mean())), (float(x0), float(y0), float(x1), float(y1))
