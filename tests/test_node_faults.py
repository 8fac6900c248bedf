"""A whole node, killed and starved: nothing that was accepted is lost, nothing is done twice."""

from __future__ import annotations

import os
import random
import signal
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
from cspine.node.figures import Figures
from cspine.node.ledger import Job, Ledger
from cspine.node.settings import CStoreDestination
from dicom_factory import Grid, make_slice
from node_process import NodeProcess, node_process
from node_work_factory import SECONDARY_CAPTURE, AtOnce, Clock, add_study, calls, make_work, result_uid
from postgres_server import cut_connections

# With SQLite and with PostgreSQL each: fifty in all. Seconds that the stand-in takes for one, three at once.
STUDIES, JUDGING = 25, 0.15
KILLS = {"sqlite": ["node", "child", "node", "child"], "postgresql": ["connection", "child", "node", "connection"]}


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


def send_until_accepted(node: NodeProcess, datasets: list[FileDataset], stop: threading.Event | None = None) -> None:
    """A sender sends again until all its instances were accepted."""
    while not (stop and stop.is_set()) and send(node.port, datasets) != [0] * len(datasets):
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


@dataclass
class Killer:
    """Kills one thing of a node after the other, and counts how many were in the middle of a study."""

    node: NodeProcess
    chance: random.Random
    database: str
    hits: Counter[str] = field(default_factory=Counter)

    def strike(self, what: str, over: Callable[[], bool]) -> None:
        """Wait for a random moment at which a study is being judged; others are on their way in or out meanwhile."""
        time.sleep(self.chance.uniform(0.0, 2 * JUDGING))
        until(lambda: bool(self.node.judging()) or over())
        self.hits[what] += {"node": self._node, "child": self._child, "connection": self._connection}[what]()

    def _node(self) -> bool:
        running = self.node.judging()
        self.node.kill()
        hit = bool(running.keys() & self.node.begun().keys())  # they died with the node
        self.node.start()
        return hit

    def _child(self) -> bool:
        key, pid = self.chance.choice(sorted(self.node.judging().items()) or [("", 0)])
        if not pid:
            return False
        os.kill(pid, signal.SIGKILL)
        return key in self.node.begun()

    def _connection(self) -> bool:
        running = self.node.judging()
        return cut_connections(self.database) > 0 and bool(running.keys() & self.node.judging().keys())


@pytest.mark.parametrize("kind", list(KILLS))
def test_whatever_is_killed_nothing_is_lost_and_nothing_is_done_twice(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("postgres") if kind == "postgresql" else f"sqlite:///{tmp_path}/data/ledger.sqlite"
    # The history of what is done goes at once: the ledger alone says that it was.
    toml = "history_days = 0\n" + (f'database = "{url}"\n' if kind == "postgresql" else "")
    worker = "[worker]\nprocesses = 3\ntries = 20\n"
    stop = threading.Event()
    # Senders come back within the quiet time; a study that they come back too late with is rightly two.
    with (
        Pacs().listening() as pacs,
        node_process(tmp_path, toml + pacs.toml + worker, quiet_seconds=2.0, seconds=JUDGING) as node,
    ):
        ledger = Ledger(url)
        killer = Killer(node, random.Random(5), url)

        def sending(first: int) -> None:
            for study in range(first, STUDIES, 2):
                send_until_accepted(node, instances(study), stop)

        def over() -> bool:
            return [job.state for job in ledger.jobs()].count("done") == STUDIES

        senders = [threading.Thread(target=sending, args=(first,)) for first in range(2)]
        for sender in senders:
            sender.start()
        try:
            for what in KILLS[kind]:
                killer.strike(what, over)
            until(over)
        finally:
            stop.set()
            for sender in senders:
                sender.join(10)
        ended, counted = ledger.jobs(), Figures(ledger.database).tally("failure")
        ledger.close()
    by_study = Counter(job.key.rpartition("-")[0] for job in ended)
    assert len(by_study) == STUDIES and set(by_study.values()) == {1}, "every study once, and no part of one"
    assert {job.state for job in ended} == {"done"}
    # The kills were in the middle of something, each kind of them.
    hits = killer.hits
    assert set(hits) == set(KILLS[kind]) and hits.total() >= len(KILLS[kind]) - 1 and all(hits.values()), hits
    # Only what was killed was begun again, and only a child that died cost its study a try.
    begun = (node.data / "calls").read_text().split()
    assert set(begun) == {job.key for job in ended} and STUDIES < len(begun) <= STUDIES + 3 * hits.total()
    assert sum(job.tries for job in ended) == sum(count for count, _ in counted.values()) <= KILLS[kind].count("child")
    # Every result is there. One may have been sent again whose sending was cut off, as the same object.
    assert set(pacs.got) == {result_uid(job.key) for job in ended}
    assert pacs.got.total() - STUDIES <= 2 * (hits["node"] + hits["connection"])


def test_half_a_study_then_silence_is_judged_after_the_quiet_time_and_the_rest_makes_a_new_one(tmp_path: Path) -> None:
    with Pacs().listening() as pacs, node_process(tmp_path, pacs.toml) as node:
        whole = instances(1, count=4)
        assert send(node.port, whole[:2], release=False) == [0, 0]
        until(lambda: [job.state for job in jobs(node)] == ["done"])
        assert jobs(node)[0].instances == 2
        send_until_accepted(node, whole)
        until(lambda: [job.state for job in jobs(node)] == ["done", "done"])
        assert jobs(node)[1].instances == 4
        # The same study once more, with the same content: it was handled.
        send_until_accepted(node, whole)
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
