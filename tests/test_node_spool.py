"""What was accepted is on the disk, once, whole, and goes on when its study is complete."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from cspine.errors import OutputError, UsageError
from cspine.node import instances as instances_module
from cspine.node.arrivals import Arrivals, ArrivalState
from cspine.node.index import Index
from cspine.node.settings import Limits
from cspine.node.spool import Spool, Verdict
from cspine.studies import tags
from dicom_factory import ROOT, save, write_enhanced
from receiving_factory import SMALL, FakeClock, encoded, instance, open_spool, pixels_of, put, write_instances

NO_RESERVE = Limits(free_bytes=0)


def files(spool: Spool) -> list[Path]:
    return sorted((spool.folder / "studies").glob("*/*"))


def crash(spool: Spool) -> None:
    """The process is gone; what it had committed and synced stays."""
    spool.close()


# Taking in ------------------------------------------------------------------------------------------------------------


def test_an_instance_lies_there_as_received_behind_a_part_10_header_with_a_preamble_of_zeros(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    ds = instance()
    assert put(spool, ds).verdict is Verdict.ACCEPTED
    (path,) = files(spool)
    data = path.read_bytes()
    assert data[:132] == bytes(128) + b"DICM" and data.endswith(encoded(ds))
    meta = dcmread(path).file_meta
    assert meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert meta.TransferSyntaxUID == tags.EXPLICIT_LITTLE
    assert path.stat().st_mode & 0o077 == 0


def test_names_on_the_disk_and_in_answers_are_pseudonyms(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    stored = put(spool, instance())
    (path,) = files(spool)
    assert ROOT not in str(path) and "Secret" not in str(path)
    assert stored.study.startswith("study-")


@pytest.mark.parametrize(
    "syntax",
    [
        tags.IMPLICIT_LITTLE, tags.EXPLICIT_LITTLE, tags.EXPLICIT_BIG, tags.DEFLATED, tags.RLE,
        "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90",
        "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203",
    ],
)  # fmt: skip
def test_every_syntax_that_the_reader_decodes_is_taken(tmp_path: Path, syntax: str) -> None:
    assert syntax in instances_module.SYNTAXES
    spool = open_spool(tmp_path / "spool")
    source = tmp_path / "one.dcm"
    save(instance(), source, syntax)
    assert spool.store_file(source, sender="watch").verdict is Verdict.ACCEPTED
    (path,) = files(spool)
    assert pixels_of(path) == pixels_of(source)


def test_enhanced_ct_is_taken(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "spool")
    write_enhanced(tmp_path / "one.dcm")
    assert spool.store_file(tmp_path / "one.dcm", sender="watch").verdict is Verdict.ACCEPTED


def test_the_same_instance_again_changes_nothing(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, instance())
    used = spool.used_bytes
    assert put(spool, instance()).verdict is Verdict.AGAIN
    assert len(files(spool)) == 1 and spool.used_bytes == used


def test_the_same_uid_with_other_pixels_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, instance(value=40))
    before = pixels_of(files(spool)[0])
    stored = put(spool, instance(value=90))
    assert stored.verdict is Verdict.CONFLICT and stored.held != stored.came
    assert [pixels_of(path) for path in files(spool)] == [before]


def test_the_same_uid_in_another_study_is_refused(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, instance())
    other = instance()
    other.StudyInstanceUID = ROOT + "2"
    assert put(spool, other).verdict is Verdict.CONFLICT


def test_other_attributes_over_the_same_pixels_are_a_warning_and_the_first_stay(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, instance())
    stored = put(spool, instance(StudyDescription="changed"))
    assert stored.verdict is Verdict.SAME_PIXELS and stored.verdict.held
    assert "StudyDescription" not in dcmread(files(spool)[0])


def test_two_patients_with_one_patient_id_stay_apart(tmp_path: Path) -> None:
    clock = FakeClock()
    spool = open_spool(tmp_path, clock)
    put(spool, instance(study="1", PatientName="One"))
    put(spool, instance(study="2", PatientName="Two"))
    clock.seconds += 60
    ready = Arrivals(spool, quiet_seconds=30).ready()
    names = [{str(dcmread(path).PatientName) for path in arrival.folder.iterdir()} for arrival in ready]
    assert sorted(map(sorted, names)) == [["One"], ["Two"]]


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "verdict"),
    [
        ({"sop": ROOT + "9.9"}, Verdict.MISMATCH),
        ({"sop_class": tags.ENHANCED_CT_STORAGE}, Verdict.MISMATCH),
        ({"sop": "../../etc/passwd"}, Verdict.UNREADABLE),
        ({"sop": "1." + "2" * 80}, Verdict.UNREADABLE),
    ],
)
def test_what_was_announced_must_be_what_comes(tmp_path: Path, edit: dict[str, str], verdict: Verdict) -> None:
    spool = open_spool(tmp_path)
    assert put(spool, instance(), **edit).verdict is verdict
    assert files(spool) == []


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "PixelData"])
def test_an_instance_without_what_it_needs_is_refused(tmp_path: Path, missing: str) -> None:
    spool = open_spool(tmp_path)
    ds = instance()
    facts = {"sop_class": str(ds.SOPClassUID), "sop": str(ds.SOPInstanceUID), "syntax": tags.EXPLICIT_LITTLE}
    delattr(ds, missing)
    assert spool.store(_bare(ds), sender="x", **facts).verdict is Verdict.UNREADABLE


def test_another_modality_is_refused(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    mr = "1.2.840.10008.5.1.4.1.1.4"
    assert put(spool, instance(SOPClassUID=mr)).verdict is Verdict.UNREADABLE


def _bare(ds: Any) -> bytes:
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    del ds.file_meta
    write_dataset(stream, ds)
    return bytes(stream.getvalue())


@given(cut=st.integers(0, 100), noise=st.binary(max_size=40))
@settings(max_examples=40)
def test_damaged_bytes_never_raise_and_never_stay(
    tmp_path_factory: pytest.TempPathFactory, cut: int, noise: bytes
) -> None:
    spool = open_spool(tmp_path_factory.mktemp("spool"), limits=NO_RESERVE)
    ds = instance()
    data = encoded(ds)
    at = len(data) * cut // 101
    damaged = (data[:at] + noise)[: len(data) - 2]
    facts = {"sop_class": str(ds.SOPClassUID), "sop": str(ds.SOPInstanceUID), "syntax": tags.EXPLICIT_LITTLE}
    assert spool.store(damaged, sender="x", **facts).verdict is not Verdict.ACCEPTED
    assert files(spool) == [] and not list((spool.folder / "incoming").iterdir())
    spool.close()


def test_ten_thousand_nested_sequences_and_a_deflate_bomb_are_refused(tmp_path: Path) -> None:
    import zlib

    spool = open_spool(tmp_path)
    ds = instance()
    facts = {"sop_class": str(ds.SOPClassUID), "sop": str(ds.SOPInstanceUID)}
    nest = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 10_000
    assert spool.store(nest, sender="x", syntax=tags.EXPLICIT_LITTLE, **facts).verdict is Verdict.UNREADABLE
    bomb = zlib.compress(bytes(64 * 2**20), 9, -15)
    assert spool.store(bomb, sender="x", syntax=tags.DEFLATED, **facts).verdict is Verdict.UNREADABLE


@pytest.mark.parametrize(
    "options",
    [
        {"limits": Limits(free_bytes=0, disk_bytes=2**20)},
        {"limits": Limits(free_bytes=0, study_instances=2)},
        {"limits": Limits(free_bytes=10**6), "free": lambda _: 10**6},
    ],
)
def test_no_room_is_an_answer_and_counts_every_byte(tmp_path: Path, options: dict[str, Any]) -> None:
    spool = open_spool(tmp_path, **options)
    padding = bytes(300_000)
    verdicts = [put(spool, instance(n)).verdict for n in range(2)]
    for number in range(2, 6):
        big = instance(number)
        big.add_new(0x00091010, "OB", padding)
        verdicts.append(put(spool, big).verdict)
    assert verdicts[-1] is Verdict.FULL
    held = sum(path.stat().st_size for path in files(spool))
    assert spool.used_bytes == held and not list((spool.folder / "incoming").iterdir())


def no_sync(patch: pytest.MonkeyPatch, instead: Any) -> None:
    for name in ("fsync", "fdatasync"):
        patch.setattr(os, name, instead)


@pytest.mark.parametrize("where", ["write", "index"])
def test_a_full_disk_is_no_room_and_the_instance_can_be_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    spool = open_spool(tmp_path)
    put(spool, instance(0))

    def full(*_: object) -> None:
        if where == "index":
            raise sqlite3.OperationalError("database or disk is full")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spool.index, "add", full) if where == "index" else no_sync(patch, full)
        assert put(spool, instance(1)).verdict is Verdict.FULL
    assert len(files(spool)) == 1 and not list((spool.folder / "incoming").iterdir())
    assert put(spool, instance(1)).verdict is Verdict.ACCEPTED


def test_a_failing_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(tmp_path)

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    no_sync(monkeypatch, broken)
    with pytest.raises(OutputError):
        put(spool, instance())


# Crashes --------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process dies here."""


