"""What becomes of instances that come in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What became of an instance that came in."""

    ACCEPTED = "accepted"
    AGAIN = "again"  # the very same content is held; nothing changed
    SAME_PIXELS = "same-pixels"  # held with other attributes; the first ones stay
    CONFLICT = "conflict"  # held with other pixels, or in another study; the first stays, this is not kept
    FULL = "full"  # no room: disk, quota or instances of one study
    UNREADABLE = "unreadable"
    MISMATCH = "mismatch"  # the data set is not the instance that was announced

    @property
    def held(self) -> bool:
        """Whether the instance, as far as its pixels go, is on the disk now."""
        return self in (Verdict.ACCEPTED, Verdict.AGAIN, Verdict.SAME_PIXELS)


@dataclass(frozen=True, slots=True)
class Stored:
    """The answer to one instance.

    Attributes:
        verdict: what became of it.
        study: pseudonym of its study; empty when that could not be read.
        study_uid: Study Instance UID; never to be logged.
        reason: one sentence of our own words, when it was not simply accepted.
        held: digest of the content that is held under its UID when this one was not taken.
        came: digest of the content that came.
    """

    verdict: Verdict
    study: str = ""
    study_uid: str = ""
    reason: str = ""
    held: str = ""
    came: str = ""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What ``recover`` found: files given their row again, half files removed, rows whose file is gone."""

    indexed: int = 0
    removed: int = 0
    lost: int = 0
