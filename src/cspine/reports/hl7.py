"""``oru.hl7``: the result as an HL7 v2.5.1 message ORU^R01 with text, for systems that take text.

One OBX for the impression and one a level, all preliminary (OBX-11 P). Segments end with a carriage return; a sender
puts its own MLLP frame around the message.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Group, Message, Segment
from hl7apy.exceptions import HL7apyException
from pydicom.sr.coding import Code

from cspine.errors import OutputError
from cspine.findings import Findings
from cspine.reports import dicom_codes, words
from cspine.reports.dicom_context import text_of
from cspine.reports.dicom_uids import result_uid
from cspine.reports.inputs import ReportInput

VERSION = "2.5.1"
STUDY_CODE = Code("18748-4", "LN", "Diagnostic imaging study")
IMPRESSION = Code("19005-8", "LN", "Impressions")
IMAGES = Code("113014", "DCM", "DICOM Study")
# The longest that 2.5.1 allows for a message control id (MSH-10).
CONTROL_CHARS = 20
# Each delimiter and its escape sequence (2.5.1, 2.7); the escape character itself comes first.
_ESCAPES = (("\\", "E"), ("|", "F"), ("^", "S"), ("&", "T"), ("~", "R"))
_SEXES = ("M", "F", "O")


def render(report: ReportInput) -> bytes:
    """The message as UTF-8. Same input, same bytes.

    Patient, accession number and referring physician are those of the DICOM study; without one the patient is
    anonymous, identified by the name of the file or folder that was read.

    Raises:
        OutputError: the message is not valid 2.5.1.
    """
    try:
        message = _message(report)
        message.validate()
    except HL7apyException as error:
        # The library's text may quote a patient's name; its type does not.
        raise OutputError(
            f"expected a valid ORU^R01, but hl7apy refuses it: {type(error).__name__}",
            where="oru.hl7",
            fix="Write the other formats; findings.json holds the same result",
        ) from None
    text: str = message.to_er7()
    return f"{text.rstrip(chr(13))}\r".encode()


def _message(report: ReportInput) -> Message:
    findings = report.findings
    message = Message("ORU_R01", version=VERSION, validation_level=VALIDATION_LEVEL.STRICT)
    head = message.msh
    head.msh_3 = "CSPINE"
    head.msh_7 = _moment(findings)
    head.msh_9 = "ORU^R01^ORU_R01"
    head.msh_10 = result_uid(report, "hl7").removeprefix("2.25.")[:CONTROL_CHARS]
    head.msh_11 = "P"
    head.msh_18 = "UNICODE UTF-8"
    result = message.add_group("ORU_R01_PATIENT_RESULT")
    _patient(result.add_group("ORU_R01_PATIENT").add_segment("PID"), report)
    order = result.add_group("ORU_R01_ORDER_OBSERVATION")
    _request(order.add_segment("OBR"), report)
    _observations(order, findings, report.link)
    return message


def _patient(segment: Segment, report: ReportInput) -> None:
    """PID: who; anonymous without DICOM."""
    source = report.findings.provenance.input
    identifier = text_of(report, "PatientID")
    issuer = text_of(report, "IssuerOfPatientID")
    name = _name(report, "PatientName")
    segment.pid_1 = "1"
    if not identifier:
        identifier, issuer = (source.name if source is not None and report.series is None else "") or "ANONYMOUS", ""
    segment.pid_3 = escaped(identifier) + (f"^^^{escaped(issuer)}" if issuer else "")
    segment.pid_5 = name or "ANONYMOUS"
    if born := _digits(text_of(report, "PatientBirthDate"), 8):
        segment.pid_7 = born
    if (sex := text_of(report, "PatientSex")) in _SEXES:
        segment.pid_8 = sex


def _request(segment: Segment, report: ReportInput) -> None:
    """OBR: what was examined, when, for whom."""
    segment.obr_1 = "1"
    if accession := text_of(report, "AccessionNumber"):
        segment.obr_2 = escaped(accession)
    segment.obr_3 = f"{result_uid(report, 'hl7-order').removeprefix('2.25.')[:CONTROL_CHARS]}^CSPINE"
    segment.obr_4 = _coded(STUDY_CODE)
    if date := _digits(text_of(report, "StudyDate"), 8):
        segment.obr_7 = date + _digits(text_of(report, "StudyTime")[:6], 6)
    if physician := _name(report, "ReferringPhysicianName"):
        segment.obr_16 = f"^{physician}"
    segment.obr_22 = _moment(report.findings)
    segment.obr_24 = "RAD"
    segment.obr_25 = "P"


def _observations(order: Group, findings: Findings, link: str | None) -> None:
    """OBX: the impression, each level, each warning, what this is not, and where the images can be seen."""
    suspected = words.suspected(findings)
    lines = [(IMPRESSION, "", words.impression(findings), suspected)]
    for item in findings.levels:
        text = f"{item.level}: {words.sentence(words.verdict(item))}"
        lines.append((dicom_codes.FRACTURE, item.level, text, item.fracture))
    if findings.status != "refused":
        lines += [(dicom_codes.COMMENT, "", words.sentence(item.message), None) for item in findings.warnings]
    lines.append((dicom_codes.COMMENT, "", f"{words.RESEARCH} {words.LIMITS}", None))
    for number, (code, site, text, abnormal) in enumerate(lines, start=1):
        segment = _observation(order, findings, number, code)
        segment.obx_2 = "TX"
        segment.obx_4 = site or str(number)
        segment.obx_5 = escaped(text)
        if abnormal is not None:
            segment.obx_8 = "A" if abnormal else "N"
        if findings.provenance.bundle is not None:
            bundle = findings.provenance.bundle
            segment.obx_17 = f"{escaped(bundle.sha256[:20])}^{escaped(f'cspine {bundle.name} {bundle.version}')}^L"
    if link is not None:
        segment = _observation(order, findings, len(lines) + 1, IMAGES)
        segment.obx_2 = "RP"
        segment.obx_4 = str(len(lines) + 1)
        # Reference pointer: address, application, type of data (table 0191: image), subtype (table 0291).
        segment.obx_5 = f"{escaped(link)}^CSPINE^IM^HTML"


def _observation(order: Group, findings: Findings, number: int, code: Code) -> Segment:
    """What all OBX have in common."""
    segment = order.add_group("ORU_R01_OBSERVATION").add_segment("OBX")
    segment.obx_1 = str(number)
    segment.obx_3 = _coded(code)
    segment.obx_11 = "P"
    segment.obx_14 = _moment(findings)
    return segment


def escaped(text: str) -> str:
    """Text on one line whose delimiters are escaped, so that nothing in it can begin a field or a segment.

    Spaces that do not break become plain ones, since many receivers show them as question marks.
    """
    line = re.sub(r"[\s\x00-\x1f\x7f]+", " ", text).strip()
    for mark, letter in _ESCAPES:
        line = line.replace(mark, f"\\{letter}\\")
    return line


def _coded(code: Code) -> str:
    """A coded element (CE): identifier, text, name of the coding system (table 0396)."""
    return f"{escaped(code.value)}^{escaped(code.meaning)}^{code.scheme_designator}"


def _digits(text: str, count: int) -> str:
    """The text when it is so many digits, else nothing: a damaged date must not make a message that is refused."""
    return text if len(text) == count and text.isascii() and text.isdigit() else ""


def _name(report: ReportInput, keyword: str) -> str:
    """A DICOM name (family, given, middle, prefix, suffix) in the order of HL7 (suffix before prefix)."""
    alphabetic = text_of(report, keyword).split("=")[0]
    parts = [part.strip() for part in [*alphabetic.split("^"), *[""] * 5][:5]]
    family, given, middle, prefix, suffix = (escaped(part) for part in parts)
    return "^".join((family, given, middle, suffix, prefix)).rstrip("^")


def _moment(findings: Findings) -> str:
    """When the result was made, in UTC (TS)."""
    return datetime.fromisoformat(findings.provenance.created).astimezone(UTC).strftime("%Y%m%d%H%M%S+0000")
