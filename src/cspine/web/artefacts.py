"""What is taken away from a study: its results as files, the report in a frame, and the card of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, abort, render_template, request, send_file, url_for
from flask.blueprints import BlueprintSetupState
from flask.typing import ResponseReturnValue
from markupsafe import Markup

from cspine.errors import CspineError, StudyError
from cspine.findings import BundleProvenance, Findings
from cspine.reports.picture_findings import PictureFindings
from cspine.web import answer_log
from cspine.web.access import current_user, need_role, study_of
from cspine.web.app import context
from cspine.web.audit_log import Did
from cspine.web.database import db
from cspine.web.found import FINDINGS_FILE, PICTURES_FILE
from cspine.web.models import RoleName, Study
from cspine.web.strings import t

blueprint = Blueprint("artefacts", __name__)
DICOM, CSV, PDF, HTML, JSON = "application/dicom", "text/csv", "application/pdf", "text/html", "application/json"
REPORT, COMPUTED_SR = "report.html", "sr.dcm"
ANSWERS_SR, ANSWERS_CSV = "answers-sr.dcm", "answers.csv"
# The report is a document with a script of its own: it runs, if at all, as nobody and without a way out.
SANDBOX = "sandbox allow-scripts allow-modals"  # it prints itself


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of result.

    Attributes:
        name: of the file, in the results and in the URL.
        type: Content-Type.
        key: of its strings ``artefacts.<key>.name`` and ``.text``.
        main: stands among the first in lists.
    """

    name: str
    type: str
    key: str
    main: bool = False


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("report.pdf", PDF, "pdf", main=True),
        Kind(REPORT, HTML, "html"),
        Kind(FINDINGS_FILE, JSON, "json", main=True),
        Kind("findings.csv", CSV, "csv"),
        Kind("seg.dcm", DICOM, "seg", main=True),
        Kind(COMPUTED_SR, DICOM, "sr", main=True),
        Kind("key-images.dcm", DICOM, "sc"),
        Kind("marks.dcm", DICOM, "gsps"),
        Kind("report-pdf.dcm", DICOM, "dicom-pdf"),
        Kind("diagnostic-report.json", "application/fhir+json", "fhir"),
        Kind("oru.hl7", "text/plain", "hl7"),
        Kind("pictures.html", HTML, "pictures-html"),
        Kind(PICTURES_FILE, JSON, "pictures-json", main=True),
        Kind("pictures.csv", CSV, "pictures-csv"),
        Kind(ANSWERS_SR, DICOM, "answers-sr", main=True),
        Kind(ANSWERS_CSV, CSV, "answers-csv", main=True),
    )
}
REPORTS = (REPORT, "pictures.html")


@dataclass(frozen=True, slots=True)
class Artefact:
    """A result that can be taken away now.

    Attributes:
        bytes: its size; None for what is made when it is asked for.
    """

    kind: Kind
    bytes: int | None


def artefacts_of(study: Study) -> list[Artefact]:
    """What there is of a study, in the order of ``KINDS``."""
    return list(_listed(study))


def _listed(study: Study) -> Iterator[Artefact]:
    folder = context().store.results(study)
    if folder is None:
        return
    answered = bool(answer_log.reading_of(answer_log.history(db.session, study.id)).answers)
    for name, kind in KINDS.items():
        path = folder / name
        if name in (ANSWERS_CSV, ANSWERS_SR):
            if answered and (name == ANSWERS_CSV or (folder / COMPUTED_SR).is_file()):
                yield Artefact(kind, None)
        elif path.is_file():
            yield Artefact(kind, path.stat().st_size)


@blueprint.record_once
def _set_up(state: BlueprintSetupState) -> None:
    state.app.jinja_env.globals["artefacts_of"] = artefacts_of


@blueprint.get("/studies/<study_id>/results")
@need_role(RoleName.READER, RoleName.UPLOADER)
def index(study_id: str) -> str:
    """Everything that can be taken away from a study."""
    study = study_of(study_id)
    names = {one.kind.name for one in artefacts_of(study)}
    return render_template(
        "artefacts/index.html", study=study, some=bool(names), has_report=bool(names & {*REPORTS}),
        mine=study.owner_id == current_user().id,
    )  # fmt: skip


@blueprint.get("/studies/<study_id>/results/<name>")
@need_role(RoleName.READER, RoleName.UPLOADER)
def result(study_id: str, name: str) -> ResponseReturnValue:
    """One result, as a download; ``?view`` shows PDF and JSON in the browser."""
    return answer_with(study_of(study_id), name, inline="view" in request.args)


