"""Marks on the source slices as a Grayscale Softcopy Presentation State. PS3.3 A.33.1.

A viewer that opens the series shows it in the bone window, with a box around each piece of evidence and the name of
each level at the height of its body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cspine.anatomy import Level
from cspine.findings import LevelFinding
from cspine.reports.dicom_marks import Mark, marks_of
from cspine.reports.dicom_sc import BODY_PART
from cspine.reports.dicom_segments import axes_of
from cspine.reports.dicom_source import SourceInstance, SourceSeries
from cspine.reports.dicom_uids import SERIES_NUMBERS, result_uid
from cspine.reports.dicom_writing import MANUFACTURER, equipment, finish, moment, neutral, series_of
from cspine.reports.images import BONE_CENTER_HU, BONE_WIDTH_HU
from cspine.reports.inputs import ReportInput
from cspine.reports.key_images import BOX_COLOUR, INK

if TYPE_CHECKING:
    from highdicom import ModalityLUTTransformation
    from highdicom.pr import GraphicAnnotation, GraphicLayer, GraphicObject, SoftcopyVOILUTTransformation
    from pydicom import Dataset

SERIES_DESCRIPTION = "cspine marks (research use only)"


@dataclass(frozen=True, slots=True)
class Name:
    """The name of a level, written where its body lies.

    Attributes:
        level: the vertebra.
        slice_index: index into ``SourceSeries.instances``.
        at_px: column and row; 0, 0 is the outer corner of the first pixel (PS3.3 C.10.5.1.2).
    """

    level: Level
    slice_index: int
    at_px: tuple[float, float]


def render(report: ReportInput) -> bytes:
    """The presentation state as a DICOM file. It refers to every slice that is rescaled like the first marked one.

    Raises:
        UsageError: the input was no DICOM.
        DamagedFileError: an attribute of the source cannot be repeated.
    """
    from highdicom.pr import GrayscaleSoftcopyPresentationState

    series, made = series_of(report), equipment(report.findings)
    boxes = marks_of(report)
    written = names(report, boxes)
    places = [*(mark.slice_index for mark in boxes), *(name.slice_index for name in written)]
    first = series.instances[places[0] if places else 0]
    alike = {index for index, one in enumerate(series.instances) if _same_kind(one, first)}
    images = {series.instances[k].sop_instance_uid: _image(series, series.instances[k]) for k in sorted(alike)}
    writer = _Writer(report, images)
    annotations = [writer.box(mark) for mark in boxes if mark.slice_index in alike]
    annotations += [writer.name(name) for name in written if name.slice_index in alike]
    rescale, window = _bone_window(first)
    state = GrayscaleSoftcopyPresentationState(
        referenced_images=list(images.values()),
        series_instance_uid=result_uid(report, "gsps-series"),
        series_number=SERIES_NUMBERS["gsps"],
        sop_instance_uid=result_uid(report, "gsps"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=made.model,
        software_versions=made.software,
        device_serial_number=made.digest,
        content_label="CSPINE_MARKS",
        content_description="Levels and evidence of fractures",
        graphic_layers=writer.layers,
        graphic_annotations=annotations or None,
        modality_lut_transformation=rescale,
        voi_lut_transformations=None if window is None else [window],
        series_description=SERIES_DESCRIPTION,
    )
    area = state.DisplayedAreaSelectionSequence[0]
    # Pixels need not be square: their true spacing replaces the ratio 1:1 that highdicom assumes.
    del area.PresentationPixelAspectRatio
    area.PresentationPixelSpacing = _image(series, first).PixelSpacing
    day, clock = moment(report)
    date, time = day.strftime("%Y%m%d"), clock.strftime("%H%M%S")
    extra: dict[str, object] = {
        "SeriesDate": date,
        "SeriesTime": time,
        "PresentationCreationDate": date,
        "PresentationCreationTime": time,
        "ContentQualification": "RESEARCH",
        "BodyPartExamined": BODY_PART,
    }
    return finish(state, report, extra=extra)


def _bone_window(
    instance: SourceInstance,
) -> tuple[ModalityLUTTransformation | None, SoftcopyVOILUTTransformation | None]:
    """Stored values to HU, and HU to grey; nothing where the file does not say how to make HU."""
    from highdicom import ModalityLUTTransformation
    from highdicom.pr import SoftcopyVOILUTTransformation

    if instance.rescale is None:
        return None, None
    slope, intercept = instance.rescale
    return (
        ModalityLUTTransformation(rescale_slope=slope, rescale_intercept=intercept, rescale_type="HU"),
        SoftcopyVOILUTTransformation([BONE_CENTER_HU], [BONE_WIDTH_HU], window_explanation=["BONE"]),
    )


def names(report: ReportInput, marks: Sequence[Mark]) -> list[Name]:
    """The levels whose bodies were located, on slices where no box already says their name.

    Raises:
        UsageError: the input was no DICOM.
    """
    series = series_of(report)
    said = {(mark.level, mark.slice_index) for mark in marks}
    axes, spacing = axes_of(series)
    origins = np.array([instance.position_mm for instance in series.instances])
    found: list[Name] = []
    for item in report.findings.levels:
        if item.body_center_mm is None or not item.visible:
            continue
        offsets = np.asarray(item.body_center_mm, dtype=np.float64) - origins
        index = int(np.abs(offsets @ axes[2]).argmin())
        column, row = (round(float(value), 2) for value in offsets[index] @ axes[:2].T / spacing + 0.5)
        image = series.instances[index]
        inside = 0 <= column <= image.columns and 0 <= row <= image.rows
        if inside and (Level[item.level], index) not in said:
            found.append(Name(Level[item.level], index, (column, row)))
    return found


def label(item: LevelFinding) -> str:
    """``C5 0.83``, or the name alone; never 0 or 1, which no method can promise."""
    if item.probability is None:
        return item.level
    return f"{item.level} {min(max(item.probability, 0.01), 0.99):.2f}"


def _same_kind(one: SourceInstance, first: SourceInstance) -> bool:
    """One presentation state has one rescale and one size for all its images."""
    return (one.rescale, one.rows, one.columns) == (first.rescale, first.rows, first.columns)


def _image(series: SourceSeries, instance: SourceInstance) -> Dataset:
    """A source image as highdicom wants to see it."""
    image = neutral(series, instance)
    image.SamplesPerPixel = 1
    if instance.multiframe:
        image.NumberOfFrames = sum(one.sop_instance_uid == instance.sop_instance_uid for one in series.instances)
    return image


class _Writer:
    """Writes annotations of one presentation state."""

    def __init__(self, report: ReportInput, images: Mapping[str, Dataset]) -> None:
        from highdicom.color import CIELabColor
        from highdicom.pr import GraphicLayer

        self._report = report
        self._series = series_of(report)
        self._images = images
        self._labels = {Level[item.level]: label(item) for item in report.findings.levels}
        self._names = GraphicLayer("LEVELS", 1, "Names of levels", CIELabColor.from_rgb(*INK))
        self._boxes = GraphicLayer("EVIDENCE", 2, "Evidence of fractures", CIELabColor.from_rgb(*BOX_COLOUR))

    @property
    def layers(self) -> list[GraphicLayer]:
        """Names below, boxes above."""
        return [self._names, self._boxes]

    def box(self, mark: Mark) -> GraphicAnnotation:
        """A box with the level's name at its upper right corner."""
        from highdicom.pr import GraphicObject

        tracked = f"{mark.level.name} evidence"
        outline = GraphicObject(
            "POLYLINE",
            np.asarray(mark.outline, dtype=np.float64),
            "PIXEL",
            tracking_id=tracked,
            tracking_uid=result_uid(self._report, f"track-{tracked}"),
        )
        corner = (mark.box_px[2], mark.box_px[1])
        return self._annotation(mark.level, mark.slice_index, corner, self._boxes, [outline])

    def name(self, name: Name) -> GraphicAnnotation:
        """A level's name."""
        return self._annotation(name.level, name.slice_index, name.at_px, self._names, [])

    def _annotation(
        self,
        level: Level,
        slice_index: int,
        at_px: tuple[float, float],
        layer: GraphicLayer,
        outlines: list[GraphicObject],
    ) -> GraphicAnnotation:
        from highdicom.pr import GraphicAnnotation, TextObject

        instance = self._series.instances[slice_index]
        text = TextObject(self._labels[level], "PIXEL", anchor_point=at_px, anchor_point_visible=False)
        return GraphicAnnotation(
            referenced_images=[self._images[instance.sop_instance_uid]],
            graphic_layer=layer,
            referenced_frame_number=instance.frame if instance.multiframe else None,
            graphic_objects=outlines or None,
            text_objects=[text],
        )
