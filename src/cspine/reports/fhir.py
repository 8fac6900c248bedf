"""``diagnostic-report.json``: the result as a FHIR R4 Bundle: DiagnosticReport, Observations, Device, ImagingStudy.

Written for R4 (4.0.1) and checked on the way out with the models of ``fhir.resources`` for R4B (4.3.0), in which the
resources used here have the same elements as in R4. https://hl7.org/fhir/R4/diagnosticreport.html
"""

from __future__ import annotations

from typing import Any
from uuid import UUID
from xml.sax.saxutils import escape, quoteattr

from fhir.resources.R4B.bundle import Bundle
from pydicom.sr.coding import Code

from cspine.anatomy import Level
from cspine.findings import BundleProvenance, Findings, LevelFinding
from cspine.reports import dicom_codes, words
from cspine.reports.dicom_context import text_of
from cspine.reports.dicom_uids import result_uid
from cspine.reports.inputs import ReportInput

FHIR_VERSION = "4.0.1"
PROFILE = "http://hl7.org/fhir/StructureDefinition/{}|" + FHIR_VERSION
LOINC = "http://loinc.org"
DCM = "http://dicom.nema.org/resources/ontology/DCM"
SYSTEMS = {"SCT": "http://snomed.info/sct", "DCM": DCM}
UCUM = "http://unitsofmeasure.org"
VIEWER = "Web page that shows the images"
TERMS = "http://terminology.hl7.org/CodeSystem/"

Json = dict[str, Any]


def _concept(system: str, code: str, display: str, text: str = "") -> Json:
    """A CodeableConcept with one coding."""
    concept: Json = {"coding": [{"system": system, "code": code, "display": display}]}
    return {**concept, "text": text} if text else concept


def _of_dicom(code: Code) -> Json:
    """A code of the DICOM results as FHIR spells it."""
    return _concept(SYSTEMS[code.scheme_designator], code.value, code.meaning)


STUDY_CODE = _concept(LOINC, "18748-4", "Diagnostic imaging study", "CT of the cervical spine")
IMAGING = _concept(f"{TERMS}observation-category", "imaging", "Imaging")
RADIOLOGY = _concept(f"{TERMS}v2-0074", "RAD", "Radiology")
POSITIVE = _concept(f"{TERMS}v3-ObservationInterpretation", "POS", "Positive")
NEGATIVE = _concept(f"{TERMS}v3-ObservationInterpretation", "NEG", "Negative")


def render(report: ReportInput) -> bytes:
    """The Bundle as JSON. Same input, same bytes.

    The patient is named by the identifier of the DICOM study and nothing else; without one the subject is anonymous.
    """
    writer = _Writer(report)
    bundle = Bundle.model_validate(writer.bundle())
    return (bundle.model_dump_json(indent=2, exclude_none=True) + "\n").encode()


class _Writer:
    """Writes the resources of one result; they refer to each other by deterministic URNs."""

    def __init__(self, report: ReportInput) -> None:
        self._report = report
        self._findings = report.findings
        self._subject = _subject(report)

    def bundle(self) -> Json:
        """All resources together, the report first."""
        findings = self._findings
        judged = [self._level(item) for item in findings.levels]
        beside = [*self._devices(), *self._studies(), *self._viewers()]
        resources = [self._diagnostic_report(), self._patient_level(), *judged, *beside]
        return {
            "resourceType": "Bundle",
            "id": self._id("bundle"),
            "meta": {"profile": [PROFILE.format("Bundle")]},
            "identifier": {"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{self._id('bundle')}"},
            "type": "collection",
            "timestamp": findings.provenance.created,
            "entry": [{"fullUrl": f"urn:uuid:{one['id']}", "resource": one} for one in resources],
        }

    def _id(self, part: str) -> str:
        """The UUID of a part of the result: that in its 2.25 UID."""
        return str(UUID(int=int(result_uid(self._report, f"fhir-{part}").removeprefix("2.25."))))

    def _reference(self, part: str) -> Json:
        return {"reference": f"urn:uuid:{self._id(part)}"}

    def _diagnostic_report(self) -> Json:
        findings = self._findings
        resource: Json = {
            "resourceType": "DiagnosticReport",
            "id": self._id("report"),
            "text": {"status": "generated", "div": _narrative(findings, self._link)},
            "status": "preliminary",
            "category": [RADIOLOGY],
            "code": STUDY_CODE,
            "subject": self._subject,
            "issued": findings.provenance.created,
            "result": [self._reference(part) for part in ("patient", *(item.level for item in findings.levels))],
            "conclusion": f"{words.impression(findings)} {words.RESEARCH} {words.LIMITS}",
        }
        if self._study_uid:
            resource["imagingStudy"] = [self._reference("study")]
        if date := _study_date(self._report):
            resource["effectiveDateTime"] = date
        return resource

    def _patient_level(self) -> Json:
        """The observation over the levels that were judged."""
        findings = self._findings
        patient = findings.patient
        resource = self._observation("patient", dicom_codes.CERVICAL_SPINE, words.impression(findings))
        resource["hasMember"] = [self._reference(item.level) for item in findings.levels]
        # A part that was not judged may be fractured: the neck as a whole is then neither said to be nor not to be.
        return {
            **resource,
            **_value(words.suspected(findings), patient.probability, patient.threshold, words.headline(findings)),
        }

    def _level(self, item: LevelFinding) -> Json:
        """The observation of one vertebra."""
        site = dicom_codes.vertebra(Level[item.level])
        resource = self._observation(item.level, site, f"{item.level}: {words.sentence(words.verdict(item))}")
        resource |= _value(item.fracture, item.probability, item.threshold, words.why_not(item))
        if item.type:
            kind = {"code": {"text": "Likely type of fracture"}, "valueString": words.fracture_type(item.type)}
            resource["component"] = [*resource.get("component", []), kind]
        return resource

    def _observation(self, part: str, site: Code, note: str) -> Json:
        """What all observations have in common."""
        resource: Json = {
            "resourceType": "Observation",
            "id": self._id(part),
            "status": "preliminary",
            "category": [IMAGING],
            "code": _of_dicom(dicom_codes.FRACTURE),
            "subject": self._subject,
            "issued": self._findings.provenance.created,
            "note": [{"text": note}],
            "bodySite": _of_dicom(site),
        }
        if self._findings.provenance.bundle is not None:
            resource["device"] = self._reference("device")
        if self._study_uid:
            resource["derivedFrom"] = [self._reference("study")]
        if date := _study_date(self._report):
            resource["effectiveDateTime"] = date
        return resource

    def _devices(self) -> list[Json]:
        """The model that judged, when it came to that."""
        bundle = self._findings.provenance.bundle
        return [] if bundle is None else [_device(bundle, self._id("device"), self._findings.provenance.cspine)]

    @property
    def _study_uid(self) -> str:
        source = self._findings.provenance.input
        return "" if source is None else source.study_uid or ""

    def _studies(self) -> list[Json]:
        """The study, and of it the series that was read; none when the input was not DICOM."""
        source = self._findings.provenance.input
        if source is None or not source.study_uid:
            return []
        resource: Json = {
            "resourceType": "ImagingStudy",
            "id": self._id("study"),
            "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{source.study_uid}"}],
            "status": "available",
            "subject": self._subject,
        }
        if source.series_uid:
            modality = {"system": DCM, "code": "CT", "display": "Computed Tomography"}
            resource["series"] = [{"uid": source.series_uid, "modality": modality}]
        if self._link:
            resource["endpoint"] = [self._reference("viewer")]
        return [resource]

    @property
    def _link(self) -> str:
        """The viewer's link, where there is a study that it belongs to."""
        return (self._report.link or "") if self._study_uid else ""

    def _viewers(self) -> list[Json]:
        """The address of a viewer that shows the study: what ``ImagingStudy.endpoint`` is for."""
        if not self._link:
            return []
        endpoint: Json = {
            "resourceType": "Endpoint",
            "id": self._id("viewer"),
            "status": "active",
            # None of the codes that R4 lists is a viewer's own page, and others are allowed (binding "extensible").
            "connectionType": {"display": VIEWER},
            "name": VIEWER,
            "payloadType": [{"text": VIEWER}],
            "address": self._link,
        }
        return [endpoint]


