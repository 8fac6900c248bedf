"""``cspine node run`` as a user starts it, with the real judge, driven by DCMTK, its results read back from Orthanc."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components import free_port, need
from cspine.cli.app import app
from cspine.errors import OutputError, UsageError
from cspine.node.ledger import Job, Ledger
from dicom_factory import Grid, write_series
from node_process import node_process
from node_work_factory import result_uid
from orthanc_server import Orthanc

ROOT = Path(__file__).resolve().parents[1]


def jobs(data: Path) -> list[Job]:
    ledger = Ledger(f"sqlite:///{data / 'ledger.sqlite'}")
    try:
        return ledger.jobs()
    finally:
        ledger.close()


def storescu(port: int, folder: Path) -> None:
    command = [need("storescu"), "-aec", "CSPINE", "+sd", "127.0.0.1", str(port), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_a_study_goes_in_by_storescu_and_its_result_comes_out_in_orthanc(tmp_path: Path, orthanc: Orthanc) -> None:
    write_series(tmp_path / "ct", Grid(count=4, rows=16, columns=16))
    ways = (
        f'[[destinations]]\nkind = "cstore"\nname = "pacs"\nae_title = "{orthanc.ae_title}"\n'
        f'host = "{orthanc.host}"\nport = {orthanc.dicom_port}\nformats = ["seg"]\n'
        f'[[destinations]]\nkind = "stow"\nname = "web"\nurl = "{orthanc.dicomweb}"\nformats = ["seg"]\n'
    )
    with node_process(tmp_path, ways) as node:
        storescu(node.port, tmp_path / "ct")
        end = time.monotonic() + 60
        while [job.state for job in jobs(node.data)] != ["done"] if (node.data / "ledger.sqlite").exists() else True:
            assert time.monotonic() < end, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.05)
        (job,) = jobs(node.data)
    assert orthanc.instances() == [result_uid(job.key)]
    assert "SECRET" not in (log := (tmp_path / "log").read_text()) and "Secret" not in log


def test_the_command_with_the_real_judge(tmp_path: Path) -> None:
    """A ball of 24 slices is a CT, but no neck: it is opened, looked at, and nothing is sent."""
    settings, port = tmp_path / "node.toml", free_port()
    settings.write_text(f'data = "data"\nport = {port}\nquiet_seconds = 0.5\n[worker]\nthreads = 1\n', encoding="utf-8")
    write_series(tmp_path / "ct", Grid(count=24))
    log = (tmp_path / "log").open("wb")
    command = [sys.executable, "-m", "cspine", "node", "run", str(settings)]
    program = [str(Path(sys.executable).with_name("cspine")), *command[3:]]
    node = subprocess.Popen(program, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        end = time.monotonic() + 90
        while "listens on" not in (tmp_path / "log").read_text():
            assert node.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        storescu(port, tmp_path / "ct")
        while [job.state for job in jobs(tmp_path / "data")] != ["skipped"]:
            assert time.monotonic() < end, [(j.state, j.reason, j.message) for j in jobs(tmp_path / "data")]
            time.sleep(0.1)
        node.send_signal(signal.SIGTERM)
        assert node.wait(30) == 0
    finally:
        node.kill()
        node.wait()
        log.close()
    text = (tmp_path / "log").read_text()
    assert "SECRET" not in text and "Secret" not in text
    (job,) = jobs(tmp_path / "data")
    assert (job.reason, job.instances) == ("no-cervical-spine", 24)
    assert job.facts is not None and job.facts["kernel"] == "Br64"
    _the_trail(settings, tmp_path)


def _the_trail(settings: Path, folder: Path) -> None:
    """Everything that happened is in the audit trail, whose chain a change breaks."""
    exported = folder / "trail.jsonl"
    shown = CliRunner().invoke(app, ["node", "audit", str(settings), "-o", str(exported)])
    assert shown.exit_code == 0 and "whole" in shown.output
    actions = [json.loads(line)["action"] for line in exported.read_text(encoding="utf-8").splitlines()]
    assert [action for action in actions if action != "refused"] == ["started", "received", "judged", "stopped"]
    assert (
        CliRunner().invoke(app, ["node", "audit", str(settings), "-o", str(exported)]).exit_code == UsageError.exit_code
    )
    trail = folder / "data" / "audit" / "audit.jsonl"
    trail.write_text(trail.read_text(encoding="utf-8").replace("received", "believed"), encoding="utf-8")
    changed = CliRunner().invoke(app, ["node", "audit", str(settings)])
    assert changed.exit_code == OutputError.exit_code and "was changed" in changed.output


def test_a_worker_without_a_shared_database_is_refused(tmp_path: Path) -> None:
    settings = tmp_path / "node.toml"
    settings.write_text('data = "data"\n', encoding="utf-8")
    shown = CliRunner().invoke(app, ["node", "run", str(settings), "--worker"])
    assert shown.exit_code == UsageError.exit_code and "shared database" in shown.output


def test_one_name_works_once(tmp_path: Path) -> None:
    from cspine.node.node import Node
    from cspine.node.settings import NodeSettings

    settings = NodeSettings(data=tmp_path / "data", port=0)
    with Node(settings, receives=False):
        again = Node(settings, receives=False)
        with pytest.raises(UsageError, match="another node"):
            again.__enter__()


def test_the_settings_in_deploy_are_valid(tmp_path: Path) -> None:
    """Every line that is commented out is valid too."""
    import re

    from cspine.node.settings import load_settings

    text = (ROOT / "deploy" / "node.toml").read_text(encoding="utf-8")
    plain, full = tmp_path / "plain.toml", tmp_path / "full.toml"
    plain.write_text(text, encoding="utf-8")
    assert load_settings(plain).host == "127.0.0.1"
    full.write_text(re.sub(r"^#(?! )", "", text, flags=re.MULTILINE), encoding="utf-8")
    settings = load_settings(full)
    assert settings.destinations and settings.peers and settings.poll and settings.watch and settings.tls
    assert settings.database is not None and settings.notify.hl7_host and settings.audit.syslog
