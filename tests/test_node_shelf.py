"""The shelf: what waits for a person, with its reason, and how it comes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cspine.errors import UsageError
from cspine.node.shelf import retry, shelved
from cspine.node.work import Work
from node_work_factory import AtOnce, Clock, Collects, add_study, calls, make_work


def tick(work: Work, times: int = 3) -> None:
    for _ in range(times):
        work.tick(AtOnce(work))


def test_a_note_says_what_why_and_what_to_do(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    add_study(work, "study-1", "refuse")
    tick(work)
    note = json.loads((work.shelf.folder / "study-1~study.json").read_text(encoding="utf-8"))
    assert (note["study"], note["what"], note["reason"], note["tries"]) == ("study-1", "study", "told-so", 1)
    assert "cspine node retry" in note["do"]


def test_results_that_did_not_arrive_go_out_again_without_a_new_judgement(tmp_path: Path) -> None:
    pacs, web = Collects(), Collects(failing="http-400", lasting=True)
    work = make_work(tmp_path, {"pacs": pacs, "web": web})
    add_study(work, "study-1")
    tick(work)
    assert [(one.key, one.what) for one in shelved(work.ledger)] == [("study-1", "web")]
    assert work.ledger.job("study-1").state == "done"  # type: ignore[union-attr]
    web.failing = ""
    assert retry(work.ledger, work.shelf, None, work.clock()) == ["study-1"]
    tick(work)
    assert web.got == pacs.got == calls(work) == ["study-1"]
    assert not shelved(work.ledger) and work.ledger.job("study-1").state == "done"  # type: ignore[union-attr]


def test_a_beginning_names_a_study_when_it_fits_only_one(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    for key in ("study-1a", "study-1b", "study-2"):
        add_study(work, key, "refuse")
    tick(work)
    with pytest.raises(UsageError, match="fits 2"):
        retry(work.ledger, work.shelf, ["study-1"], 0.0)
    assert retry(work.ledger, work.shelf, ["study-2"], 0.0) == ["study-2"]
    assert {one.key for one in shelved(work.ledger)} == {"study-1a", "study-1b"}


def test_an_empty_shelf_gives_nothing_back(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    assert retry(work.ledger, work.shelf, None, 0.0) == []
    with pytest.raises(UsageError, match="fits none"):
        retry(work.ledger, work.shelf, ["study-1"], 0.0)


def test_the_shelf_outlasts_the_time_files_are_kept(tmp_path: Path) -> None:
    clock = Clock()
    work = make_work(tmp_path, {"web": Collects(failing="http-400", lasting=True)}, clock=clock, keep_days=1)
    add_study(work, "study-1")
    tick(work)
    clock.now += 30 * 86400
    tick(work)
    assert list((work.settings.data / "work" / "study-1").rglob("*.dcm"))
