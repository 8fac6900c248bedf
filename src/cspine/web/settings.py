"""``WebSettings``: everything the web application is told, as one TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from cspine.node.settings_file import beside, read_settings

MIB = 2**20
GIB = 2**30
# One request never carries more than this beside the pixels of its chunk.
_SMALLEST_CHUNK = 64 * 1024
LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _base_url(value: str) -> str:
    """The address at which browsers reach the application: scheme and host, perhaps a port, nothing else."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError("expected an address such as https://cspine.example.org, without a path")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError("expected an address such as https://cspine.example.org, without query or user")
    return value.rstrip("/")


FilePath = Annotated[Path, AfterValidator(beside)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86400)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
RoleWord = Literal["reader", "uploader", "administrator", "auditor"]


class Password(_Model):
    """What a password must be. Length does more than rules about characters (NIST SP 800-63B 5.1.1.2).

    Attributes:
        min_length: characters.
        forbidden_file: UTF-8 text, one password a line that nobody may take, such as a list of the commonest ones;
            None for the built-in rules alone.
    """

    min_length: int = Field(default=12, ge=8, le=64)
    forbidden_file: FilePath | None = None


class Lockout(_Model):
    """How often a password may be wrong before further tries have to wait.

    Attributes:
        tries: wrong ones for one account, from browsers that never logged in to it.
        address_tries: wrong ones from one network address, for whatever account.
        minutes: how long one has to wait; it does not grow and further tries do not prolong it.
    """

    tries: int = Field(default=10, ge=3, le=1000)
    address_tries: int = Field(default=100, ge=3, le=100_000)
    minutes: float = Field(default=15.0, gt=0, le=1440)


class Mail(_Model):
    """The server that sends letters (SMTP).

    Attributes:
        sender: address they come from.
        security: ``starttls`` or ``tls``; ``none`` only makes sense on this machine.
    """

    host: str = Field(min_length=1)
    port: Port = 587
    sender: str = Field(pattern=r"^[^@\s]+@[^@\s]+$")
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: str | None = None
    password_file: FilePath | None = None
    seconds: Seconds = 10.0


class Oidc(_Model):
    """Logging in through another service (OpenID Connect).

    Attributes:
        issuer: its address; ``/.well-known/openid-configuration`` below it is read at the first log-in.
        name: what the button says.
        create: whether a person without an account gets one, with ``roles``.
        require: whether this is the only way to log in; administrators may still use a password.
        authorities: PEM file that vouches for the service's certificate; None for the system's.
    """

    issuer: str = Field(pattern=r"^https?://")
    client_id: str = Field(min_length=1)
    secret_file: FilePath | None = None
    name: str = Field(default="Single sign-on", min_length=1, max_length=40)
    create: bool = False
    require: bool = False
    roles: tuple[RoleWord, ...] = ("reader",)
    authorities: FilePath | None = None

    @model_validator(mode="after")
    def _encrypted(self) -> Oidc:
        parts = urlsplit(self.issuer)
        if parts.scheme != "https" and parts.hostname not in LOOPBACK:
            raise ValueError("issuer must be https; http is for this machine alone")
        return self


class Limits(_Model):
    """What one may use up. Each is a refusal with a message, never a wait without end.

    Attributes:
        upload_bytes: of one upload.
        file_bytes: of one file of it.
        files: of one upload.
        per_user_bytes: of everything one person keeps here.
        free_bytes: that stay free on the disk of the data.
        chunk_bytes: of one piece of an upload, i.e. of the largest request.
        waiting: studies that one person may have waiting.
    """

    upload_bytes: int = Field(default=4 * GIB, ge=MIB)
    file_bytes: int = Field(default=2 * GIB, ge=MIB)
    files: int = Field(default=20_000, ge=1)
    per_user_bytes: int = Field(default=50 * GIB, ge=MIB)
    free_bytes: int = Field(default=2 * GIB, ge=0)
    chunk_bytes: int = Field(default=8 * MIB, ge=_SMALLEST_CHUNK, le=64 * MIB)
    waiting: int = Field(default=200, ge=1)


class Worker(_Model):
    """How a study is judged: in a child process with these limits, that many times before it counts as failed."""

    processes: int = Field(default=1, ge=1, le=64, description="studies judged at once")
    threads: int | None = Field(default=None, ge=1, le=256)
    memory_bytes: int = Field(default=8 * GIB, ge=256 * MIB)
    seconds: Seconds = 900.0
    tries: int = Field(default=3, ge=1, le=20)


