"""Bad input as a person meets it, in Chromium: each has its words on the page, and nothing that was there is lost.

The other lines of the same list have their tests elsewhere: lost connection, expired session, full disk, empty and huge
files in ``test_web_upload_page``; a double click in ``test_web_journey``; a bomb and odd archives in
``test_web_uploads``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cspine.web import job_work
from test_web_uploads import as_mr, damaged_zip, locked_zip, packed
from web_browser import entered, look
from web_site import ADA, EVE, Site, ct_zip, furnish, looks_away, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = furnish(tmp_path_factory.mktemp("site"))
    for email in (ADA, EVE):
        made.browser(email)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_work, "supervise", looks_away)
        yield made


@pytest.fixture(scope="module")
def base(site: Site) -> Iterator[str]:
    with served(site.app) as address:
        yield address


@pytest.fixture(scope="module")
def page(site: Site, base: str, assets: Path, chromium: Browser) -> Page:
    return entered(chromium, base, site.cookie(EVE))


def upload(page: Page, base: str, name: str, data: bytes) -> str:
    """Choose a file on the page; what the page says in the end."""
    page.goto(f"{base}/uploads")
    page.set_input_files("#files", {"name": name, "mimeType": "application/octet-stream", "buffer": data})
    page.wait_for_url(re.compile(r"/uploads/[0-9a-f-]{36}$"))
    page.wait_for_selector("#watch", state="detached")
    return page.inner_text("main")


CASES: dict[str, tuple[str, Any, str]] = {
    "corrupt": ("ct.zip", damaged_zip, "The zip archive cannot be read"),
    "password": ("ct.zip", locked_zip, "The zip is protected by a password"),
    "wrong type": ("notes.txt", lambda _: b"hello", "Nothing in this upload is a CT or a picture"),
    "other modality": ("mr.zip", lambda folder: ct_zip(folder / "mr", 4, edit=as_mr), "MR"),
    "picture that is none": ("a.png", lambda _: b"\x89PNG\r\n\x1a\n" + bytes(50), "Not taken"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_judged_says_why_and_what_to_do(page: Page, base: str, tmp_path: Path, case: str) -> None:
    name, make, words = CASES[case]
    said = upload(page, base, name, make(tmp_path))
    assert "Nothing in this upload can be judged" in said and words in said
    assert look(page) == []


def test_two_patients_in_one_upload_are_kept_apart(page: Page, base: str, tmp_path: Path) -> None:
    def other(_: int, header: Any) -> None:
        header.PatientID, header.PatientName = "OTHER", "Other^Name"
        header.StudyInstanceUID += ".2"

    both = packed(
        {"one.zip": ct_zip(tmp_path / "one", 4), "two.zip": ct_zip(tmp_path / "two", 5, series="2", edit=other)}
    )
    said = upload(page, base, "both.zip", both)
    assert "images of 2 patients" in said and "Secret Name" in said and "Other Name" in said
    assert page.locator("input[name=study]").count() == 2
    assert page.locator("input[name=study]:checked").count() == 0, "nothing is chosen for the person"
    assert look(page) == []
    page.get_by_role("button", name="Judge the chosen studies").click()
    page.get_by_text("Tick at least one").wait_for()


def test_a_browser_without_webgl_reads_with_all_keys(site: Site, base: str, assets: Path, chromium: Browser) -> None:
    """The server draws the slices; there is no 3D view, and the page says so."""
    page = entered(chromium, base, site.cookie(ADA))
    page.goto(f"{base}/studies/{site.ids['study_id']}")
    page.wait_for_selector("html[data-room=plain]", state="attached")
    page.get_by_text("This browser has no WebGL").wait_for()
    assert page.is_hidden("#solid")
    picture = page.locator(".pane[data-plane=axial] img.base")
    first = picture.get_attribute("src")
    page.keyboard.press("ArrowUp")
    page.wait_for_function("from => document.querySelector('.pane[data-plane=axial] img.base').src !== from", arg=first)
    assert page.evaluate("() => document.querySelector('.pane[data-plane=axial] img.base').decode().then(() => true)")
    page.keyboard.press("3")
    page.wait_for_selector(".level-list a[data-level=C3][aria-current=true]")
    page.keyboard.press("w")
    page.wait_for_function(
        "() => /window=(?!bone)/.test(document.querySelector('.pane[data-plane=axial] img.base').src)"
    )
    page.keyboard.press("?")
    page.locator("#help-dialog").wait_for()
    page.context.close()
