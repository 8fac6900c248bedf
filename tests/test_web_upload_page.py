"""The upload page in a real browser: files go in, break off and go on, and everything that happens is said."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dicom_factory import Grid, write_series
from web_children import quick_judge, quick_recognise
from web_factory import PASSWORD
from web_worker import Worker, worker

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

MIB = 2**20
CHUNK = 64 * 1024


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, assets: Path) -> Iterator[tuple[Worker, Path]]:
    """The application in a process of its own, and the folder in which ``go`` lets its judge end."""
    assert (assets / "manifest.json").is_file()
    folder = tmp_path_factory.mktemp("site")
    limits = {"chunk_bytes": CHUNK, "file_bytes": 4 * MIB}
    with worker(
        folder,
        judge=quick_judge(folder),
        recognise=quick_recognise(folder),
        people=["ada@example.org"],
        serve=True,
        limits=limits,
    ) as found:
        yield found, folder


@pytest.fixture
def page(site: tuple[Worker, Path], chromium: Browser) -> Iterator[Page]:
    """A page of somebody who is logged in, where uploads are made; nothing is left of earlier tests."""
    (site[1] / "go").unlink(missing_ok=True)
    context = chromium.new_context(base_url=site[0].address, viewport={"width": 1280, "height": 800})
    found = context.new_page()
    log_in(found)
    found.goto("/uploads")
    yield found
    found = context.new_page()
    found.goto("/uploads")
    while (discard := found.get_by_role("button", name="Discard")).count():
        with found.expect_navigation():
            discard.first.click()
    context.close()


def log_in(page: Page) -> None:
    page.goto("/login")
    page.fill("input[name=email]", "ada@example.org")
    page.fill("input[name=password]", PASSWORD)
    page.locator("main").get_by_role("button", name="Log in", exact=True).click()
    page.wait_for_url(lambda url: "/login" not in url)


def packed(folder: Path, *, filler: int = 0) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for path in write_series(folder, Grid(count=6, rows=16, columns=16)):
            archive.write(path, path.name)
        if filler:
            archive.writestr("filler.txt", os.urandom(filler))
    return sink.getvalue()


def choose(page: Page, data: bytes, name: str = "ct.zip") -> None:
    page.set_input_files("#files", {"name": name, "mimeType": "application/zip", "buffer": data})


def test_a_zip_is_dropped_shown_judged_and_watched(page: Page, site: tuple[Worker, Path], tmp_path: Path) -> None:
    choose(page, packed(tmp_path / "ct"))
    page.get_by_role("heading", name="1 study was recognised").wait_for()
    assert page.get_by_text("CT, 6 axial slices").is_visible()
    assert "Secret" not in page.title() and "Secret" not in page.url
    page.get_by_role("button", name="Judge").click()
    page.get_by_text("Looking for fractures").wait_for()
    assert float(page.locator("#jobs progress").get_attribute("value") or 0) >= 0
    (site[1] / "go").touch()
    page.get_by_text("No fracture suspected").wait_for()


def test_a_job_is_cancelled_on_the_page(page: Page, tmp_path: Path) -> None:
    choose(page, packed(tmp_path / "ct"))
    page.get_by_role("button", name="Judge").click()
    page.get_by_text("Looking for fractures").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("The job was cancelled.").wait_for()
    assert page.get_by_role("button", name="Judge").is_visible(), "it can be judged later"


def test_the_connection_is_lost_and_comes_back(page: Page, tmp_path: Path) -> None:
    lost: list[str] = []

    def cut(route: Route) -> None:
        if len(lost) < 2 and "offset=0" not in route.request.url:
            lost.append(route.request.url)
            route.abort("connectionreset")
        else:
            route.continue_()

    page.route("**/files/**", cut)
    choose(page, packed(tmp_path / "ct", filler=4 * CHUNK))
    page.get_by_text("The connection is lost. What has arrived is kept").wait_for()
    page.get_by_role("heading", name="1 study was recognised").wait_for()
    assert len(lost) == 2


def test_the_server_is_killed_in_the_middle_and_starts_again(chromium: Browser, assets: Path, tmp_path: Path) -> None:
    assert assets.is_dir()
    limits, sent = {"chunk_bytes": CHUNK}, []
    children = {"judge": quick_judge(tmp_path), "recognise": quick_recognise(tmp_path)}
    with worker(tmp_path, **children, people=["ada@example.org"], serve=True, limits=limits) as first:
        context = chromium.new_context(base_url=first.address)
        page = context.new_page()
        log_in(page)
        page.goto("/uploads")

        def kill(route: Route) -> None:
            sent.append(1)
            if len(sent) == 4:
                first.kill()
            route.continue_()

        page.route("**/files/**", kill)
        choose(page, packed(tmp_path / "ct", filler=8 * CHUNK))
        page.get_by_text("The connection is lost. What has arrived is kept").wait_for()
    port = int(first.address.rsplit(":", 1)[1])
    with worker(tmp_path, **children, serve=True, port=port, limits=limits):
        page.get_by_role("heading", name="1 study was recognised").wait_for(timeout=60_000)
        context.close()
    assert len(sent) <= 16, "what had arrived was not sent again"


def test_the_session_ends_in_the_middle(page: Page, tmp_path: Path) -> None:
    sent: list[int] = []

    def end(route: Route) -> None:
        sent.append(1)
        if len(sent) == 3:
            page.context.clear_cookies()
        route.continue_()

    page.route("**/files/**", end)
    choose(page, packed(tmp_path / "ct", filler=6 * CHUNK))
    page.get_by_text("Your session has ended. What has arrived is kept.").wait_for()
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Log in (new tab)").click()
    log_in(popup.value)
    popup.value.close()
    before = len(sent)
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("heading", name="1 study was recognised").wait_for()
    assert len(sent) - before <= 6, "what had arrived was not sent again"


def test_an_upload_goes_on_after_the_page_was_closed(page: Page, tmp_path: Path) -> None:
    data, sent = packed(tmp_path / "ct", filler=6 * CHUNK), []

    def stall(route: Route) -> None:
        sent.append(1)
        if len(sent) > 3:
            return  # neither answered nor refused: the page waits, until it is closed
        route.continue_()

    page.route("**/files/**", stall)
    choose(page, data)
    while len(sent) <= 3:
        page.wait_for_timeout(20)
    context = page.context
    page.close()
    again = context.new_page()
    again.goto("/uploads")
    assert again.get_by_text("has arrived").is_visible()
    again.on("request", lambda request: sent.append(2) if "/files/" in request.url else None)
    choose(again, data)
    again.get_by_role("heading", name="1 study was recognised").wait_for()
    assert sent.count(2) <= 5, "only what was missing was sent"


def test_pausing_and_going_on_and_giving_up(page: Page, tmp_path: Path) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/files/**", hold)
    choose(page, packed(tmp_path / "ct"))
    page.locator("#sending").wait_for()
    page.get_by_role("button", name="Pause").click()
    page.get_by_text("Paused at 0 %").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("The upload was cancelled. Nothing of it is kept.").wait_for()
    page.goto("/uploads")
    assert not page.get_by_text("Waiting for you").is_visible()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.dcm", b"", "All of these files are empty"),
        ("large.dcm", bytes(4 * MIB + 1), "large.dcm has 4.2 MB; at most 4.2 MB are taken"),
    ],
)
def test_what_cannot_be_taken_is_said_at_once(page: Page, name: str, data: bytes, words: str) -> None:
    choose(page, data, name)
    page.get_by_text(words).wait_for()


def test_a_disk_that_is_full_is_said_and_the_upload_goes_on(page: Page, tmp_path: Path) -> None:
    full = [True]

    def refuse(route: Route) -> None:
        if full[0] and "offset=0" not in route.request.url:
            body = '{"error": "disk-full", "message": "The disk of the server is full. What has arrived is kept."}'
            route.fulfill(status=507, body=body, content_type="application/json")
        else:
            route.continue_()

    page.route("**/files/**", refuse)
    choose(page, packed(tmp_path / "ct", filler=2 * CHUNK))
    page.get_by_text("This did not work: The disk of the server is full. What has arrived is kept.").wait_for()
    full[0] = False
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("heading", name="1 study was recognised").wait_for()


def test_a_folder_keeps_its_paths(page: Page, tmp_path: Path) -> None:
    write_series(tmp_path / "study" / "series", Grid(count=4, rows=16, columns=16))
    with page.expect_request(lambda request: request.method == "POST" and request.url.endswith("/uploads")) as asked:
        page.set_input_files("#folder", tmp_path / "study")
    names = [file["name"] for file in asked.value.post_data_json["files"]]
    assert len(names) == 4 and all(name.startswith("study/series/") for name in names)
    page.get_by_role("heading", name="1 study was recognised").wait_for()


def test_the_page_works_without_scripts(site: tuple[Worker, Path], chromium: Browser, tmp_path: Path) -> None:
    context = chromium.new_context(base_url=site[0].address, java_script_enabled=False)
    page = context.new_page()
    log_in(page)
    page.goto("/uploads")
    choose(page, packed(tmp_path / "ct", filler=2 * MIB))
    page.get_by_role("button", name="Upload", exact=True).click()
    page.get_by_role("heading", name="1 study was recognised").wait_for()  # the page loads itself anew
    page.get_by_role("button", name="Discard").click()
    context.close()
