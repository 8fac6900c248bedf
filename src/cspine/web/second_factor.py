"""The second step of a log-in: codes that an app makes (TOTP, RFC 6238), and codes on paper for emergencies."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING, cast

from flask import Blueprint, current_app, flash, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue
from flask_security import Totp

from cspine.web import mail, sessions
from cspine.web.access import current_user, need_role
from cspine.web.app import context
from cspine.web.audit_log import Did
from cspine.web.database import db
from cspine.web.models import User
from cspine.web.strings import t

if TYPE_CHECKING:
    from passlib.totp import TotpMatch

blueprint = Blueprint("second_factor", __name__, url_prefix="/account/second-factor")
ISSUER = "cspine"
CODES = 10
# Clocks of telephones may be this wrong, in seconds.
_SKEW = 30
_NEW = "new-totp"
# Letters and digits that are not mistaken for each other: 32 of them, so 12 make 60 bits.
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


class _Codes(Totp):
    """Flask-Security's codes; each is good once."""

    def get_last_counter(self, user: object) -> int | None:
        """Of the last code that was used."""
        return cast(User, user).totp_counter

    def set_last_counter(self, user: object, tmatch: TotpMatch) -> None:
        """Remember that this code was used."""
        cast(User, user).totp_counter = tmatch.counter


def accepts(person: User, typed: str) -> bool:
    """Whether this is the code of the moment, or one of those on paper, which is then used up. The caller commits."""
    text = re.sub(r"[\s-]", "", typed).lower()
    if person.totp_secret is None:
        return False
    if re.fullmatch(r"[0-9]{6}", text):
        return bool(_codes().verify_totp(text, person.totp_secret, person, window=_SKEW))
    digest = _digest(person, text)
    if digest not in person.recovery_codes:
        return False
    person.recovery_codes = [one for one in person.recovery_codes if one != digest]
    return True


@blueprint.route("/", methods=["GET", "POST"])
@need_role()
def page() -> ResponseReturnValue:
    """Turn it on: show the secret, take a first code."""
    person = current_user()
    if not sessions.fresh():
        return redirect(url_for("login.again", next=url_for("second_factor.page")))
    if person.totp_secret is not None:
        return redirect(url_for("accounts.index"))
    secret = session.get(_NEW)
    if request.method == "GET" or not isinstance(secret, str):
        secret = session[_NEW] = _codes().generate_totp_secret()  # encrypted: the cookie shows it to nobody
        return _form(person, secret)
    # A first code of another secret must not be taken for a repeated one.
    person.totp_counter = None
    if not _codes().verify_totp(re.sub(r"\s", "", request.form.get("code", "")), secret, person, window=_SKEW):
        return _form(person, secret, t("account.code.wrong"))
    session.pop(_NEW)
    person.totp_secret = secret
    context().audit.write(Did.TWO_FACTOR_ON)
    mail.tell(person, "second_on")
    return _give_codes(person)


@blueprint.post("/codes")
@need_role()
def new_codes() -> ResponseReturnValue:
    """New codes on paper; the old ones end."""
    person = current_user()
    if not sessions.fresh():
        return redirect(url_for("login.again", next=url_for("accounts.index")))
    if person.totp_secret is None:
        return redirect(url_for("accounts.index"))
    context().audit.write(Did.ACCOUNT_CHANGED, detail="recovery codes")
    mail.tell(person, "codes")
    return _give_codes(person)


@blueprint.post("/off")
@need_role()
def off() -> ResponseReturnValue:
    """Turn it off."""
    person = current_user()
    if not sessions.fresh():
        return redirect(url_for("login.again", next=url_for("accounts.index")))
    context().audit.write(Did.TWO_FACTOR_OFF)
    forget(person)
    db.session.commit()
    mail.tell(person, "second_off")
    flash(t("account.second.is_off"), "good")
    return redirect(url_for("accounts.index"))


def forget(person: User) -> None:
    """Turn it off for a person; the caller commits."""
    person.totp_secret, person.totp_counter, person.recovery_codes = None, None, []


def _give_codes(person: User) -> ResponseReturnValue:
    plain = ["".join(secrets.choice(_ALPHABET) for _ in range(12)) for _ in range(CODES)]
    person.recovery_codes = [_digest(person, code) for code in plain]
    db.session.commit()
    shown = ["-".join(code[at : at + 4] for at in (0, 4, 8)) for code in plain]
    return render_template("account/codes.html", codes=shown)


def _form(person: User, secret: str, error: str = "") -> ResponseReturnValue:
    values = _codes().fetch_setup_values(secret, person)
    page = render_template("account/second.html", image=values["image"], key=values["key"], error=error)
    return page, 400 if error else 200


def _codes() -> _Codes:
    return _Codes({"1": current_app.config["CSPINE_TOTP_KEY"]}, ISSUER)


def _digest(person: User, code: str) -> str:
    secret = str(current_app.config["CSPINE_TOTP_KEY"]).encode()
    return hmac.new(secret, f"recovery\0{person.id}\0{code}".encode(), hashlib.sha256).hexdigest()