def answer_with(study: Study, name: str, *, inline: bool = False) -> Response:
    """One result of a study that may be read, with a line in the trail.

    Raises:
        HTTPException: 404 when there is no such result.
    """
    kind = KINDS.get(name)
    known = {artefact.kind.name for artefact in artefacts_of(study)}
    folder = context().store.results(study)
    if kind is None or folder is None or name not in known:
        abort(404)
    context().audit.write(Did.DOWNLOADED, study=study.id, detail=name)
    if name == ANSWERS_CSV:
        from cspine.web.answers import csv_rows, table_bytes

        made = _bytes(table_bytes(csv_rows(study)), kind)
    elif name == ANSWERS_SR:
        made = _bytes(_answers_sr(study, folder), kind)
    else:
        made = send_file(folder / name, mimetype=kind.type, etag=False, conditional=True, max_age=None)
    shown = kind.name in REPORTS or (inline and kind.type in (PDF, JSON))
    made.headers["Content-Disposition"] = (
        f'{"inline" if shown else "attachment"}; filename="{download_name(study, name)}"'
    )
    made.headers["Cache-Control"] = "no-store"
    if kind.type == HTML:
        _sandboxed(made, folder / name)
    return made


def _bytes(data: bytes, kind: Kind) -> Response:
    return Response(data, content_type=f"{kind.type}; charset=utf-8" if kind.type.startswith("text/") else kind.type)


def _answers_sr(study: Study, folder: Path) -> bytes:
    reading = answer_log.reading_of(answer_log.history(db.session, study.id))
    return answer_log.structured_report((folder / COMPUTED_SR).read_bytes(), reading)


def download_name(study: Study, name: str) -> str:
    """What a result is called on the person's disk: our words and the study's number, nothing of the patient."""
    return f"cspine-{study.id[:8]}-{name}"


def _sandboxed(made: Response, path: Path) -> None:
    """A report is shown as its own page or in our frame: as nobody, with the policy that it brings along."""
    own = report_policy(path) or "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    made.headers["Content-Security-Policy"] = f"{own}; {SANDBOX}; frame-ancestors 'self'"
    made.headers["X-Frame-Options"] = "SAMEORIGIN"


@lru_cache(maxsize=256)
def report_policy(path: Path) -> str:
    """The policy in the head of a report of ours, which names the digests of its style and script; else empty."""
    with path.open("rb") as stream:
        head = stream.read(4096).decode("utf-8", "replace")
    before, _, after = head.partition('http-equiv="Content-Security-Policy" content="')
    found = Markup(after.partition('"')[0]).unescape() if after else ""
    # Nothing that could end the header or name a place elsewhere.
    safe = found.isascii() and found.isprintable() and "http" not in found and found.startswith("default-src 'none'")
    return found if before and safe else ""


@blueprint.get("/studies/<study_id>/report")
@need_role(RoleName.READER, RoleName.UPLOADER)
def report(study_id: str) -> ResponseReturnValue:
    """The HTML report in a frame that can do nothing."""
    study = study_of(study_id)
    name = next((one.kind.name for one in artefacts_of(study) if one.kind.name in REPORTS), None)
    if name is None:
        abort(404, t("artefacts.none"))
    context().audit.write(Did.VIEWED, study=study.id, detail=name)
    address = url_for(".result", study_id=study.id, name=name)
    return render_template("artefacts/report.html", study=study, address=address, artefacts=artefacts_of(study))


@blueprint.get("/studies/<study_id>/model")
@need_role(RoleName.READER, RoleName.UPLOADER)
def model(study_id: str) -> ResponseReturnValue:
    """The card of the model that judged a study."""
    study = study_of(study_id)
    made = provenance_of(context().store.results(study))
    if made is None:
        abort(404, t("artefacts.none"))
    card = card_of(made.sha256, context().settings.bundle)
    return render_template("artefacts/model.html", study=study, made=made, card=card)


def provenance_of(folder: Path | None) -> BundleProvenance | None:
    """Which model made the results of a folder; None when that is not known."""
    if folder is None:
        return None
    try:
        if (folder / FINDINGS_FILE).is_file():
            return Findings.load(folder / FINDINGS_FILE).provenance.bundle
        if (folder / PICTURES_FILE).is_file():
            return PictureFindings.load(folder / PICTURES_FILE).provenance.bundle
    except StudyError:
        return None
    return None


@lru_cache(maxsize=8)
def card_of(sha256: str, bundle: Path | None) -> Markup | None:
    """The card of the bundle with this digest, as HTML; None when the server has another one by now.

    Args:
        sha256: of the bundle's manifest, as findings name it.
        bundle: the folder that the settings name; None for the one that comes with cspine.
    """
    from cspine.inference.bundle import Bundle

    try:
        loaded = Bundle.default() if bundle is None else Bundle.load(bundle)
    except CspineError:
        return None
    text = loaded.files.get("card.md", b"").decode("utf-8", "replace")
    if loaded.sha256 != sha256 or not text:
        return None
    return markdown(text)


def markdown(text: str) -> Markup:
    """Markdown with tables as HTML; HTML in it is shown as text, and links lead nowhere."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink"])
    made: str = reader.render(text)
    # A heading without text is none (WCAG 1.3.1); wide tables scroll by themselves.
    made = made.replace("<th></th>", "<td></td>")
    return Markup(
        made.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")
    )


def as_json(study: Study) -> list[dict[str, Any]]:
    """What there is of a study, for the API."""
    return [
        {"name": one.kind.name, "type": one.kind.type, "bytes": one.bytes, "about": t(f"artefacts.{one.kind.key}.name")}
        for one in artefacts_of(study)
    ]
