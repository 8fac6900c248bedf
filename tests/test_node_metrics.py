"""How a node says how it is doing: the page for Prometheus, ``cspine node status``, and drift of what comes in."""

from __future__ import annotations

import json
import math
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from cspine.cli.app import app
from cspine.errors import UsageError
from cspine.node import drift
from cspine.node.drift import FEWEST, HU_EDGES, StudyFacts, hu_shares, measure, psi
from cspine.node.metrics import MetricsServer, NodeCollector
from cspine.node.settings import Metrics
from cspine.node.status import drift_of, gather
from cspine.node.work import Work
from node_work_factory import AtOnce, Clock, Collects, add_study, make_work


@pytest.fixture
def busy(tmp_path: Path) -> Work:
    """A node with one of everything."""
    clock = Clock()
    senders = {"pacs": Collects(), "dead": Collects(failing="unreachable"), "web": Collects(failing="x", lasting=True)}
    work = make_work(tmp_path, senders, clock=clock, worker={"tries": 1})
    for key, say in (("good", "judge"), ("bad", "die"), ("chest", "skip")):
        add_study(work, key, say)
    for _ in range(2):
        work.tick(AtOnce(work))
    clock.now += 100
    add_study(work, "new")
    return work


def test_status_says_what_waits_what_failed_and_why(busy: Work) -> None:
    status = gather(busy.ledger, busy.settings.data, busy.clock() + 20)
    assert status.studies == {"sending": 1, "shelved": 1, "skipped": 1, "waiting": 1}
    assert (status.queued, status.oldest_seconds) == (2, 120)
    assert status.failing == {"crashed": 1, "unreachable": 1, "x": 1}
    assert status.failures == {"crashed": 1, "unreachable": 1, "x": 1}
    assert {(one.name, one.delivered, one.waiting, one.shelved) for one in status.destinations} == {
        ("pacs", 1, 0, 0),
        ("dead", 0, 1, 0),
        ("web", 0, 0, 1),
    }
    assert {(one.study, one.what, one.reason) for one in status.shelf} == {
        ("bad", "study", "crashed"),
        ("good", "web", "x"),
    }
    assert {step.step: step.times for step in status.steps} == {"whole": 3, "send": 1}


def test_prometheus_reads_the_same_from_loopback(busy: Work) -> None:
    server = MetricsServer(Metrics(port=None), NodeCollector(busy.ledger, busy.settings.data, busy.clock))
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://127.0.0.1:{server.port}/metrics", timeout=10
        ) as answer:
            text = answer.read().decode()
        with pytest.raises(UsageError, match="cannot listen"):
            MetricsServer(Metrics(port=server.port), NodeCollector(busy.ledger, busy.settings.data))
    finally:
        server.close()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples[("cspine_node_studies", "shelved")] == 1
    assert samples[("cspine_node_queue_length",)] == 2
    assert samples[("cspine_node_oldest_seconds",)] == 100
    assert samples[("cspine_node_failures_total", "crashed")] == 1
    assert samples[("cspine_node_step_seconds_count", "whole")] == 3
    assert samples[("cspine_node_results_waiting", "dead")] == 1
    assert samples[("cspine_node_disk_free_bytes",)] > 0


# Drift ---------------------------------------------------------------------------------------------------------------


