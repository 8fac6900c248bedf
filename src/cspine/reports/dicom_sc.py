"""The key-image sheet as a DICOM Secondary Capture, in the study it belongs to. PS3.3 A.8.1, C.8.6."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cspine.reports import sheet, words
from cspine.reports.dicom_uids import SERIES_NUMBERS, result_uid
from cspine.reports.dicom_writing import MANUFACTURER, equipment, finish, moment, series_of
from cspine.reports.inputs import ReportInput

if TYPE_CHECKING:
    from pydicom import Dataset

# Pages and marks speak of the neck even where the source calls the part of the body otherwise (PS3.16 Annex L).
BODY_PART = "CSPINE"
SERIES_DESCRIPTION = "cspine key images (research use only)"
# What a source says about compression that lost something; a picture derived from it must say so too (C.7.6.1.1.5).
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def render(report: ReportInput) -> bytes:
    """The sheet as a DICOM file: RGB, not compressed.

    Raises:
        UsageError: the input was no DICOM.
        DamagedFileError: an attribute of the source cannot be repeated.
    """
    from highdicom import PhotometricInterpretationValues
    from highdicom.sc import SCImage
    from pydicom.uid import ExplicitVRLittleEndian

    series, made = series_of(report), equipment(report.findings)
    day, clock = moment(report)
    image = SCImage(
        pixel_array=sheet.draw(report),
        photometric_interpretation=PhotometricInterpretationValues.RGB,
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        study_instance_uid=str(series.context.StudyInstanceUID),
        series_instance_uid=result_uid(report, "sc-series"),
        series_number=SERIES_NUMBERS["sc"],
        sop_instance_uid=result_uid(report, "sc"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=made.model,
        software_versions=made.software,
        device_serial_number=made.digest,
        series_description=SERIES_DESCRIPTION,
        series_date=day,
        series_time=clock,
        content_date=day,
        content_time=clock,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    extra: dict[str, object] = {
        # A page has no place in the patient.
        "PatientOrientation": "",
        "ConversionType": "WSD",
        "DateOfSecondaryCapture": day.strftime("%Y%m%d"),
        "TimeOfSecondaryCapture": clock.strftime("%H%M%S"),
        "BurnedInAnnotation": "NO",
        "RecognizableVisualFeatures": "NO",
        "BodyPartExamined": BODY_PART,
        "DerivationDescription": derivation(report),
        "ImageComments": words.RESEARCH,
        **_lossy(series.templates[0]),
    }
    return finish(image, report, extra=extra)


def derivation(report: ReportInput) -> str:
    """What made an object: bundle and digest."""
    made = equipment(report.findings)
    return f"Drawn from findings of cspine bundle {made.name} {made.version}, SHA-256 {made.digest}"


def _lossy(header: Dataset) -> dict[str, object]:
    """That the source once lost something to compression, when it did."""
    if str(header.get("LossyImageCompression") or "") != "01":
        return {}
    return {keyword: header[keyword].value for keyword in _LOSSY if keyword in header}
