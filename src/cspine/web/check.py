"""Whether the application can work here with these settings: each thing that it needs is tried, before it runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cspine.errors import CspineError, OutputError, UsageError
from cspine.web.settings import Mail, Oidc, WebSettings


@dataclass(frozen=True, slots=True)
class Check:
    """The answer to one question: what was tried, whether it works, and what was found."""

    name: str
    good: bool
    detail: str = ""


def everything(settings: WebSettings) -> Iterator[Check]:
    """All checks, in the order in which the application meets what they look at. One that runs is not disturbed."""
    yield _try("data folder", lambda: _folder(settings))
    yield _try("database", lambda: _database(settings))
    yield _try("model bundle", lambda: _bundle(settings.bundle))
    yield _try("scripts of the pages", _scripts)
    if settings.password.forbidden_file is not None:
        forbidden = settings.password.forbidden_file
        yield _try("forbidden passwords", lambda: f"{len(_text(forbidden).splitlines())} lines")
    if settings.mail is not None:
        mail = settings.mail
        yield _try("mail server", lambda: _mail(mail))
    if settings.oidc is not None:
        oidc = settings.oidc
        yield _try("single sign-on", lambda: _oidc(oidc))
    if settings.antivirus is not None:
        program = settings.antivirus[0]
        yield _try("antivirus", lambda: _program(program))
    if settings.metrics.token_file is not None:
        token = settings.metrics.token_file
        yield _try("metrics token", lambda: f"{len(_text(token).strip())} characters")


def _try(name: str, attempt: Callable[[], str]) -> Check:
    try:
        return Check(name, True, attempt())
    except CspineError as error:
        return Check(name, False, str(error))
    except OSError as error:
        return Check(name, False, error.strerror or type(error).__name__)


def _folder(settings: WebSettings) -> str:
    try:
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = settings.data / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputError(f"it cannot be written: {error.strerror}") from error
    if settings.data.stat().st_mode & 0o077:
        raise UsageError("others may look into it", where="data", fix="Run: chmod 700 on the folder")
    free = shutil.disk_usage(settings.data).free
    if free < settings.limits.free_bytes:
        raise OutputError(f"only {free / 2**30:.1f} GiB are free, limits.free_bytes wants more")
    return f"{free / 2**30:.0f} GiB free"


def _database(settings: WebSettings) -> str:
    from cspine.web.database import engine, upgrade

    upgrade(settings.database_url)
    made = engine(settings.database_url)
    made.dispose()
    return made.dialect.name


def _bundle(folder: Path | None) -> str:
    from cspine.inference.bundle import Bundle

    manifest = (Bundle.default() if folder is None else Bundle.load(folder)).manifest
    return f"{manifest.name} {manifest.version}"


def _scripts() -> str:
    from cspine.web.viewing_assets import BUILT, MANIFEST

    if not (BUILT / MANIFEST).is_file():
        raise UsageError("they are not built: the reading room shows slices that the server draws", fix="Run: make web")
    return "built"


def _mail(settings: Mail) -> str:
    import smtplib

    from cspine.web.mail import connected

    if settings.password_file is not None:
        _text(settings.password_file)
    try:
        with connected(settings) as server:
            server.noop()
    except smtplib.SMTPException as error:
        what = f"it refuses: {type(error).__name__}"
        raise UsageError(what, where="mail", fix="Check name, password and port") from error
    return f"{settings.host}:{settings.port}"


def _oidc(settings: Oidc) -> str:
    import requests

    if settings.secret_file is not None:
        _text(settings.secret_file)
    address = f"{settings.issuer.rstrip('/')}/.well-known/openid-configuration"
    trust = True if settings.authorities is None else str(settings.authorities)
    try:
        answer = requests.get(address, timeout=10, verify=trust, allow_redirects=False)
        issuer = answer.json().get("issuer")
    except (requests.RequestException, ValueError, AttributeError) as error:
        raise UsageError(f"the service does not answer: {type(error).__name__}", where="oidc.issuer") from error
    if issuer != settings.issuer:
        raise UsageError("the service calls itself by another name", where="oidc.issuer", fix=f"Write: {issuer}")
    return settings.issuer


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UsageError("there is no such program", where="antivirus", fix="Give its whole path")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("expected UTF-8 text", where=path.name) from error
