"""The structured report with a reader's answers: a new version of the one that was computed, which it names.

Everything that the computed report says stays as it is, each group now saying that the device observed it. Beside it
stands one measurement group (TID 1501) a level that somebody answered, observed by that person: accepted, rejected or
corrected, whether there is a fracture, of which type, and the comment. The new document names the computed one in its
Predecessor Documents Sequence (PS3.3 C.17.2). It is UNVERIFIED and PRELIMINARY until a reader signs, then VERIFIED and
FINAL with the reader as Verifying Observer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from io import BytesIO
from typing import TYPE_CHECKING, Any

from cspine import __version__
from cspine.anatomy import LEVELS, Level
from cspine.errors import UsageError
from cspine.reports import dicom_codes as codes
from cspine.reports.dicom_uids import uid_of

if TYPE_CHECKING:
    from highdicom.sr import ContentItem
    from pydicom import Dataset
    from pydicom.dataset import FileDataset

PATIENT = "patient"
SUBJECTS = (*(level.name for level in LEVELS), PATIENT)
SERIES_NUMBER = 9006
_SR = "1.2.840.10008.5.1.4.1.1.88.34"
_MEASUREMENTS, _GROUP = "126010", "125007"
_UTF8 = "ISO_IR 192"
# PN is 64 characters a component group, LO 64, TEXT as long as it likes.
_NAME = 64


class Verdict(StrEnum):
    """What a reader says of a computed finding."""

    ACCEPT = "accept"
    REJECT = "reject"
    CORRECT = "correct"


@dataclass(frozen=True, slots=True)
class Reader:
    """A person.

    Attributes:
        name: as one writes it, given name first.
        organization: that answers for the reading; empty when none is known.
    """

    name: str
    organization: str = ""


@dataclass(frozen=True, slots=True)
class ReaderAnswer:
    """What a reader says of one level or of the patient.

    Attributes:
        subject: of ``SUBJECTS``.
        verdict: on what was computed.
        fracture: what the reader holds for true; None when that cannot be said.
        kind: of the fracture, a word of the findings, or None.
        comment: free text.
        reader: who.
        when: with a zone.
    """

    subject: str
    verdict: Verdict
    fracture: bool | None
    kind: str | None
    comment: str
    reader: Reader
    when: datetime


@dataclass(frozen=True, slots=True)
class Signature:
    """A reader answers for the whole document."""

    reader: Reader
    when: datetime


def render(
    computed: bytes, answers: Sequence[ReaderAnswer], *, version: int = 1, signature: Signature | None = None
) -> bytes:
    """The new version of a structured report.

    Args:
        computed: the DICOM file that ``dicom_sr.render`` made.
        answers: one for each subject that was answered; their order does not matter.
        version: counts the states of the answers from 1; InstanceNumber.
        signature: by whom all of it is signed; None leaves it unverified.

    Returns:
        A DICOM file. The same computed report, answers and signature give the same bytes and UIDs.

    Raises:
        UsageError: there is nothing to say, a subject is unknown or twice there, or ``computed`` is no such report.
    """
    _check(answers, version)
    document = _read(computed)
    chosen = sorted(answers, key=lambda answer: SUBJECTS.index(answer.subject))
    people = _people(chosen, signature)
    _use_utf8(document, chosen, people)
    predecessor, series = str(document.SOPInstanceUID), str(document.SeriesInstanceUID)
    _head(document, predecessor, series, _state(predecessor, chosen, signature), version)
    _name_predecessor(document, predecessor, series)
    _dates(document, max([answer.when for answer in chosen] + ([signature.when] if signature else [])))
    _verification(document, signature)
    _observers(document, people)
    measurements = _container(document)
    measurements.ContentSequence.extend(_group(answer, predecessor) for answer in chosen)
    return _bytes(document)


def person_name(name: str) -> str:
    """A name as DICOM writes it, family name first: ``Ada King`` is ``King^Ada`` (PS3.5 6.2.1)."""
    clean = " ".join("".join(c if c.isprintable() and c not in "\\^=" else " " for c in name).split())[:_NAME]
    given, _, family = clean.rpartition(" ")
    return f"{family}^{given}" if given else f"{clean or 'Unknown'}^"


def _check(answers: Sequence[ReaderAnswer], version: int) -> None:
    subjects = [answer.subject for answer in answers]
    wrong = next((name for name in subjects if name not in SUBJECTS or subjects.count(name) > 1), None)
    if not answers or wrong is not None or version < 1:
        found = "no answer" if not answers else f"{wrong!r} unknown or twice" if wrong else f"version {version}"
        raise UsageError(
            f"expected answers for some of {', '.join(SUBJECTS)}, each once, got {found}",
            fix="Answer a level first" if not answers else None,
        )
    if any(answer.when.tzinfo is None for answer in answers):
        raise UsageError("expected moments with a zone")


def _read(computed: bytes) -> FileDataset:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        document = dcmread(BytesIO(computed))
        known = str(document.SOPClassUID) == _SR and _container(document) is not None
    except (InvalidDicomError, AttributeError, EOFError) as error:
        raise _foreign() from error
    if not known:
        raise _foreign()
    return document


def _foreign() -> UsageError:
    return UsageError("expected a structured report of cspine, got another file", fix="Judge the study again")


def _state(predecessor: str, answers: Sequence[ReaderAnswer], signature: Signature | None) -> str:
    """SHA-256 over everything that the new document says and the computed one does not."""
    said: list[Any] = [asdict(answer) | {"when": answer.when.isoformat()} for answer in answers]
    said.append(None if signature is None else asdict(signature) | {"when": signature.when.isoformat()})
    text = json.dumps([predecessor, __version__, said], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _head(document: FileDataset, predecessor: str, series: str, state: str, version: int) -> None:
    """Identifiers and series of the new document."""
    from pydicom.uid import UID

    document.SOPInstanceUID = document.file_meta.MediaStorageSOPInstanceUID = UID(uid_of("answers", predecessor, state))
    document.SeriesInstanceUID = uid_of("answers-series", series, predecessor)
    document.SeriesNumber, document.InstanceNumber = SERIES_NUMBER, version
    document.SeriesDescription = "cspine findings with the reader's answers (research use only)"
    # All documents of a series share its date, and answers are given on different days: none is stated.
    for keyword in ("SeriesDate", "SeriesTime"):
        if keyword in document:
            delattr(document, keyword)
    made = str(document.get("SoftwareVersions", ""))
    if not made.startswith(f"cspine {__version__},"):
        document.SoftwareVersions = [made, f"cspine {__version__}"] if made else f"cspine {__version__}"


def _name_predecessor(document: FileDataset, uid: str, series: str) -> None:
    from pydicom import Dataset

    instance, of_series, of_study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = _SR, uid
    of_series.SeriesInstanceUID, of_series.ReferencedSOPSequence = series, [instance]
    of_study.StudyInstanceUID, of_study.ReferencedSeriesSequence = document.StudyInstanceUID, [of_series]
    document.PredecessorDocumentsSequence = [of_study]


def _dates(document: FileDataset, when: datetime) -> None:
    from cspine.reports.dicom_writing import zone_of

    local = when.astimezone(zone_of(document))
    day, clock = local.strftime("%Y%m%d"), local.strftime("%H%M%S")
    document.ContentDate, document.ContentTime = day, clock
    document.InstanceCreationDate, document.InstanceCreationTime = day, clock


def _verification(document: FileDataset, signature: Signature | None) -> None:
    """PS3.3 C.17.2: flags, and who verified; the organization must be named, so that of the software stands in."""
    from pydicom import Dataset

    from cspine.reports.dicom_writing import zone_of

    document.CompletionFlag = "COMPLETE"
    document.PreliminaryFlag = "PRELIMINARY" if signature is None else "FINAL"
    document.VerificationFlag = "UNVERIFIED" if signature is None else "VERIFIED"
    if signature is None:
        return
    observer = Dataset()
    observer.VerifyingObserverName = person_name(signature.reader.name)
    observer.VerifyingObserverIdentificationCodeSequence = []
    observer.VerifyingOrganization = (signature.reader.organization or "not stated")[:_NAME]
    observer.VerificationDateTime = signature.when.astimezone(zone_of(document)).strftime("%Y%m%d%H%M%S%z")
    document.VerifyingObserverSequence = [observer]


def _people(answers: Iterable[ReaderAnswer], signature: Signature | None) -> list[Reader]:
    """Everybody who has a say, each once: who signs first, then in the order of the answers."""
    said = ([signature.reader] if signature else []) + [answer.reader for answer in answers]
    return list(dict.fromkeys(said))


def _observers(document: FileDataset, people: Sequence[Reader]) -> None:
    """The people stand at the root beside the device, and every computed group says that it is the device's."""
    root = list(document.ContentSequence)
    device = [item for item in root if _relation(item) == "HAS OBS CONTEXT"]
    end = max(k for k, item in enumerate(root) if item in device) + 1
    root[end:end] = [item for reader in people for item in _person(reader)]
    document.ContentSequence = root
    for group in _container(document).ContentSequence:
        if _name(group) == _GROUP:
            group.ContentSequence.extend(_copies(device))