class Metrics(_Model):
    """Who may read ``/metrics``: holders of the token in ``token_file``. None: nobody, the page is not there."""

    token_file: FilePath | None = None


class Audit(_Model):
    """The audit trail: JSON lines in ``<data>/audit``, a new file each time one passes ``rotate_bytes``."""

    rotate_bytes: int = Field(default=16 * MIB, ge=4096)


class WebSettings(_Model):
    """All settings of the application. Without a file: loopback, nobody but this machine can reach it.

    Attributes:
        data: folder for uploads, studies, results, the audit trail, the keys, and the database when it is SQLite.
        host: address to listen on.
        port: 0 for any that is free.
        database: ``postgresql://…``; None for SQLite in ``data``.
        base_url: address at which browsers reach it, ``https://…`` behind a proxy that ends TLS; None for
            ``http://host:port``. Cookies are ``Secure`` when it is https.
        registration: who may sign up: anybody, holders of an invitation, nobody.
        roles: of those who sign up without an invitation that says otherwise.
        session_minutes: of idleness after which one is logged out.
        session_hours: after which one is logged out in any case.
        deidentify: patients' data are removed from uploads: ``off`` (the box on the page is empty at first), ``on``
            (it is ticked), ``always`` (there is no choice).
        antivirus: command that looks at one file, which stands for ``{file}``; exit status 0 means clean. None: none.
        retention_days: after which a study and its results are deleted; None to keep them.
        proxies: how many proxies in front are trusted to say who calls (X-Forwarded-For, -Proto); 0 for none.
        bundle: None for the one that comes with cspine.
    """

    data: Annotated[Path, Field(validate_default=True), AfterValidator(beside)] = Path("cspine-web")
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65535)
    database: SecretStr | None = None
    base_url: BaseUrl | None = None
    registration: Literal["open", "invitation", "closed"] = "invitation"
    roles: tuple[RoleWord, ...] = Field(default=("reader", "uploader"), min_length=1)
    session_minutes: float = Field(default=60.0, gt=0, le=1440)
    session_hours: float = Field(default=12.0, gt=0, le=720)
    password: Password = Password()
    lockout: Lockout = Lockout()
    mail: Mail | None = None
    oidc: Oidc | None = None
    limits: Limits = Limits()
    deidentify: Literal["off", "on", "always"] = "off"
    antivirus: tuple[str, ...] | None = None
    retention_days: float | None = Field(default=None, gt=0)
    worker: Worker = Worker()
    proxies: int = Field(default=0, ge=0, le=10)
    metrics: Metrics = Metrics()
    audit: Audit = Audit()
    bundle: FilePath | None = None

    @model_validator(mode="after")
    def _consistent(self) -> WebSettings:
        if self.antivirus is not None and not any("{file}" in word for word in self.antivirus):
            raise ValueError("antivirus must name {file} somewhere")
        if {"administrator", "auditor"} & {*self.roles}:
            raise ValueError("roles of those who sign up can only be reader and uploader")
        if self.host not in LOOPBACK and not self.secure:
            raise ValueError(
                "host is reachable by others, so base_url must be https://…: passwords and pictures would travel "
                "unencrypted; put a proxy that ends TLS in front"
            )
        return self

    @property
    def secure(self) -> bool:
        """Whether browsers come over https."""
        return self.base_url is not None and self.base_url.startswith("https://")

    @property
    def address(self) -> str:
        """Where a person finds it: ``base_url``, or what follows from host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.base_url or f"http://{host}:{self.port}"

    @property
    def database_url(self) -> str:
        """Of SQLAlchemy; holds the password, if there is one."""
        if self.database is None:
            return f"sqlite:///{self.data.resolve() / 'cspine-web.db'}"
        return self.database.get_secret_value()


def load_settings(path: Path | str) -> WebSettings:
    """The settings of a TOML file; relative paths in it lie beside it.

    Raises:
        RecipeError: not readable, not TOML, an unknown key or a wrong value; ``where`` names file and key. The value
            itself is not repeated: it may be a password.
    """
    return read_settings(WebSettings, path, described="docs/reference/web-settings.md")
