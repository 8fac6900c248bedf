"""``Operation``: one thing the API can do. The same object checks requests and describes itself (OpenAPI 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from flask import Blueprint, abort, jsonify, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from werkzeug.exceptions import HTTPException, UnprocessableEntity

from cspine import __version__
from cspine.web.access import SCOPES, need_role
from cspine.web.api_models import Problem
from cspine.web.models import RoleName
from cspine.web.strings import t

PREFIX = "/api/v1"
PROBLEM = "application/problem+json"
BINARY = "application/octet-stream"
_REFS = "#/components/schemas/{model}"
READ, UPLOAD, ANSWER = SCOPES
EITHER, UPLOADER, READER = (RoleName.READER, RoleName.UPLOADER), (RoleName.UPLOADER,), (RoleName.READER,)
View = Callable[..., Any]
# Schemas by model and direction, as pydantic gives them.
Names = Mapping[Any, dict[str, Any]]
# What can happen to any request, with the key of its string ``api.status.<status>``.
ALWAYS = (401, 403)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        method: ``GET`` …
        path: below ``/api/v1``, Flask's way: ``/studies/<uuid:study_id>``.
        tag: chapter of the description.
        name: operationId; ``api.op.<name>`` is its string.
        scope: that a key must have.
        roles: one of which the person must have.
        answer: what it gives; a model, a content type, or None for nothing.
        status: of the answer.
        again: further status with the same answer, such as 200 when nothing had to be done.
        query: what may stand behind the question mark.
        body: what it takes; a model, ``BINARY``, or None.
        refusals: what can go wrong beside ``ALWAYS``.
        headers: optional request headers: name and key of its string.
    """

    method: str
    path: str
    tag: str
    name: str
    scope: str
    roles: tuple[str, ...] = ()
    answer: type[BaseModel] | str | None = None
    status: int = 200
    again: int | None = None
    query: type[BaseModel] | None = None
    body: type[BaseModel] | str | None = None
    refusals: tuple[int, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """The path as OpenAPI writes it: ``/api/v1/studies/{study_id}``."""
        parts = (part.split(":")[-1].rstrip(">") if part.startswith("<") else part for part in self.path.split("/"))
        named = (
            "{" + part + "}" if raw.startswith("<") else part
            for part, raw in zip(parts, self.path.split("/"), strict=True)
        )
        return PREFIX + "/".join(named)

    @property
    def possible(self) -> tuple[int, ...]:
        """Every refusal that is described."""
        more = {404} if "<" in self.path else set()
        more |= {422} if self.query or self.body else set()
        more |= {413} if self.body else set()
        more |= {400, 415} if isinstance(self.body, type) else set()
        return tuple(sorted({*ALWAYS, *more, *self.refusals}))


class Api:
    """Operations, and the views behind them."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._views: list[View] = []

    def mount(self, blueprint: Blueprint) -> None:
        """Give a blueprint the routes."""
        for one, view in zip(self.operations, self._views, strict=True):
            blueprint.add_url_rule(PREFIX + one.path, one.name, view, methods=[one.method])

    def operation(self, one: Operation) -> Callable[[View], View]:
        """Put a view behind an operation: it is called with ``query`` and ``body`` where the operation has such."""

        def decorate(view: View) -> View:
            self.operations.append(one)

            @wraps(view)
            def checked(**parts: Any) -> ResponseReturnValue:
                if one.query is not None:
                    parts["query"] = _query(one.query)
                if isinstance(one.body, type):
                    parts["body"] = _body(one.body)
                return _given(one, view(**parts))

            self._views.append(need_role(*one.roles, scope=one.scope)(checked))
            return view

        return decorate

    def document(self) -> dict[str, Any]:
        """The description, OpenAPI 3.1."""
        paths: dict[str, dict[str, Any]] = {}
        schemas = _schemas(self.operations)
        for one in self.operations:
            paths.setdefault(one.address, {})[one.method.lower()] = _described(one, schemas.names)
        return {
            "openapi": "3.1.0",
            "info": {"title": t("api.title"), "version": __version__, "description": t("api.about")},
            "servers": [{"url": "/"}],
            "security": [{"key": []}],
            "tags": [
                {"name": tag, "description": t(f"api.tag.{tag}")}
                for tag in dict.fromkeys(o.tag for o in self.operations)
            ],
            "paths": paths,
            "components": {
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": t("api.key")}},
                "schemas": schemas.definitions,
            },
        }


api = Api()


@dataclass(frozen=True, slots=True)
class _Schemas:
    names: Names
    definitions: Mapping[str, Any]


def _schemas(operations: Sequence[Operation]) -> _Schemas:
    given = [one.answer for one in operations if isinstance(one.answer, type)] + [Problem]
    taken = [one.body for one in operations if isinstance(one.body, type)]
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "serialization") for model in dict.fromkeys(given)]
    wanted += [(model, "validation") for model in dict.fromkeys(taken)]
    names, whole = models_json_schema(wanted, ref_template=_REFS)
    return _Schemas(names, whole.get("$defs", {}))


def _described(one: Operation, names: Names) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": one.name,
        "tags": [one.tag],
        "summary": t(f"api.op.{one.name}"),
        "description": t("api.scope", scope=one.scope),
        "parameters": _parameters(one),
        "responses": {},
    }
    if one.body is not None:
        kind = BINARY if isinstance(one.body, str) else "application/json"
        schema = (
            {"type": "string", "format": "binary"} if isinstance(one.body, str) else names[(one.body, "validation")]
        )
        described["requestBody"] = {"required": True, "content": {kind: {"schema": schema}}}
    content = {}
    if isinstance(one.answer, str):
        content = {
            "content": {one.answer: {"schema": {} if one.answer != BINARY else {"type": "string", "format": "binary"}}}
        }
    elif one.answer is not None:
        content = {"content": {"application/json": {"schema": names[(one.answer, "serialization")]}}}
    for status in (one.status, one.again):
        if status is not None:
            described["responses"][str(status)] = {"description": t(f"api.status.{status}"), **content}
    problem = {"content": {PROBLEM: {"schema": names[(Problem, "serialization")]}}}
    for status in one.possible:
        described["responses"][str(status)] = {"description": t(f"api.status.{status}"), **problem}
    return described


def _parameters(one: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for part in one.path.split("/"):
        if part.startswith("<"):
            kind, _, name = part.strip("<>").rpartition(":")
            schema = (
                {"type": "string", "format": "uuid"}
                if kind == "uuid"
                else {"type": "string", "pattern": "^[a-z0-9.-]+$"}
            )
            found.append({"name": name, "in": "path", "required": True, "schema": schema})
    if one.query is not None:
        whole = one.query.model_json_schema(ref_template=_REFS)
        for name, schema in whole["properties"].items():
            wanted = name in whole.get("required", ())
            found.append({"name": name, "in": "query", "required": wanted, "schema": _without_null(schema)})
    for name, key in one.headers.items():
        found.append(
            {"name": name, "in": "header", "required": False, "description": t(key), "schema": {"type": "string"}}
        )
    return found


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing can be null in an address: it is left out instead."""
    kept = {
        key: value
        for key, value in schema.items()
        if key not in ("anyOf", "title") and not (key == "default" and value is None)
    }
    choices = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    if len(choices) == 1:
        return {**choices[0], **kept}
    return {**kept, "anyOf": choices} if choices else kept


def _query(model: type[BaseModel]) -> BaseModel:
    """Raises HTTPException: 422 when something does not fit."""
    twice = [name for name, values in request.args.lists() if len(values) > 1]
    if twice:
        raise _unprocessable(twice[0], t("api.twice"))
    return _validated(lambda: model.model_validate(request.args.to_dict()))


def _body(model: type[BaseModel]) -> BaseModel:
    """Raises HTTPException: 415 for what is no JSON, 400 for broken JSON, 422 when something does not fit."""
    if request.mimetype != "application/json":
        abort(415, t("api.no-json"))
    raw = request.get_data()
    return _validated(lambda: model.model_validate_json(raw))


def _validated(make: Callable[[], BaseModel]) -> BaseModel:
    try:
        return make()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        if first["type"] == "json_invalid":
            abort(400, t("api.broken"))
        place = ".".join(str(part) for part in first["loc"])[:200]
        raise _unprocessable(place, str(first["msg"])[:300]) from None


def _unprocessable(place: str, why: str) -> HTTPException:
    return UnprocessableEntity(t("api.wrong", place=place or "body", why=why))


def _given(one: Operation, made: Any) -> ResponseReturnValue:
    """The answer of a view: a model, a model and a status, None, or a response as it is."""
    status = one.status
    if isinstance(made, tuple):
        made, status = made
    if made is None:
        return "", status
    if isinstance(made, BaseModel):
        answer = jsonify(made.model_dump(mode="json"))
        answer.status_code = status
        return answer
    return made  # type: ignore[no-any-return]
