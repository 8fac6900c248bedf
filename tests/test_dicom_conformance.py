"""docs/reference/dicom-conformance.md says what the code does: its tables are read and compared, or tried out."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from cspine.node import commitment
from cspine.node.audit import Action, AuditEvent
from cspine.node.deliver import ANSWER_SECONDS, CONNECT_SECONDS, DeliveryError, _offered, verdict
from cspine.node.instances import IMPLEMENTATION_NAME, IMPLEMENTATION_UID, SYNTAXES
from cspine.node.limits import ARTIM_SECONDS
from cspine.node.pull import MOST_STUDIES, PAGE
from cspine.node.service import STATUSES
from cspine.node.settings import Limits, Retry
from cspine.node.stow import http_failure
from cspine.node.syslog import audit_message
from cspine.node.work import SENDING_AT_ONCE
from cspine.reports import FORMATS
from cspine.reports.dicom_headers import COPIED
from cspine.reports.dicom_uids import SERIES_NUMBERS
from dicom_results import judge
from receiving_factory import Receiver, receiver

TEXT = (Path(__file__).parents[1] / "docs" / "reference" / "dicom-conformance.md").read_text(encoding="utf-8")
COMMITMENT_ANSWERS = ("SUCCESS", "PROCESSING_FAILURE", "INVALID_ARGUMENT", "NO_SUCH_ACTION", "RESOURCES")
# MPEG2, which no CT comes in.
OTHER_SYNTAX = "1.2.840.10008.1.2.4.100"
# Sections of annex A, and the format whose object each describes.
ANNEX = {
    "A.2 Segmentation": "seg",
    "A.3 Structured report": "sr",
    "A.4 Key-image sheet": "sc",
    "A.5 Marks": "gsps",
    "A.6 Report as PDF": "dicom-pdf",
}


def section(title: str) -> str:
    """The text below one heading, up to the next."""
    found = re.search(rf"^#+ (?:{re.escape(title)})$\n(.*?)(?=^#+ |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def table(text: str, head: str) -> list[list[str]]:
    """The cells of the table whose first column has this head."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {head} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def codes(cell: str) -> set[int]:
    """The status codes of a cell, of four hexadecimal digits or with ``x`` for any."""
    found = set()
    for word in re.findall(r"\b[0-9A-F]{4}\b|\b[0-9A-F]{1,3}x{1,3}\b", cell):
        low, high = (int(word.replace("x", digit), 16) for digit in "0F")
        found |= set(range(low, high + 1))
    return found


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """What is written of one study, by format."""
    folder = tmp_path_factory.mktemp("objects")
    written = judge(folder / "study").write(folder / "out", *ANNEX.values())
    return {name: dcmread(written[name]) for name in ANNEX.values()}


# Networking ----------------------------------------------------------------------------------------------------------


def test_the_node_accepts_these_classes_and_syntaxes_and_no_others(tmp_path: Path) -> None:
    classes = {row[1]: row for row in table(section("1 Overview"), "SOP class")}
    assert all(UID(uid).name.removesuffix(" SOP Class") == row[0] for uid, row in classes.items())
    syntaxes = [row[1] for row in table(section("3.2 Storage as SCP"), "transfer syntax")]
    assert syntaxes == list(SYNTAXES)
    proposed = [(uid, syntax) for uid in classes for syntax in (*syntaxes, OTHER_SYNTAX)]
    with receiver(tmp_path) as node:
        accepted = {
            pair for start in range(0, len(proposed), 100) for pair in _accepted(node, proposed[start : start + 100])
        }
    plain = {str(Verification), str(StorageCommitmentPushModel)}
    expected = {
        (uid, syntax)
        for uid, row in classes.items()
        if row[3] == "yes"
        for syntax in (syntaxes[:2] if uid in plain else syntaxes)
    }
    assert accepted == expected


