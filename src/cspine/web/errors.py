"""What people and scripts are told when a request cannot be answered."""

from __future__ import annotations

import logging

from flask import Flask, Response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException, InternalServerError, SecurityError

from cspine.errors import CspineError
from cspine.web.strings import catalogue, t

_log = logging.getLogger(__name__)


def wants_json() -> bool:
    """Whether the answer is for a script: it asked below ``/api/``, or prefers JSON to HTML."""
    if request.path.startswith("/api/"):
        return True
    accepts = request.accept_mimetypes
    return accepts["application/json"] > accepts["text/html"]


def refusal(status: int, code: str, message: str) -> ResponseReturnValue:
    """An answer that says why not: JSON ``{"error": code, "message": …}``, or a page."""
    if wants_json():
        return {"error": code, "message": message}, status
    return render_template("error.html", status=status, code=code, message=message), status


def set_up(app: Flask) -> None:
    """Answer errors in our own words."""
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(CSRFError, _stale)
    app.register_error_handler(CspineError, _ours)
    app.register_error_handler(Exception, _unforeseen)


def _http(error: HTTPException) -> ResponseReturnValue:
    status = error.code or 500
    if isinstance(error, SecurityError):
        return Response(t("errors.400"), 400, mimetype="text/plain")  # without a trusted name there are no addresses
    if status < 400:
        return error.get_response()  # a redirect that werkzeug raised
    if status == 401 and not wants_json():
        return redirect(url_for("login.page", next=request.full_path.rstrip("?")))
    key = f"errors.{status}"
    text = t(key) if key in catalogue() else t("errors.other")
    # A view may say more with abort(409, "…") in words of the catalogue.
    said = error.description if error.description and error.description != type(error).description else text
    return refusal(status, str(status), said)


def _stale(_: CSRFError) -> ResponseReturnValue:
    return refusal(400, "csrf", t("errors.csrf"))


def _ours(error: CspineError) -> ResponseReturnValue:
    return refusal(400, error.code, f"{error.message}. {error.fix}" if error.fix else f"{error.message}.")


def _unforeseen(error: Exception) -> ResponseReturnValue:
    # The logging filter keeps type and place, and drops what may hold a patient.
    _log.error("a request failed", exc_info=error)
    return refusal(InternalServerError.code, "500", t("errors.500"))
