"""The report as a DICOM Encapsulated PDF, in the study it belongs to. PS3.3 A.45.1, C.24.2."""

from __future__ import annotations

from cspine.reports import dicom_codes, pdf
from cspine.reports.dicom_uids import SERIES_NUMBERS, result_uid
from cspine.reports.dicom_writing import MANUFACTURER, equipment, finish, moment, series_of
from cspine.reports.inputs import ReportInput

SERIES_DESCRIPTION = "cspine report (research use only)"
TITLE = "Cervical spine fracture report (research use only)"
MIME = "application/pdf"


def render(report: ReportInput) -> bytes:
    """The report as a DICOM file. The pages name no patient, file or folder; the attributes around them do.

    Raises:
        UsageError: the input was no DICOM.
        OutputError: the text cannot be laid out.
        DamagedFileError: an attribute of the source cannot be repeated.
    """
    from highdicom.base import SOPClass
    from pydicom import Dataset
    from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

    series, made = series_of(report), equipment(report.findings)
    pages = pdf.render(report, named=False)
    day, clock = moment(report)
    document = SOPClass(
        study_instance_uid=str(series.context.StudyInstanceUID),
        series_instance_uid=result_uid(report, "dicom-pdf-series"),
        series_number=SERIES_NUMBERS["dicom-pdf"],
        sop_instance_uid=result_uid(report, "dicom-pdf"),
        sop_class_uid=EncapsulatedPDFStorage,
        instance_number=1,
        modality="DOC",
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
    title = Dataset()
    title.CodeValue = dicom_codes.REPORT_TITLE.value
    title.CodingSchemeDesignator = dicom_codes.REPORT_TITLE.scheme_designator
    title.CodeMeaning = dicom_codes.REPORT_TITLE.meaning
    sources = []
    for uid, storage in {one.sop_instance_uid: one.sop_class_uid for one in series.instances}.items():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = storage, uid
        sources.append(item)
    extra: dict[str, object] = {
        "ConversionType": "WSD",
        "AcquisitionDateTime": "",
        "BurnedInAnnotation": "NO",
        "RecognizableVisualFeatures": "NO",
        "VerificationFlag": "UNVERIFIED",
        "DocumentTitle": TITLE,
        "ConceptNameCodeSequence": [title],
        "SourceInstanceSequence": sources,
        "MIMETypeOfEncapsulatedDocument": MIME,
        "EncapsulatedDocumentLength": len(pages),
        # Values have an even length (PS3.5 7.1.1); a reader takes the length above.
        "EncapsulatedDocument": pages + b"\0" * (len(pages) % 2),
        "ContentQualification": "RESEARCH",
    }
    return finish(document, report, extra=extra)
