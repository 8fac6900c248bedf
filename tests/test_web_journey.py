"""The whole way in Chromium, with the real command, the real model and a connection that breaks.

One server and one browser for all of it: the first administrator, an invitation, an upload that is cut twice, the run,
reading by keys, a correction, DICOM to take away, and out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from components import free_port, validation_errors
from cspine.anatomy import Level
from cspine.cases import Case
from web_browser import WEBGL, launched, look
from web_wire import Wire, wired

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

PASSWORD = "seven quiet herons"
MIB = 2**20
SLICES = 250
# Drawing with the processor takes its time, more so on a machine that has other work.
PATIENCE = 60_000
COMMAND = (sys.executable, "-c", "from cspine.cli.app import main; main()", "web", "run", "--settings")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    """A neck of 250 slices with a broken dens and a burst C7, and its zip."""
    from cspine.cli.demo import DEMO_SEED, make_study
    from cspine.phantoms.scanner import Scanner

    folder = tmp_path_factory.mktemp("phantom")
    scanner = Scanner(
        pixel=0.6, matrix=(256, 256), spacing=0.75, thickness=1.0, sample=1.0, above_c1=35.0, below_c7=40.75
    )
    case = make_study(folder / "study", DEMO_SEED, scanner=scanner)
    with zipfile.ZipFile(folder / "neck.zip", "w") as archive:
        for path in sorted((folder / "study").iterdir()):
            archive.write(path, f"CT/{path.name}")
    return case, folder / "neck.zip"


@dataclass
class Way:
    """Where the journey is.

    Attributes:
        browser: with WebGL, drawn by the processor.
        wire: to the server.
        complaints: of scripts and policies on any page.
        elsewhere: requests to other places.
    """

    browser: Browser
    wire: Wire
    complaints: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def window(self) -> BrowserContext:
        made = self.browser.new_context(viewport={"width": 1280, "height": 860}, accept_downloads=True)
        made.set_default_timeout(PATIENCE)
        made.on("request", lambda sent: self._ours(sent.url))
        return made

    def page(self, window: BrowserContext) -> Page:
        page = window.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: self._heard(said.text) if said.type == "error" else None)
        page.on("dialog", lambda dialog: dialog.accept())
        return page

    def _ours(self, url: str) -> None:
        if not url.startswith((self.wire.address, "blob:", "data:")):
            self.elsewhere.append(url)

    def _heard(self, text: str) -> None:
        if "Content Security Policy" in text or "Refused" in text:
            self.complaints.append(text)


@contextmanager
def serving(folder: Path) -> Iterator[tuple[int, str]]:
    """The real command; its port, and the one-time link that it prints."""
    settings, log = folder / "web.toml", folder / "server.log"
    port = free_port()
    settings.write_text(
        f'data = "data"\nport = {port}\n[limits]\nchunk_bytes = {MIB}\n[worker]\nthreads = 1\n', encoding="utf-8"
    )
    with log.open("wb") as errors:
        server = subprocess.Popen([*COMMAND, str(settings)], stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert server.stdout is not None
            link = next((m[0] for line in server.stdout if (m := re.search(r"http\S+/join/\S+", line))), None)
            assert link is not None, log.read_text()
            yield port, link
        finally:
            server.terminate()
            server.wait(30)
    assert "Traceback" not in log.read_text()


def until(happens: Callable[[], object], seconds: float = PATIENCE / 1000) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_from_the_first_link_to_the_last_log_out(
    tmp_path: Path, phantom: tuple[Case, Path], assets: Path, record_property: Callable[[str, object], None]
) -> None:
    case, archive = phantom
    with serving(tmp_path) as (port, link), wired(port) as wire, launched(*WEBGL) as browser:
        way = Way(browser, wire)
        invitation = the_first_administrator_invites(way, link.replace(f"http://127.0.0.1:{port}", wire.address))
        window, page = the_reader_joins(way, invitation.replace(f"http://127.0.0.1:{port}", wire.address))
        page = the_upload_is_cut_and_goes_on(way, window, page, archive)
        study = it_is_recognised_and_judged(page)
        it_leads_the_worklist(way, page)
        the_fractures_are_found_by_key(page, case)
        assert look(page) == []
        a_level_is_corrected(page)
        dicom_is_taken_away(page, study, tmp_path)
        the_card_of_the_model_is_a_click_away(page, study)
        nothing_is_left_after_logging_out(way, page, study)
        assert way.complaints == []
        assert way.elsewhere == []


def the_first_administrator_invites(way: Way, link: str) -> str:
    """The printed link makes the first administrator, once; who invites a reader."""
    window = way.window()
    page = way.page(window)
    answer = page.goto(link)
    assert answer is not None and "server" not in answer.headers, "what it runs on is told nobody"
    page.fill("#email", "root@example.org")
    page.fill("#password", PASSWORD)
    page.click("main button.primary")
    page.wait_for_url(f"{way.wire.address}/")
    assert way.page(window).goto(link).status == 410  # type: ignore[union-attr]
    page.goto(f"{way.wire.address}/admin/people")
    page.check("input[name=roles][value=reader]")
    page.check("input[name=roles][value=uploader]")
    page.click("text=Make the link")
    invitation = page.inner_text("code.secret")
    window.close()
    return invitation


def the_reader_joins(way: Way, invitation: str) -> tuple[BrowserContext, Page]:
    window = way.window()
    page = way.page(window)
    page.goto(invitation)
    page.fill("#email", "ada@example.org")
    page.fill("#name", "Ada Lindqvist")
    page.fill("#password", "too short")
    page.click("main button.primary")
    assert "12 characters" in page.inner_text("#password-error")
    page.fill("#password", PASSWORD)
    page.click("main button.primary")
    page.wait_for_url(f"{way.wire.address}/")
    assert page.is_hidden("text=People") and page.is_visible("text=Ada Lindqvist")
    return window, page


def the_upload_is_cut_and_goes_on(way: Way, window: BrowserContext, page: Page, archive: Path) -> Page:
    """Cut in the middle of a piece, it goes on by itself; after the window was closed, with the same files."""
    size = archive.stat().st_size
    page.goto(f"{way.wire.address}/uploads")
    way.wire.cut_after(int(2.5 * MIB))
    page.set_input_files("#files", archive)
    page.get_by_text("The connection is lost").wait_for()
    assert way.wire.is_cut
    way.wire.mend()
    before = way.wire.sent
    until(lambda: way.wire.sent > before + MIB)
    way.wire.cut_after(int(4.5 * MIB))
    until(lambda: way.wire.is_cut)
    page.close(run_before_unload=False)
    way.wire.mend()
    page = way.page(window)
    page.goto(f"{way.wire.address}/uploads")
    share = int(re.findall(r"(\d+) % has arrived", page.inner_text("main"))[0])
    assert share > 10
    before = way.wire.sent
    page.set_input_files("#files", archive)
    page.wait_for_url(re.compile(r"/uploads/[0-9a-f-]{36}$"))
    again = way.wire.sent - before
    assert again < size * (1 - share / 100) + 4 * MIB, "what had arrived was not sent again"
    return page


def it_is_recognised_and_judged(page: Page) -> str:
    """What it is can be seen before anything runs; then it runs, step by step."""
    page.get_by_role("heading", name="1 study was recognised").wait_for()
    facts = page.inner_text(".study")
    assert f"CT, {SLICES} axial slices" in facts and "0.75 mm" in facts
    page.get_by_role("button", name="Judge").dblclick()
    steps = set()

    def done() -> bool:
        steps.add(page.inner_text("#jobs [data-part=text]").split(" · ")[0])
        return page.get_attribute("#jobs [data-job]", "data-state") == "done"

    until(done)
    assert len(steps) >= 3, steps
    assert page.locator("#jobs [data-job]").count() == 1, "two clicks are one job"
    assert re.search(r"suspected: .*C7", page.inner_text("#jobs"))
    href = page.get_attribute("#jobs a", "href")
    assert href is not None
    return href


def it_leads_the_worklist(way: Way, page: Page) -> None:
    page.goto(way.wire.address)
    row = page.locator("table.worklist tbody tr").first
    assert re.search(r"suspected: .*C7", row.inner_text()) and "New" in row.inner_text()
    row.locator("a").first.click()
    page.wait_for_url("**/studies/**")
    # Chromium draws WebGL with the processor here, which nobody gets without asking for it.
    page.goto(f"{page.url.partition('?')[0]}?rich=1")
    page.wait_for_selector("html[data-room=rich]", state="attached")
    assert "Phantom" not in page.title()


def the_fractures_are_found_by_key(page: Page, case: Case) -> None:
    """The key of the burst level shows it where it was planted, and ``n`` steps on from there."""
    for level in (Level.C3, Level.C7):
        page.keyboard.press(str(int(level)))
        page.wait_for_selector(f".level-list a[data-level={level.name}][aria-current=true]")
    said = page.inner_text("#live")
    found = re.search(r"C7, evidence \d of \d, slice (\d+)", said)
    assert found is not None, said
    planted = [box.slice_index for box in case.boxes if box.level == Level.C7]
    assert min(planted) <= int(found[1]) <= max(planted)
    before = page.inner_text("#live")
    page.keyboard.press("n")
    page.wait_for_function("before => document.querySelector('#live').textContent !== before", arg=before)
    assert page.inner_text("#live").startswith("C")
    page.keyboard.press("w")
    page.get_by_text("Window", exact=False).first.wait_for()
    page.keyboard.press("o")
    assert page.get_attribute("#overlay", "aria-pressed") == "false"
    page.keyboard.press("o")
    page.keyboard.press("7")
    panel = page.inner_text("section.level[data-level=C7]")
    assert "suspected" in panel and "burst" in panel.lower()


def a_level_is_corrected(page: Page) -> None:
    """C7 is corrected, and it is kept with who said so."""
    form = page.locator("form.answer[data-level=C7]")
    form.locator("input[name=verdict][value=correct]").check()
    form.locator("input[name=fracture][value=no]").check()
    form.locator("textarea").fill("Schmorl's node")
    form.get_by_role("button").click()
    page.wait_for_function(
        "() => document.querySelector('form.answer[data-level=C7] .kept').textContent.includes('Ada Lindqvist')"
    )
    page.reload()
    page.wait_for_selector("html[data-room]", state="attached")
    page.wait_for_selector(".level-list a[data-level=C7] .answered:not([hidden])")


def dicom_is_taken_away(page: Page, study: str, folder: Path) -> None:
    """Segmentation, structured report and its new version with the reader's answer: valid DICOM; and the findings."""
    page.goto(page.url.split("/studies")[0] + study + "/results")
    for name in ("seg.dcm", "sr.dcm", "answers-sr.dcm"):
        with page.expect_download() as waiting:
            page.click(f"a[href$='/results/{name}']")
        file = folder / name
        waiting.value.save_as(file)
        assert validation_errors(file) == []
        assert "Phantom" not in waiting.value.suggested_filename
    with page.expect_download() as waiting:
        page.click("a[href$='/results/findings.json']")
    findings = json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))
    assert "C7" in [level["level"] for level in findings["levels"] if level["fracture"]]
    from pydicom import dcmread

    said = str(dcmread(folder / "answers-sr.dcm"))
    assert "Schmorl's node" in said
    first = dcmread(folder / "sr.dcm")
    second = dcmread(folder / "answers-sr.dcm")
    assert second.PredecessorDocumentsSequence[0].StudyInstanceUID == first.StudyInstanceUID


def the_card_of_the_model_is_a_click_away(page: Page, study: str) -> None:
    page.goto(page.url.split("/studies")[0] + study)
    page.locator(f"a[href='{study}/model']").first.click()
    page.locator(".model-card").wait_for()
    assert look(page) == []
    page.click("nav >> text=Dashboard")
    page.get_by_role("heading", level=1).wait_for()
    assert look(page) == []


def nothing_is_left_after_logging_out(way: Way, page: Page, study: str) -> None:
    page.click("text=Log out")
    page.wait_for_url(re.compile("/login"))
    page.go_back()
    page.wait_for_load_state()
    assert "Schmorl" not in page.content() and "/results/sr.dcm" not in page.content()
    page.goto(way.wire.address + study)
    page.wait_for_url(re.compile(r"/login\?next="))
