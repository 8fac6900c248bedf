"""Studies that nobody sends: a folder that is watched, an Orthanc that is asked."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cspine.errors import UsageError
from cspine.node.deliver import DeliveryError
from cspine.node.ledger import Ledger
from cspine.node.privacy import Pseudonyms
from cspine.node.pull import DicomwebPoll, FolderWatch
from cspine.node.settings import Limits, Poll, Watch
from cspine.node.spool import Spool, Stored
from dicom_factory import Grid, write_series
from orthanc_server import Orthanc

GRID = Grid(count=3, rows=8, columns=8)


class Taken:
    """A spool and a ledger, and how to put files in."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.spool = Spool(folder / "spool", Pseudonyms(bytes(32)), limits=limits or Limits(free_bytes=0))
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}")
        self.calls = 0

    def __call__(self, path: Path, sender: str) -> Stored:
        self.calls += 1
        return self.spool.store_file(path, sender=sender)

    @property
    def count(self) -> int:
        return len(self.spool.index.rows())


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def watch(folder: Path, take: Taken) -> FolderWatch:
    return FolderWatch(Watch(folder=folder), take.ledger, take)


def test_files_are_taken_when_they_have_come_to_rest(tmp_path: Path, watched: Path) -> None:
    take = Taken(tmp_path)
    eye = watch(watched, take)
    paths = write_series(watched / "deep" / "er", GRID)
    (watched / "notes.txt").write_text("not an image")
    assert eye.look() == 0, "they may still be growing"
    assert eye.look() == 3
    assert eye.look() == 0 and take.count == 3
    assert all(path.exists() for path in paths), "they belong to somebody else"


def test_a_file_that_grows_is_not_taken(tmp_path: Path, watched: Path) -> None:
    take = Taken(tmp_path)
    eye = watch(watched, take)
    whole = write_series(tmp_path / "elsewhere", GRID)[0].read_bytes()
    growing = watched / "image.dcm"
    growing.write_bytes(whole[:500])
    eye.look()
    growing.write_bytes(whole)
    assert eye.look() == 0
    assert eye.look() == 1


def test_what_was_taken_is_remembered_after_a_restart(tmp_path: Path, watched: Path) -> None:
    take = Taken(tmp_path)
    write_series(watched, GRID)
    eye = watch(watched, take)
    eye.look(), eye.look()
    seen = []
    again = FolderWatch(Watch(folder=watched), take.ledger, lambda path, _: seen.append(path))  # type: ignore[arg-type, return-value, func-returns-value]
    again.look(), again.look()
    assert not seen


def test_links_are_not_followed(tmp_path: Path, watched: Path) -> None:
    take = Taken(tmp_path)
    (watched / "link.dcm").symlink_to(write_series(tmp_path / "private", GRID)[0])
    (watched / "folder").symlink_to(tmp_path / "private")
    eye = watch(watched, take)
    assert eye.look() == eye.look() == 0 == take.count


def test_without_room_files_wait(tmp_path: Path, watched: Path) -> None:
    take = Taken(tmp_path, Limits(free_bytes=0, study_instances=1))
    write_series(watched, GRID)
    eye = watch(watched, take)
    eye.look()
    assert eye.look() == 1
    assert eye.look() == 0 and take.count == 1
    take.spool.limits = Limits(free_bytes=0)
    assert eye.look() == 2


def test_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a folder to watch"):
        watch(tmp_path / "gone", Taken(tmp_path)).look()


def poll(server: str, take: Taken, tmp_path: Path, **values: object) -> DicomwebPoll:
    settings = Poll.model_validate({"name": "archive", "url": server, **values})
    return DicomwebPoll(settings, take.ledger, take, tmp_path / "scratch")


def test_new_ct_studies_of_an_orthanc_are_fetched_once(tmp_path: Path, orthanc: Orthanc) -> None:
    take = Taken(tmp_path)
    for path in write_series(tmp_path / "ct", GRID):
        orthanc.call("/instances", method="POST", data=path.read_bytes())

    def other(_: int, ds: object) -> None:
        ds.Modality = "MR"  # type: ignore[attr-defined]
        ds.StudyInstanceUID = "1.2.3.4"  # type: ignore[attr-defined]

    for path in write_series(tmp_path / "mr", GRID, series="5", edit=other):
        orthanc.call("/instances", method="POST", data=path.read_bytes())
    source = poll(orthanc.dicomweb, take, tmp_path)
    end = time.monotonic() + 10  # Orthanc lists a study once it is indexed
    while not source.look():
        assert time.monotonic() < end
        time.sleep(0.2)
    assert take.count == 3
    assert source.look() == 0 and not list((tmp_path / "scratch").iterdir())
    (more,) = write_series(tmp_path / "more", GRID, places=[9], edit=lambda _, ds: _renamed(ds))
    orthanc.call("/instances", method="POST", data=more.read_bytes())
    assert source.look() == 0, "the study has grown and may go on growing"
    assert source.look() == 1, "it is at rest"


def test_what_comes_to_lie_beside_the_images_costs_nothing(tmp_path: Path, orthanc: Orthanc) -> None:
    take = Taken(tmp_path)
    for path in write_series(tmp_path / "ct", GRID):
        orthanc.call("/instances", method="POST", data=path.read_bytes())
    source = poll(orthanc.dicomweb, take, tmp_path)
    while not source.look():
        time.sleep(0.1)
    fetched = take.calls
    for path in write_series(tmp_path / "result", GRID, series="7", edit=lambda _, ds: setattr(ds, "Modality", "OT")):
        orthanc.call("/instances", method="POST", data=path.read_bytes())
    assert [source.look() for _ in range(3)] == [0, 0, 0]
    assert take.calls == fetched


def _renamed(ds: object) -> None:
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"  # type: ignore[attr-defined]


def test_a_server_that_is_away_or_answers_nonsense_says_so(tmp_path: Path, orthanc: Orthanc) -> None:
    take = Taken(tmp_path)
    with pytest.raises(DeliveryError, match="unreachable"):
        poll("http://127.0.0.1:9", take, tmp_path).look()
    with pytest.raises(DeliveryError):
        poll(f"{orthanc.url}/system", take, tmp_path).look()
