"""Logs without patients: keyed pseudonyms instead of identifiers, and a filter that lets nothing else through.

A log line is built from a literal template of our own and arguments. The template is code, so it holds no patient
(a test reads every call in ``node/``). An argument passes when its type says that it cannot hold one either: numbers,
members of an enumeration, pseudonyms, and words wrapped in ``plain``. Any other text is replaced by its pseudonym, an
exception by its type, and a record of another library, whose templates we do not know, by where it came from.
"""

from __future__ import annotations

import base64
import contextlib
import enum
import hmac
import logging
import os
import re
import secrets
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from cspine.errors import CspineError, OutputError, UsageError

KEY_BYTES = 32
# 80 bits: two of a million studies share a pseudonym with a chance below 1e-12.
_DIGEST_BYTES = 10
_OURS = "cspine"


class Pseudonym(str):
    """Text that stands for an identifier and is safe to write down."""

    __slots__ = ()


class Plain(str):
    """Text that comes from code or from the settings and is safe to write down."""

    __slots__ = ()


def plain(text: str) -> Plain:
    """Vouch for ``text``: it is a word of the code or of the settings, never from a message or a file of a peer."""
    return Plain(text)


class Pseudonyms:
    """Short, stable stand-ins for identifiers: HMAC-SHA256 under a key that never leaves the node.

    The same identifier always gets the same stand-in, so that log lines about one study can be put together; without
    the key nobody can find the identifier by trying candidates, as they could with a plain hash.

    Args:
        key: 32 secret bytes.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise UsageError(f"a pseudonym key has {KEY_BYTES} bytes, got {len(key)}")
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> Pseudonyms:
        """The key in ``path``, which is made, readable by its owner alone, when it is not there.

        Raises:
            UsageError: the file is no key, or others may read it.
            OutputError: it can be neither read nor made.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _make_key(path)
            text = path.read_text(encoding="ascii")
            shared = os.name == "posix" and path.stat().st_mode & 0o077
        except OSError as error:
            raise OutputError(
                f"the pseudonym key cannot be read or made: {error.strerror}", where=path.name, fix="Check the folder"
            ) from error
        except UnicodeDecodeError:
            text, shared = "", 0
        if shared:
            raise UsageError("others may read the pseudonym key", where=path.name, fix=f"Run: chmod 600 {path.name}")
        try:
            return cls(bytes.fromhex(text))
        except (ValueError, UsageError) as error:
            raise UsageError(
                f"expected {2 * KEY_BYTES} hexadecimal digits", where=path.name, fix="Put the key back from a backup"
            ) from error

    def digest(self, kind: str, value: str) -> str:
        """HMAC of ``value`` as 64 hexadecimal digits; ``kind`` (``study``, ``peer`` …) keeps equal values apart."""
        return hmac.digest(self._key, f"{kind}\0{value}".encode("utf-8", "surrogateescape"), "sha256").hex()

    def of(self, kind: str, value: str) -> Pseudonym:
        """The stand-in for logs, such as ``study-k5jq2m7xwz4a3c6e``."""
        raw = bytes.fromhex(self.digest(kind, value))[:_DIGEST_BYTES]
        return Pseudonym(f"{kind}-{base64.b32encode(raw).decode().lower().rstrip('=')}")

    def uid(self, kind: str, value: str) -> Pseudonym:
        """The stand-in where a UID is asked for: ``2.25.`` and a random-form UUID's number (PS3.5 B.2)."""
        raw = bytearray(bytes.fromhex(self.digest(kind, value))[:16])
        raw[6], raw[8] = raw[6] & 0x0F | 0x40, raw[8] & 0x3F | 0x80
        return Pseudonym(f"2.25.{int.from_bytes(raw, 'big')}")


class PrivateFilter(logging.Filter):
    """Rewrites every record so that it can hold no patient; put it on handlers, see ``guard_handlers``."""

    def __init__(self, pseudonyms: Pseudonyms) -> None:
        super().__init__()
        self._pseudonyms = pseudonyms

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true; the record is changed in place."""
        if record.name.split(".", 1)[0] == _OURS and isinstance(record.msg, str):
            record.args = self._safe_args(record.args)
            with contextlib.suppress(TypeError, ValueError, KeyError):
                record.getMessage()
                return self._without_exception(record)
            # Arguments that do not fit the template would be printed raw by the logging module's own error report.
        record.msg, record.args = f"{_word(record.name)} line {record.lineno}: message withheld", None
        return self._without_exception(record)

    def _without_exception(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            record.msg = f"{record.getMessage()} [{_describe(record.exc_info[1])}]"
            record.args = None
        record.exc_info, record.exc_text, record.stack_info = None, None, None
        return True

    def _safe_args(self, args: object) -> tuple[object, ...] | Mapping[str, object] | None:
        if isinstance(args, Mapping):
            return {str(key): self._safe(value) for key, value in args.items()}
        if isinstance(args, tuple):
            return tuple(self._safe(value) for value in args)
        return None

    def _safe(self, value: object) -> object:
        if isinstance(value, enum.Enum):
            return Plain(value.value) if isinstance(value.value, str) else Plain(value.name)
        if value is None or type(value) in (int, float, bool, Pseudonym, Plain):
            return value
        if isinstance(value, BaseException):
            return Plain(_describe(value))
        return self._pseudonyms.of("text", str(value))


def guard_handlers(pseudonyms: Pseudonyms, *loggers: logging.Logger) -> PrivateFilter:
    """Put a filter on all handlers of ``loggers`` (default: the root logger); returns it.

    A filter on a logger is not asked about records of the loggers below it; one on a handler sees all it prints.
    """
    private = PrivateFilter(pseudonyms)
    for logger in loggers or (logging.getLogger(),):
        for handler in logger.handlers:
            handler.addFilter(private)
    return private


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep pynetdicom and pydicom from writing messages and values of peers, as long as it lasts.

    They do so in logs, in warnings, and in exceptions that end a thread, which Python prints with all they hold.
    """
    hook, threading.excepthook = threading.excepthook, _thread_ended
    loggers = [logging.getLogger(name) for name in ("pynetdicom", "pydicom")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pydicom|pynetdicom")
            yield
    finally:
        threading.excepthook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    logging.getLogger(__name__).error("a thread ended: %s", Plain(_describe(args.exc_value)))


def _make_key(path: Path) -> None:
    """Write a fresh key whole or not at all, so that a crash leaves no short one; another maker's key wins."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def _describe(error: BaseException | None) -> str:
    """Type and place of an exception, without its text."""
    if error is None:
        return "no exception"
    code = f" {error.code}" if isinstance(error, CspineError) else ""
    return f"{type(error).__name__}{code}{_place(error.__traceback__)}"


def _place(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _word(name: str) -> str:
    """A logger's name if it looks like one; modules are named in code, but anybody may make a logger."""
    return name if re.fullmatch(r"[A-Za-z_][\w.]{0,79}", name, re.ASCII) and name.count(".") < 8 else "a library"