def facts(count: int, seed: int, **changed: object) -> list[dict[str, object]]:
    """Studies of a hospital with two scanners."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        shares = rng.dirichlet(np.full(len(HU_EDGES) + 1, 200.0))
        row = StudyFacts(
            thickness_mm=float(rng.choice([0.6, 1.0, 2.0])),
            kernel=str(rng.choice(["Br64", "BONE"])),
            maker=str(rng.choice(["A", "B"], p=[0.8, 0.2])),
            hu=tuple(float(v) for v in shares),
            positive=bool(rng.random() < 0.07),
        )
        rows.append({**row.model_dump(), **changed})
    return rows


def test_the_same_hospital_does_not_drift() -> None:
    found = measure(facts(200, 1), facts(500, 2))
    assert [one.state for one in found] == ["same"] * len(drift.FEATURES)


@pytest.mark.parametrize(
    ("feature", "changed"),
    [
        ("thickness", {"thickness_mm": 5.0}),
        ("kernel", {"kernel": "SOFT"}),
        ("maker", {"maker": "C"}),
        ("positive", {"positive": True}),
        ("hu", {"hu": (1.0, *[0.0] * len(HU_EDGES))}),
    ],
)
def test_a_change_of_one_thing_is_an_alarm_for_that_thing(feature: str, changed: dict[str, object]) -> None:
    found = {one.feature: one.state for one in measure(facts(100, 1, **changed), facts(500, 2))}
    assert found.pop(feature) == "alarm"
    assert set(found.values()) == {"same"}


def test_few_studies_say_nothing() -> None:
    assert measure(facts(FEWEST - 1, 1), facts(500, 2)) == []
    assert measure(facts(100, 1), [{"of": "another version"}] * 500) == []


def test_chance_alone_seldom_alarms() -> None:
    """In 99 of 100 windows without drift, PSI stays below what is called chance."""
    reference = facts(500, 0)
    above = sum(one.psi > one.chance for k in range(40) for one in measure(facts(50, k + 1), reference)[:1])
    assert above <= 3


ROWS = st.lists(st.floats(0, 1), min_size=2, max_size=2)


@given(st.lists(ROWS, min_size=2, max_size=20))
def test_psi_is_zero_for_equals_symmetric_and_never_negative(pairs: list[list[float]]) -> None:
    a, b = (np.asarray(column) + 1e-3 for column in zip(*pairs, strict=True))
    a, b = a / a.sum(), b / b.sum()
    assert psi(a, a) == 0
    assert psi(a, b) >= 0
    assert math.isclose(psi(a, b), psi(b, a), abs_tol=1e-12)


def test_psi_of_a_known_case() -> None:
    """(0.6 - 0.5) ln(0.6 / 0.5) + (0.4 - 0.5) ln(0.4 / 0.5)."""
    assert psi(np.array([0.5, 0.5]), np.array([0.6, 0.4])) == pytest.approx(0.1 * math.log(1.5))


def test_hu_shares_count_every_voxel_once() -> None:
    hu = np.array([[[-1024, 0, 40], [3000, 700, -30]]], np.int16)
    shares = hu_shares(hu)
    assert len(shares) == len(HU_EDGES) + 1 and sum(shares) == pytest.approx(1, abs=1e-5)
    assert shares[0] == shares[-1] == pytest.approx(1 / 6, abs=1e-5)


def test_windows_never_overlap(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    add_study(work, "study-1")
    work.tick(AtOnce(work))
    assert drift_of(work.ledger) == []


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings_file(busy: Work, tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text('data = "data"\n', encoding="utf-8")
    return path


def test_status_command_prints_tables_or_json(settings_file: Path) -> None:
    shown = CliRunner().invoke(app, ["node", "status", str(settings_file)])
    assert shown.exit_code == 0, shown.output
    for text in ("1 shelved", "crashed", "pacs", "on the shelf", "GiB free"):
        assert text in shown.output
    told = CliRunner().invoke(app, ["node", "status", str(settings_file), "--json"])
    assert json.loads(told.output)["queued"] == 2


def test_retry_command_empties_the_shelf(settings_file: Path) -> None:
    assert CliRunner().invoke(app, ["node", "retry", str(settings_file)]).exit_code == UsageError.exit_code
    wrong = CliRunner().invoke(app, ["node", "retry", str(settings_file), "nobody"])
    assert wrong.exit_code == UsageError.exit_code and "fits none" in wrong.output
    one = CliRunner().invoke(app, ["node", "retry", str(settings_file), "ba"])
    assert one.exit_code == 0 and "1 back in the queue" in one.output
    rest = CliRunner().invoke(app, ["node", "retry", str(settings_file), "--all"])
    assert "1 back in the queue" in rest.output and "good" in rest.output


def test_commands_say_when_no_node_has_run(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('data = "elsewhere"\n', encoding="utf-8")
    shown = CliRunner().invoke(app, ["node", "status", str(path)])
    assert shown.exit_code == UsageError.exit_code and "no node has run" in shown.output


def test_check_command_names_what_does_not_work(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        'data = "data"\n[watch]\nfolder = "gone"\n'
        '[[destinations]]\nkind = "stow"\nname = "web"\nurl = "http://127.0.0.1:9/x"\nformats = ["sr"]\n',
        encoding="utf-8",
    )
    shown = CliRunner().invoke(app, ["node", "check", str(path)])
    assert shown.exit_code == UsageError.exit_code
    lines = {
        line[6:].split("  ")[0]: line[:5].strip()
        for line in shown.output.splitlines()
        if line[:5] in ("ok   ", "fails")
    }
    assert lines == {
        "data folder": "ok",
        "database": "ok",
        "model bundle": "ok",
        "formats": "ok",
        "destination web (stow)": "fails",
        "watched folder": "fails",
    }


def test_check_command_refuses_what_a_destination_cannot_take(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        'data = "data"\n[[destinations]]\nkind = "stow"\nname = "web"\nurl = "http://127.0.0.1:9"\nformats = ["pdf"]\n',
        encoding="utf-8",
    )
    shown = CliRunner().invoke(app, ["node", "check", str(path)])
    assert "web takes DICOM objects, and pdf is none" in shown.output and "dicom-pdf" in shown.output
