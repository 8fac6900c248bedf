"""The API: keys and their scopes, the whole way of a study, answers, sharing, and refusals that programs understand."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import schemathesis
from flask import Flask
from flask.testing import FlaskClient

from cspine.web.api import api, document
from cspine.web.database import db
from cspine.web.models import ApiToken, now
from cspine.web.strings import catalogue
from web_factory import person, web_app
from web_studies import CLEAR, add_answers, add_group, add_job, add_study, findings_of, fresh, visit


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    return web_app(tmp_path_factory.mktemp("web"))


@pytest.fixture
def ada(app: Flask) -> str:
    return person(app, fresh())


class Script:
    """A program with a key."""

    def __init__(self, app: Flask, user: str, *scopes: str, days: float = 1) -> None:
        secret = secrets.token_hex(16)
        with app.app_context():
            digest = hashlib.sha256(secret.encode()).hexdigest()
            wanted = list(scopes) or ["read", "upload", "answer"]
            expires = now() + timedelta(days=days)
            db.session.add(ApiToken(user_id=user, name="t", digest=digest, scopes=wanted, expires=expires))
            db.session.commit()
        self.headers = {"Authorization": f"Bearer {secret}"}
        self.client: FlaskClient = app.test_client()

    def __call__(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        headers = {**self.headers, **more.pop("headers", {})}
        answer = self.client.open(f"/api/v1{path}", method=method, headers=headers, **more)
        assert answer.status_code == status, answer.get_data(as_text=True)
        return answer.get_json() if answer.is_json else answer


@pytest.fixture
def script(app: Flask, ada: str) -> Script:
    return Script(app, ada)


def test_without_a_key_there_is_nothing(app: Flask, ada: str) -> None:
    answer = app.test_client().get("/api/v1/studies")
    assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.mimetype == "application/problem+json"
    Script(app, ada, days=-1)("GET", "/studies", 401)


def test_a_key_does_what_its_scopes_say(app: Flask, ada: str) -> None:
    study = add_study(app, ada, findings=findings_of())
    reader = Script(app, ada, "read")
    assert reader("GET", "/me")["scopes"] == ["read"]
    reader("GET", f"/studies/{study}")
    reader("DELETE", f"/studies/{study}", 403)
    reader("POST", f"/studies/{study}/answers", 403, json={"level": "C5", "verdict": "accept"})
    reader("POST", "/uploads", 403, json={"files": [{"name": "a", "size": 1}]})
    Script(app, ada, "answer")("GET", "/studies", 403)


def test_studies_are_listed_and_narrowed(app: Flask, ada: str, script: Script) -> None:
    first = add_study(app, ada, findings=findings_of(), hours_ago=50)
    second = add_study(app, ada, findings=findings_of(CLEAR))
    waiting = add_study(app, ada, state="queued", hours_ago=0)
    add_answers(app, first, ada, patient=True)

    def ids(query: str) -> list[str]:
        return [one["id"] for one in script("GET", f"/studies?{query}")["studies"]]

    assert ids("") == [waiting, second, first]
    assert ids("order=priority") == [first, second, waiting]
    assert ids("state=queued") == [waiting] and ids("answered=true") == [first]
    assert ids("owner=me&answered=false&state=done") == [second]
    yesterday = (now() - timedelta(days=1)).date().isoformat()
    assert ids(f"since={yesterday}&state=done") == [second]
    page = script("GET", "/studies?per_page=2&page=2")
    assert (page["total"], page["pages"], [one["id"] for one in page["studies"]]) == (3, 2, [first])


@pytest.mark.parametrize("query", ["page=0", "per_page=9999", "state=odd", "since=soon", "what=ever", "page=1&page=2"])
def test_a_query_that_makes_no_sense_is_refused(script: Script, query: str) -> None:
    assert script("GET", f"/studies?{query}", 422)["code"] == "422"


def test_one_study_with_its_findings_and_results(app: Flask, ada: str, script: Script) -> None:
    study = add_study(app, ada, findings=findings_of())
    said = script("GET", f"/studies/{study}")
    assert (said["positive"], said["probability"], said["mine"], said["answered"]) == (True, 0.86, True, False)
    assert script("GET", f"/studies/{study}/findings")["levels"][4]["probability"] == 0.86
    names = [one["name"] for one in script("GET", f"/studies/{study}/results")["results"]]
    assert names == ["findings.json"]
    answer = script.client.get(f"/api/v1/studies/{study}/results/findings.json", headers=script.headers)
    assert answer.headers["Content-Disposition"].startswith("attachment")
    script("GET", f"/studies/{study}/results/seg.dcm", 404)


def test_what_belongs_to_others_is_not_there(app: Flask, ada: str, script: Script) -> None:
    otto = person(app, fresh("otto"))
    study = add_study(app, otto, findings=findings_of())
    job = add_job(app, study, otto)
    for method, path in (
        ("GET", f"/studies/{study}"), ("DELETE", f"/studies/{study}"), ("GET", f"/studies/{study}/findings"),
        ("GET", f"/studies/{study}/results/findings.json"), ("GET", f"/studies/{study}/answers"),
        ("GET", f"/jobs/{job}"), ("POST", f"/jobs/{job}/cancel"), ("POST", f"/studies/{study}/jobs"),
        ("GET", f"/studies/{study}/groups"), ("GET", f"/studies/{uuid4()}"), ("GET", f"/uploads/{uuid4()}"),
    ):  # fmt: skip
        assert script(method, path, 404)["status"] == 404


def test_answers_and_a_signature(app: Flask, ada: str, script: Script) -> None:
    path = f"/studies/{add_study(app, ada, findings=findings_of())}"
    body = {"level": "C5", "verdict": "correct", "fracture": True, "type": "burst", "comment": "Seen."}
    assert script("POST", f"{path}/answers", 201, json=body)["levels"]["C5"]["answer"]["type"] == "burst"
    script("POST", f"{path}/answers", 200, json=body)
    assert "Answer the patient first" in script("POST", f"{path}/signature", 422)["detail"]
    script("POST", f"{path}/answers", 201, json={"level": "patient", "verdict": "accept"})
    assert script("POST", f"{path}/signature", 201)["signed"]["by"].startswith("ada")
    assert script("GET", f"{path}/answers")["version"] == 3


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"level": "C9", "verdict": "accept"}, "level"),
        ({"level": "C5", "verdict": "accept", "more": 1}, "more"),
        ({"level": "C5", "verdict": "correct", "fracture": "yes"}, "fracture"),
        ([], "body"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_and_says_where(
    app: Flask, ada: str, script: Script, body: Any, place: str
) -> None:
    study = add_study(app, ada, findings=findings_of())
    assert script("POST", f"/studies/{study}/answers", 422, json=body)["detail"].startswith(f"{place}:")
    script("POST", f"/studies/{study}/answers", 415, data="x")
    script("POST", f"/studies/{study}/answers", 400, data="{", content_type="application/json")


def test_sharing_with_a_group_of_ones_own(app: Flask, ada: str, script: Script) -> None:
    otto = person(app, fresh("otto"))
    group, strange = add_group(app, f"A {ada}", ada, otto), add_group(app, f"B {ada}", otto)
    study = add_study(app, ada, findings=findings_of())
    other = Script(app, otto)
    assert [one["id"] for one in script("GET", "/groups")["groups"]] == [group]
    script("PUT", f"/studies/{study}/groups/{strange}", 404)
    script("PUT", f"/studies/{study}/groups/{group}", 204)
    script("PUT", f"/studies/{study}/groups/{group}", 204)
    assert [one["id"] for one in script("GET", f"/studies/{study}/groups")["groups"]] == [group]
    assert other("GET", f"/studies/{study}")["mine"] is False
    other("DELETE", f"/studies/{study}", 403)
    other("PUT", f"/studies/{study}/groups/{strange}", 403)
    script("DELETE", f"/studies/{study}/groups/{group}", 204)
    script("DELETE", f"/studies/{study}/groups/{group}", 404)
    other("GET", f"/studies/{study}", 404)


def test_a_study_is_deleted_with_all_that_is_of_it(app: Flask, ada: str, script: Script) -> None:
    study = add_study(app, ada, findings=findings_of())
    folder = Path(app.extensions["cspine"].settings.data) / "studies" / study
    assert folder.is_dir()
    script("DELETE", f"/studies/{study}", 204)
    script("GET", f"/studies/{study}", 404)
    assert not folder.exists()


def test_jobs(app: Flask, ada: str, script: Script) -> None:
    study = add_study(app, ada, state="queued")
    job = add_job(app, study, ada, "queued")
    assert [one["id"] for one in script("GET", "/jobs")["jobs"]] == [job]
    assert script("GET", f"/jobs/{job}")["state"] == "queued"
    assert script("POST", f"/jobs/{job}/cancel")["cancelled"] is True
    assert script("POST", f"/jobs/{job}/cancel")["cancelled"] is False
    old = add_job(app, study, ada, "done", created=now() - timedelta(days=9), ended=now() - timedelta(days=9))
    assert script("GET", f"/jobs/{old}")["state"] == "done"


def test_files_are_sent_piece_by_piece(script: Script) -> None:
    content = b"0123456789"
    begun = script("POST", "/uploads", 201, json={"files": [{"name": "a.dcm", "size": 10}], "key": str(uuid4())})
    file = begun["files"][0]
    path = f"/uploads/{begun['id']}/files/{file['id']}"
    assert script("PUT", f"{path}?offset=0", data=content[:4])["received"] == 4
    late = script("PUT", f"{path}?offset=9", 409, data=b"9")
    assert (late["code"], late["received"]) == ("offset", 4)
    wrong = {"X-Chunk-SHA256": "0" * 64}
    assert script("PUT", f"{path}?offset=4", 422, data=content[4:], headers=wrong)["code"] == "checksum"
    script("PUT", path, 422, data=b"x")
    right = {"X-Chunk-SHA256": hashlib.sha256(content[4:]).hexdigest()}
    assert script("PUT", f"{path}?offset=4", data=content[4:], headers=right)["received"] == 10
    assert script("GET", f"/uploads/{begun['id']}")["received"] == 10
    assert [one["id"] for one in script("GET", "/uploads")["uploads"]] == [begun["id"]]
    script("DELETE", f"/uploads/{begun['id']}", 204)


def test_refusals_are_problem_details_wherever_they_come_from(script: Script) -> None:
    missing = script.client.get("/api/v1/nowhere", headers=script.headers)
    assert missing.status_code == 404 and missing.mimetype == "application/problem+json"
    assert set(missing.get_json()) >= {"type", "title", "status", "detail", "code"}
    method = script.client.put("/api/v1/me", headers=script.headers)
    assert method.status_code == 405 and "GET" in method.headers["Allow"]


def test_a_session_needs_the_token_of_the_page_and_a_key_does_not(app: Flask, ada: str) -> None:
    page = visit(app, ada)
    study = add_study(app, ada, findings=findings_of())
    assert page.get("/api/v1/me").get_json()["scopes"] == ["read", "upload", "answer"]
    path = f"/api/v1/studies/{study}/answers"
    assert page.post(path, json={"level": "C5", "verdict": "accept"}).status_code == 400
    assert page.send_json(path, body={"level": "C5", "verdict": "accept"}).status_code == 201


def test_the_description_is_valid_and_complete() -> None:
    described = document()
    schemathesis.openapi.from_dict(described).validate()
    names = [one["operationId"] for path in described["paths"].values() for one in path.values()]
    assert len(set(names)) == len(names) == len(api.operations)
    assert {f"api.op.{name}" for name in names} <= set(catalogue())


def test_people_can_read_the_description_and_nothing_comes_from_elsewhere(app: Flask) -> None:
    text = app.test_client().get("/api/docs").get_data(as_text=True)
    assert "/api/v1/studies/{study_id}/answers" in text and "hangman" not in text.partition("<main")[0]
    assert 'src="http' not in text and 'href="http' not in text
    assert app.test_client().get("/api/openapi.json").get_json()["openapi"] == "3.1.0"
