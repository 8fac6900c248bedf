"""``/api/v1``: the application for scripts, with a key instead of a session. Described at ``/api/docs``."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, render_template, request
from flask.typing import ResponseReturnValue
from werkzeug.http import HTTP_STATUS_CODES

from cspine.errors import CspineError, UsageError

# What these two register stands behind ``/api/v1``.
from cspine.web import api_studies, api_work  # noqa: F401
from cspine.web.answer_log import AnswerError
from cspine.web.api_models import Problem
from cspine.web.api_spec import PREFIX, PROBLEM, api
from cspine.web.receiving import ChecksumError, LimitError, OffsetError, StateError
from cspine.web.store import DiskFullError

blueprint = Blueprint("api", __name__)
api.mount(blueprint)
_STATUS: tuple[tuple[type[CspineError], int], ...] = (
    (OffsetError, 409), (StateError, 409), (LimitError, 413), (DiskFullError, 507), (ChecksumError, 422),
    (AnswerError, 422), (UsageError, 422),
)  # fmt: skip


@cache
def document() -> dict[str, Any]:
    """The description of the API."""
    return api.document()


@blueprint.get("/api/openapi.json")
def openapi() -> Response:
    """The description, for programs. It says nothing of this server, so everybody may read it."""
    return jsonify(document())


@blueprint.get("/api/docs")
def docs() -> str:
    """The same, for people."""
    return render_template("api/docs.html", document=document(), operations=api.operations, example=_example)


def _example(schema: dict[str, Any]) -> str:
    """A request body as one would write it."""
    return json.dumps(_sample(schema, document()["components"]["schemas"]), indent=2, ensure_ascii=False)


def _sample(schema: dict[str, Any], known: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return _sample(known[schema["$ref"].rsplit("/", 1)[-1]], known)
    if "enum" in schema or "const" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    if "anyOf" in schema:
        return _sample(schema["anyOf"][0], known)
    kind = schema.get("type")
    if kind == "object":
        named = {name: _sample(one, known) for name, one in schema.get("properties", {}).items()}
        return named or {"…": None}
    if kind == "array":
        return [_sample(schema.get("items", {}), known)]
    return {"string": "…", "integer": 1, "number": 0.5, "boolean": True}.get(str(kind))


@blueprint.errorhandler(CspineError)
def _refused(error: CspineError) -> ResponseReturnValue:
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 400)
    text = f"{error.message.rstrip('.')}. {error.fix}" if error.fix else f"{error.message.rstrip('.')}."
    more = {"received": error.received} if isinstance(error, OffsetError) else {}
    return {"error": error.code, "message": text, **more}, status


@blueprint.after_app_request
def _problems(response: Response) -> Response:
    """Refusals below ``/api/v1`` are problem details (RFC 9457), whoever refused."""
    if (
        not request.path.startswith(f"{PREFIX}/")
        or response.status_code < 400
        or response.mimetype != "application/json"
    ):
        return response
    said = response.get_json(silent=True)
    if not isinstance(said, dict) or "error" not in said:
        return response
    status = response.status_code
    problem = Problem(
        title=HTTP_STATUS_CODES.get(status, ""), status=status, detail=str(said.get("message", "")),
        code=str(said["error"]), received=said.get("received"),
    )  # fmt: skip
    response.set_data(current_app.json.dumps(problem.model_dump(mode="json")))
    response.mimetype = PROBLEM
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    methods = getattr(request.routing_exception, "valid_methods", None)
    if status == 405 and methods:
        response.headers["Allow"] = ", ".join(sorted(methods))
    return response