def _accepted(node: Receiver, proposed: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Which classes and syntaxes, each proposed in a context of its own, the node accepts."""
    entity = AE()
    for uid, syntax in proposed:
        entity.add_requested_context(uid, syntax)
    association = entity.associate("127.0.0.1", node.port, ae_title=node.settings.ae_title)
    if not association.is_established:  # none of them
        return set()
    association.release()
    return {(str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in association.accepted_contexts}


def test_results_are_the_classes_that_are_sent(objects: dict[str, Dataset]) -> None:
    sent = {row[1] for row in table(section("1 Overview"), "SOP class") if row[2] == "yes"}
    assert sent == {str(one.SOPClassUID) for one in objects.values()} | {str(Verification)}
    assert set(objects) == {name for name, form in FORMATS.items() if form.file.endswith(".dcm")}
    metas = [one.file_meta for one in objects.values()]
    offered = {pair[1] for meta in metas for pair in _offered(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)}
    assert offered == set(re.findall(r"\((1\.2\.840\.10008\.1\.2[.0-9]*)\)", section("3.4 Storage as SCU")))


def test_status_codes_of_storage() -> None:
    rows = table(section("3.2 Storage as SCP"), "status")
    assert {int(row[0], 16) for row in rows} == set(STATUSES.values())


def test_status_codes_and_failure_reasons_of_storage_commitment() -> None:
    text = section("3.3 Verification as SCP, Storage Commitment as SCP")
    answers = {int(row[0], 16) for row in table(text, "status of the answer to N-ACTION")}
    known = {name: value for name, value in vars(commitment).items() if name.isupper() and isinstance(value, int)}
    reasons = {int(row[0], 16) for row in table(text, "failure reason of an instance (0008,1197)")}
    assert answers == {known[name] for name in COMMITMENT_ANSWERS}
    assert reasons == {commitment.NO_SUCH_INSTANCE, commitment.CLASS_CONFLICT}


def test_what_answers_of_destinations_mean() -> None:
    """Every status there is: delivered, not wanted, or to be sent again."""
    rows = table(section("3.4 Storage as SCU"), "answer of the other side")
    delivered = codes(rows[0][0]) | codes(rows[1][0])
    unwanted = codes(rows[2][0])
    meant = {status: _meaning(status) for status in range(0x10000)}
    assert {status for status, said in meant.items() if said == "delivered"} == delivered
    assert {status for status, said in meant.items() if said == "unwanted"} == unwanted


def _meaning(status: int) -> str:
    try:
        verdict([status])
    except DeliveryError as error:
        return "unwanted" if error.lasting else "again"
    return "delivered"


def test_answers_of_web_servers_that_are_tried_again() -> None:
    said = re.search(r"4xx other than\s+([\d, ]+) put", section("3.6 DICOMweb as user agent"))
    assert said
    listed = {int(code) for code in said[1].split(",")}
    assert {code for code in range(400, 600) if not http_failure(code).lasting} == listed | set(range(500, 600))


def test_numbers_are_the_defaults() -> None:
    limits, retry, text = Limits(), Retry(), TEXT
    policies = {row[0]: row[1:] for row in table(section("3.1 Association policies"), "policy")}
    assert policies["Maximum length of a PDU that is received"] == [
        f"{limits.pdu_bytes} (`limits.pdu_bytes`)",
        str(AE().maximum_pdu_size),
    ]
    assert policies["Associations at once"] == [
        f"{limits.associations} (`limits.associations`)",
        f"{SENDING_AT_ONCE} a destination",
    ]
    assert policies["Implementation class UID"][0] == IMPLEMENTATION_UID
    assert policies["Implementation version name"][0] == IMPLEMENTATION_NAME
    for said in (
        f"have {ARTIM_SECONDS:.0f} s",
        f"last {limits.idle_seconds:.0f} s",
        f"one message {limits.message_seconds:.0f} s",
        f"{CONNECT_SECONDS:.0f} s for a connection",
        f"{ANSWER_SECONDS:.0f} s for an answer",
        f"again after {retry.first_seconds:.0f} s",
        f"up to every {retry.most_seconds / 60:.0f} minutes, {retry.tries} times",
        f"`limit={PAGE}`",
        f"at most {MOST_STUDIES} studies",
    ):
        assert said in " ".join(text.split()), said


def test_audit_events_are_listed() -> None:
    listed = {
        action: cell[1]
        for cell in table(section("7 IHE: Record Audit Event (ITI-20)"), "event of the node")
        for action in cell[0].split(", ")
    }
    for action in Action:
        message = ET.fromstring(audit_message(AuditEvent(action), datetime.now(UTC), node="N"))  # noqa: S314 our own
        event = message.find("EventIdentification/EventID")
        assert event is not None
        said = f"{event.get('csd-code')} {event.get('originalText')}"
        assert listed.get(action.value, listed["all others"]) == said


# Annex A -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("title", "form"), ANNEX.items())
def test_every_attribute_of_an_object_is_listed_with_its_value(
    title: str, form: str, objects: dict[str, Dataset]
) -> None:
    rows = [*table(section("A.1 Every object"), "tag"), *table(section(title), "tag")]
    written = objects[form]
    for tag, keyword, said in rows:
        number = tag_for_keyword(keyword)
        assert number is not None and tag == f"({number >> 16:04X},{number & 0xFFFF:04X})"
        assert keyword in written, keyword
        constant = re.fullmatch(r"`([^`]+)`", said)
        if constant:
            value = written[keyword].value
            assert constant[1] == ("\\".join(map(str, value)) if written[keyword].VM > 1 else str(value)), keyword
        elif said.startswith("empty"):
            assert not written[keyword].value, keyword
    assert {element.keyword for element in written} - set(COPIED) == {row[1] for row in rows} - set(COPIED)


def test_objects_are_told_apart_as_listed(objects: dict[str, Dataset]) -> None:
    rows = table(section("Annex A: objects that are created"), "object")
    assert [row[1].strip("`") for row in rows] == list(objects)
    for _, form, modality, number, description in rows:
        one = objects[form.strip("`")]
        said = (one.Modality, str(one.SeriesNumber), one.SeriesDescription)
        assert said == (modality.strip("`"), number.strip("`"), description.strip("`"))
        assert int(number.strip("`")) == SERIES_NUMBERS[form.strip("`")]
        assert one["SoftwareVersions"].VM == 1 and one.SoftwareVersions.startswith("cspine ")


def test_what_is_copied_is_listed() -> None:
    listed = re.search(r"when they are not:\n\n(.*?)\.\n", section("A.1 Every object"), flags=re.DOTALL)
    assert listed and re.findall(r"`(\w+)`", listed[1]) == list(COPIED)