def _subject(report: ReportInput) -> Json:
    """The patient by identifier, or nobody."""
    identifier = text_of(report, "PatientID")
    if not identifier:
        return {"display": "Anonymous"}
    subject: Json = {"type": "Patient", "identifier": {"value": identifier}}
    if issuer := text_of(report, "IssuerOfPatientID"):
        subject["identifier"]["assigner"] = {"display": issuer}
    return subject


def _study_date(report: ReportInput) -> str:
    """The day of the study, empty when unknown. DICOM times have no zone, and a FHIR time needs one."""
    date = text_of(report, "StudyDate")
    return f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 and date.isascii() and date.isdigit() else ""


def _value(fracture: bool | None, probability: float | None, threshold: float | None, why_not: str) -> Json:
    """Present, absent, or why nothing is said; with the probability."""
    value: Json = {}
    if fracture is None:
        reason = _concept(f"{TERMS}data-absent-reason", "not-performed", "Not Performed", words.sentence(why_not))
        value["dataAbsentReason"] = reason
    else:
        value["valueCodeableConcept"] = _of_dicom(dicom_codes.answer(fracture))
        value["interpretation"] = [POSITIVE if fracture else NEGATIVE]
    if probability is not None:
        value["component"] = [{"code": _of_dicom(dicom_codes.PROBABILITY), "valueQuantity": _share(probability)}]
    if threshold is not None:
        code = {"text": "Threshold for the finding"}
        value["component"] = [*value.get("component", []), {"code": code, "valueQuantity": _share(threshold)}]
    return value


def _share(value: float) -> Json:
    """A number from 0 to 1, four digits after the point."""
    return {"value": round(value, 4), "unit": "1", "system": UCUM, "code": "1"}


def _device(bundle: BundleProvenance, identifier: str, cspine: str) -> Json:
    """The bundle as a device: name, versions, digest."""
    return {
        "resourceType": "Device",
        "id": identifier,
        "identifier": [{"type": {"text": "SHA-256 of the bundle"}, "value": bundle.sha256}],
        "manufacturer": "cspine",
        "deviceName": [{"name": f"cspine bundle {bundle.name}", "type": "model-name"}],
        "type": {"text": "Software that finds fractures of the cervical spine on CT, for research"},
        "version": [
            {"type": {"text": "bundle"}, "value": bundle.version},
            {"type": {"text": "cspine"}, "value": cspine},
        ],
        "note": [{"text": f"Trained on {bundle.trained_on}. {words.RESEARCH} {words.LIMITS}"}],
    }


def _narrative(findings: Findings, link: str) -> str:
    """The report as XHTML for a person, all text escaped; with the viewer's link where there is one."""
    lines = [f"{item.level}: {words.sentence(words.verdict(item))}" for item in findings.levels]
    lines += [words.sentence(warning.message) for warning in findings.warnings if findings.status != "refused"]
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    images = f"<p><a href={quoteattr(link)}>{VIEWER}</a></p>" if link else ""
    return (
        '<div xmlns="http://www.w3.org/1999/xhtml">'
        f"<p>{escape(words.impression(findings))}</p><ul>{listed}</ul>"
        f"<p>{escape(words.RESEARCH)} {escape(words.LIMITS)}</p>{images}</div>"
    )