def _copies(items: Iterable[Dataset]) -> Iterator[Dataset]:
    from copy import deepcopy

    return (deepcopy(item) for item in items)


def _person(reader: Reader) -> Iterator[ContentItem]:
    """TID 1003, with the observer type of TID 1002 before it."""
    from highdicom.sr import CodeContentItem, PnameContentItem, RelationshipTypeValues, TextContentItem

    context = RelationshipTypeValues.HAS_OBS_CONTEXT
    yield CodeContentItem(codes.OBSERVER_TYPE, codes.PERSON, relationship_type=context)
    yield PnameContentItem(codes.PERSON_NAME, person_name(reader.name), relationship_type=context)
    if reader.organization:
        yield TextContentItem(codes.PERSON_ORGANIZATION, reader.organization, relationship_type=context)


def _group(answer: ReaderAnswer, predecessor: str) -> Dataset:
    """TID 1501: what one person says of one level."""
    from highdicom.sr import (
        FindingSite,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        RelationshipTypeValues,
        TextContentItem,
        TrackingIdentifier,
    )

    said = [
        QualitativeEvaluation(codes.FRACTURE, codes.answer(answer.fracture)),
        QualitativeEvaluation(codes.READER_VERDICT, codes.VERDICTS[answer.verdict.value]),
    ]
    if answer.kind is not None and answer.kind in codes.TYPES:
        said.append(QualitativeEvaluation(codes.FRACTURE_TYPE, codes.TYPES[answer.kind]))
    name = f"{answer.subject} as read"
    site = codes.CERVICAL_SPINE if answer.subject == PATIENT else codes.vertebra(Level[answer.subject])
    group: Dataset = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=uid_of("read", predecessor, answer.subject), identifier=name),
        finding_type=codes.FRACTURE,
        finding_sites=[FindingSite(site)],
        qualitative_evaluations=said,
    )[0]
    group.ContentSequence.extend(_person(answer.reader))
    contains = RelationshipTypeValues.CONTAINS
    if answer.kind is not None and answer.kind not in codes.TYPES:
        group.ContentSequence.append(TextContentItem(codes.FRACTURE_TYPE, answer.kind, relationship_type=contains))
    if answer.comment.strip():
        group.ContentSequence.append(TextContentItem(codes.COMMENT, answer.comment, relationship_type=contains))
    return group


