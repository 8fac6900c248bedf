"""docs/how-to/orthanc.md, followed: its settings and commands, a real Orthanc with its viewer, the real node and judge.

Installing is left out, ports are free ones, and the study is smaller than that of ``cspine demo``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from components import free_port, missing, need, quick
from cspine.cli.demo import DEMO_SEED, make_study
from cspine.node.settings import load_settings
from cspine.phantoms.scanner import Scanner
from dicom_factory import Grid, write_series
from orthanc_server import PLUGIN_PLACES, Orthanc, running
from receiving_factory import receiver

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to"
DOCUMENT = (HOW_TO / "orthanc.md").read_text(encoding="utf-8")
SMALL = Scanner(pixel=0.9, matrix=(180, 180), spacing=3.0, thickness=3.0, above_c1=15.0, below_c7=15.0)
PLUGINS = ("libOrthancDicomWeb.so", "libOrthancWebViewer.so")
# What the page of a study in Orthanc shows of the results.
RESULTS = {
    "SEG": "cspine vertebrae and evidence (research use only)",
    "SR": "cspine findings (research use only)",
    "OT": "cspine key images (research use only)",
}


def blocks(kind: str, document: str = DOCUMENT) -> list[str]:
    """The code blocks of a document that are of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", document, flags=re.MULTILINE | re.DOTALL)


def command(start: str) -> str:
    """The one command of the document that starts so."""
    (found,) = [line for block in blocks("sh") for line in block.splitlines() if line.startswith(start)]
    return str(found)


def plugins() -> list[str]:
    found = [path for name in PLUGINS for place in PLUGIN_PLACES if (path := Path(place) / name).exists()]
    if len({path.name for path in found}) < len(PLUGINS):
        missing("Orthanc's plugins are not installed (Debian: apt install orthanc-dicomweb orthanc-webviewer)")
    return [str(path) for path in found]


def there(text: str, server: Orthanc) -> str:
    """A text of the document with this server's ports."""
    return text.replace("localhost:8042", f"127.0.0.1:{server.http_port}").replace(
        "localhost 4242", f"127.0.0.1 {server.dicom_port}"
    )


def run(line: str, folder: Path) -> str:
    """Run a command of the document in a folder; what it printed."""
    program, *arguments = shlex.split(line, comments=True)
    path = str(Path(sys.executable).with_name("cspine")) if program == "cspine" else need(program)
    ran = subprocess.run(
        [path, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60, env=quick()
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@contextmanager
def started(line: str, folder: Path) -> Iterator[Path]:
    """Run a command that goes on, as in a terminal of its own, until Ctrl-C; gives what it prints."""
    log = folder / "log"
    program = [str(Path(sys.executable).with_name("cspine")), *shlex.split(line)[1:]]
    with log.open("wb") as stream:
        node = subprocess.Popen(program, cwd=folder, stderr=stream, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            until(lambda: "stop with Ctrl-C" in log.read_text(), log)
            yield log
            node.send_signal(signal.SIGINT)
            assert node.wait(30) == 0
        finally:
            node.kill()
            node.wait()


def until(condition: Callable[[], bool], log: Path, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text(errors="replace")[-3000:]
        time.sleep(0.1)


def test_a_study_goes_in_and_its_results_are_seen_in_the_viewer(tmp_path: Path) -> None:
    viewer = {"Plugins": plugins(), "WebViewer": {"CachePath": str(tmp_path / "cache")}}
    make_study(tmp_path / "demo" / "study", DEMO_SEED, scanner=SMALL)
    with running(tmp_path / "orthanc", **viewer) as orthanc:
        settings = f"port = {free_port()}\n" + there(blocks("toml")[0], orthanc)
        (tmp_path / "node.toml").write_text(settings.replace("seconds = 5", "seconds = 1"), encoding="utf-8")
        assert "fails" not in run(command("cspine node check"), tmp_path)
        with started(command("cspine node run"), tmp_path) as log:
            run(there(command("dcmsend"), orthanc), tmp_path)
            until(lambda: "delivered" in log.read_text(), log)
            lines = run(command("cspine node status"), tmp_path).splitlines()
        said = log.read_text()
        for line in blocks("text")[0].splitlines():
            assert re.search(re.escape(line).replace("187", r"\d+").replace("…", "[a-z0-9-]+"), said), said
        assert "1.2.826" not in said and "explorer.html" not in said and "PHANTOM" not in said
        _seen(orthanc, lines[-1].split(": ", 1)[1])


def _seen(orthanc: Orthanc, link: str) -> None:
    """What the page behind the link shows, asked for as the page asks for it; then the viewer of one series."""
    page, identifier = link.removeprefix(orthanc.url).split("#study?uuid=")
    assert b"<title>Orthanc Explorer</title>" in orthanc.call(page)
    series = {one["MainDicomTags"]["Modality"]: one for one in orthanc.json(f"/studies/{identifier}/series")}
    assert {modality: series[modality]["MainDicomTags"]["SeriesDescription"] for modality in RESULTS} == RESULTS
    assert sorted(series) == ["CT", *sorted(RESULTS)]
    sheet = series["OT"]
    assert orthanc.call(f"/web-viewer/app/viewer.html?series={sheet['ID']}").lower().startswith(b"<!doctype html>")
    shown = orthanc.json(f"/web-viewer/series/{sheet['ID']}")
    assert shown["SeriesDescription"] == RESULTS["OT"] and len(shown["Slices"]) == 1
    picture = orthanc.json(f"/web-viewer/instances/jpeg95-{shown['Slices'][0]}")
    assert (picture["width"], picture["height"], picture["color"]) == (1600, 1200, True)
    assert len(picture["Orthanc"]["PixelData"]) > 20_000


def test_orthanc_may_send_instead(tmp_path: Path) -> None:
    """The script of the document sends CT series on, and leaves the results of the node where they are."""
    (script,) = blocks("lua")
    (tmp_path / "cspine.lua").write_text(script, encoding="utf-8")
    (entries,) = blocks("json")
    told = json.loads("{" + entries.strip().rstrip(",") + "}")
    write_series(tmp_path / "ct", Grid(count=3, rows=8, columns=8))
    other = tmp_path / "result"
    write_series(other, Grid(count=3, rows=8, columns=8), series="7", edit=lambda _, ds: setattr(ds, "Modality", "OT"))
    with receiver(tmp_path / "node") as node:
        (title, host, _) = told["DicomModalities"]["cspine"]
        assert (title, host) == (node.settings.ae_title, "127.0.0.1")
        known = {"cspine": [title, host, node.port]}
        with running(tmp_path, DicomModalities=known, LuaScripts=[str(tmp_path / "cspine.lua")]) as orthanc:
            for folder in ("result", "ct"):
                for path in sorted((tmp_path / folder).iterdir()):
                    orthanc.call("/instances", method="POST", data=path.read_bytes())
            until(lambda: len(node.spool.index.rows()) == 3, tmp_path / "orthanc.log", 30)
            time.sleep(1.0)  # it would have sent the other series first
        assert len(node.spool.index.rows()) == 3


@pytest.mark.parametrize("name", ["orthanc.md", "pacs.md"])
def test_settings_of_documents_are_valid(name: str, tmp_path: Path) -> None:
    for block in blocks("toml", (HOW_TO / name).read_text(encoding="utf-8")):
        (tmp_path / "node.toml").write_text(block, encoding="utf-8")
        load_settings(tmp_path / "node.toml")
