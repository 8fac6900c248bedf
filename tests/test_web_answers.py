"""Answers of readers: what may be said, that nothing is overwritten, and what is taken away from them."""

from __future__ import annotations

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from components import validation_errors
from cspine.web.app import context
from dicom_results import judge, read
from web_factory import Browser, person, web_app
from web_studies import USUAL, add_group, add_study, findings_of, fresh, visit


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    return web_app(tmp_path_factory.mktemp("web"))


@pytest.fixture
def ada(app: Flask) -> str:
    return person(app, fresh())


@pytest.fixture
def page(app: Flask, ada: str) -> Browser:
    return visit(app, ada)


@pytest.fixture
def study(app: Flask, ada: str) -> str:
    """C5 is called, C1 to C6 are judged, C7 is not."""
    return add_study(app, ada, findings=findings_of(USUAL))


def say(page: Browser, study: str, status: int = 201, **body: Any) -> dict[str, Any]:
    answer = page.send_json(f"/studies/{study}/answers.json", body=body)
    assert answer.status_code == status, answer.get_data(as_text=True)
    made: dict[str, Any] = answer.get_json()
    return made


def test_accepting_says_what_was_found(page: Browser, study: str) -> None:
    made = say(page, study, level="C5", verdict="accept", comment=" Agreed. ")
    answer = made["levels"]["C5"]["answer"]
    assert (answer["verdict"], answer["fracture"], answer["comment"]) == ("accept", True, "Agreed.")
    assert made["version"] == 1 and made["levels"]["C1"]["answer"] is None


def test_rejecting_says_the_opposite(page: Browser, study: str) -> None:
    assert say(page, study, level="C5", verdict="reject")["levels"]["C5"]["answer"]["fracture"] is False
    missed = say(page, study, level="C2", verdict="reject", type="hangman")["levels"]["C2"]["answer"]
    assert (missed["fracture"], missed["type"]) == (True, "hangman")


def test_correcting_says_what_is_there(page: Browser, study: str) -> None:
    made = say(page, study, level="C7", verdict="correct", fracture=True, type="burst")
    assert made["levels"]["C7"]["answer"]["type"] == "burst"
    unsure = say(page, study, level="C7", verdict="correct", fracture=None)
    assert unsure["levels"]["C7"]["answer"]["fracture"] is None


def test_the_newest_answer_counts_and_the_others_are_kept(page: Browser, study: str) -> None:
    say(page, study, level="C5", verdict="reject")
    made = say(page, study, level="C5", verdict="accept")
    assert made["version"] == 2 and made["levels"]["C5"]["answer"]["verdict"] == "accept"
    rows = table(page.get(f"/studies/{study}/results/answers.csv"))
    assert [(row["verdict"], row["counts"]) for row in rows] == [("reject", "no"), ("accept", "yes")]


