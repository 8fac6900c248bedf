"""``viewer_url``: the address at which a viewer shows a study, made from a template.

Such as ``https://ohif.example/viewer?StudyInstanceUIDs={study_uid}``. Needs nothing but the standard library, so that
the process that receives stays small.

A link names the study. It goes only where identifiers of the study may go, and never into a log.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from string import Formatter
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from cspine.errors import UsageError

if TYPE_CHECKING:
    from pydicom import Dataset

# ``orthanc_study`` is how Orthanc's own pages name a study; they cannot be asked for a StudyInstanceUID.
PLACEHOLDERS = ("study_uid", "accession", "orthanc_study")
LONGEST = 1000
# RFC 3986, 2: everything else in a URL is percent-encoded. Braces are the template's own.
_LITERAL = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]*")


def checked(template: str) -> str:
    """The template, when it can make links.

    Raises:
        ValueError: no http(s) address, a password in it, an unknown placeholder or none, or one where the host stands.
    """
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    try:
        parts = list(Formatter().parse(template))
        address = urlsplit(template)
        host, user, _ = address.hostname, address.username, address.port  # a port that is none raises
    except ValueError as error:
        raise ValueError(f"expected a URL with placeholders among {known}, got one that cannot be read") from error
    names = [name for _, name, _, _ in parts if name is not None]
    if any(name not in PLACEHOLDERS or form or conversion for _, name, form, conversion in parts if name is not None):
        raise ValueError(f"expected placeholders among {known}, got another")
    if not names:
        raise ValueError(f"expected at least one of {known}, got none: every study would have the same link")
    if address.scheme not in ("http", "https") or not host:
        raise ValueError("expected an address that begins with https:// or http:// and names a host")
    if user is not None or "{" in address.netloc:
        raise ValueError("expected a plain host, got a user, a password or a placeholder before the path")
    if len(template) > LONGEST or not all(_LITERAL.fullmatch(literal) for literal, _, _, _ in parts):
        raise ValueError(f"expected at most {LONGEST} characters that a URL may hold; write others as %XX")
    return template


def link(template: str, values: Mapping[str, str]) -> str | None:
    """The link of one study; None where something that the template needs is empty.

    Args:
        template: see ``checked``.
        values: by placeholder; they are percent-encoded, so that none of them can become another part of the address.
    """
    names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    if not all(values.get(name) for name in names):
        return None
    return template.format_map({name: quote(values[name], safe="", errors="replace") for name in names})


def parse_template(text: str | None, where: str) -> str | None:
    """The template that an option gives, or None.

    Raises:
        UsageError: it can make no links.
    """
    try:
        return None if text is None else checked(text)
    except ValueError as error:
        raise UsageError(str(error), where=where, fix="Example: https://host/view?study={study_uid}") from None


def link_of(template: str | None, study: Dataset | None) -> str | None:
    """The link of the study that an instance belongs to; None without either, or as ``link`` says.

    Args:
        template: see ``checked``.
        study: any dataset with the study's attributes, such as ``SourceSeries.context``.
    """
    if template is None or study is None:
        return None
    from pydicom.config import disable_value_validation

    with disable_value_validation():  # pydicom's warning of a bad value would quote it
        uid, accession, patient = (
            str(study.get(keyword) or "").strip() for keyword in ("StudyInstanceUID", "AccessionNumber", "PatientID")
        )
    return link(template, {"study_uid": uid, "accession": accession, "orthanc_study": orthanc_study(patient, uid)})


def orthanc_study(patient_id: str, study_uid: str) -> str:
    """Orthanc's identifier of a study: SHA-1 of PatientID, ``|`` and StudyInstanceUID, in five groups of eight digits.

    https://orthanc.uclouvain.be/book/faq/orthanc-ids.html
    """
    digits = hashlib.sha1(f"{patient_id}|{study_uid}".encode(errors="replace"), usedforsecurity=False).hexdigest()
    return "-".join(digits[start : start + 8] for start in range(0, 40, 8))
