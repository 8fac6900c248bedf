"""Results go out: C-STORE to a DICOM service, STOW-RS to a DICOMweb server.

UIDs of results are deterministic, so a result that is sent twice, because the node was killed between sending and
writing that down, is the same object twice, and storing it again changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cspine.node.child import JobOutcome
from cspine.node.settings import CStoreDestination, Retry, StowDestination, Tls
from cspine.node.tls import client_context

if TYPE_CHECKING:
    import requests
    from dicomweb_client.api import DICOMwebClient
    from pynetdicom.association import Association

# Seconds for a connection, for an answer, and for silence of a peer.
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
# PS3.7 C: the object was stored, though something had to be said about it.
STORED_WITH_WARNING = frozenset((0xB000, 0xB006, 0xB007))
# PS3.7 C and PS3.4 B.2.3: the object itself is not wanted. Sending it again would give the same answer.
_UNWANTED = frozenset((0x0122, 0x0124, 0x0117, *range(0xA900, 0xAA00), *range(0xC000, 0xD000)))
# Client errors (4xx) that say nothing about the request itself; 401 and 403 are mended by a person, without a new one.
_LATER = frozenset((401, 403, 408, 409, 425, 429))
_DICOM = ".dcm"


class DeliveryError(Exception):
    """A result did not arrive.

    Args:
        reason: stable, kebab-case: ``unreachable``, ``rejected``, ``refused-object`` …
        lasting: trying again will not help; a person must look.
    """

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lasting = lasting


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is sent of one study.

    Attributes:
        key: of the study.
        folder: where the results lie.
        outcome: of the judgement.
        pseudonym: stands for the study in messages that carry no identifiers.
    """

    key: str
    folder: Path
    outcome: JobOutcome
    pseudonym: str = ""

    def files(self, formats: Sequence[str], *, ending: str = _DICOM) -> list[Path]:
        """Files of some formats, in the order of the formats."""
        names = [name for form in formats for name in self.outcome.files.get(form, ()) if name.endswith(ending)]
        return [self.folder / name for name in names]


class Sender(Protocol):
    """One way out of the node."""

    def wants(self, outcome: JobOutcome) -> bool:
        """Whether results of such an outcome go this way."""

    def send(self, parcel: Parcel) -> None:
        """Send, and return when the other side has confirmed.

        Raises:
            DeliveryError: it did not arrive, or not all of it.
        """


def backoff(retry: Retry, tries: int, chance: random.Random) -> float:
    """Seconds to wait after a number of failed tries: doubling, capped, of which a random half to whole is taken.

    The chance keeps many results for one destination from coming back at the same moment (M. Brooker, Exponential
    Backoff and Jitter, 2015: "equal jitter").

    Args:
        retry: first and longest wait.
        tries: failed so far, at least 1.
        chance: where randomness comes from.
    """
    # 2**63 seconds are more than any cap; an exponent of the tries themselves would overflow.
    whole = min(retry.most_seconds, retry.first_seconds * 2.0 ** min(tries - 1, 63))
    return whole * chance.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True)
class CStore:
    """Sends to a DICOM service with C-STORE, one association a study."""

    destination: CStoreDestination
    calling: str
    tls: Tls | None = None

    def wants(self, outcome: JobOutcome) -> bool:
        """Everything that was judged."""
        return outcome.ending == "judged"

    def send(self, parcel: Parcel) -> None:
        """Store every object; see ``Sender``."""
        from pynetdicom import AE

        files = parcel.files(self.destination.formats)
        if not files:
            return
        entity = AE(ae_title=self.calling)
        entity.connection_timeout = CONNECT_SECONDS
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = ANSWER_SECONDS
        for sop_class, syntax in sorted({_classes(path) for path in files}):
            entity.add_requested_context(sop_class, syntax)
        there = self.destination
        tls = (client_context(self.tls), there.host) if there.tls and self.tls is not None else None
        association = entity.associate(there.host, there.port, ae_title=there.ae_title, tls_args=tls)
        if not association.is_established:
            if association.rejected_contexts:  # none of our kinds was accepted, so pynetdicom gave up
                raise DeliveryError("object-kind-not-accepted", lasting=True)
            raise DeliveryError("association-rejected" if association.is_rejected else "unreachable")
        try:
            for path in files:
                _store(association, path)
        finally:
            if association.is_established:
                association.release()


def _store(association: Association, path: Path) -> None:
    """Send one object.

    Raises:
        DeliveryError: no context for it was accepted, the peer went away, or it answered with a failure.
    """
    try:
        answer = association.send_c_store(path)
    except ValueError as error:
        raise DeliveryError("object-kind-not-accepted", lasting=True) from error
    except RuntimeError as error:
        raise DeliveryError("connection-lost") from error
    if "Status" not in answer:
        raise DeliveryError("no-answer")
    status = int(answer.Status)
    if status and status not in STORED_WITH_WARNING:
        raise DeliveryError(f"status-{status:04x}", lasting=status in _UNWANTED)


def _classes(path: Path) -> tuple[str, str]:
    """SOP class and transfer syntax of a DICOM file of ours; nothing but its meta information is read."""
    from pydicom.filereader import read_file_meta_info

    meta = read_file_meta_info(path)
    return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


@dataclass(frozen=True, slots=True)
class Stow:
    """Sends to a DICOMweb server with STOW-RS, all objects of a study in one request (PS3.18 10.5)."""

    destination: StowDestination

    def wants(self, outcome: JobOutcome) -> bool:
        """Everything that was judged."""
        return outcome.ending == "judged"

    def send(self, parcel: Parcel) -> None:
        """Store every object; see ``Sender``."""
        import requests
        from pydicom import dcmread

        files = parcel.files(self.destination.formats)
        if not files:
            return
        client = web_client(
            self.destination.url,
            session(self.destination.username, self.destination.password_file, self.destination.authorities),
            headers(self.destination.token_file),
        )
        try:
            answer = client.store_instances([dcmread(path) for path in files])
        except requests.HTTPError as error:
            code = 0 if error.response is None else error.response.status_code
            raise DeliveryError(f"http-{code}", lasting=400 <= code < 500 and code not in _LATER) from error
        except (requests.RequestException, OSError) as error:
            raise DeliveryError("unreachable") from error
        except ValueError as error:
            raise DeliveryError("answer-not-understood") from error
        failed = answer.get("FailedSOPSequence") or []
        if failed:
            status = int(failed[0].get("FailureReason", 0))
            raise DeliveryError(f"status-{status:04x}", lasting=status in _UNWANTED)


def web_client(url: str, session: requests.Session, headers: Mapping[str, str]) -> DICOMwebClient:
    """A DICOMweb client that never tries again by itself, since the node does, and sends a request in one piece.

    Chunked requests are refused by some servers, and could not be sent again by the library.
    """
    from dicomweb_client.api import DICOMwebClient

    client = DICOMwebClient(
        url, session=session, headers=dict(headers), chunk_size=2**31, timeout=(CONNECT_SECONDS, ANSWER_SECONDS)
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


def senders_of(
    destinations: Sequence[CStoreDestination | StowDestination], *, calling: str, tls: Tls | None
) -> Mapping[str, Sender]:
    """The way to each destination, by name."""
    made: dict[str, Sender] = {}
    for destination in destinations:
        if isinstance(destination, CStoreDestination):
            made[destination.name] = CStore(destination, calling, tls)
        else:
            made[destination.name] = Stow(destination)
    return made