def test_a_double_click_is_one_answer(page: Browser, study: str) -> None:
    say(page, study, level="C5", verdict="accept")
    assert say(page, study, 200, level="C5", verdict="accept")["version"] == 1
    assert say(page, study, level="C5", verdict="accept", comment="Sure.")["version"] == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"level": "T1", "verdict": "accept"}, "no such level"),
        ({"level": "C7", "verdict": "accept"}, "nothing to accept"),
        ({"level": "C1", "verdict": "accept", "type": "burst"}, "needs a fracture"),
        ({"level": "C5", "verdict": "correct", "fracture": True, "type": "odd"}, "one of the list"),
        ({"level": "C5", "verdict": "accept", "comment": "x" * 2001}, "too long"),
        ({"level": "C5", "verdict": "perhaps"}, "Choose again"),
        ({"level": "C5", "verdict": "correct", "fracture": "yes"}, "Choose again"),
        ({"level": "C5", "verdict": "accept", "comment": 7}, "Choose again"),
        ({"verdict": "sign"}, "Answer the patient first"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(page: Browser, study: str, body: dict[str, Any], words: str) -> None:
    assert words in say(page, study, 422, **body)["message"]
    assert page.get(f"/studies/{study}/answers.json").get_json()["version"] == 0


def test_a_study_without_results_cannot_be_answered(app: Flask, ada: str, page: Browser) -> None:
    running = add_study(app, ada, state="running")
    assert "no results yet" in say(page, running, 422, level="C1", verdict="accept")["message"]
    assert "nothing to answer" in page.get(f"/studies/{running}/answers").get_data(as_text=True)


def test_accepting_the_rest_leaves_answers_alone(page: Browser, study: str) -> None:
    say(page, study, level="C5", verdict="reject")
    made = say(page, study, level="all", verdict="accept")
    verdicts = {level: entry["answer"] and entry["answer"]["verdict"] for level, entry in made["levels"].items()}
    assert verdicts == {**dict.fromkeys(("C1", "C2", "C3", "C4", "C6"), "accept"), "C5": "reject", "C7": None}
    assert made["patient"]["answer"]["verdict"] == "accept"


def test_a_signature_holds_until_something_else_is_said(page: Browser, study: str) -> None:
    say(page, study, level="patient", verdict="accept")
    assert say(page, study, verdict="sign")["signed"] is not None
    assert say(page, study, 200, verdict="sign")["version"] == 2
    assert say(page, study, level="C5", verdict="accept")["signed"] is None


def test_the_form_works_without_scripts(page: Browser, study: str) -> None:
    address = f"/studies/{study}/answers"
    fields = {"level": "C5", "verdict": "correct", "fracture": "yes", "type": "burst", "comment": "Seen."}
    answer = page.send(address, **fields)
    assert answer.status_code == 303 and answer.headers["Location"].endswith("/answers#C5")
    text = page.get(address).get_data(as_text=True)
    assert "Corrected" in text and "Seen." in text
    page.send(address, level="C2", verdict="correct")
    assert "Choose whether there is a fracture" in page.get(address).get_data(as_text=True)
    page.send(address, act="all")
    page.send(address, act="sign")
    assert "Signed by" in page.get(address).get_data(as_text=True)


def test_who_may_not_read_may_not_answer(app: Flask, ada: str, study: str) -> None:
    stranger = visit(app, person(app, fresh()))
    assert stranger.get(f"/studies/{study}/answers.json").status_code == 404
    assert stranger.send_json(f"/studies/{study}/answers.json", body={}).status_code == 404
    sender = person(app, fresh(), "uploader")
    own = add_study(app, sender, findings=findings_of())
    assert visit(app, sender).send_json(f"/studies/{own}/answers.json", body={}).status_code == 403
    assert "an administrator has to make you a reader" in visit(app, sender).get(f"/studies/{own}/answers").text


def test_members_of_a_group_answer_under_their_own_name(app: Flask, ada: str) -> None:
    otto = person(app, fresh("otto"))
    group = add_group(app, f"Night shift {ada}", ada, otto)
    shared = add_study(app, ada, findings=findings_of(), groups=[group])
    made = say(visit(app, otto), shared, level="C5", verdict="reject")
    assert made["levels"]["C5"]["answer"]["by"].startswith("otto")


def test_the_trail_says_who_answered_and_names_no_comment(app: Flask, ada: str, page: Browser, study: str) -> None:
    say(page, study, level="C5", verdict="reject", comment="a secret remark")
    with app.app_context():
        lines = context().audit.folder.joinpath("audit.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (last["action"], last["actor"], last["detail"]) == ("answered", ada, "C5 reject")
    assert study not in lines[-1] and "secret remark" not in "".join(lines)


def test_tables_are_safe_to_open_in_a_spreadsheet(app: Flask, ada: str, page: Browser) -> None:
    study = add_study(app, ada, findings=findings_of(), title='=HYPERLINK("x")')
    say(page, study, level="C5", verdict="accept", comment="+1, naïve")
    answer = page.get("/answers.csv")
    (row,) = table(answer)
    assert answer.get_data().startswith(b"\xef\xbb\xbf")
    assert (row["study"], row["comment"]) == ('\'=HYPERLINK("x")', "'+1, naïve")
    assert (row["found_fracture"], row["found_probability"], row["fracture"]) == ("yes", "0.8600", "yes")


def table(answer: Any) -> list[dict[str, str]]:
    assert answer.status_code == 200
    return list(csv.DictReader(StringIO(answer.get_data().decode("utf-8-sig"))))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a DICOM study."""
    study = judge(tmp_path_factory.mktemp("study"))
    out = tmp_path_factory.mktemp("out")
    study.write(out, "json", "seg", "sr")
    return out


def test_the_structured_report_with_answers_follows_the_computed_one(
    app: Flask, ada: str, page: Browser, files: Path, tmp_path: Path
) -> None:
    study = add_study(app, ada, findings=findings_of(USUAL), files=files)
    address = f"/studies/{study}/results/answers-sr.dcm"
    assert page.get(address).status_code == 404
    say(page, study, level="C5", verdict="reject", comment="Alter Bruch, längst verheilt.")
    say(page, study, level="patient", verdict="correct", fracture=False)
    first = page.get(address)
    assert first.mimetype == "application/dicom"
    assert first.get_data() == page.get(address).get_data()
    say(page, study, verdict="sign")
    signed = page.get(address)
    document, computed = read(signed.get_data()), read(files / "sr.dcm")
    assert document.VerificationFlag == "VERIFIED" and read(first.get_data()).VerificationFlag == "UNVERIFIED"
    named = document.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == computed.SOPInstanceUID
    path = tmp_path / "signed.dcm"
    path.write_bytes(signed.get_data())
    assert validation_errors(path) == []