def steps_of_store(folder: Path) -> int:
    """How many system calls of a store can be the last one."""
    with dying(-1) as counter:
        spool = open_spool(folder)
        put(spool, instance())
    return next(counter)


class dying:  # noqa: N801 (reads as a word)
    """Let the process die at the n-th call that changes the disk."""

    CALLS = (
        (os, "open"), (os, "fsync"), (os, "fdatasync"), (os, "pwritev"),
        (Path, "mkdir"), (Path, "rename"), (Index, "add"),
    )  # fmt: skip

    def __init__(self, at: int) -> None:
        self.at, self.counter = at, itertools.count()
        self.kept = [(owner, name, getattr(owner, name)) for owner, name in self.CALLS]

    def __enter__(self) -> Any:
        for owner, name, real in self.kept:
            setattr(owner, name, self._wrapped(real))
        return self.counter

    def _wrapped(self, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(self.counter) == self.at:
                raise Killed
            return real(*args, **kwargs)

        return call

    def __exit__(self, *_: object) -> None:
        for owner, name, real in self.kept:
            setattr(owner, name, real)


def test_a_death_at_any_step_leaves_no_half_file_and_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    for at in range(steps_of_store(tmp_path / "count")):
        folder = tmp_path / str(at)
        spool = open_spool(folder)
        assert put(spool, instance(0)).verdict is Verdict.ACCEPTED
        with dying(at), contextlib.suppress(Killed):  # fewer steps than counted: opening has some too
            put(spool, instance(1))
        crash(spool)
        spool = open_spool(folder)
        for path in files(spool):
            assert len(pixels_of(path)) == 2 * SMALL.rows * SMALL.columns
        assert spool.holds(tags.CT_STORAGE, str(instance(0).SOPInstanceUID))
        assert put(spool, instance(1)).verdict in (Verdict.ACCEPTED, Verdict.AGAIN)
        assert len(files(spool)) == len(spool.index.rows()) == 2
        assert not list((spool.folder / "incoming").iterdir())
        crash(spool)


def test_recovery_gives_whole_files_their_row_again_and_removes_the_rest(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, instance(0)), put(spool, instance(1))
    spool.index.drop([str(instance(1).SOPInstanceUID)])
    folder = files(spool)[0].parent
    (folder / "half.dcm").write_bytes(files(spool)[0].read_bytes()[:300])
    (folder.parent.parent / "incoming" / "x.part").write_bytes(b"half")
    crash(spool)
    again = Spool(tmp_path, spool.pseudonyms)
    found = again.recover()
    assert (found.indexed, found.removed, found.lost) == (1, 2, 0)
    assert put(again, instance(1)).verdict is Verdict.AGAIN


def test_an_instance_that_somebody_deleted_is_counted_and_can_come_again(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, instance(0))
    crash(spool)
    spool = open_spool(tmp_path)  # which no longer has it in its journal
    files(spool)[0].unlink()
    assert spool.holds(tags.CT_STORAGE, str(instance(0).SOPInstanceUID)) is False
    crash(spool)
    again = Spool(tmp_path, spool.pseudonyms)
    assert again.recover().lost == 1
    assert put(again, instance(0)).verdict is Verdict.ACCEPTED


def test_one_process_receives_into_a_spool(tmp_path: Path) -> None:
    first = open_spool(tmp_path)
    with pytest.raises(UsageError, match="another node"):
        Spool(tmp_path, first.pseudonyms).recover()


def test_many_threads_with_the_same_and_other_instances_store_each_once(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    verdicts: list[Verdict] = []

    def send() -> None:
        verdicts.extend(put(spool, instance(number)).verdict for number in range(12))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts.count(Verdict.ACCEPTED) == 12 and verdicts.count(Verdict.AGAIN) == 36
    assert len(files(spool)) == 12 and spool.used_bytes == sum(path.stat().st_size for path in files(spool))


# Going on -------------------------------------------------------------------------------------------------------------


def test_a_study_goes_on_when_nothing_came_for_the_quiet_time(tmp_path: Path) -> None:
    clock = FakeClock()
    spool = open_spool(tmp_path, clock)
    arrivals = Arrivals(spool, quiet_seconds=30)
    for number in range(3):
        put(spool, instance(number))
        clock.seconds += 20
        assert arrivals.ready() == []
    clock.seconds += 10
    (arrival,) = arrivals.ready()
    assert arrival.instances == 3 and arrival.state is ArrivalState.READY
    uids = {dcmread(path).SOPInstanceUID for path in arrival.folder.iterdir()}
    assert uids == {instance(number).SOPInstanceUID for number in range(3)}
    assert arrivals.ready() == [arrival]


def test_half_a_study_then_silence_goes_on_as_far_as_it_came(tmp_path: Path) -> None:
    clock = FakeClock()
    spool = open_spool(tmp_path, clock)
    arrivals = Arrivals(spool, quiet_seconds=30)
    put(spool, instance(0))
    clock.seconds += 31
    (half,) = arrivals.ready()
    arrivals.claim(half.key)
    put(spool, instance(1))
    clock.seconds += 31
    (whole,) = arrivals.ready()
    assert (half.instances, whole.instances) == (1, 2) and half.key != whole.key
    assert len(list(half.folder.iterdir())) == 1  # what is judged does not change under the judge


def test_more_instances_take_the_place_of_an_arrival_that_nobody_claimed(tmp_path: Path) -> None:
    clock = FakeClock()
    spool = open_spool(tmp_path, clock)
    arrivals = Arrivals(spool, quiet_seconds=30)
    put(spool, instance(0))
    clock.seconds += 31
    (half,) = arrivals.ready()
    put(spool, instance(1))
    clock.seconds += 31
    (whole,) = arrivals.ready()
    assert whole.instances == 2 and not half.folder.exists()
    with pytest.raises(UsageError, match="larger one"):
        arrivals.claim(half.key)


def test_the_same_study_twice_is_one_arrival(tmp_path: Path) -> None:
    clock = FakeClock()
    spool = open_spool(tmp_path, clock)
    arrivals = Arrivals(spool, quiet_seconds=30)
    for _ in range(2):
        for number in range(3):
            put(spool, instance(number))
        clock.seconds += 31
        arrivals.ready()
    (row,) = spool.index.arrivals()
    arrivals.claim(row.key)
    arrivals.mark(row.key, ArrivalState.DONE)
    assert arrivals.ready() == []


def test_claiming_twice_changes_nothing_and_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    clock = FakeClock()
    spool = open_spool(tmp_path, clock)
    arrivals = Arrivals(spool, quiet_seconds=30)
    put(spool, instance())
    clock.seconds += 31
    key = arrivals.ready()[0].key
    assert arrivals.claim(key) == arrivals.claim(key)
    assert arrivals.ready() == [] and arrivals.claim(key).state is ArrivalState.CLAIMED
    for call in (arrivals.claim, lambda k: arrivals.mark(k, ArrivalState.DONE)):
        with pytest.raises(UsageError):
            call("study-none")


def test_a_study_that_its_sender_says_is_complete_does_not_wait(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, instance())
    spool.finish(ROOT + "1")
    assert len(Arrivals(spool, quiet_seconds=1e6).ready()) == 1


def test_a_clock_that_jumps_back_neither_loses_nor_hastens_a_study(tmp_path: Path) -> None:
    clock = FakeClock()
    spool = open_spool(tmp_path, clock)
    arrivals = Arrivals(spool, quiet_seconds=30)
    put(spool, instance())
    clock.seconds -= 900
    assert arrivals.ready() == []
    clock.seconds += 29
    assert arrivals.ready() == []
    clock.seconds += 1
    assert len(arrivals.ready()) == 1


def test_a_restart_waits_the_quiet_time_once_more_and_forgets_no_study(tmp_path: Path) -> None:
    clock = FakeClock()
    spool = open_spool(tmp_path, clock)
    put(spool, instance())
    crash(spool)
    clock.seconds = 5.0  # the clock of another boot
    spool = open_spool(tmp_path, clock)
    arrivals = Arrivals(spool, quiet_seconds=30)
    assert arrivals.ready() == []
    clock.seconds += 30
    assert len(arrivals.ready()) == 1


@pytest.mark.parametrize("at", ["linking", "linked"])
def test_a_death_while_a_study_goes_on_makes_it_go_on_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    clock = FakeClock()
    spool = open_spool(tmp_path, clock)
    put(spool, instance(0)), put(spool, instance(1))
    spool.finish(ROOT + "1")

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if at == "linking":
            patch.setattr("cspine.node.arrivals.sync_folder", die)
        else:
            patch.setattr(spool.index, "settle", die)
        with pytest.raises(Killed):
            Arrivals(spool, quiet_seconds=30).ready()
    crash(spool)
    spool = open_spool(tmp_path, clock)
    arrivals = Arrivals(spool, quiet_seconds=30)
    arrivals.recover()
    assert list((tmp_path / "ready").iterdir()) == []
    spool.finish(ROOT + "1")
    (arrival,) = arrivals.ready()
    assert len(list(arrival.folder.iterdir())) == 2


def test_an_arrival_whose_folder_is_gone_is_made_again(tmp_path: Path) -> None:
    import shutil

    spool = open_spool(tmp_path)
    arrivals = Arrivals(spool, quiet_seconds=30)
    put(spool, instance())
    spool.finish(ROOT + "1")
    key = arrivals.ready()[0].key
    shutil.rmtree(arrivals.claim(key).folder)
    arrivals.recover()
    spool.finish(ROOT + "1")
    assert [arrival.key for arrival in arrivals.ready()] == [key]


def test_what_is_over_is_deleted_but_not_forgotten(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    arrivals = Arrivals(spool, quiet_seconds=30)
    put(spool, instance())
    spool.finish(ROOT + "1")
    key = arrivals.claim(arrivals.ready()[0].key).key
    assert arrivals.forget(key)
    assert files(spool) == [] and spool.used_bytes == 0 and list((tmp_path / "ready").iterdir()) == []
    assert put(spool, instance()).verdict is Verdict.ACCEPTED
    spool.finish(ROOT + "1")
    assert arrivals.ready() == []


def test_a_study_of_which_more_is_being_judged_is_not_deleted(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    arrivals = Arrivals(spool, quiet_seconds=30)
    keys = []
    for number in range(2):
        put(spool, instance(number))
        spool.finish(ROOT + "1")
        keys.append(arrivals.claim(arrivals.ready()[0].key).key)
    assert not arrivals.forget(keys[0])
    assert len(files(spool)) == 2
    assert arrivals.forget(keys[1])


def test_a_deletion_that_a_crash_interrupts_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(tmp_path)
    arrivals = Arrivals(spool, quiet_seconds=30)
    put(spool, instance())
    spool.finish(ROOT + "1")
    key = arrivals.claim(arrivals.ready()[0].key).key

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(spool.index, "drop", die)
        with pytest.raises(Killed):
            arrivals.forget(key)
    crash(spool)
    again = Spool(tmp_path, spool.pseudonyms)
    assert again.recover().lost == 0
    assert again.index.rows() == [] and files(again) == []


def test_a_file_from_a_watched_folder_comes_in_like_any_other(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "spool")
    (path,) = write_instances(tmp_path / "in", 1)
    assert spool.store_file(path, sender="watch").verdict is Verdict.ACCEPTED
    path.write_bytes(b"no DICOM")
    assert spool.store_file(path, sender="watch").verdict is Verdict.UNREADABLE
    with pytest.raises(UsageError):
        spool.store_file(tmp_path / "none", sender="watch")
