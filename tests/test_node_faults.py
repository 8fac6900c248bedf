"""A whole node, killed and starved: nothing that was accepted is lost, nothing is done twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from cspine.node.deliver import CStore
from cspine.node.ledger import Job, Ledger
from cspine.node.settings import CStoreDestination
from dicom_factory import Grid, make_slice
from node_process import NodeProcess, node_process
from node_work_factory import SECONDARY_CAPTURE, AtOnce, Clock, add_study, calls, make_work, result_uid

STUDIES = 20


@dataclass
class Pacs:
    """A DICOM service in the test that counts what it gets; ``status`` is what it answers."""

    got: Counter[str] = field(default_factory=Counter)
    status: int = 0
    port: int = 0

    def store(self, event: Any) -> int:
        if not self.status:
            self.got[str(event.request.AffectedSOPInstanceUID)] += 1
        return self.status

    @contextmanager
    def listening(self) -> Iterator[Pacs]:
        entity = AE(ae_title="PACS")
        entity.add_supported_context(SECONDARY_CAPTURE, ExplicitVRLittleEndian)
        handlers = [(evt.EVT_C_STORE, self.store)]
        server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
        assert server is not None
        self.port = server.server_address[1]
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    @property
    def toml(self) -> str:
        return (
            f'[[destinations]]\nkind = "cstore"\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\n'
            f'port = {self.port}\nformats = ["seg"]\n[retry]\nfirst_seconds = 0.2\nmost_seconds = 0.5\ntries = 1000\n'
        )


def instances(study: int, count: int = 2) -> list[FileDataset]:
    """A study of a few tiny slices with UIDs of its own."""
    made = []
    for number in range(count):
        ds = make_slice(Grid(count=3, rows=8, columns=8), number, number)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.{study}", f"1.2.{study}.1"
        ds.set_original_encoding(False, True)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.{study}.1.{number + 1}"
        made.append(ds)
    return made


def send(port: int, datasets: list[FileDataset], *, release: bool = True) -> list[int]:
    """Send as any sender does; gives the answers, fewer than were sent when the connection was lost."""
    entity = AE(ae_title="SENDER")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 5
    association = entity.associate("127.0.0.1", port, ae_title="CSPINE")
    if not association.is_established:
        return []
    statuses = []
    try:
        for ds in datasets:
            answer = association.send_c_store(ds)
            if "Status" not in answer:
                return statuses
            statuses.append(int(answer.Status))
    except RuntimeError:
        return statuses
    finally:
        if association.is_established and release:
            association.release()
        elif not release:
            association.abort()
    return statuses


def way_to(port: int) -> CStore:
    table = {"kind": "cstore", "name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": port}
    return CStore(CStoreDestination.model_validate({**table, "formats": ["seg"]}), "CSPINE")


def send_until_accepted(node: NodeProcess, study: int, stop: threading.Event) -> None:
    """A sender sends again until all its instances were accepted."""
    datasets = instances(study)
    while not stop.is_set() and send(node.port, datasets) != [0] * len(datasets):
        time.sleep(0.1)


def jobs(node: NodeProcess) -> list[Job]:
    ledger = Ledger(f"sqlite:///{node.data / 'ledger.sqlite'}")
    try:
        return ledger.jobs()
    finally:
        ledger.close()


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


def test_a_node_that_is_killed_again_and_again_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    chance, stop = random.Random(5), threading.Event()
    # Senders come back within the quiet time; a study that they come back too late with is rightly two.
    with Pacs().listening() as pacs, node_process(tmp_path, pacs.toml, quiet_seconds=2.0) as node:

        def sending() -> None:
            for study in range(STUDIES):
                send_until_accepted(node, study, stop)

        sender = threading.Thread(target=sending)
        sender.start()
        try:
            for _ in range(5):
                time.sleep(chance.uniform(0.05, 1.2))
                node.kill()
                node.start()
            sender.join(60)
            assert not sender.is_alive()
            until(lambda: [job.state for job in jobs(node)].count("done") == STUDIES)
        finally:
            stop.set()
            sender.join(10)
        time.sleep(0.5)
        ended = jobs(node)
    by_study = Counter(job.key.rpartition("-")[0] for job in ended)
    assert len(by_study) == STUDIES and set(by_study.values()) == {1}, "every study once, and no part of one"
    assert set(pacs.got) == {result_uid(job.key) for job in ended}
    assert [job for job in ended if job.state != "done" or job.tries] == []


def test_half_a_study_then_silence_is_judged_after_the_quiet_time_and_the_rest_makes_a_new_one(tmp_path: Path) -> None:
    with Pacs().listening() as pacs, node_process(tmp_path, pacs.toml) as node:
        whole = instances(1, count=4)
        assert send(node.port, whole[:2], release=False) == [0, 0]
        until(lambda: [job.state for job in jobs(node)] == ["done"])
        assert jobs(node)[0].instances == 2
        assert send(node.port, whole) == [0] * 4
        until(lambda: [job.state for job in jobs(node)] == ["done", "done"])
        assert jobs(node)[1].instances == 4
        # The same study once more, with the same content: it was handled.
        assert send(node.port, whole) == [0] * 4
        time.sleep(1.0)
        assert len(jobs(node)) == 2
        assert len(pacs.got) == 2 and set(pacs.got.values()) == {1}


def test_a_destination_that_is_down_for_an_hour_gets_everything_when_it_is_back(tmp_path: Path) -> None:
    clock, pacs = Clock(), Pacs()
    with pacs.listening():
        port = pacs.port
    there = CStoreDestination(
        kind="cstore", name="pacs", ae_title="PACS", host="127.0.0.1", port=port, formats=("seg",)
    )
    work = make_work(tmp_path, {"pacs": CStore(there, "CSPINE")}, clock=clock)
    runner = AtOnce(work)
    for number in range(3):
        add_study(work, f"study-{number}")
    start = clock.now
    while clock.now < start + 3600:
        work.tick(runner)
        clock.now += 60
    tries = [delivery.tries for delivery in work.ledger.deliveries("waiting")]
    assert len(tries) == 3 and all(6 <= count < 20 for count in tries), "some tries, not one a minute"
    assert not work.ledger.deliveries("shelved", "delivered")
    with Pacs(port=port).listening() as back:
        for _ in range(20):
            work.tick(runner)
            clock.now += 60
        assert sorted(back.got) == sorted(result_uid(f"study-{number}") for number in range(3))
        assert set(back.got.values()) == {1}
    assert {job.state for job in work.ledger.jobs()} == {"done"} and len(calls(work)) == 3


def test_a_destination_that_refuses_an_object_is_not_asked_again(tmp_path: Path) -> None:
    with Pacs(status=0xA900).listening() as pacs:
        work = make_work(tmp_path, {"pacs": way_to(pacs.port)})
        add_study(work, "study-1")
        for _ in range(2):
            work.tick(AtOnce(work))
        (delivery,) = work.ledger.deliveries()
        assert (delivery.state, delivery.reason, delivery.tries) == ("shelved", "status-a900", 1)


def test_a_full_spool_refuses_and_what_was_accepted_goes_on(tmp_path: Path) -> None:
    """The sender is told "out of resources" (A700), so it keeps what it could not send."""
    with Pacs().listening() as pacs:
        limits = "[limits]\ndisk_bytes = 1048576\nmemory_bytes = 1048576\nmessage_bytes = 1048576\nfree_bytes = 0\n"
        with node_process(tmp_path, pacs.toml + limits) as node:
            assert send(node.port, instances(1)) == [0, 0]
            big = instances(2, count=3)
            for ds in big:
                ds.Rows, ds.Columns, ds.PixelData = 512, 512, bytes(2 * 512 * 512)
            answers = send(node.port, big)
            assert answers.count(0) == 1 and set(answers[1:]) == {0xA700}
            until(lambda: Counter(job.state for job in jobs(node))["done"] == 2)


def test_a_full_disk_holds_a_study_back_without_costing_it_a_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    work = make_work(tmp_path, clock=clock, worker={"tries": 1})
    add_study(work, "study-1")
    full = True
    write = Path.write_text

    def fail(path: Path, *arguments: Any, **options: Any) -> int:
        if full and path.name == "order.json":
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", fail)
    runner = AtOnce(work)
    work.tick(runner)
    held = work.ledger.job("study-1")
    assert held is not None and (held.state, held.reason, held.tries) == ("waiting", "output", 0)
    full = False
    clock.now += 120
    for _ in range(2):
        work.tick(runner)
    done = work.ledger.job("study-1")
    assert done is not None and done.state == "done"
