"""A site with something of everything in it: what one person has here, and people who must not see it."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import secrets
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from flask import Flask
from werkzeug.routing import Rule
from werkzeug.serving import make_server

from cspine.errors import CspineError
from cspine.inference.pictures import PictureAnswer, PictureHeat
from cspine.node.child import PART, JobOutcome, Order, _ended, publish
from cspine.reports.picture_findings import PictureFindings, PictureProvenance, finding_of
from cspine.studies.images import SliceImage
from cspine.volume import Source
from cspine.web import child, job_work, links
from cspine.web.app import Context
from cspine.web.database import db
from cspine.web.intake import recognise
from cspine.web.models import (
    ApiToken,
    Base,
    Group,
    Job,
    LinkKind,
    LoginSession,
    Membership,
    OneTimeLink,
    Study,
    StudyShare,
    Upload,
    UploadFile,
    now,
)
from cspine.web.orders import JudgeOrder
from cspine.web.receiving import Announced, Receiver
from cspine.web.viewing_facts import VIEW_FOLDER
from cspine.web.viewing_pictures import prepare_picture_view
from dicom_factory import Grid, write_series
from fake_predictor import FakePredictor
from report_factory import make_findings
from web_factory import Browser, browser, person, web_app

ADA, EVE, BEA, ROOT, AUDREY = (f"{name}@example.org" for name in ("ada", "eve", "bea", "root", "audrey"))
# What the pictures call the patient; nobody else may ever read it.
PATIENT = ("Secret Name", "Secret^Name", "SECRET-ID")
SITE_SETTINGS: dict[str, Any] = {"registration": "open"}
READABLE = ("sr.dcm", "report.html", "findings.json", "report.pdf", "answers.csv", "answers-sr.dcm")
VIEWED = ("ct.nii.gz", "labels.nii.gz", "evidence.nii.gz")


@dataclass(frozen=True)
class Site:
    """An application and the first person's things in it.

    Attributes:
        app: jobs run at once, judged by the stand-in.
        ids: by the name that rules of the application give it.
        unshown: texts that no other person may read anywhere.
        numbers: of uploads and jobs, which auditors read beside what was done.
        links: one-time links that are open, and what no rule leads to, by who may open it.
    """

    app: Flask
    ids: dict[str, str]
    unshown: tuple[str, ...]
    numbers: tuple[str, ...]
    links: dict[str | None, list[str]]
    _browsers: dict[str | None, Browser] = field(default_factory=dict, repr=False)

    @property
    def hidden(self) -> tuple[str, ...]:
        """All of these."""
        return (*self.unshown, *self.numbers)

    @property
    def context(self) -> Context:
        found = self.app.extensions["cspine"]
        assert isinstance(found, Context)
        return found

    def browser(self, email: str | None) -> Browser:
        """A person's browser, logged in; always the same."""
        if email not in self._browsers:
            self._browsers[email] = browser(self.app, email)
        return self._browsers[email]

    def cookie(self, email: str | None) -> str | None:
        """The session of a person's browser."""
        found = None if email is None else self.browser(email).get_cookie("cspine")
        return None if found is None else found.value

    def addresses(self, rule: Rule, ids: Mapping[str, str] | None = None) -> list[str]:
        """The addresses of a rule, with the first person's things in them (or others').

        Raises:
            AssertionError: the rule has an argument that nobody has thought of; say in ``_values`` what it stands for.
        """
        names = sorted(rule.arguments)
        table = _values(rule.endpoint, ids or self.ids)
        unknown = [name for name in names if name not in table]
        assert not unknown, f"{rule.rule}: say in tests/web_site.py what {unknown} stands for"
        adapter = self.app.url_map.bind("localhost")
        made = []
        for chosen in itertools.product(*(table[name] for name in names)):
            values = dict(zip(names, chosen, strict=True))
            # Links and log-in forms take methods of their own; building an address asks for none.
            made.append(adapter.build(rule.endpoint, {k: _typed(rule, k, v) for k, v in values.items()}))
        return made

    def rules(self, *methods: str) -> Iterator[tuple[Rule, str]]:
        """Each rule with each of its methods (or those of ``methods``)."""
        for rule in sorted(self.app.url_map.iter_rules(), key=lambda one: (one.rule, one.endpoint)):
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                if not methods or method in methods:
                    yield rule, method

    def state(self) -> dict[str, Any]:
        """Everything that is the first person's, in tables and on disk, as it is now."""
        kept: dict[str, Any] = {}
        tables = (Study, StudyShare, Upload, UploadFile, Job, ApiToken, Group, Membership, OneTimeLink)
        with self.context.sessions() as session:
            for kind in tables:
                table: sa.Table = kind.__table__  # type: ignore[assignment]
                kept[table.name] = sorted(str(tuple(row)) for row in session.execute(sa.select(*_lasting(table))))
            kept["answers"] = sorted(map(str, session.execute(sa.select(Base.metadata.tables["answers"]))))
            users = Base.metadata.tables["users"]
            lasting = (users.c.email, users.c.password, users.c.active, users.c.totp_secret, users.c.name)
            kept["users"] = sorted(map(str, session.execute(sa.select(*lasting))))
        for name in ("studies", "uploads"):
            for path in sorted((self.context.store.data / name).rglob("*")):
                if path.is_file():
                    kept[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return kept


def _lasting(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    """Columns but for those that reading changes."""
    return [column for column in table.columns if column.name not in ("used", "read_at")]


def _typed(rule: Rule, name: str, value: str) -> Any:
    return int(value) if f"<int:{name}>" in rule.rule else value


def _values(endpoint: str, ids: Mapping[str, str]) -> dict[str, Sequence[str]]:
    """What stands for each argument of a rule."""
    names: Sequence[str] = VIEWED if endpoint.startswith("viewing.") else READABLE
    fixed = {
        "name": names,
        "plane": ("axial",),
        "index": ("2",),
        "what": ("reset", "unlock", "out", "second"),
        "filename": ("css/base.css",),
        "secret": (secrets.token_urlsafe(32),),
    }
    return fixed | {name: (value,) for name, value in ids.items()}


def looks_away(order: Order, *_: object, **__: object) -> JobOutcome:
    """Stands for ``supervising.supervise``: in this process, all files written, judged by ``FakePredictor``."""
    part = order.out.with_name(order.out.name + PART)
    part.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cspine.inference.predictor.Predictor", FakePredictor)
        patch.setattr("cspine.inference.bundle.Bundle.default", classmethod(lambda _: None))
        try:
            if isinstance(order, JudgeOrder):
                outcome = child.judge(order.model_copy(update={"progress": None}), part)
            else:
                outcome = recognise(order, part)  # type: ignore[arg-type]
        except CspineError as error:
            outcome = _ended(error)
    publish(outcome, part, order.out)
    return outcome


def ct_zip(folder: Path, count: int = 12, **kinds: Any) -> bytes:
    """A small CT series as a zip."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for path in write_series(folder, Grid(count=count), **kinds):
            archive.write(path, path.name)
    return sink.getvalue()


def taker(context: Context) -> Receiver:
    """What takes uploads."""
    return Receiver(context.settings, context.sessions, context.store, context.audit, context.jobs)


def upload(context: Context, owner: str, files: Mapping[str, bytes], *, share: float = 1.0) -> Upload:
    """Send files as a person, the first ``share`` of each; when all has come, it is recognised."""
    receiver = taker(context)
    made = receiver.announce(owner, [Announced(name, len(data)) for name, data in files.items()])
    with context.sessions() as session:
        rows = list(session.scalars(sa.select(UploadFile).where(UploadFile.upload_id == made.id)))
    for row in rows:
        receiver.write(made, row.id, 0, files[row.name][: int(share * row.size)])
    if share == 1.0:
        receiver.finish(made)
    with context.sessions() as session:
        return session.get_one(Upload, made.id)


def studies_of(context: Context, made: Upload) -> list[Study]:
    """What an upload was recognised as."""
    with context.sessions() as session:
        return list(session.scalars(sa.select(Study).where(Study.upload_id == made.id).order_by(Study.title)))


def furnish(folder: Path, **settings: Any) -> Site:
    """Make the site: Ada has one of everything, and shares her judged study with a group that Bea is in."""
    app = web_app(folder, **{**SITE_SETTINGS, **settings})
    ada = person(app, ADA)
    person(app, EVE)
    bea = person(app, BEA, "reader", "uploader")
    person(app, ROOT, "administrator")
    person(app, AUDREY, "auditor")
    context: Context = app.extensions["cspine"]
    with pytest.MonkeyPatch.context() as patch, app.app_context():
        patch.setattr(job_work, "supervise", looks_away)
        judged = upload(context, ada, {"secret-name.zip": ct_zip(folder / "one")})
        (study,) = studies_of(context, judged)
        taker(context).run(judged, {study.id: None}, ada)
        refused = upload(context, ada, {"Secret Name.txt": b"x"})
        part = upload(context, ada, {"Secret^Name.zip": b"0123456789"}, share=0.5)
        waiting = upload(context, ada, {"b.zip": ct_zip(folder / "two", 5, series="2")})
        job, _ = context.jobs.records.submit(studies_of(context, waiting)[0].id, ada, most=9)  # nobody works on it
        ready = upload(context, ada, {"c.zip": ct_zip(folder / "three", 7, series="3")})
        more = _more(app, ada, bea, study.id)
        with context.sessions() as session:
            (file,) = session.scalars(sa.select(UploadFile.id).where(UploadFile.upload_id == part.id))
    ids = {"study_id": study.id, "upload_id": part.id, "file_id": file, "job_id": job.id, "user_id": ada, **more}
    unshown = (study.id, job.study_id, studies_of(context, ready)[0].id, file)
    others = (*(one.id for one in (refused, waiting, ready, judged, part)), job.id)
    pictures = _judged_pictures(context, ada)
    opened: dict[str | None, list[str]] = {None: _open_links(app), ADA: [f"/studies/{pictures}"]}
    site = Site(app, ids, (*PATIENT, *unshown, pictures), others, opened)
    ada_here = site.browser(ADA)
    said = ada_here.send(f"/studies/{study.id}/answers", level="patient", verdict="accept", comment="Secret Name, seen")
    assert said.status_code == 303
    with context.sessions() as session:
        site.ids["row_id"] = session.scalars(sa.select(LoginSession.id).where(LoginSession.user_id == ada)).one()
    return site


def _more(app: Flask, ada: str, bea: str, study: str) -> dict[str, str]:
    """A key, a group with the judged study in it, an invitation."""
    key = ApiToken(user_id=ada, name="night", digest="0" * 64, scopes=["read"], expires=now() + timedelta(days=1))
    group = Group(name="Emergency")
    db.session.add_all((key, group))
    db.session.flush()
    db.session.add_all((Membership(group_id=group.id, user_id=ada), Membership(group_id=group.id, user_id=bea)))
    db.session.add(StudyShare(study_id=study, group_id=group.id))
    links.make(db.session, LinkKind.INVITATION, "", email="new@example.org", roles=("reader",), by=ada)
    db.session.commit()
    link = db.session.scalars(sa.select(OneTimeLink.id)).one()
    return {"key_id": key.id, "group_id": group.id, "link_id": link}


def _open_links(app: Flask) -> list[str]:
    """An invitation, a link for a new password, and one that confirms an address."""
    from cspine.web.login import by_email

    with app.app_context():
        eve = by_email(EVE)
        assert eve is not None
        made = [links.make(db.session, LinkKind.INVITATION, "", roles=("reader",))]
        made += [links.make(db.session, kind, "", user=eve) for kind in (LinkKind.RESET, LinkKind.CONFIRM)]
        db.session.commit()
    return made


def _judged_pictures(context: Context, owner: str) -> str:
    """A study of two pictures, one of them suspicious; its id."""
    heat = np.zeros((8, 8), np.float32)
    heat[2, 5] = 0.9
    grey = np.linspace(0, 1, 64 * 48).reshape(64, 48).astype(np.float32)
    image = SliceImage(grey, "grey", None, Source("image", "a"))
    warm = PictureHeat(heat, np.diag([6.0, 8.0, 1.0]))
    answers = (PictureAnswer("b.png", fracture=0.1), PictureAnswer("a.png", fracture=0.8, heat=warm))
    shown = [(finding_of(one.name, image, one), image, one) for one in answers]
    bundle = make_findings().provenance.bundle
    assert bundle is not None
    made_by = PictureProvenance(cspine="0", created="2030-01-01T00:00:00+00:00", bundle=bundle)
    findings = PictureFindings(pictures=tuple(item for item, _, _ in shown), provenance=made_by)
    with context.sessions.begin() as session:
        made = Study(owner_id=owner, kind="pictures", state="done", title="Slices", result="run-1", probability=0.8)
        session.add(made)
    results = context.store.run_folder(made.id, "run-1")
    prepare_picture_view(shown, results / VIEW_FOLDER)
    (results / "pictures.json").write_text(findings.to_json())
    return made.id


def key_of(app: Flask, email: str, *scopes: str) -> str:
    """A key for scripts of this person; its secret."""
    from cspine.web.login import by_email

    secret = "cspine_" + secrets.token_urlsafe(32)
    with app.app_context():
        owner = by_email(email)
        assert owner is not None
        digest = hashlib.sha256(secret.encode()).hexdigest()
        expires = now() + timedelta(days=1)
        db.session.add(ApiToken(user_id=owner.id, name="test", digest=digest, scopes=list(scopes), expires=expires))
        db.session.commit()
    return secret


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """The application on a free port, in a thread; its address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(5)
