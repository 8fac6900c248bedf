"""What all results in DICOM share: the patient and study they belong to, the equipment that made them, and the bytes.

highdicom builds each object from a neutral picture of the source that holds geometry and identifiers only. Patient
and study attributes are put in afterwards exactly as they stand in the source: highdicom would refuse or reformat
some of what real archives hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from io import BytesIO
from typing import TYPE_CHECKING

from cspine import __version__
from cspine.errors import UsageError
from cspine.reports.dicom_headers import COPIED, copy_elements
from cspine.reports.dicom_source import SERIES_FACTS, SourceInstance, SourceSeries
from cspine.studies import tags

if TYPE_CHECKING:
    from pydicom import Dataset

    from cspine.findings import Findings
    from cspine.reports.inputs import ReportInput

MANUFACTURER = "cspine"
# What a series gets that does not say; only the list of images shows it.
UNKNOWN_THICKNESS = "0"
# Findings without a bundle come from a study that was refused; there is no such digest.
NO_DIGEST = "none"
_OFFSET_LIMIT = timedelta(hours=14)


@dataclass(frozen=True, slots=True)
class Equipment:
    """Who made a result: software and model.

    Attributes:
        name, version: of the bundle.
        digest: SHA-256 of the bundle, 64 characters.
        software: versions of cspine and of the bundle in one text, for SoftwareVersions.
    """

    name: str
    version: str
    digest: str
    software: str

    @property
    def model(self) -> str:
        """Model name of the device: ``cspine base``."""
        return f"{MANUFACTURER} {self.name}"[:64]


def equipment(findings: Findings) -> Equipment:
    """What the findings say they were made with."""
    bundle = findings.provenance.bundle
    if bundle is None:
        return Equipment("none", "none", NO_DIGEST, f"cspine {__version__}")
    software = f"cspine {findings.provenance.cspine}, {bundle.name} {bundle.version}"[:64]
    return Equipment(bundle.name, bundle.version, bundle.sha256, software)


def series_of(report: ReportInput) -> SourceSeries:
    """The source of a report.

    Raises:
        UsageError: the input was no DICOM.
    """
    if report.series is None:
        raise UsageError("results in DICOM need a DICOM study as input", fix="Leave the DICOM formats out")
    return report.series


def moment(report: ReportInput) -> tuple[date, time]:
    """Date and time of the findings, in the time zone that the study's own times are in, else in local time."""
    made = datetime.fromisoformat(report.findings.provenance.created)
    local = made.astimezone(zone_of(report.series.context if report.series else None))
    return local.date(), local.time().replace(microsecond=0)


def zone_of(context: Dataset | None) -> timezone | None:
    """TimezoneOffsetFromUTC (``+0100``); None where it is absent or no offset: then times are local."""
    text = "" if context is None else str(context.get("TimezoneOffsetFromUTC") or "")
    if len(text) != 5 or text[0] not in "+-" or not text[1:].isdigit():
        return None
    offset = timedelta(hours=int(text[1:3]), minutes=int(text[3:])) * (-1 if text[0] == "-" else 1)
    return timezone(offset) if abs(offset) <= _OFFSET_LIMIT else None


def neutral(series: SourceSeries, instance: SourceInstance, *, uid: str | None = None) -> Dataset:
    """One image plane as highdicom wants to see it: geometry and identifiers, nobody's name.

    Args:
        series: it belongs to.
        instance: the plane.
        uid: when given, it is shown as a single-frame CT of this SOPInstanceUID: highdicom then takes the geometry of
            a plane of any CT class from one place. References must be put right afterwards.
    """
    from pydicom import Dataset

    data = Dataset()
    data.SOPClassUID = instance.sop_class_uid if uid is None else tags.CT_STORAGE
    data.SOPInstanceUID = instance.sop_instance_uid if uid is None else uid
    data.StudyInstanceUID = series.context.StudyInstanceUID
    data.SeriesInstanceUID = series.series_uid
    data.FrameOfReferenceUID = series.context.FrameOfReferenceUID
    data.PositionReferenceIndicator = ""
    # Positions and sizes of a multi-frame file are those of its frames, so it is not described as one plane.
    data.Modality = "OT" if instance.multiframe and uid is None else "CT"
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(data, keyword, "")
    data.StudyDate = data.StudyTime = data.ReferringPhysicianName = None
    data.Rows, data.Columns = instance.rows, instance.columns
    data.ImagePositionPatient = [_decimal(value) for value in instance.position_mm]
    data.ImageOrientationPatient = [_decimal(value) for value in series.orientation]
    data.PixelSpacing = [_decimal(value) for value in series.pixel_spacing]
    data.SliceThickness = UNKNOWN_THICKNESS if series.thickness_mm is None else _decimal(series.thickness_mm)
    return data


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2)."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value))


def finish(data: Dataset, report: ReportInput, *, extra: Mapping[str, object] | None = None) -> bytes:
    """The bytes of an object: patient and study as in the source, times of the findings, nothing of this machine.

    Args:
        data: the object, with file meta information.
        report: what it was made from.
        extra: further elements by keyword.
    """
    from pydicom.config import disable_value_validation

    series = series_of(report)
    copy_elements(series.context, data, (*COPIED, *(k for k in SERIES_FACTS if k in data)))
    day, clock = moment(report)
    data.InstanceCreationDate, data.InstanceCreationTime = day.strftime("%Y%m%d"), clock.strftime("%H%M%S")
    for keyword, value in (extra or {}).items():
        setattr(data, keyword, value)
    for item in data.get("ContributingEquipmentSequence") or ():
        # highdicom writes the time of day here.
        if "ContributionDateTime" in item:
            del item.ContributionDateTime
    data.preamble = b"\0" * 128
    data.file_meta.ImplementationVersionName = f"CSPINE_{__version__}"[:16]
    stream = BytesIO()
    # pydicom quotes bad values in warnings; those of a patient are repeated here, and must not reach a log.
    with disable_value_validation():
        data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
