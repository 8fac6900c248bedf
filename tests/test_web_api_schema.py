"""Requests made up from the description of the API: whatever is sent, the answer is one of those that are described."""

from __future__ import annotations

import hashlib
import uuid
from datetime import timedelta
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from cspine.web.api import api
from cspine.web.database import db
from cspine.web.models import ApiToken, Upload, UploadFile, now
from web_factory import person, web_app
from web_studies import add_group, add_job, add_study, findings_of, fresh

SECRET = "a key for tests"
EXAMPLES = 8
# What these take must make sense beyond its form: digests, offsets, studies of this upload.
MUST_MAKE_SENSE = {"begin_upload", "send_piece", "run_upload", "answer"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    return web_app(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def known(app: Flask) -> dict[str, str]:
    """What a person with all rights has: ids by the names of the paths."""
    ada = person(app, fresh())
    group = add_group(app, f"Emergency {ada}", ada)
    study = add_study(app, ada, findings=findings_of(), groups=[group])
    job = add_job(app, study, ada, progress=1.0, ended=now())
    with app.app_context():
        digest = hashlib.sha256(SECRET.encode()).hexdigest()
        scopes = ["read", "upload", "answer"]
        db.session.add(ApiToken(user_id=ada, name="t", digest=digest, scopes=scopes, expires=now() + timedelta(days=1)))
        upload = Upload(owner_id=ada, bytes_expected=10, files=[UploadFile(name="a.dcm", size=10)])
        db.session.add(upload)
        db.session.commit()
        file = upload.files[0].id
        return {"study_id": study, "group_id": group, "job_id": job, "upload_id": upload.id, "file_id": file}


@pytest.fixture(scope="module")
def described(app: Flask, known: dict[str, str]) -> schemathesis.BaseSchema:
    """The description; every other right request is about something that is there."""
    schema = schemathesis.openapi.from_wsgi("/api/openapi.json", app)
    turn = iter(range(10**9))

    @schema.hook
    def map_path_parameters(_: Any, parameters: dict[str, Any]) -> dict[str, Any]:
        right = parameters and all(_is_uuid(value) for name, value in parameters.items() if name in known)
        if not right or next(turn) % 2:
            return parameters
        return {name: known.get(name, value) for name, value in parameters.items()}

    return schema


def _is_uuid(text: Any) -> bool:
    try:
        return bool(uuid.UUID(str(text)))
    except ValueError:
        return False


NAMES = [one.name for one in api.operations]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_described(name: str, mode: GenerationMode, described: schemathesis.BaseSchema) -> None:
    """Right and wrong requests: no fault of the server, a status, a content type and a form that are described."""
    found = (result.ok() for result in described.get_all_operations())
    (operation,) = [one for one in found if one.definition.raw["operationId"] == name]

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        left_out = [positive_data_acceptance] if name in MUST_MAKE_SENSE else []
        case.call_and_validate(headers={"Authorization": f"Bearer {SECRET}"}, excluded_checks=left_out)

    ask()
