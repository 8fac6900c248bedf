"""Results go out: what is sent, what an answer means, and C-STORE to a DICOM service; ``stow`` is the other way.

UIDs of results are deterministic, so a result that is sent twice, because the node was killed between sending and
writing that down, is the same object twice, and storing it again changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cspine.node.child import JobOutcome
from cspine.node.settings import CStoreDestination, Retry, Tls
from cspine.node.tls import client_context

if TYPE_CHECKING:
    from pynetdicom.association import Association

# Seconds for a connection, for an answer, and for silence of a peer.
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
# PS3.7 C.4 and PS3.4 table B.2-1, warnings: the object was stored, though something had to be said about it (B000:
# elements coerced, B006: discarded, B007: not as its class wants; others are a vendor's own).
STORED_WITH_WARNING = frozenset((0x0001, 0x0107, 0x0116, *range(0xB000, 0xC000)))
# PS3.7 C.5.7: there is an object of this UID already. UIDs of results are made from what is in them, so it is this one:
# the node was killed after it had sent it and before it could write that down.
_THERE_ALREADY = 0x0111
# PS3.7 C and PS3.4 B.2.3: the object itself is not wanted. Sending it again would give the same answer.
NOT_ACCEPTED, FAILED = 0x0122, 0x0110
_UNWANTED = frozenset((NOT_ACCEPTED, 0x0124, 0x0117, *range(0xA900, 0xAA00), *range(0xC000, 0xD000)))
_DICOM = ".dcm"


class DeliveryError(Exception):
    """A result did not arrive.

    Args:
        reason: stable, kebab-case: ``unreachable``, ``association-rejected``, ``status-a700`` …
        lasting: trying again will not help; a person must look.
    """

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lasting = lasting


def verdict(statuses: Sequence[int]) -> str:
    """What the other side said about the objects of one study, taken together.

    One object that is not wanted does not keep the others from being sent, and one that may be wanted later has all of
    them sent again then.

    Args:
        statuses: PS3.7 C, one an object.

    Returns:
        Empty, or ``warning-b000`` and the like when all were stored and something was said about one.

    Raises:
        DeliveryError: some were not stored.
    """
    failed = [status for status in statuses if status and not _stored(status)]
    if failed:
        again = [status for status in failed if status not in _UNWANTED]
        status = (again or failed)[0]
        reason = "object-kind-not-accepted" if status == NOT_ACCEPTED else f"status-{status:04x}"
        raise DeliveryError(reason, lasting=not again)
    warnings = [status for status in statuses if status]
    return f"warning-{warnings[0]:04x}" if warnings else ""


def _stored(status: int) -> bool:
    return status in STORED_WITH_WARNING or status == _THERE_ALREADY


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

    def send(self, parcel: Parcel) -> str:
        """Send, and return when the other side has confirmed.

        Returns:
            What it had to say about it, ``warning-b000`` and the like; mostly nothing.

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

    def send(self, parcel: Parcel) -> str:
        """Store every object; see ``Sender``."""
        from pynetdicom import AE

        files = parcel.files(self.destination.formats)
        if not files:
            return ""
        entity = AE(ae_title=self.calling)
        entity.connection_timeout = CONNECT_SECONDS
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = ANSWER_SECONDS
        for sop_class, syntax in sorted({pair for path in files for pair in _offered(*_classes(path))}):
            entity.add_requested_context(sop_class, syntax)
        there = self.destination
        tls = (client_context(self.tls), there.host) if there.tls and self.tls is not None else None
        association = entity.associate(there.host, there.port, ae_title=there.ae_title, tls_args=tls)
        if not association.is_established:
            if association.rejected_contexts:  # none of our kinds was accepted, so pynetdicom gave up
                raise DeliveryError("object-kind-not-accepted", lasting=True)
            raise DeliveryError("association-rejected" if association.is_rejected else "unreachable")
        try:
            return verdict([_store(association, path) for path in files])
        finally:
            if association.is_established:
                association.release()


def _store(association: Association, path: Path) -> int:
    """Send one object; gives the status of the answer, ``NOT_ACCEPTED`` when no context for it was accepted.

    Raises:
        DeliveryError: the peer went away.
    """
    try:
        answer = association.send_c_store(path)
    except ValueError:
        return NOT_ACCEPTED
    except RuntimeError as error:
        raise DeliveryError("connection-lost") from error
    if "Status" not in answer:
        raise DeliveryError("no-answer")
    return int(answer.Status)


def _offered(sop_class: str, syntax: str) -> list[tuple[str, str]]:
    """What is proposed for an object: its own transfer syntax, and the default one where that loses nothing.

    PS3.5 10.1 wants the default, Implicit VR Little Endian, offered for whatever is not compressed; some archives take
    nothing else. pynetdicom encodes anew when only that is accepted.
    """
    from pydicom.uid import UID, ImplicitVRLittleEndian

    own = (sop_class, syntax)
    return [own] if UID(syntax).is_compressed else [own, (sop_class, ImplicitVRLittleEndian)]


def _classes(path: Path) -> tuple[str, str]:
    """SOP class and transfer syntax of a DICOM file of ours; nothing but its meta information is read."""
    from pydicom.filereader import read_file_meta_info

    meta = read_file_meta_info(path)
    return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
