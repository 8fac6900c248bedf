"""The shelf: what failed too often, or can never work, waits here for a person, with its reason.

The ledger knows the same; the folder is for whoever looks at the machine itself. Files of a study on the shelf are
never deleted by time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cspine.errors import UsageError
from cspine.node.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Shelved:
    """One thing on the shelf.

    Attributes:
        key: of the study.
        what: ``study``, or the name of the destination that its results did not reach.
        reason: stable, kebab-case.
        tries: that were made.
    """

    key: str
    what: str
    reason: str
    tries: int


@dataclass(frozen=True, slots=True)
class Shelf:
    """A folder with one small JSON file for each thing that waits."""

    folder: Path

    def put(self, key: str, *, what: str, reason: str, message: str, tries: int) -> None:
        """Say why something waits. Safe to repeat.

        Raises:
            OutputError: the folder cannot be written.
        """
        from cspine.reports import atomic  # brings what draws reports, which a node that has no trouble never needs

        note = {
            "study": key,
            "what": what,
            "reason": reason,
            "message": message,
            "tries": tries,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "do": f"mend the cause, then: cspine node retry SETTINGS {key}",
        }
        atomic.write_file(self._file(key, what), (json.dumps(note, indent=2) + "\n").encode())

    def remove(self, key: str) -> None:
        """Take everything of a study from the shelf."""
        for file in self.folder.glob(f"{key}~*.json"):
            file.unlink(missing_ok=True)

    def _file(self, key: str, what: str) -> Path:
        return self.folder / f"{key}~{what.replace(':', '-')}.json"


def shelved(ledger: Ledger) -> list[Shelved]:
    """Everything on the shelf, the oldest study first."""
    studies = [Shelved(job.key, "study", job.reason, job.tries) for job in ledger.jobs("shelved")]
    results = [Shelved(one.key, one.destination, one.reason, one.tries) for one in ledger.deliveries("shelved")]
    return [*studies, *results]


def retry(ledger: Ledger, shelf: Shelf, keys: Iterable[str] | None, now: float) -> list[str]:
    """Put studies and results from the shelf back into the queue; a node that runs takes them up by itself.

    Args:
        ledger: of the node.
        shelf: whose notes are removed.
        keys: of studies; a beginning that fits only one will do; None for everything on the shelf.
        now: seconds since the epoch.

    Returns:
        The keys of the studies concerned.

    Raises:
        UsageError: nothing on the shelf has such a key, or several have.
    """
    waiting = {one.key for one in shelved(ledger)}
    chosen = None if keys is None else [_only(key, waiting) for key in keys]
    moved = ledger.unshelve(chosen, now)
    for key in moved:
        shelf.remove(key)
    return moved


def _only(start: str, keys: set[str]) -> str:
    fitting = sorted(key for key in keys if key.startswith(start))
    if start in keys or len(fitting) == 1:
        return start if start in keys else fitting[0]
    found = "none" if not fitting else f"{len(fitting)}"
    raise UsageError(
        f"expected the key of one study on the shelf, got one that fits {found}",
        where=start,
        fix="See: cspine node status",
    )
