"""The work of a node: what follows from how a try ends, that nothing is done twice, that DBOS goes on after a stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from dbos import DBOS

from cspine.errors import CspineError, UsageError
from cspine.node.audit import Action, AuditEvent
from cspine.node.child import JobOutcome, Order
from cspine.node.durable import Durable
from cspine.node.figures import Figures
from cspine.node.ledger import Ledger
from cspine.node.shelf import retry
from cspine.node.status import gather
from cspine.node.work import HINDERED_SECONDS, Attempt, Work, formats_of
from node_work_factory import AtOnce, Clock, Collects, add_study, calls, make_work

HOUR = 3600.0


def test_a_study_is_judged_once_its_results_go_everywhere_and_then_it_is_done(tmp_path: Path) -> None:
    pacs, archive = Collects(), Collects()
    work = make_work(tmp_path, {"pacs": pacs, "archive": archive})
    runner = AtOnce(work)
    add_study(work, "study-1")
    for _ in range(3):
        work.tick(runner)
    job = work.ledger.job("study-1")
    assert job is not None and (job.state, job.positive) == ("done", True)
    assert pacs.got == archive.got == calls(work) == ["study-1"]
    assert {"judge", "whole"} >= set(job.seconds) and Figures(work.ledger.database).tally("step")["whole"][0] == 1


def test_the_same_study_again_changes_nothing(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    add_study(work, "study-1")
    assert not work.accept("study-1", tmp_path, 3, "digest", 0.0)
    assert len(work.ledger.jobs()) == 1


@pytest.mark.parametrize("key", ["", "../up", "a/b", "x" * 200])
def test_a_key_that_cannot_name_a_folder_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match="key"):
        make_work(tmp_path).accept(key, tmp_path, 1, "digest", 0.0)


def test_what_is_written_down_twice_counts_once(tmp_path: Path) -> None:
    """DBOS repeats a step that was killed before its end was kept."""
    work = make_work(tmp_path, {"pacs": Collects()})
    add_study(work, "study-1")
    (job,) = work.ledger.due_jobs(work.clock())
    outcome, again = work.judge_once(job), work.judge_once(job)
    assert outcome is not None and again is not None and again.files == outcome.files
    work.record_judgement(job, outcome)
    work.record_judgement(job, outcome)
    (delivery,) = work.ledger.deliveries()
    for _ in range(2):
        work.record_delivery(job, delivery, Attempt(seconds=0.1))
    assert calls(work) == ["study-1"]
    counted = Figures(work.ledger.database).tally("step")
    assert counted["whole"][0] == counted["send"][0] == 1


@pytest.mark.parametrize("say", ["crash", "die"])
def test_a_study_that_keeps_failing_goes_to_the_shelf_and_the_others_go_on(tmp_path: Path, say: str) -> None:
    clock, pacs = Clock(), Collects()
    work = make_work(tmp_path, {"pacs": pacs}, clock=clock, worker={"tries": 3})
    runner = AtOnce(work)
    add_study(work, "bad", say)
    add_study(work, "good")
    for _ in range(12):
        work.tick(runner)
        clock.now += 60
    bad, good = work.ledger.job("bad"), work.ledger.job("good")
    assert bad is not None and (bad.state, bad.reason, bad.tries) == ("shelved", "crashed", 3)
    assert good is not None and good.state == "done"
    assert calls(work).count("bad") == 3 and pacs.got == ["good"]
    note = work.settings.data / "shelf" / "bad~study.json"
    assert '"reason": "crashed"' in note.read_text(encoding="utf-8")


def test_waits_between_tries_grow(tmp_path: Path) -> None:
    work = make_work(tmp_path, worker={"tries": 4}, retry={"first_seconds": 8, "most_seconds": 1000})
    runner, waits = AtOnce(work), []
    add_study(work, "bad", "die")
    for _ in range(3):
        work.tick(runner)
        job = work.ledger.job("bad")
        assert job is not None
        waits.append(job.due - work.clock())
        work.clock.now = job.due  # type: ignore[attr-defined]
    assert 4 <= waits[0] <= 8 <= waits[1] <= 16 <= waits[2] <= 32


def test_a_clock_that_goes_back_makes_nobody_wait_longer(tmp_path: Path) -> None:
    clock = Clock()
    work = make_work(tmp_path, clock=clock)
    add_study(work, "study-1", "die")
    work.tick(AtOnce(work))
    clock.now -= 365 * 24 * HOUR
    (work.settings.data / "studies" / "study-1" / "say").write_text("judge")
    for _ in range(2):
        work.tick(AtOnce(work))
    assert work.ledger.job("study-1").state == "done"  # type: ignore[union-attr]


def test_a_damaged_study_is_not_tried_again_and_one_without_a_neck_is_not_sent(tmp_path: Path) -> None:
    pacs = Collects()
    work = make_work(tmp_path, {"pacs": pacs})
    for key, say in (("damaged", "refuse"), ("chest", "skip")):
        add_study(work, key, say)
    for _ in range(3):
        work.tick(AtOnce(work))
    states = {job.key: job.state for job in work.ledger.jobs()}
    assert states == {"damaged": "shelved", "chest": "skipped"} and not pacs.got
    assert sorted(calls(work)) == ["chest", "damaged"]


def test_a_fault_of_the_node_is_no_try_of_the_study(tmp_path: Path) -> None:
    """A full disk mends; until then the study waits, however long."""
    clock = Clock()
    work = make_work(tmp_path, clock=clock, worker={"tries": 1})
    runner = AtOnce(work)
    add_study(work, "study-1", "hinder")
    for _ in range(5):
        work.tick(runner)
        clock.now += HINDERED_SECONDS
    (work.settings.data / "studies" / "study-1" / "say").write_text("judge")
    for _ in range(2):
        work.tick(runner)
    job = work.ledger.job("study-1")
    assert job is not None and (job.state, job.tries) == ("done", 0)


def test_from_the_shelf_a_study_has_all_its_tries_again(tmp_path: Path) -> None:
    clock = Clock()
    work = make_work(tmp_path, clock=clock, worker={"tries": 1})
    runner = AtOnce(work)
    add_study(work, "study-1", "die")
    work.tick(runner)
    (work.settings.data / "studies" / "study-1" / "say").write_text("judge")
    assert retry(work.ledger, work.shelf, ["study"], clock()) == ["study-1"]
    assert not list(work.shelf.folder.iterdir())
    for _ in range(2):
        work.tick(runner)
    job = work.ledger.job("study-1")
    assert job is not None and (job.state, job.round) == ("done", 1)


def test_files_go_after_their_time_and_the_shelf_keeps_its_own(tmp_path: Path) -> None:
    clock, forgotten = Clock(), []
    work = make_work(tmp_path, clock=clock, keep_days=1.0, worker={"tries": 1})
    work = replace(work, forget=lambda job: forgotten.append(job.key))
    runner = AtOnce(work)
    for key, say in (("good", "judge"), ("bad", "die")):
        add_study(work, key, say)
    for _ in range(2):
        work.tick(runner)
    assert not forgotten
    clock.now += 25 * HOUR
    for _ in range(2):
        work.tick(runner)
    assert forgotten == ["good"]
    assert [path.name for path in (work.settings.data / "work").iterdir()] == ["bad"]


def test_a_try_that_died_with_the_node_counts_as_one_that_failed(tmp_path: Path) -> None:
    work = make_work(tmp_path, worker={"tries": 2})
    add_study(work, "study-1")
    (job,) = work.ledger.due_jobs(work.clock())
    work.ledger.take_job(job)
    work.recover(AtOnce(work, lost=False))
    assert work.ledger.job("study-1").state == "busy"  # type: ignore[union-attr]
    work.recover(AtOnce(work, lost=True))
    after = work.ledger.job("study-1")
    assert after is not None and (after.state, after.tries, after.reason) == ("waiting", 1, "node-died")


def test_what_a_destination_had_to_say_is_kept_though_it_stored_everything(tmp_path: Path) -> None:
    events: list[AuditEvent] = []
    work = replace(make_work(tmp_path, {"pacs": Collects(warning="warning-b006")}), tell=events.append)
    add_study(work, "study-1")
    for _ in range(2):
        work.tick(AtOnce(work))
    (delivery,) = work.ledger.deliveries("delivered")
    assert delivery.reason == "warning-b006" and work.ledger.job("study-1").state == "done"  # type: ignore[union-attr]
    assert (Action.SENT, "pacs: warning-b006") in [(event.action, event.detail) for event in events]
    assert not gather(work.ledger, work.settings.data, 0.0).failing


def test_a_try_that_is_over_is_not_run_again(tmp_path: Path) -> None:
    """Whatever the queue has forgotten: the ledger says so."""
    pacs = Collects()
    work = make_work(tmp_path, {"pacs": pacs})
    add_study(work, "study-1")
    (job,) = work.ledger.due_jobs(work.clock())
    work.tick(AtOnce(work))
    (delivery,) = work.ledger.deliveries()
    work.tick(AtOnce(work))
    assert work.judge_once(job) is None and work.send_once(job, delivery) is None
    assert calls(work) == pacs.got == ["study-1"]


def test_a_note_is_put_on_the_shelf_also_after_a_kill_in_between_and_not_for_a_study_that_is_done(
    tmp_path: Path,
) -> None:
    work = make_work(tmp_path, worker={"tries": 1})
    for key in ("bad", "good"):
        add_study(work, key)
    bad, good = work.ledger.due_jobs(work.clock())
    failed = JobOutcome(ending="failed", reason="timeout")
    work.record_judgement(bad, failed)
    work.shelf.remove("bad")  # as if the node had died before it wrote the note
    work.record_judgement(bad, failed)
    work.record_judgement(good, JobOutcome(ending="judged"))
    work.record_judgement(good, failed)  # somebody took it for dead, too late
    assert [path.name for path in work.shelf.folder.iterdir()] == ["bad~study.json"]


def test_the_audit_trail_hears_of_every_end(tmp_path: Path) -> None:
    events: list[AuditEvent] = []
    work = make_work(tmp_path, {"pacs": Collects(), "dead": Collects(failing="http-400", lasting=True)})
    work = replace(work, tell=events.append)
    for key, say in (("good", "judge"), ("damaged", "refuse")):
        add_study(work, key, say)
    for _ in range(2):
        work.tick(AtOnce(work))
    told = [(event.action, event.study, event.detail) for event in events]
    assert (Action.JUDGED, "good", "positive") in told
    assert (Action.SENT, "good", "pacs") in told
    assert (Action.SHELVED, "good", "dead: http-400") in told
    assert (Action.SHELVED, "damaged", "told-so") in told


def test_only_what_a_destination_wants_is_written(tmp_path: Path) -> None:
    destinations = [
        {"kind": "cstore", "name": "pacs", "ae_title": "PACS", "host": "localhost", "formats": ["sr", "seg"]},
        {"kind": "stow", "name": "web", "url": "http://localhost", "formats": ["sc", "seg"]},
    ]
    work = make_work(tmp_path, destinations=destinations)
    assert formats_of(work.settings) == ("sr", "seg", "sc", "json")


@pytest.mark.parametrize("url", ["nonsense", "mysql://localhost/x"])
def test_other_databases_are_refused_without_repeating_the_address(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Ledger(url)
    assert url not in str(caught.value)


def test_a_database_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(CspineError, match="cannot be opened"):
        Ledger(f"sqlite:///{tmp_path}/missing/ledger.sqlite")


# DBOS ----------------------------------------------------------------------------------------------------------------


def until(true: Callable[[], bool], work: Work, runner: Durable, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, [(job.key, job.state, job.reason) for job in work.ledger.jobs()]
        work.tick(runner)
        time.sleep(0.02)


def states(work: Work) -> set[str]:
    return {job.state for job in work.ledger.jobs()}


def test_dbos_runs_every_try_once_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    pacs = Collects()
    work = make_work(tmp_path, {"pacs": pacs}, clock=time.time, worker={"tries": 1})  # type: ignore[arg-type]
    keys = [f"study-{number}" for number in range(4)]
    for key in keys:
        add_study(work, key)
    add_study(work, "bad", "die")
    url = f"sqlite:///{work.settings.data / 'dbos.sqlite'}"
    over = threading.Event()

    def judge_two(order: Order, seconds: float) -> JobOutcome:
        if len(calls(work)) < 2:
            return work.judge(order, seconds)
        over.wait(60)  # this one is under way at the stop, and never comes to its end
        raise RuntimeError

    runner = Durable(replace(work, judge=judge_two), url, poll_seconds=0.05)
    runner.launch()
    try:
        until(lambda: len(calls(work)) == 2 and not DBOS.list_workflows(name="send", status="PENDING"), work, runner)
    finally:
        runner.close()
    runner = Durable(work, url, poll_seconds=0.05)
    runner.launch()
    try:
        until(lambda: states(work) <= {"done", "shelved"}, work, runner)
        for job in work.ledger.jobs():  # submitted once more: the same IDs, so nothing happens
            runner.submit_judgement(replace(job, round=0, tries=0))
        time.sleep(0.3)
    finally:
        runner.close()
    over.set()
    assert sorted(calls(work)) == ["bad", *keys] and sorted(pacs.got) == keys


def test_the_history_of_what_is_over_goes_and_nothing_is_done_twice_for_that(tmp_path: Path) -> None:
    pacs = Collects()
    work = make_work(tmp_path, {"pacs": pacs}, clock=time.time)  # type: ignore[arg-type]
    add_study(work, "study-1")
    (first,) = work.ledger.due_jobs(work.clock())
    runner = Durable(work, f"sqlite:///{work.settings.data / 'dbos.sqlite'}", poll_seconds=0.05)
    runner.launch()
    try:
        until(lambda: states(work) == {"done"}, work, runner)
        until(lambda: not DBOS.list_workflows(status=["PENDING", "ENQUEUED"]), work, runner)
        assert runner.forget(time.time() - 3600) == 0
        assert runner.forget(time.time() + 1) == 2 and not DBOS.list_workflows()
        # The same tries once more, of which DBOS knows nothing now.
        runner.submit_judgement(first)
        runner.submit_delivery(first, replace(work.ledger.deliveries()[0], tries=0))
        until(lambda: len(DBOS.list_workflows(status="SUCCESS")) == 2, work, runner)
    finally:
        runner.close()
    assert calls(work) == pacs.got == ["study-1"] and states(work) == {"done"}


def test_nothing_in_the_queue_is_pickled(tmp_path: Path) -> None:
    import sqlite3

    work = make_work(tmp_path, {"pacs": Collects()}, clock=time.time)  # type: ignore[arg-type]
    add_study(work, "study-1")
    path = work.settings.data / "dbos.sqlite"
    runner = Durable(work, f"sqlite:///{path}", poll_seconds=0.05)
    runner.launch()
    try:
        until(lambda: states(work) == {"done"}, work, runner)
    finally:
        runner.close()
    with sqlite3.connect(path) as connection:
        kinds = {row[0] for row in connection.execute("SELECT serialization FROM workflow_status")}
    assert kinds == {"portable_json"}
