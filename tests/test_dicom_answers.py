"""The structured report with a reader's answers: what was computed stays, and the person's word stands beside it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import highdicom as hd
import pytest
from pydicom import Dataset
from pydicom.dataset import FileDataset

from components import validation_errors
from cspine.anatomy import LEVELS, Level
from cspine.errors import UsageError
from cspine.reports import dicom_codes as codes
from cspine.reports.dicom_answers import Reader, ReaderAnswer, Signature, Verdict, person_name, render
from dicom_results import judge, read

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
ADA = Reader("Ada King", "Spine Clinic")
OTTO = Reader("Otto Maß")
ACCEPTED = ReaderAnswer("C1", Verdict.ACCEPT, False, None, "", ADA, NOW)
CORRECTED = ReaderAnswer("C2", Verdict.CORRECT, True, "hangman", "Seen on slice 12.", ADA, NOW + timedelta(minutes=1))
REJECTED = ReaderAnswer("C5", Verdict.REJECT, False, None, "Old fracture.", ADA, NOW)
PATIENT = ReaderAnswer("patient", Verdict.CORRECT, None, None, "", ADA, NOW)
ALL = (ACCEPTED, CORRECTED, REJECTED, PATIENT)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The report of a study: C5 burst, C7 not judged, with a segmentation beside it."""
    study = judge(tmp_path_factory.mktemp("study"))
    return study.write(tmp_path_factory.mktemp("out"), "seg", "sr")["sr"].read_bytes()


def groups(document: Dataset) -> dict[str, Dataset]:
    """Measurement groups by tracking identifier."""
    (container,) = [item for item in document.ContentSequence if meaning(item) == "Imaging Measurements"]
    return {str(items(group, "Tracking Identifier")[0].TextValue): group for group in container.ContentSequence}


