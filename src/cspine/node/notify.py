"""Somebody is told at once of a positive study: an HL7 v2 message by MLLP, or a signed JSON web hook.

Unless the settings allow identifiers, a message names no patient and no study, only the stand-in under which the
study is in the logs and in ``cspine node status``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cspine.node.child import JobOutcome
from cspine.node.deliver import ANSWER_SECONDS, CONNECT_SECONDS, DeliveryError, Parcel, Sender
from cspine.node.settings import NodeSettings, Notify
from cspine.node.stow import http_failure, secret, session

WEBHOOK, HL7 = "notify:webhook", "notify:hl7"
SIGNATURE_HEADER, TIME_HEADER = "X-Cspine-Signature", "X-Cspine-Time"

# HL7 v2 transport, MLLP release 1, 2.3: a block starts with VT and ends with FS CR.
_START, _END = b"\x0b", b"\x1c\r"
_MOST_ANSWER = 64 * 1024


def wanted(outcome: JobOutcome, settings: Notify) -> bool:
    """Positive enough to be told of at once."""
    return outcome.ending == "judged" and outcome.probability is not None and outcome.probability >= settings.at_least


def message_id(parcel: Parcel) -> str:
    """20 characters that stay the same when a message is sent again, so that a receiver can drop the second."""
    return hashlib.sha256(f"{parcel.key}\0{parcel.folder.parent.name}".encode()).hexdigest()[:20]


@dataclass(frozen=True, slots=True)
class Webhook:
    """Posts JSON to an address."""

    settings: Notify
    url: str

    def wants(self, outcome: JobOutcome) -> bool:
        """See ``wanted``."""
        return wanted(outcome, self.settings)

    def body(self, parcel: Parcel) -> bytes:
        """The JSON text."""
        outcome = parcel.outcome
        told: dict[str, object] = {
            "event": "positive-study",
            "id": message_id(parcel),
            "study": parcel.pseudonym,
            "probability": outcome.probability,
            "levels": list(outcome.levels),
            "notice": "Research use only. Not a diagnosis, not a medical device.",
        }
        if self.settings.identifiers:
            told["study_instance_uid"] = outcome.study_uid
            if outcome.link is not None:
                told["viewer_url"] = outcome.link
        return json.dumps(told, separators=(",", ":"), sort_keys=True).encode()

    def send(self, parcel: Parcel) -> str:
        """Post; see ``deliver.Sender``. Redirects are not followed: the message goes where the settings say."""
        import requests

        body = self.body(parcel)
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        headers = {"Content-Type": "application/json", TIME_HEADER: moment}
        if self.settings.secret_file is not None:
            headers[SIGNATURE_HEADER] = signature(secret(self.settings.secret_file), moment, body)
        line, waits = session(None, None, None), (CONNECT_SECONDS, ANSWER_SECONDS)
        try:
            # The status is all that matters: a body, however long or slow, is not read.
            with line.post(
                self.url, data=body, headers=headers, timeout=waits, allow_redirects=False, stream=True
            ) as answer:
                code = answer.status_code
        except requests.ReadTimeout as error:
            raise DeliveryError("no-answer") from error
        except (requests.RequestException, OSError, ValueError) as error:
            raise DeliveryError("unreachable") from error
        if not 200 <= code < 300:
            raise http_failure(code)
        return ""


def signature(key: str, moment: str, body: bytes) -> str:
    """``sha256=`` and the HMAC-SHA256 (RFC 2104) of time, a dot and body: an old message cannot be sent again as new.

    Args:
        key: that both sides know.
        moment: the value of the header ``X-Cspine-Time``.
        body: the bytes that are posted.
    """
    return "sha256=" + hmac.new(key.encode(), moment.encode() + b"." + body, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class Hl7:
    """Sends an ORU^R01 by MLLP and waits for its acknowledgment (HL7 v2.5.1, 2.9.2)."""

    settings: Notify
    host: str
    port: int
    sending: str

    def wants(self, outcome: JobOutcome) -> bool:
        """See ``wanted``."""
        return wanted(outcome, self.settings)

    def message(self, parcel: Parcel) -> bytes:
        """The message: that of the report where identifiers are allowed, else a short one without any."""
        files = parcel.files(("hl7",), ending=".hl7")
        if self.settings.identifiers and files:
            return files[0].read_bytes()
        return anonymous_oru(parcel, self.sending, datetime.now(UTC))

    def send(self, parcel: Parcel) -> str:
        """Send; see ``deliver.Sender``."""
        block = _START + self.message(parcel) + _END
        try:
            with socket.create_connection((self.host, self.port), timeout=CONNECT_SECONDS) as line:
                line.settimeout(ANSWER_SECONDS)
                line.sendall(block)
                try:
                    answer = _block(line, time.monotonic() + ANSWER_SECONDS)
                except TimeoutError as error:
                    raise DeliveryError("no-answer") from error
        except OSError as error:
            raise DeliveryError("unreachable") from error
        code = acknowledgment(answer)
        if code not in ("AA", "CA"):
            raise DeliveryError(f"ack-{code.lower() or 'none'}", lasting=code in ("AR", "CR"))
        return ""


def anonymous_oru(parcel: Parcel, sending: str, now: datetime) -> bytes:
    """An ORU^R01 (HL7 v2.5.1) that says how likely a fracture is, and of whom only under a stand-in.

    PID-5 is a name of type S, "coded pseudo-name to ensure anonymity" (table 0200). Result status is P, preliminary.
    """
    stamp, outcome = now.strftime("%Y%m%d%H%M%S+0000"), parcel.outcome
    probability = "" if outcome.probability is None else f"{outcome.probability:.3f}"
    segments = [
        f"MSH|^~\\&|CSPINE|{_escaped(sending)}|||{stamp}||ORU^R01^ORU_R01|{message_id(parcel)}|P|2.5.1"
        "||||||UNICODE UTF-8",
        f"PID|1||{_escaped(parcel.pseudonym)}^^^CSPINE||^^^^^^S",
        f"OBR|1||{message_id(parcel)}^CSPINE|18748-4^Diagnostic imaging study^LN|||{stamp}||||||||||||||||||P",
        f"OBX|1|NM|fracture-probability^Probability of a fracture of the cervical spine^99CSPINE||{probability}|1^^UCUM"
        "||A|||P",
        f"OBX|2|ST|fracture-levels^Levels with a fracture^99CSPINE||{' '.join(outcome.levels)}||||||P",
        "NTE|1||Research use only. Not a diagnosis, not a medical device.",
    ]
    return ("\r".join(segments) + "\r").encode()


def acknowledgment(answer: bytes) -> str:
    """MSA-1 of an answer, empty when there is none."""
    for segment in answer.decode("utf-8", errors="replace").replace("\n", "\r").split("\r"):
        if segment.startswith("MSA") and len(segment) > 4:
            return segment[4:].split(segment[3])[0].strip()[:2]
    return ""


def senders_of(settings: NodeSettings) -> Mapping[str, Sender]:
    """The ways in which somebody is told, by name."""
    notify = settings.notify
    made: dict[str, Sender] = {}
    if notify.webhook is not None:
        made[WEBHOOK] = Webhook(notify, notify.webhook)
    if notify.hl7_host is not None and notify.hl7_port is not None:
        made[HL7] = Hl7(notify, notify.hl7_host, notify.hl7_port, settings.ae_title)
    return made


def _block(line: socket.socket, end: float) -> bytes:
    """What comes until the end of a block, the end of the connection or too much.

    Args:
        line: the connection.
        end: moment of ``time.monotonic`` until which it may take, however often something comes.

    Raises:
        TimeoutError: it took longer.
    """
    data = b""
    while _END[:1] not in data and len(data) < _MOST_ANSWER:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        line.settimeout(left)
        piece = line.recv(4096)
        if not piece:
            break
        data += piece
    return data.strip(_START + _END)


def _escaped(text: str) -> str:
    """Text for a field: the delimiters become escape sequences (HL7 v2.5.1, 2.7.1)."""
    for character, code in (("\\", "E"), ("|", "F"), ("^", "S"), ("&", "T"), ("~", "R")):
        text = text.replace(character, f"\\{code}\\")
    return text
