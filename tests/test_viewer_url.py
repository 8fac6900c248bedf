"""``viewer_url``: the link to the images of a study, in what names studies and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from typer.testing import CliRunner

from cspine import reports
from cspine.cli.app import app
from cspine.errors import RecipeError, UsageError
from cspine.node.child import JobOutcome, Order
from cspine.node.deliver import Parcel
from cspine.node.notify import Webhook
from cspine.node.settings import Notify, load_settings
from cspine.node.viewer import checked, link, link_of, orthanc_study, parse_template
from cspine.node.work import result_folder
from dicom_results import Judged, judge
from node_work_factory import AtOnce, add_study, make_work

OHIF = "https://ohif.example/viewer?StudyInstanceUIDs={study_uid}"
LINK = "https://pacs.example:8443/open?accession=A%201&user=a~b#x"


def study(uid: str = "1.2.3", accession: str = "A 1/7", patient: str = "P") -> Dataset:
    made = Dataset()
    made.StudyInstanceUID, made.AccessionNumber, made.PatientID = uid, accession, patient
    return made


# The template --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (OHIF, "https://ohif.example/viewer?StudyInstanceUIDs=1.2.3"),
        ("http://pacs/open?a={accession}", "http://pacs/open?a=A%201%2F7"),
        ("http://[::1]:8042/{accession}/{study_uid}", "http://[::1]:8042/A%201%2F7/1.2.3"),
        ("http://h/#study?uuid={orthanc_study}", f"http://h/#study?uuid={orthanc_study('P', '1.2.3')}"),
    ],
)
def test_values_take_the_place_of_placeholders(template: str, expected: str) -> None:
    assert link_of(checked(template), study()) == expected


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("ftp://h/{study_uid}", "begins with https"),
        ("javascript:alert({study_uid})", "begins with https"),
        ("https:///{study_uid}", "names a host"),
        ("https://{accession}.example/{study_uid}", "plain host"),
        ("https://me:secret@h/{study_uid}", "plain host"),
        ("https://h:port/{study_uid}", "cannot be read"),
        ("https://h/{patient_name}", "placeholders among"),
        ("https://h/{study_uid!r}", "placeholders among"),
        ("https://h/{study_uid:>99}", "placeholders among"),
        ("https://h/{}", "placeholders among"),
        ("https://h/{study_uid", "cannot be read"),
        ("https://h/", "at least one"),
        ("https://h/ {study_uid}", "that a URL may hold"),
        ("https://h/\n{study_uid}", "that a URL may hold"),
        ("https://h/{{x}}{study_uid}", "that a URL may hold"),
        ("https://h/{study_uid}" + "x" * 1000, "at most 1000"),
    ],
)
def test_what_makes_no_link_is_refused(template: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        checked(template)
    with pytest.raises(UsageError, match=says) as caught:
        parse_template(template, "--viewer-url")
    assert caught.value.where == "--viewer-url" and "secret" not in str(caught.value)


def test_settings_name_the_key_and_not_the_value(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('viewer_url = "https://me:secret@h/{study_uid}"\n', encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_settings(path)
    assert caught.value.where == "node.toml: viewer_url" and "secret" not in str(caught.value)
    path.write_text(f'viewer_url = "{OHIF}"\n', encoding="utf-8")
    assert load_settings(path).viewer_url == OHIF


def test_predict_refuses_it_before_it_judges(tmp_path: Path) -> None:
    options = ["--formats", "json,fhir", "--viewer-url", "https://h/{patient}"]
    ran = CliRunner().invoke(app, ["predict", str(tmp_path), "-o", str(tmp_path / "out"), *options])
    assert ran.exit_code == UsageError.exit_code and "--viewer-url" in ran.output
    assert not (tmp_path / "out").exists()


def test_no_link_where_a_value_is_missing() -> None:
    assert link_of("https://h/{accession}", study(accession="")) is None
    assert link_of("https://h/{study_uid}", Dataset()) is None
    assert link_of(OHIF, None) is link_of(None, study()) is None


@given(st.text(max_size=64).filter(bool))
def test_no_value_becomes_another_part_of_the_address(value: str) -> None:
    made = link("https://h/a/{accession}/b?x={accession}&y=1", {"accession": value})
    assert made is not None and made.isascii()
    parts = urlsplit(made)
    assert (parts.scheme, parts.netloc, parts.fragment, parts.path.count("/")) == ("https", "h", "", 3)
    assert parse_qs(parts.query, encoding="utf-8") == {"x": [value], "y": ["1"]}


# Where it goes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return judge(tmp_path_factory.mktemp("study"))


def written(judged: Judged, out: Path, name: str, link: str | None) -> bytes:
    made = reports.write(judged.prediction, judged.volume, out, formats=[name], series=judged.series, link=link)
    return made[name].read_bytes()


def test_hl7_points_to_the_images(judged: Judged, tmp_path: Path) -> None:
    data = written(judged, tmp_path, "hl7", LINK).decode()
    assert parse_message(data, validation_level=VALIDATION_LEVEL.STRICT).validate()
    fields = data.rstrip("\r").split("\r")[-1].split("|")
    assert (fields[2], fields[3], fields[11]) == ("RP", "113014^DICOM Study^DCM", "P")
    address, *kind = fields[5].split("^")
    assert address.replace("\\T\\", "&").replace("\\R\\", "~") == LINK and kind == ["CSPINE", "IM", "HTML"]
    assert "|RP|" not in written(judged, tmp_path / "without", "hl7", None).decode()


def test_fhir_has_an_endpoint_of_the_study(judged: Judged, tmp_path: Path) -> None:
    bundle = json.loads(written(judged, tmp_path, "fhir", LINK))
    by_url: dict[str, dict[str, Any]] = {entry["fullUrl"]: entry["resource"] for entry in bundle["entry"]}
    (imaging,) = (one for one in by_url.values() if one["resourceType"] == "ImagingStudy")
    endpoint = by_url[imaging["endpoint"][0]["reference"]]
    # Elements that R4 (4.0.1) defines; R4B, whose models check the rest, must add none.
    assert set(endpoint) == {"resourceType", "id", "status", "connectionType", "name", "payloadType", "address"}
    assert endpoint["address"] == LINK
    (report,) = (one for one in by_url.values() if one["resourceType"] == "DiagnosticReport")
    assert f'<a href="{LINK.replace("&", "&amp;")}">' in report["text"]["div"]
    without = written(judged, tmp_path / "without", "fhir", None).decode()
    assert "Endpoint" not in without and "href" not in without


def test_a_web_hook_has_it_only_with_identifiers(tmp_path: Path) -> None:
    outcome = JobOutcome(ending="judged", probability=0.9, study_uid="1.2.3", link="https://h/1.2.3")
    parcel = Parcel("key", tmp_path, outcome, "study-abc")
    allowed = Webhook(Notify(webhook="http://x", identifiers=True), "http://x")
    assert json.loads(allowed.body(parcel))["viewer_url"] == "https://h/1.2.3"
    assert "1.2.3" not in Webhook(Notify(webhook="http://x"), "http://x").body(parcel).decode()


def test_status_shows_it_when_asked(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    add_study(work, "study-1")
    work.tick(AtOnce(work))
    (job,) = work.ledger.jobs()
    outcome = result_folder(work.settings.data, job) / "outcome.json"
    outcome.write_text(json.dumps({**json.loads(outcome.read_text()), "link": "https://h/1.2.3"}), encoding="utf-8")
    settings = tmp_path / "node.toml"
    settings.write_text('data = "data"\n', encoding="utf-8")

    def shown(*options: str) -> str:
        ran = CliRunner().invoke(app, ["node", "status", str(settings), *options])
        assert ran.exit_code == 0, ran.output
        return ran.output

    assert "study-1 (positive): https://h/1.2.3" in shown("--links")
    assert json.loads(shown("--links", "--json"))["links"][0]["link"] == "https://h/1.2.3"
    assert "1.2.3" not in shown() and "links" not in json.loads(shown("--json"))


def test_the_child_is_told(tmp_path: Path) -> None:
    work = make_work(tmp_path, viewer_url=OHIF)
    orders: list[Order] = []

    def judge_it(order: Order, seconds: float) -> JobOutcome:
        orders.append(order)
        return JobOutcome(ending="skipped", reason="x")

    work = replace(work, judge=judge_it)
    add_study(work, "study-1")
    work.tick(AtOnce(work))
    assert [order.viewer_url for order in orders] == [OHIF]