def _relation(item: Dataset) -> str:
    return str(item.get("RelationshipType", ""))


def _name(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence") or ()
    return str(names[0].CodeValue) if names else ""


def _container(document: Dataset) -> Dataset:
    """The container of all measurement groups.

    Raises:
        AttributeError: there is none.
    """
    found: Dataset | None = next((item for item in document.ContentSequence if _name(item) == _MEASUREMENTS), None)
    if found is None:
        raise AttributeError("no imaging measurements")
    return found


def _use_utf8(document: FileDataset, answers: Iterable[ReaderAnswer], people: Iterable[Reader]) -> None:
    """Where readers write more than ASCII, say the whole document in UTF-8, the patient's name included."""
    texts = [text for answer in answers for text in (answer.comment, answer.kind or "")]
    texts += [text for reader in people for text in (reader.name, reader.organization)]
    if all(text.isascii() for text in texts):
        return
    # Reads every text as the document's own character set has it; from here on they are text, not bytes.
    document.decode()
    document.SpecificCharacterSet = _UTF8


def _bytes(document: FileDataset) -> bytes:
    from pydicom.config import disable_value_validation

    stream = BytesIO()
    # pydicom quotes bad values in warnings; those of a patient are repeated here, and must not reach a log.
    with disable_value_validation():
        document.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
