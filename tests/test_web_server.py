"""The application as a service: the command, its one-time link, health, figures, the trail, and the strings."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from typer.testing import CliRunner

import cspine.web
from components import free_port
from cspine.cli.app import app as command
from cspine.web.app import Context
from cspine.web.audit_log import AuditLog, Did
from cspine.web.strings import catalogue, many, part, t
from web_factory import PASSWORD, browser, person, web_app

SOURCES = Path(cspine.web.__file__).parent
ADA = "ada@example.org"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, list[str], Path]]:
    """``cspine web`` in a process of its own: its port, what it printed, its data folder."""
    data, port = tmp_path_factory.mktemp("service") / "data", free_port()
    program = [str(Path(sys.executable).with_name("cspine")), "web", "run", "--data", str(data), "--port", str(port)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        lines = [process.stdout.readline() for _ in range(2)]
        assert all(lines), process.stderr.read()
        yield port, lines, data
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def asked(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_command_prints_where_it_is_and_a_link_that_works(service: tuple[int, list[str], Path]) -> None:
    port, lines, data = service
    assert lines[0] == f"cspine web: http://127.0.0.1:{port}\n"
    link = re.search(rf"http://127\.0\.0\.1:{port}(/join/[\w-]{{43}})\n", lines[1])
    assert link is not None
    assert asked(port, "GET", link.group(1))[0] == 200
    assert asked(port, "GET", "/healthz") == (200, '{"failing":[],"status":"ok"}\n')
    assert data.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o077 for path in data.glob("*.key")} == {
        "secret.key": 0,
        "pseudonyms.key": 0,
    }


def test_large_bodies_of_strangers_are_not_even_read(service: tuple[int, list[str], Path]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service[0], timeout=20)
    connection.putrequest("POST", "/uploads")
    connection.putheader("Content-Length", str(2**30))
    connection.putheader("Cookie", "cspine=eyJzaWQiOiJ4In0.aaaa.bbbb")
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_commands_and_the_server_write_one_trail(service: tuple[int, list[str], Path]) -> None:
    port, _, data = service
    run = CliRunner()
    answer = run.invoke(command, ["web", "user", ADA, "--role", "reader", "--data", str(data)])
    assert answer.exit_code == 0 and "/join/" in answer.stdout
    assert asked(port, "GET", "/login")[0] == 200
    assert "whole" in run.invoke(command, ["web", "audit", "--data", str(data)]).stdout


def test_a_taken_port_is_named(service: tuple[int, list[str], Path], tmp_path: Path) -> None:
    answer = CliRunner().invoke(command, ["web", "--data", str(tmp_path), "--port", str(service[0])])
    assert answer.exit_code == 2 and f"port {service[0]}" in answer.stderr


def test_settings_are_written_and_checked(tmp_path: Path) -> None:
    run, file = CliRunner(), tmp_path / "web.toml"
    assert run.invoke(command, ["web", "init", str(file)]).exit_code == 0
    assert run.invoke(command, ["web", "init", str(file)]).exit_code == 2, "nothing is overwritten"
    answer = run.invoke(command, ["web", "check", "--settings", str(file)])
    assert re.search(r"ok\s+database\s+sqlite", answer.stdout), answer.stdout
    assert re.search(r"ok\s+model bundle\s+\S", answer.stdout)


def test_a_backup_by_command(tmp_path: Path) -> None:
    person(web_app(tmp_path), ADA)
    run, data, folder = CliRunner(), str(tmp_path / "data"), str(tmp_path / "backup")
    assert run.invoke(command, ["web", "backup", folder, "--data", data]).exit_code == 0
    assert run.invoke(command, ["web", "restore", folder, "--check", "--data", data]).stdout.startswith("whole")
    assert run.invoke(command, ["web", "restore", folder, "--data", str(tmp_path / "new")]).exit_code == 0
    answer = run.invoke(command, ["web", "user", ADA, "--data", str(tmp_path / "new")])
    link = re.search(r"/reset/[\w-]+", answer.stdout)
    assert link is not None
    again = web_app(tmp_path / "x", data=tmp_path / "new")
    assert browser(again).send(link.group(), password="other calm words").status_code == 302


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    (tmp_path / "token").write_text("a-token\n")
    made = web_app(tmp_path, metrics={"token_file": tmp_path / "token"})
    person(made, ADA, "auditor", "reader")
    return made


def test_figures_for_prometheus_need_the_token(app: Flask, tmp_path: Path) -> None:
    script = app.test_client()
    assert script.get("/metrics").status_code == 401
    assert script.get("/metrics", headers={"Authorization": "Bearer other"}).status_code == 401
    text = script.get("/metrics", headers={"Authorization": "Bearer a-token"}).get_data(as_text=True)
    assert re.search(r"^cspine_web_accounts 1\.0$", text, re.MULTILINE)
    assert web_app(tmp_path / "other").test_client().get("/metrics").status_code == 404


def test_health_says_what_fails_and_nothing_else(tmp_path: Path) -> None:
    app = web_app(tmp_path, limits={"free_bytes": 2**60})
    answer = app.test_client().get("/healthz")
    assert (answer.status_code, answer.json) == (503, {"status": "failing", "failing": ["disk"]})


def test_auditors_read_check_and_export_the_trail(app: Flask) -> None:
    inside = browser(app, ADA)
    context: Context = app.extensions["cspine"]
    for number in range(150):
        context.audit.write(Did.VIEWED, actor="somebody", study=f"study {number}", detail=f"look {number}")
    page = inside.get("/audit/").get_data(as_text=True)
    assert "look 149" in page and page.count(ADA) == 1 and "study 1" not in page
    older = re.search(r'href="(/audit/\?[^"]*before=\d+[^"]*)"', page)
    assert older is not None
    page = inside.get(older.group(1).replace("&amp;", "&")).get_data(as_text=True)
    assert page.count(ADA) == 2, "beside the bar: the id in the line of the log-in is shown as an address"
    assert "look 77" in inside.get("/audit/?q=LOOK 77").get_data(as_text=True)
    assert "The chain holds" in inside.send("/audit/check").get_data(as_text=True)
    lines = inside.send("/audit/export").get_data(as_text=True).splitlines()
    assert json.loads(lines[-1])["action"] == "exported"
    trail = context.audit.folder / "audit.jsonl"
    trail.write_text(trail.read_text().replace('look 5"', 'look 6"', 1))
    assert "The chain is broken" in inside.send("/audit/check").get_data(as_text=True)


def test_two_writers_make_one_chain(tmp_path: Path, app: Flask) -> None:
    context: Context = app.extensions["cspine"]
    other = AuditLog(context.audit.folder, context.pseudonyms, rotate_bytes=4096)
    for number in range(60):
        (other if number % 3 else context.audit).write(Did.VIEWED, detail=str(number))
    assert context.audit.verify() is None
    assert len(list(context.audit.folder.glob("*.jsonl"))) > 1


def test_every_string_that_is_asked_for_is_in_the_catalogue() -> None:
    asked_for: set[tuple[str, str]] = set()
    for path in [*SOURCES.rglob("*.py"), *SOURCES.rglob("*.html")]:
        text = path.read_text(encoding="utf-8")
        for call, key in re.findall(r"\b(t|many)\(\s*[\"']([a-z_0-9.-]+\.[A-Za-z_0-9.-]+)[\"']\s*[,)]", text):
            asked_for |= {(path.name, key)} if call == "t" else {(path.name, f"{key}.{n}") for n in ("one", "other")}
    missing = {one for one in asked_for if one[1] not in catalogue()}
    assert missing == set() and len(asked_for) > 100


def test_strings_take_values_and_count() -> None:
    assert many("account.second.left", 1) == "1 recovery code is left."
    assert "12 characters" in t("account.password.hint", count=12)
    assert part("account.login")["button"] == "Log in"
    with pytest.raises(LookupError):
        t("account.nothing")
    assert PASSWORD not in "".join(catalogue().values())
