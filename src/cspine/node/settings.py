"""``NodeSettings``: everything a node is told, as one TOML file."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from cspine.node.settings_file import beside, read_settings
from cspine.node.viewer import checked

MIB = 2**20
GIB = 2**30

# PS3.8 D.3.3.1 lets a maximum length be anything; below this pynetdicom and many peers do not fill a PDU sensibly.
SMALLEST_PDU = 16 * 1024


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _title(value: str) -> str:
    """An AE title: PS3.5 table 6.2-1, VR AE; leading and trailing spaces do not count."""
    text = value.strip(" ")
    if not 1 <= len(text) <= 16 or not all(" " <= c <= "~" and c != "\\" for c in text):
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return text


def _network(value: str) -> str:
    """An IP address or a network such as ``10.1.2.0/24``; names are not looked up."""
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError as error:
        raise ValueError("expected an IP address or a network such as 10.1.2.0/24, not a host name") from error


AeTitle = Annotated[str, AfterValidator(_title)]
Network = Annotated[str, AfterValidator(_network)]
FilePath = Annotated[Path, AfterValidator(beside)]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
Seconds = Annotated[float, Field(gt=0, le=7 * 86400)]
Formats = tuple[str, ...]
ViewerUrl = Annotated[str, AfterValidator(checked)]


class Peer(_Model):
    """Who may send. With no peer at all everybody who can reach the port may.

    Attributes:
        name: what this peer is called in ``cspine node status``.
        ae_title: its calling AE title.
        address: where it may call from; None for anywhere.
        port: where its own DICOM service listens at ``address``, for storage commitment reports on an association of
            their own; None to report on the association that asked.
    """

    name: Name
    ae_title: AeTitle
    address: Network | None = None
    port: Port | None = None

    @model_validator(mode="after")
    def _one_host(self) -> Peer:
        if self.port is not None and (self.address is None or ipaddress.ip_network(self.address).num_addresses != 1):
            raise ValueError("port needs an address that is one host, to which reports can be sent")
        return self

    @property
    def host(self) -> str | None:
        """The one address, where ``address`` is one."""
        network = None if self.address is None else ipaddress.ip_network(self.address)
        return str(network.network_address) if network is not None and network.num_addresses == 1 else None


class CStoreDestination(_Model):
    """A DICOM service that results are sent to with C-STORE."""

    kind: Literal["cstore"]
    name: Name
    ae_title: AeTitle
    host: str = Field(min_length=1)
    port: Port = 104
    formats: Formats = ("seg", "sr")
    tls: bool = Field(default=False, description="use the certificates of [tls]")


class StowDestination(_Model):
    """A DICOMweb server that results are sent to with STOW-RS."""

    kind: Literal["stow"]
    name: Name
    url: str = Field(pattern=r"^https?://")
    formats: Formats = ("seg", "sr")
    username: str | None = None
    password_file: FilePath | None = None
    token_file: FilePath | None = None
    authorities: FilePath | None = Field(default=None, description="PEM file of the authorities that vouch for it")


Destination = Annotated[CStoreDestination | StowDestination, Field(discriminator="kind")]


class Limits(_Model):
    """What a peer may use up. Every one of these is a refusal or an abort, never a wait without end.

    Attributes:
        pdu_bytes: of one incoming PDU, checked before it is read; also the maximum length that is negotiated.
        associations: open at once.
        message_bytes: of one DIMSE message, i.e. of one instance as it comes.
        memory_bytes: of all messages in memory at once, over all associations.
        process_bytes: of the whole process that receives, set by the operating system (RLIMIT_DATA).
        disk_bytes: of everything the spool holds.
        free_bytes: that stay free on the disk of the spool.
        study_instances: of one study.
        idle_seconds: an association may be silent, and one PDU may take to come.
        message_seconds: one message may take to come, so that a trickle of small PDUs ends too.
    """

    pdu_bytes: int = Field(default=256 * 1024, ge=SMALLEST_PDU, le=64 * MIB)
    associations: int = Field(default=16, ge=1, le=500)
    message_bytes: int = Field(default=512 * MIB, ge=MIB)
    memory_bytes: int = Field(default=GIB, ge=MIB)
    process_bytes: int = Field(default=3 * GIB, ge=GIB)
    disk_bytes: int = Field(default=100 * GIB, ge=MIB)
    free_bytes: int = Field(default=GIB, ge=0)
    study_instances: int = Field(default=10_000, ge=1)
    idle_seconds: Seconds = 60.0
    message_seconds: Seconds = 600.0

    @model_validator(mode="after")
    def _consistent(self) -> Limits:
        if self.message_bytes > self.memory_bytes:
            raise ValueError("memory_bytes must be at least message_bytes")
        if self.memory_bytes + GIB // 2 > self.process_bytes:
            raise ValueError("process_bytes must be at least memory_bytes and half a GiB")
        return self


class Tls(_Model):
    """Certificates, PEM. Both sides show one unless ``clients_need_one`` is false.

    Attributes:
        certificate: of this node, with its chain.
        key: of that certificate.
        authorities: who vouches for the peers' certificates.
        clients_need_one: whether a peer without a certificate is refused.
    """

    certificate: FilePath
    key: FilePath
    authorities: FilePath | None = None
    clients_need_one: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Tls:
        if self.clients_need_one and self.authorities is None:
            raise ValueError("clients_need_one needs authorities, the PEM file that vouches for the clients")
        return self


class Worker(_Model):
    """How a study is judged: in a child process with these limits, that many times before it is shelved."""

    processes: int = Field(default=1, ge=1, le=64, description="studies judged at once on this machine")
    threads: int | None = Field(default=None, ge=1, le=256)
    memory_bytes: int = Field(default=8 * GIB, ge=256 * MIB)
    seconds: Seconds = 900.0
    tries: int = Field(default=3, ge=1, le=20)
    lost_seconds: Seconds = Field(default=120.0, description="until a silent machine of the same database is given up")
    bundle: FilePath | None = Field(default=None, description="None for the bundle that comes with cspine")


class Retry(_Model):
    """How a delivery that fails is tried again: waits double from ``first_seconds`` to ``most_seconds``."""

    tries: int = Field(default=300, ge=1, le=10_000)
    first_seconds: Seconds = 10.0
    most_seconds: Seconds = 900.0


class Syslog(_Model):
    """Where audit messages also go: RFC 5424, with the DICOM audit message of PS3.15 A.5 as content."""

    host: str = Field(min_length=1)
    port: Port = 6514
    transport: Literal["udp", "tcp", "tls"] = "tls"
    authorities: FilePath | None = Field(default=None, description="PEM file that vouches for the server; tls only")


class Audit(_Model):
    """The audit trail: JSON lines in ``<data>/audit``, a new file each time one passes ``rotate_bytes``."""

    rotate_bytes: int = Field(default=16 * MIB, ge=4096)
    syslog: Syslog | None = None


class Metrics(_Model):
    """Where Prometheus reads. ``port`` None: nowhere."""

    host: str = "127.0.0.1"
    port: Port | None = None


class Notify(_Model):
    """Who is told at once of a positive study: a web hook, or an HL7 v2 receiver (MLLP)."""

    webhook: str | None = Field(default=None, pattern=r"^https?://")
    hl7_host: str | None = None
    hl7_port: Port | None = None
    at_least: float = Field(default=0.5, ge=0, le=1, description="patient probability from which one is told")
    secret_file: FilePath | None = Field(default=None, description="key that web hooks are signed with, HMAC-SHA256")
    identifiers: bool = Field(default=False, description="messages may name patient and study, not only a stand-in")

    @model_validator(mode="after")
    def _consistent(self) -> Notify:
        if (self.hl7_host is None) != (self.hl7_port is None):
            raise ValueError("hl7_host and hl7_port come together")
        return self


class Watch(_Model):
    """A folder whose new studies are taken in."""

    folder: FilePath
    seconds: Seconds = 10.0


class Poll(_Model):
    """A DICOMweb server that is asked for new CT studies (QIDO-RS) and read from (WADO-RS)."""

    name: Name
    url: str = Field(pattern=r"^https?://")
    seconds: Seconds = 60.0
    filters: dict[str, str] = Field(default_factory=dict)
    username: str | None = None
    password_file: FilePath | None = None
    token_file: FilePath | None = None
    authorities: FilePath | None = None


class NodeSettings(_Model):
    """All settings of a node. Without a file: loopback, nobody but this machine can reach it, nothing is sent on.

    Attributes:
        data: folder for the spool, the index, the audit trail and the key of the pseudonyms.
        quiet_seconds: without a new instance after which a study counts as complete.
        complete: ``release`` takes a study as complete already when the association that sent it is released.
        check_called_ae_title: refuse associations that call another AE title than ours.
        database: URL of the durable queue and index; None for SQLite files in ``data``.
        keep_days: how long an instance stays in the spool after its study is done.
        history_days: how long the queue remembers tries that have ended; the ledger remembers studies for ever.
        viewer_url: template of the address at which a viewer shows a study, see ``cspine.node.viewer``.
    """

    ae_title: AeTitle = "CSPINE"
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=11112, ge=0, le=65535, description="0 for any that is free")
    data: Annotated[Path, Field(validate_default=True), AfterValidator(beside)] = Path("cspine-node")
    quiet_seconds: Seconds = 30.0
    complete: Literal["quiet", "release"] = "quiet"
    check_called_ae_title: bool = True
    database: SecretStr | None = None
    keep_days: float = Field(default=7.0, ge=0)
    history_days: float = Field(default=30.0, ge=0, le=36500)
    viewer_url: ViewerUrl | None = None
    peers: tuple[Peer, ...] = ()
    destinations: tuple[Destination, ...] = ()
    limits: Limits = Limits()
    tls: Tls | None = None
    worker: Worker = Worker()
    retry: Retry = Retry()
    audit: Audit = Audit()
    metrics: Metrics = Metrics()
    notify: Notify = Notify()
    watch: Watch | None = None
    poll: tuple[Poll, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> NodeSettings:
        for group in (self.peers, self.destinations, self.poll):
            names = [entry.name for entry in group]
            if len(set(names)) < len(names):
                raise ValueError(f"names must differ, got {', '.join(names)}")
        if self.tls is None and any(isinstance(d, CStoreDestination) and d.tls for d in self.destinations):
            raise ValueError("a destination with tls = true needs [tls]")
        return self


# pydantic puts the tag of a discriminated union into the place of an error; it is no key of the file.
_TAGS = frozenset(("cstore", "stow"))


def load_settings(path: Path | str) -> NodeSettings:
    """The settings of a TOML file; relative paths in it lie beside it.

    Raises:
        RecipeError: not readable, not TOML, an unknown key or a wrong value; ``where`` names file and key. The value
            itself is not repeated: it may be a password.
    """
    return read_settings(NodeSettings, path, described="docs/reference/node-settings.md", tags=_TAGS)
