"""Findings as a DICOM Comprehensive 3D SR (TID 1500), as the IHE profile AI Results asks for it.

One measurement group for the patient, one a vertebra, one a region of evidence, one a key image. Every group carries
its tracking identifier, the site, and what is said of a fracture, so that a viewer which shows one group says nothing
that the report as a whole does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cspine.anatomy import Level
from cspine.findings import LevelFinding
from cspine.reports import dicom_codes as codes
from cspine.reports.dicom_marks import Mark, marks_of
from cspine.reports.dicom_segments import Segment, segments
from cspine.reports.dicom_source import SourceInstance, SourceSeries
from cspine.reports.dicom_uids import SERIES_NUMBERS, result_uid, uid_of
from cspine.reports.dicom_writing import MANUFACTURER, equipment, finish, moment, neutral, series_of
from cspine.reports.inputs import ReportInput

if TYPE_CHECKING:
    from highdicom.sr import (
        AlgorithmIdentification,
        Measurement,
        MeasurementReport,
        MeasurementsAndQualitativeEvaluations,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        ReferencedSegment,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )
    from pydicom import Dataset
    from pydicom.sr.coding import Code

    Group = (
        MeasurementsAndQualitativeEvaluations
        | PlanarROIMeasurementsAndQualitativeEvaluations
        | VolumetricROIMeasurementsAndQualitativeEvaluations
    )

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"


def render(report: ReportInput) -> bytes:
    """The structured report as a DICOM file.

    Raises:
        UsageError: the input was no DICOM.
    """
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import Comprehensive3DSR

    made = equipment(report.findings)
    writer = _Writer.of(report)
    day, clock = moment(report)
    scheme = CodingSchemeIdentificationItem(
        designator=codes.OWN_SCHEME, name=codes.OWN_SCHEME_NAME, responsible_organization=MANUFACTURER
    )
    document = Comprehensive3DSR(
        evidence=_evidence(writer),
        content=writer.report()[0],
        series_instance_uid=result_uid(report, "sr-series"),
        series_number=SERIES_NUMBERS["sr"],
        sop_instance_uid=result_uid(report, f"sr of {writer.segmentation}"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=made.model,
        software_versions=made.software,
        device_serial_number=made.digest,
        series_description="cspine findings (research use only)",
        is_complete=True,
        is_final=False,
        is_verified=False,
        coding_schemes=[scheme],
        content_date=day,
        content_time=clock,
        series_date=day,
        series_time=clock,
    )
    return finish(document, report)


def _evidence(writer: _Writer) -> list[Dataset]:
    """All images of the source, and the segmentation where one is written beside."""
    from pydicom import Dataset

    used: list[Dataset] = [neutral(writer.series, instance) for instance in writer.series.instances]
    if writer.parts:
        segmentation = Dataset()
        segmentation.SOPClassUID = SEGMENTATION_STORAGE
        segmentation.SOPInstanceUID = writer.segmentation
        segmentation.StudyInstanceUID = writer.series.context.StudyInstanceUID
        segmentation.SeriesInstanceUID = result_uid(writer.source, "seg-series")
        used.append(segmentation)
    return used


@dataclass(frozen=True, slots=True)
class _Writer:
    """What all groups of one report share.

    Attributes:
        source: what is reported.
        series: the images.
        parts: segments of the segmentation written beside; empty when none is.
        marks: boxes of evidence on source images, strongest first.
        segmentation: SOPInstanceUID of the segmentation, or empty.
    """

    source: ReportInput
    series: SourceSeries
    parts: tuple[Segment, ...]
    marks: tuple[Mark, ...]
    segmentation: str

    @classmethod
    def of(cls, report: ReportInput) -> _Writer:
        parts = segments(report) if "seg" in report.formats else ()
        if all(part.evidence for part in parts):
            parts = ()  # without a vertebra no segmentation is written
        uid = result_uid(report, "seg") if parts else ""
        return cls(report, series_of(report), parts, marks_of(report), uid)

    def report(self) -> MeasurementReport:
        """The content tree."""
        from highdicom.sr import (
            CodedConcept,
            DeviceObserverIdentifyingAttributes,
            MeasurementReport,
            ObservationContext,
            ObserverContext,
        )

        made = equipment(self.source.findings)
        observer = DeviceObserverIdentifyingAttributes(
            uid=uid_of("device", made.digest),
            name=MANUFACTURER,
            manufacturer_name=MANUFACTURER,
            model_name=f"{made.model} {made.version}",
            serial_number=made.digest,
        )
        context = ObservationContext(ObserverContext(CodedConcept.from_code(codes.DEVICE), observer))
        return MeasurementReport(
            observation_context=context,
            procedure_reported=codes.CT_PROCEDURE,
            imaging_measurements=list(self.groups()),
            title=codes.REPORT_TITLE,
            referenced_images=self.key_images(),
        )

    def key_images(self) -> list[Dataset]:
        """The images that the report points at, each once; without any, the middle one of the series."""
        indices = sorted({mark.slice_index for mark in self.marks}) or [len(self.series.instances) // 2]
        unique = {self.series.instances[k].sop_instance_uid: self.series.instances[k] for k in indices}
        return [neutral(self.series, instance) for instance in unique.values()]

    def groups(self) -> Iterable[Group]:
        """The patient, the seven levels, then evidence level by level."""
        levels = self.source.findings.levels
        yield self.patient()
        for item in levels:
            yield self.level(item)
        for item in levels:
            yield from self.evidence(item)

    def patient(self) -> Group:
        """What is said of all levels together."""
        from highdicom.sr import MeasurementsAndQualitativeEvaluations, SourceImageForMeasurementGroup

        findings = self.source.findings
        images = [
            SourceImageForMeasurementGroup(
                referenced_sop_class_uid=image.sop_class_uid,
                referenced_sop_instance_uid=image.sop_instance_uid,
                referenced_frame_numbers=_frames(image),
            )
            for image in (self.series.instances[k] for k in sorted({mark.slice_index for mark in self.marks}))
        ]
        group = MeasurementsAndQualitativeEvaluations(
            **self.common("patient", codes.CERVICAL_SPINE, findings.patient.fracture),
            measurements=self.probability(findings.patient.probability),
            source_images=images or None,
        )
        _say(group, codes.COMMENT, findings.notice)
        open_levels = [item.level for item in findings.levels if item.probability is None]
        if open_levels:
            _say(group, codes.COMMENT, f"Not judged: {', '.join(open_levels)}.")
        for warning in findings.warnings:
            _say(group, codes.COMMENT, warning.message)
        return group

    def level(self, item: LevelFinding) -> Group:
        """What is said of one vertebra, with its segment where there is one."""
        from highdicom.sr import (
            MeasurementsAndQualitativeEvaluations,
            VolumetricROIMeasurementsAndQualitativeEvaluations,
        )

        level = Level[item.level]
        part = next((part for part in self.parts if part.level is level and not part.evidence), None)
        common = self.common(item.level, codes.vertebra(level), item.fracture, kind=item.type)
        measurements = [*(self.probability(item.probability) or ()), *self.confidence(item)] or None
        group: Group
        if part is None:
            group = MeasurementsAndQualitativeEvaluations(**common, measurements=measurements)
        else:
            group = VolumetricROIMeasurementsAndQualitativeEvaluations(
                **common, measurements=measurements, referenced_segment=self.reference(part)
            )
        if item.type is not None and item.type not in codes.TYPES:
            _say(group, codes.FRACTURE_TYPE, item.type)
        if item.not_judged is not None:
            _say(group, codes.NOT_JUDGED, item.not_judged)
        return group

    def evidence(self, item: LevelFinding) -> Iterable[Group]:
        """Where the evidence of one level lies: its segment, and a box on each key image."""
        from highdicom.sr import (
            GraphicTypeValues,
            ImageRegion,
            PlanarROIMeasurementsAndQualitativeEvaluations,
            SourceImageForRegion,
            VolumetricROIMeasurementsAndQualitativeEvaluations,
        )

        level = Level[item.level]
        for part in self.parts:
            if part.level is level and part.evidence:
                yield VolumetricROIMeasurementsAndQualitativeEvaluations(
                    **self.common(part.label, codes.vertebra(level), item.fracture),
                    referenced_segment=self.reference(part),
                )
        for number, mark in enumerate((mark for mark in self.marks if mark.level is level), start=1):
            image = self.series.instances[mark.slice_index]
            region = ImageRegion(
                graphic_type=GraphicTypeValues.POLYLINE,
                graphic_data=np.asarray(mark.outline),
                source_image=SourceImageForRegion(
                    referenced_sop_class_uid=image.sop_class_uid,
                    referenced_sop_instance_uid=image.sop_instance_uid,
                    referenced_frame_numbers=_frames(image),
                ),
            )
            yield PlanarROIMeasurementsAndQualitativeEvaluations(
                **self.common(f"{item.level} key image {number}", codes.vertebra(level), item.fracture),
                referenced_region=region,
                geometric_purpose=codes.BOUNDED_BY,
            )

    def common(self, name: str, site: Code, fracture: bool | None, kind: str | None = None) -> dict[str, Any]:
        """What every group has: who says it, of what, where, and whether a fracture is present.

        Args:
            name: tracking identifier, and part of the result that the tracking UID stands for.
            site: the vertebra or the cervical spine.
            fracture: the answer; None when nothing was judged.
            kind: fracture type; given as a code where there is one.
        """
        from highdicom.sr import FindingSite, QualitativeEvaluation, TrackingIdentifier

        answers: list[QualitativeEvaluation] = [QualitativeEvaluation(codes.FRACTURE, codes.answer(fracture))]
        if kind is not None and kind in codes.TYPES:
            answers.append(QualitativeEvaluation(codes.FRACTURE_TYPE, codes.TYPES[kind]))
        return {
            "tracking_identifier": TrackingIdentifier(uid=result_uid(self.source, f"track-{name}"), identifier=name),
            "finding_type": codes.FRACTURE,
            "finding_sites": [FindingSite(site)],
            "algorithm_id": self.algorithm(),
            "qualitative_evaluations": answers,
        }

    def algorithm(self) -> AlgorithmIdentification:
        """The bundle, its version and its digest (TID 4019)."""
        from highdicom.sr import AlgorithmIdentification

        made = equipment(self.source.findings)
        return AlgorithmIdentification(
            name=f"{MANUFACTURER} {made.name}",
            version=made.version,
            parameters=[f"bundle_sha256={made.digest}"],
            family=codes.ARTIFICIAL_INTELLIGENCE,
            manufacturer=MANUFACTURER,
        )

    def probability(self, value: float | None) -> list[Measurement] | None:
        """The probability as a measurement 0..1, where there is one."""
        from highdicom.sr import Measurement

        return None if value is None else [Measurement(name=codes.PROBABILITY, value=value, unit=codes.RATIO)]

    def confidence(self, item: LevelFinding) -> list[Measurement]:
        """How sure the name of a level is, where it was found: a finding at the wrong vertebra is a wrong finding."""
        from highdicom.sr import Measurement

        if item.body_center_mm is None:
            return []
        return [Measurement(name=codes.LEVEL_CONFIDENCE, value=item.confidence, unit=codes.RATIO)]

    def reference(self, part: Segment) -> ReferencedSegment:
        """A segment of the segmentation beside, made from the source series."""
        from highdicom.sr import ReferencedSegment, SourceSeriesForSegmentation

        return ReferencedSegment(
            sop_class_uid=SEGMENTATION_STORAGE,
            sop_instance_uid=self.segmentation,
            segment_number=part.number,
            source_series=SourceSeriesForSegmentation(self.series.series_uid),
        )


def _frames(image: SourceInstance) -> list[int] | None:
    return [image.frame] if image.multiframe else None


def _say(group: Group, name: Code, text: str) -> None:
    """Add text to a group; TID 1501, 1410 and 1411 take evaluations as text under any coded name."""
    from highdicom.sr import RelationshipTypeValues, TextContentItem

    item = TextContentItem(name=name, value=_plain(text), relationship_type=RelationshipTypeValues.CONTAINS)
    group[0].ContentSequence.append(item)


def _plain(text: str) -> str:
    """Text that every character set of a source can carry."""
    return text.encode("ascii", "replace").decode()
