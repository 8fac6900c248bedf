"""Results go to a DICOMweb server by STOW-RS (PS3.18 10.5), and what all talk by HTTP shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cspine.node.child import JobOutcome
from cspine.node.deliver import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    FAILED,
    STORED_WITH_WARNING,
    DeliveryError,
    Parcel,
    verdict,
)
from cspine.node.settings import StowDestination

if TYPE_CHECKING:
    import requests
    from dicomweb_client.api import DICOMwebClient
    from pydicom import Dataset

# Client errors (4xx) that say nothing about the request itself: a person mends them, or time does, without a new one.
_LATER = frozenset((401, 403, 404, 407, 408, 409, 425, 429))
# What a STOW-RS server may answer in (PS3.18 10.5.4).
_UNDERSTOOD = frozenset(("application/dicom+json", "application/json", "application/dicom+xml", "application/xml"))


@dataclass(frozen=True, slots=True)
class Stow:
    """Sends to a DICOMweb server with STOW-RS, all objects of a study in one request (PS3.18 10.5)."""

    destination: StowDestination

    def wants(self, outcome: JobOutcome) -> bool:
        """Everything that was judged."""
        return outcome.ending == "judged"

    def send(self, parcel: Parcel) -> str:
        """Store every object; see ``Sender``."""
        import requests
        from pydicom import dcmread

        files = parcel.files(self.destination.formats)
        if not files:
            return ""
        there = self.destination
        line = session(there.username, there.password_file, there.authorities)
        line.max_redirects = 0  # a POST that is sent elsewhere becomes a GET, whose success would say nothing
        line.hooks["response"].append(_checked)
        told = {"Accept": "application/dicom+json", **headers(there.token_file)}
        objects = [dcmread(path) for path in files]
        uids = [str(one.SOPInstanceUID) for one in objects]
        try:
            answer = web_client(there.url, line, told).store_instances(objects)
        except requests.HTTPError as error:
            return verdict(_conflict(error, uids))
        except requests.TooManyRedirects as error:
            raise http_failure(0 if error.response is None else error.response.status_code) from error
        except requests.ReadTimeout as error:
            raise DeliveryError("no-answer") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DeliveryError("answer-not-understood") from error
        except (requests.RequestException, OSError) as error:
            raise DeliveryError("unreachable") from error
        return verdict(_statuses(answer, uids))


def _checked(response: requests.Response, *_: object, **__: object) -> requests.Response:
    """Make sure that what a success says is read: the client passes over kinds of content that it does not know.

    Raises:
        ValueError: it is something else than a DICOMweb server says, such as the page of a proxy.
    """
    kind = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
    if response.ok and not response.is_redirect and response.content and kind not in _UNDERSTOOD:
        raise ValueError("not an answer to STOW-RS")
    if kind:
        response.headers["Content-Type"] = kind  # without parameters such as charset, which the client does not know
    return response


def _conflict(error: requests.HTTPError, uids: Sequence[str]) -> list[int]:
    """Status of each object when the server refused all: with 409 the body says why (PS3.18 10.5.3.1).

    Raises:
        DeliveryError: it says nothing of single objects.
    """
    from pydicom import Dataset

    code = 0 if error.response is None else error.response.status_code
    if error.response is None or code != 409:
        raise http_failure(code) from error
    try:
        statuses = _statuses(Dataset.from_json(error.response.json()), uids)
    except (ValueError, KeyError, TypeError, AttributeError) as unread:
        raise http_failure(code) from unread
    return statuses + [FAILED] * (len(uids) - len(statuses))


def _statuses(answer: Dataset, uids: Sequence[str]) -> list[int]:
    """Status of each object of which the response module speaks (PS3.18 tables I.1-1 and I.2-1).

    An object that is not named where others are named as stored was not: ``FAILED``.
    """
    failed = {str(item.get("ReferencedSOPInstanceUID", "")): item for item in answer.get("FailedSOPSequence") or []}
    stored = {str(item.get("ReferencedSOPInstanceUID", "")): item for item in answer.get("ReferencedSOPSequence") or []}
    reasons = [int(item.get("FailureReason") or FAILED) for item in failed.values()]
    statuses = [FAILED if reason in STORED_WITH_WARNING else reason for reason in reasons]
    statuses += [int(item.get("WarningReason") or 0) for item in stored.values()]
    if stored:
        statuses += [FAILED for uid in uids if uid not in stored and uid not in failed]
    return statuses


def web_client(url: str, session: requests.Session, headers: Mapping[str, str]) -> DICOMwebClient:
    """A DICOMweb client that never tries again by itself, since the node does, and sends a request in one piece.

    Chunked requests are refused by some servers, and could not be sent again by the library.
    """
    from dicomweb_client.api import DICOMwebClient

    client = DICOMwebClient(
        url.rstrip("/"),
        session=session,
        headers=dict(headers),
        chunk_size=2**31,
        timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
    )
    client.set_http_retry_params(retry=False)
    return client


def session(username: str | None, password_file: Path | None, authorities: Path | None) -> requests.Session:
    """An HTTP session with a user and password, trusting the authorities of a PEM file.

    Proxies and passwords of the environment are not used: results go where the settings say.
    """
    import requests

    made = requests.Session()
    made.trust_env = False
    if username is not None:
        made.auth = (username, "" if password_file is None else secret(password_file))
    if authorities is not None:
        made.verify = str(authorities)
    return made


def headers(token_file: Path | None) -> dict[str, str]:
    """The header that carries a bearer token (RFC 6750), or none."""
    return {} if token_file is None else {"Authorization": f"Bearer {secret(token_file)}"}


def secret(path: Path) -> str:
    """A password, token or key from its file, read each time so that a new one needs no restart.

    Raises:
        DeliveryError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DeliveryError("secret-unreadable") from error


def http_failure(code: int) -> DeliveryError:
    """What an HTTP status other than 2xx means; redirects are not followed, results go where the settings say."""
    return DeliveryError(f"http-{code}", lasting=400 <= code < 500 and code not in _LATER)
