"""The queue and the ledger in PostgreSQL, which several machines may share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cspine.node.durable import Durable
from cspine.node.figures import Figures
from cspine.node.ledger import Ledger
from node_process import node_process
from node_work_factory import Collects, add_study, calls, make_work


def test_work_is_done_once_in_a_shared_database(tmp_path: Path, postgres: str) -> None:
    pacs = Collects()
    local = make_work(tmp_path, {"pacs": pacs}, clock=time.time, worker={"tries": 1})  # type: ignore[arg-type]
    work = replace(local, ledger=Ledger(postgres))
    keys = [f"study-{number}" for number in range(3)]
    for key in keys:
        add_study(work, key)
    add_study(work, "bad", "die")
    assert not work.accept("bad", tmp_path, 1, "digest", 0.0)
    runner = Durable(work, postgres, worker="machine-1", poll_seconds=0.05)
    runner.launch()
    try:

        def ended() -> bool:
            work.tick(runner)
            return len(work.ledger.jobs("done", "shelved")) == 4

        _until(ended)
    finally:
        runner.close()
    assert sorted(calls(work)) == ["bad", *keys] and sorted(pacs.got) == keys
    assert Figures(work.ledger.database).tally("step")["send"][0] == 3
    assert [job.state for job in work.ledger.jobs("shelved")] == ["shelved"]
    work.ledger.close()


def test_a_machine_that_died_does_not_keep_its_study(tmp_path: Path, postgres: str) -> None:
    """Another one takes it over, as a further try; and should the first come back, it leaves the study alone."""
    toml = f'database = "{postgres}"\n[worker]\nlost_seconds = 3\n[retry]\nfirst_seconds = 0.2\n'
    work = replace(make_work(tmp_path, clock=time.time), ledger=Ledger(postgres))  # type: ignore[arg-type]
    keys = [f"study-{number}" for number in range(4)]
    with (
        node_process(tmp_path, toml, seconds=0.6, host="first") as first,
        node_process(tmp_path, toml, seconds=0.6, host="second") as second,
    ):
        for key in keys:
            add_study(work, key)
        _until(lambda: bool(first.judging()) and bool(second.judging()))
        first.kill()
        (lost,) = set(second.begun()) - set(second.judging())
        _until(lambda: {job.state for job in work.ledger.jobs()} == {"done"})
        first.start()
        time.sleep(0.3)
        assert not first.judging()
    # Begun again once, and that cost it a try; everything else was done once.
    assert sorted(calls(work)) == sorted([*keys, lost])
    assert {job.key: job.tries for job in work.ledger.jobs()} == {key: int(key == lost) for key in keys}
    assert Figures(work.ledger.database).tally("failure")["node-died"][0] == 1
    work.ledger.close()


def _until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.02)