def meaning(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def items(group: Dataset, name: str) -> list[Dataset]:
    return [item for item in group.ContentSequence if meaning(item) == name]


def said(group: Dataset, name: str) -> str:
    (item,) = items(group, name)
    return str(item.ConceptCodeSequence[0].CodeMeaning)


def observers(group: Dataset) -> list[str]:
    """Names of people and devices that observed a group."""
    return [str(item.PersonName) for item in items(group, "Person Observer Name")] + [
        str(item.TextValue) for item in items(group, "Device Observer Name")
    ]


def test_it_is_as_the_standard_wants_it(computed: bytes, tmp_path: Path) -> None:
    for name, signature in (("open", None), ("signed", Signature(ADA, NOW))):
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(render(computed, ALL, signature=signature))
        assert validation_errors(path) == []


def test_each_answer_is_a_group_of_its_own(computed: bytes) -> None:
    found = groups(read(render(computed, ALL)))
    answers = {name: group for name, group in found.items() if name.endswith(" as read")}
    assert list(answers) == ["C1 as read", "C2 as read", "C5 as read", "patient as read"]
    verdict = codes.READER_VERDICT.meaning
    assert [said(group, verdict) for group in answers.values()] == ["Accepted", "Corrected", "Rejected", "Corrected"]
    fracture = codes.FRACTURE.meaning
    assert [said(group, fracture) for group in answers.values()] == ["Absent", "Present", "Absent", "Undetermined"]
    assert said(answers["C2 as read"], "Finding Site") == "C2 vertebra"
    assert said(answers["C2 as read"], codes.FRACTURE_TYPE.meaning) == "Hangman fracture"
    assert [str(item.TextValue) for item in items(answers["C5 as read"], "Comment")] == ["Old fracture."]


def test_a_type_without_a_code_is_text(computed: bytes) -> None:
    group = groups(read(render(computed, [replace(CORRECTED, kind="burst")])))["C2 as read"]
    assert [str(item.TextValue) for item in items(group, codes.FRACTURE_TYPE.meaning)] == ["burst"]


def test_what_was_computed_stays_and_says_that_the_device_observed_it(computed: bytes) -> None:
    before, after = groups(read(computed)), groups(read(render(computed, ALL)))
    assert set(before) <= set(after)
    for name, group in before.items():
        kept = list(after[name].ContentSequence)
        assert kept[: len(group.ContentSequence)] == list(group.ContentSequence)
        assert observers(after[name]) == ["cspine"]


def test_each_person_observes_what_that_person_said(computed: bytes) -> None:
    other = replace(REJECTED, reader=OTTO)
    document = read(render(computed, [ACCEPTED, other]))
    found = groups(document)
    assert observers(found["C1 as read"]) == ["King^Ada"]
    assert observers(found["C5 as read"]) == ["Maß^Otto"]
    assert observers(document) == ["King^Ada", "Maß^Otto", "cspine"]


def test_readers_of_structured_reports_understand_it(computed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sr.dcm"
    path.write_bytes(render(computed, ALL))
    content = hd.sr.srread(path).content
    assert isinstance(content, hd.sr.MeasurementReport)
    names = [group.tracking_identifier for group in content.get_image_measurement_groups()]
    assert "C2 as read" in names and "patient" in names
    levels = {group.tracking_identifier for group in content.get_volumetric_roi_measurement_groups()}
    assert {level.name for level in LEVELS if level is not Level.C7} <= levels


def test_it_names_the_report_that_it_follows(computed: bytes) -> None:
    first, second = read(computed), read(render(computed, ALL))
    (study,) = second.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == first.StudyInstanceUID == second.StudyInstanceUID
    assert (series.SeriesInstanceUID, instance.ReferencedSOPInstanceUID) == (
        first.SeriesInstanceUID,
        first.SOPInstanceUID,
    )
    assert second.SOPInstanceUID != first.SOPInstanceUID and second.SeriesInstanceUID != first.SeriesInstanceUID
    assert second.PatientName == first.PatientName and second.PatientID == first.PatientID


def test_it_is_verified_only_when_a_reader_signs(computed: bytes) -> None:
    document = read(render(computed, ALL))
    assert (document.VerificationFlag, document.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert "VerifyingObserverSequence" not in document
    signed = read(render(computed, ALL, signature=Signature(ADA, NOW + timedelta(hours=1))))
    assert (signed.VerificationFlag, signed.PreliminaryFlag) == ("VERIFIED", "FINAL")
    (observer,) = signed.VerifyingObserverSequence
    assert str(observer.VerifyingObserverName) == "King^Ada"
    assert observer.VerifyingOrganization == "Spine Clinic"
    assert str(observer.VerificationDateTime).startswith("20310506")


def test_the_same_state_has_the_same_uid_and_every_other_state_another(computed: bytes) -> None:
    def uid(*answers: ReaderAnswer, signature: Signature | None = None) -> str:
        return str(read(render(computed, answers, signature=signature)).SOPInstanceUID)

    assert render(computed, ALL) == render(computed, ALL[::-1])
    states = [
        uid(ACCEPTED),
        uid(ACCEPTED, REJECTED),
        uid(replace(ACCEPTED, comment="Sure.")),
        uid(replace(ACCEPTED, reader=OTTO)),
        uid(replace(ACCEPTED, when=NOW + timedelta(seconds=1))),
        uid(ACCEPTED, signature=Signature(ADA, NOW)),
    ]
    assert len(set(states)) == len(states)


def test_versions_of_one_report_are_one_series(computed: bytes) -> None:
    first, second = read(render(computed, [ACCEPTED], version=1)), read(render(computed, ALL, version=2))
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert (first.InstanceNumber, second.InstanceNumber) == (1, 2)
    assert tracked(first, "C1 as read") == tracked(second, "C1 as read")


def tracked(document: FileDataset, name: str) -> str:
    return str(items(groups(document)[name], "Tracking Unique Identifier")[0].UID)


def test_times_are_those_of_the_newest_answer(computed: bytes) -> None:
    document = read(render(computed, ALL))
    newest = (NOW + timedelta(minutes=1)).astimezone()
    assert (document.ContentDate, document.ContentTime) == (newest.strftime("%Y%m%d"), newest.strftime("%H%M%S"))


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192"])
def test_text_of_any_language_is_kept_with_the_name_of_the_patient(charset: str, tmp_path: Path) -> None:
    def named(_: int, header: FileDataset) -> None:
        header.SpecificCharacterSet = charset
        header.PatientName = "Müller^Jörg"

    study = judge(tmp_path / "study", edit=named)
    computed = study.write(tmp_path / "out", "sr")["sr"].read_bytes()
    path = tmp_path / "answers.dcm"
    comment = "Żadne złamanie – 骨折なし"
    path.write_bytes(render(computed, [replace(REJECTED, comment=comment, reader=OTTO)]))
    document = read(path)
    assert str(document.PatientName) == "Müller^Jörg"
    assert [str(item.TextValue) for item in items(groups(document)["C5 as read"], "Comment")] == [
        "Żadne złamanie – 骨折なし"
    ]
    assert validation_errors(path) == []


def test_names_have_the_family_name_first() -> None:
    assert person_name("Ada King") == "King^Ada"
    assert person_name("Maria de la Cruz") == "Cruz^Maria de la"
    assert person_name("reader@example.org") == "reader@example.org^"
    assert person_name("A^B\\C\nD") == "D^A B C"
    assert person_name("") == "Unknown^"


def test_what_cannot_be_said_is_refused(computed: bytes) -> None:
    with pytest.raises(UsageError, match="no answer"):
        render(computed, [])
    with pytest.raises(UsageError, match="'C1' unknown or twice"):
        render(computed, [ACCEPTED, ACCEPTED])
    with pytest.raises(UsageError, match="'T1' unknown"):
        render(computed, [replace(ACCEPTED, subject="T1")])
    with pytest.raises(UsageError, match="another file"):
        render(b"no DICOM", [ACCEPTED])
