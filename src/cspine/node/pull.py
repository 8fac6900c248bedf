"""Studies that nobody sends: a folder that is watched, a DICOMweb server that is asked. Both end in the spool.

What was taken is written down by name and mark (size and time of a file, number of instances of a study), so a restart
takes nothing twice; and if it did, the spool would see the same content again and change nothing.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from cspine.errors import UsageError
from cspine.node.database import Database
from cspine.node.deliver import DeliveryError
from cspine.node.ledger import Ledger
from cspine.node.privacy import plain
from cspine.node.settings import Poll, Watch
from cspine.node.spool import Stored, Verdict
from cspine.node.stow import headers, session, web_client
from cspine.node.tables import TAKEN

if TYPE_CHECKING:
    from dicomweb_client.api import DICOMwebClient
    from pydicom import Dataset

_LOG = logging.getLogger(__name__)

# Takes a Part 10 file in: ``Spool.store_file`` with a sender's name.
Take = Callable[[Path, str], Stored]

# Studies asked for in one request (QIDO-RS limit), and at most in one round.
PAGE, MOST_STUDIES = 100, 10_000
_WATCHED = "watched-folder"
_STUDY_UID, _SERIES_UID, _INSTANCES, _SERIES_INSTANCES = "0020000D", "0020000E", "00201208", "00201209"


@dataclass(frozen=True, slots=True)
class Pulled:
    """Everything that was pulled from one source before: names, each with its mark."""

    database: Database
    source: str

    def all(self) -> dict[str, str]:
        """Mark of each name."""
        query = sa.select(TAKEN.c.name, TAKEN.c.mark).where(TAKEN.c.source == self.source)
        return {str(row["name"]): str(row["mark"]) for row in self.database.rows(query)}

    def add(self, name: str, mark: str) -> None:
        """Something was pulled."""
        entry = self.database.insert(TAKEN).values(source=self.source, name=name, mark=mark)
        with self.database.writing() as connection:
            connection.execute(entry.on_conflict_do_update(index_elements=["source", "name"], set_={"mark": mark}))


@dataclass
class FolderWatch:
    """Takes new files of a folder, at any depth, when they have kept size and time from one look to the next.

    Files stay where they are. A file that is no DICOM image is looked at once; one that there was no room for is tried
    again at the next look.

    Attributes:
        settings: the folder.
        ledger: remembers what was taken.
        take: takes a file in.
    """

    settings: Watch
    ledger: Ledger
    take: Take
    _seen: dict[str, str] = field(default_factory=dict)
    _taken: dict[str, str] | None = None

    def look(self) -> int:
        """Take what is new; returns how many instances were accepted.

        Raises:
            UsageError: the folder cannot be read.
        """
        if self._taken is None:
            self._taken = Pulled(self.ledger.database, _WATCHED).all()
        before, self._seen = self._seen, dict(self._files())
        accepted = 0
        for name, mark in self._seen.items():
            if self._taken.get(name) == mark or before.get(name) != mark:
                continue
            try:
                stored = self.take(self.settings.folder / name, _WATCHED)
            except UsageError:
                continue  # gone, or not ours to read: looked at again
            if stored.verdict is Verdict.FULL:
                _LOG.warning("no room for what the watched folder holds; trying again")
                break
            accepted += stored.verdict is Verdict.ACCEPTED
            Pulled(self.ledger.database, _WATCHED).add(name, mark)
            self._taken[name] = mark
        return accepted

    def _files(self) -> Iterator[tuple[str, str]]:
        """Name below the folder, and mark, of each plain file. Links are not followed: they may lead anywhere."""
        root = self.settings.folder
        if not root.is_dir():
            raise UsageError("expected a folder to watch, found none", where="watch.folder", fix="Make it")
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                path = Path(folder) / name
                try:
                    told = path.lstat()
                except OSError:
                    continue
                if path.is_file() and not path.is_symlink() and told.st_size:
                    yield path.relative_to(root).as_posix(), f"{told.st_size}:{told.st_mtime_ns}"


@dataclass
class DicomwebPoll:
    """Asks a DICOMweb server for CT studies (QIDO-RS) and fetches those that are new or have grown (WADO-RS).

    A study is fetched when it has kept its number of instances from one look to the next: half of one that is still
    coming in would be judged as if it were all. Of a study that has grown only CT series that have grown are fetched,
    so results that come to lie beside the images cost nothing.

    Attributes:
        settings: the server, and what is asked for.
        ledger: remembers what was fetched.
        take: takes a file in.
        scratch: folder for an instance on its way.
    """

    settings: Poll
    ledger: Ledger
    take: Take
    scratch: Path
    _seen: dict[str, str] = field(default_factory=dict)

    def look(self) -> int:
        """Fetch what is new and at rest; returns how many instances were accepted.

        Raises:
            DeliveryError: the server cannot be reached, or answers otherwise than expected.
        """
        import requests

        settings, pulled = self.settings, Pulled(self.ledger.database, f"poll:{self.settings.name}")
        client = web_client(
            settings.url,
            session(settings.username, settings.password_file, settings.authorities),
            headers(settings.token_file),
        )
        taken, accepted = pulled.all(), 0
        before, self._seen = self._seen, {}
        try:
            for study, mark in self._studies(client):
                self._seen[study] = mark
                if taken.get(study) == mark or before.get(study) != mark:
                    continue
                number, whole = self._fetch(client, study, pulled, taken)
                accepted += number
                if not whole:
                    _LOG.warning("no room for what %s has; trying again", plain(settings.name))
                    break
                pulled.add(study, mark)
        except requests.HTTPError as error:
            raise DeliveryError(f"http-{0 if error.response is None else error.response.status_code}") from error
        except (requests.RequestException, OSError) as error:
            raise DeliveryError("unreachable") from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DeliveryError("answer-not-understood") from error
        return accepted

    def _studies(self, client: DICOMwebClient) -> Iterator[tuple[str, str]]:
        """UID and number of instances of each CT study, page by page (PS3.18 10.6)."""
        filters = {"ModalitiesInStudy": "CT", **self.settings.filters}
        for offset in range(0, MOST_STUDIES, PAGE):
            page = client.search_for_studies(
                search_filters=filters,
                fields=["NumberOfStudyRelatedInstances"],
                limit=PAGE,
                offset=offset,
            )
            for row in page:
                yield str(_value(row, _STUDY_UID)), str(_value(row, _INSTANCES, 0))
            if len(page) < PAGE:
                return

    def _fetch(self, client: DICOMwebClient, study: str, pulled: Pulled, taken: Mapping[str, str]) -> tuple[int, bool]:
        """Take in new CT series of a study; gives the number accepted, and whether there was room for all."""
        accepted = 0
        rows = client.search_for_series(
            study, search_filters={"Modality": "CT"}, fields=["NumberOfSeriesRelatedInstances"]
        )
        for row in rows:
            series, mark = str(_value(row, _SERIES_UID)), str(_value(row, _SERIES_INSTANCES, 0))
            if mark != "0" and taken.get(series) == mark:  # 0: the server does not say
                continue
            for instance in client.iter_series(study, series):
                stored = self._store(instance)
                if stored.verdict is Verdict.FULL:
                    return accepted, False
                accepted += stored.verdict is Verdict.ACCEPTED
            pulled.add(series, mark)
        return accepted, True

    def _store(self, instance: Dataset) -> Stored:
        self.scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(suffix=".dcm", dir=self.scratch)
        path = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                instance.save_as(stream, enforce_file_format=True)
            return self.take(path, self.settings.name)
        finally:
            path.unlink(missing_ok=True)


def _value(row: dict[str, Any], tag: str, default: object = None) -> object:
    """The first value of an attribute of the DICOM JSON model (PS3.18 F.2.2).

    Raises:
        KeyError: it is absent and there is no default.
    """
    values = row.get(tag, {}).get("Value")
    if values:
        return values[0]
    if default is None:
        raise KeyError(tag)
    return default
