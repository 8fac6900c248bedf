"""What was accepted comes back after a power cut, though its file was not waited for."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.errors import OutputError
from cspine.node import depot as depot_module
from cspine.node.arrivals import Arrivals
from cspine.node.depot import Depot
from cspine.node.journal import Journal, records
from cspine.node.spool import Spool, Verdict
from cspine.studies import tags
from dicom_factory import ROOT
from receiving_factory import FakeClock, instance, open_spool, pixels_of, put

SMALL_SEGMENT = 4096


def nothing() -> None:
    """A disk that needs no waiting."""


def bodies(folder: Path) -> list[bytes]:
    return [record.body() for record in records(folder)]


# The journal ----------------------------------------------------------------------------------------------------------


def test_what_was_kept_is_there_in_order_though_the_journal_was_never_closed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", nothing)
    for number in range(3):
        with journal.keep(b"note %d" % number, b"body ", b"%d" % number):
            assert bodies(tmp_path / "j")[-1] == b"body %d" % number
    assert [record.note for record in records(tmp_path / "j")] == [b"note 0", b"note 1", b"note 2"]


def test_opening_makes_an_end_of_what_was_there(tmp_path: Path) -> None:
    for number in range(2):
        journal = Journal(tmp_path / "j", nothing)
        assert bodies(tmp_path / "j") == []
        for _ in range(2 - number):  # the second run leaves a record of the first behind its own, of the same size
            with journal.keep(b"note", b"body %d" % number):
                pass
        journal.close()
    assert bodies(tmp_path / "j") == [b"body 1"]


@given(sizes=st.lists(st.integers(0, 1500), max_size=40))
@settings(max_examples=30)
def test_a_segment_is_written_over_only_when_its_files_are_on_the_disk(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("j")
    written: set[int] = set()
    durable: set[int] = set()
    journal = Journal(folder / "j", lambda: durable.update(written), segment_bytes=SMALL_SEGMENT)
    for number, size in enumerate(sizes):
        with journal.keep(b"%d" % number, bytes(size)):
            written.add(number)
        held = {int(record.note): record.length for record in records(folder / "j")}
        assert set(range(number + 1)) <= durable | held.keys()
        assert all(sizes[k] == length for k, length in held.items())
    journal.close()


@given(cut=st.integers(0, 600), noise=st.binary(max_size=30))
@settings(max_examples=50)
def test_a_damaged_journal_gives_only_whole_notes_and_never_fails(
    tmp_path_factory: pytest.TempPathFactory, cut: int, noise: bytes
) -> None:
    folder = tmp_path_factory.mktemp("j") / "j"
    journal = Journal(folder, nothing, segment_bytes=SMALL_SEGMENT)
    for number in range(4):
        with journal.keep(b"note %d" % number, bytes(60)):
            pass
    journal.close()
    segment = folder / "0.journal"
    data = bytearray(segment.read_bytes()[:700])
    data[cut : cut + len(noise)] = noise
    segment.write_bytes(data)
    notes = [record.note for record in records(folder)]
    assert notes == [b"note 0", b"note 1", b"note 2", b"note 3"][: len(notes)]


def test_records_of_many_threads_share_flushes_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes: list[int] = []

    def slow(descriptor: int) -> None:
        flushes.append(descriptor)
        time.sleep(0.01)

    monkeypatch.setattr(os, "fdatasync", slow)
    journal = Journal(tmp_path / "j", nothing, segment_bytes=64 * 1024)

    def work(name: int) -> None:
        for number in range(5):
            with journal.keep(b"%d.%d" % (name, number), bytes(100)):
                pass

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {r.note for r in records(tmp_path / "j")} == {b"%d.%d" % (t, n) for t in range(8) for n in range(5)}
    assert len(flushes) < 40


def test_a_write_that_fails_leaves_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "j", nothing)
    with journal.keep(b"0"):
        pass

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space"), journal.keep(b"lost"):
            pytest.fail("the block must not begin")
    with journal.keep(b"1"):
        pass
    assert [record.note for record in records(tmp_path / "j")] == [b"0", b"1"]


def test_when_files_cannot_be_made_durable_nothing_more_is_accepted_and_the_records_stay(tmp_path: Path) -> None:
    def broken() -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal = Journal(tmp_path / "j", broken, segment_bytes=SMALL_SEGMENT)
    kept: list[bytes] = []

    def keep_on() -> None:
        for number in range(100):
            with journal.keep(b"%d" % number, bytes(500)):
                kept.append(b"%d" % number)

    with pytest.raises(OSError, match=r"durable|no use"):
        keep_on()
    assert [record.note for record in records(tmp_path / "j")] == kept


# The spool after a power cut ------------------------------------------------------------------------------------------


def cut_power(spool: Spool, harm: Callable[[Path], None]) -> None:
    """The process is gone, and of what was not synced the disk has what ``harm`` leaves of it; the index lost rows."""
    spool.close()
    for path in sorted((spool.folder / "studies").glob("*/*")):
        harm(path)
    with sqlite3.connect(spool.folder / "index.sqlite") as base:
        base.execute("DELETE FROM instances WHERE sop LIKE '%1'")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbled(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4] + b"\xff\xff\xff\xff")


def folder_lost(path: Path) -> None:
    shutil.rmtree(path.parent, ignore_errors=True)


@pytest.mark.parametrize("harm", [Path.unlink, emptied, halved, garbled, folder_lost])
def test_what_was_answered_comes_back_whole(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    spool = open_spool(tmp_path)
    sent = [instance(number) for number in range(3)]
    assert {put(spool, ds).verdict for ds in sent} == {Verdict.ACCEPTED}
    cut_power(spool, harm)
    spool = open_spool(tmp_path)
    for ds in sent:
        assert spool.holds(tags.CT_STORAGE, str(ds.SOPInstanceUID))
        row = spool.index.find(str(ds.SOPInstanceUID))
        assert row is not None and pixels_of(spool.path(row)) == ds.PixelData
        assert put(spool, ds).verdict is Verdict.AGAIN
    spool.close()


def test_a_study_that_had_gone_on_is_whole_again_under_the_same_key(tmp_path: Path) -> None:
    clock = FakeClock()
    spool = open_spool(tmp_path, clock)
    put(spool, instance(0)), put(spool, instance(1))
    spool.finish(ROOT + "1")
    (before,) = Arrivals(spool, quiet_seconds=30).ready()
    cut_power(spool, emptied)  # the links are other names of the same empty files
    spool = open_spool(tmp_path, clock)
    arrivals = Arrivals(spool, quiet_seconds=30)
    arrivals.recover()
    (after,) = arrivals.ready()
    assert after.key == before.key and len([pixels_of(path) for path in after.folder.iterdir()]) == 2
    spool.close()


def test_a_study_whose_links_point_at_files_that_were_lost_goes_on_again(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, instance(0))
    spool.finish(ROOT + "1")
    (before,) = Arrivals(spool, quiet_seconds=30).ready()
    cut_power(spool, Path.unlink)  # what comes back is another file than the link's
    spool = open_spool(tmp_path)
    arrivals = Arrivals(spool, quiet_seconds=30)
    arrivals.recover()
    spool.finish(ROOT + "1")
    (after,) = arrivals.ready()
    (link,) = after.folder.iterdir()
    (path,) = spool.depot.files()
    assert after.key == before.key and link.samefile(path)
    spool.close()


def test_what_was_deleted_does_not_come_back_and_what_came_after_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path)
    arrivals = Arrivals(spool, quiet_seconds=30)
    for number in range(3):
        put(spool, instance(number))
    spool.finish(ROOT + "1")
    assert arrivals.forget(arrivals.ready()[0].key)
    put(spool, instance(1))
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "most", 10)  # too large for the journal: synced by itself
        put(spool, instance(2))
    spool.close()
    spool = open_spool(tmp_path)
    assert {row.sop for row in spool.index.rows()} == {str(instance(n).SOPInstanceUID) for n in (1, 2)}
    assert len(list(spool.depot.files())) == 2
    spool.close()


def test_a_record_that_was_never_finished_brings_nothing(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, instance(0))
    segment = tmp_path / "journal" / "0.journal"
    (record,) = records(tmp_path / "journal")
    cut_power(spool, Path.unlink)
    data = bytearray(segment.read_bytes())
    data[record.start + record.length - 8 : record.start + record.length] = b"torn off"
    segment.write_bytes(data)
    spool = open_spool(tmp_path)
    assert list(spool.depot.files()) == [] and put(spool, instance(0)).verdict is Verdict.ACCEPTED
    spool.close()


@pytest.fixture
def little_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Depot.__init__
    monkeypatch.setattr(Depot, "__init__", lambda self, folder, **o: real(self, folder, segment_bytes=16 * 1024, **o))


@pytest.mark.usefixtures("little_journal")
def test_the_journal_goes_round_and_round_while_many_send(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)

    def send(study: int) -> None:
        for number in range(15):
            assert put(spool, instance(number, study=str(study))).verdict is Verdict.ACCEPTED

    threads = [threading.Thread(target=send, args=(study,)) for study in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records(tmp_path / "journal")) < len(spool.index.rows()) == 45
    spool.close()


@pytest.mark.usefixtures("little_journal")
def test_a_disk_that_fails_behind_our_back_ends_the_receiving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(depot_module, "sync_disk", broken)
        spool = open_spool(tmp_path)
        verdicts: list[Verdict] = []
        with pytest.raises(OutputError):
            verdicts.extend(put(spool, instance(number)).verdict for number in range(100))
    accepted = verdicts.count(Verdict.ACCEPTED)
    cut_power(spool, emptied)
    spool = open_spool(tmp_path)
    for number in range(accepted):
        row = spool.index.find(str(instance(number).SOPInstanceUID))
        assert row is not None and pixels_of(spool.path(row))
    spool.close()
