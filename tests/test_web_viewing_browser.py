"""The reading room in Chromium: keys, pointer, plain pictures, and NiiVue that shows the right way round."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from components import need
from cspine.web.viewing_facts import ViewFacts
from report_factory import center_of, make_volume, with_marker
from viewing_factory import RUN, add_study
from web_factory import PASSWORD, person, web_app
from web_site import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

READER = "reader@example.org"
# To the patient's left, to the back, and up from C4's body.
MARKER = tuple((np.array(center_of(3)) + (16.0, 14.0, 9.0)).tolist())
# WebGL by the processor, and nothing else by it.
SOFTWARE = ("--enable-unsafe-swiftshader", "--disable-gpu-compositing")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, ViewFacts]]:
    """Address and id of a small judged study with a dense ball, and what is known of its view."""
    app = web_app(tmp_path_factory.mktemp("web"))
    owner = person(app, READER)
    study = add_study(app, owner, with_marker(make_volume(), MARKER, 5.0).resampled(2.0))
    facts = ViewFacts.load(app.extensions["cspine"].store.run_folder(study, RUN) / "view")
    assert facts is not None
    with served(app) as address:
        yield address, study, facts


def entered(browser: Browser, room: tuple[str, str, ViewFacts], query: str = "") -> Page:
    """The reading room, logged in, when its scripts have started."""
    address, study, _ = room
    window = browser.new_context(base_url=address, viewport={"width": 1280, "height": 900})
    page = window.new_page()
    page.set_default_timeout(60_000)
    page.goto("/login")
    page.fill("[name=email]", READER)
    page.fill("[name=password]", PASSWORD)
    page.press("[name=password]", "Enter")
    page.wait_for_url(lambda url: "/login" not in url, wait_until="commit")
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
    page.goto(f"/studies/{study}{query}")
    page.wait_for_selector("html[data-room]", state="attached")
    assert not faults
    return page


def slice_of(page: Page, plane: str = "axial") -> int:
    return int(page.input_value(f".pane[data-plane={plane}] .slider"))


@pytest.fixture(scope="module")
def plain(chromium: Browser, assets: Path, room: tuple[str, str, ViewFacts]) -> Iterator[Page]:
    page = entered(chromium, room)
    yield page
    page.context.close()


def test_without_webgl_the_server_draws_and_the_page_says_so(plain: Page) -> None:
    assert plain.get_attribute("html", "data-room") == "plain"
    assert "no WebGL" in plain.inner_text("#state")
    assert plain.is_hidden("#solid")
    for plane in ("axial", "sagittal", "coronal"):
        image = plain.locator(f".pane[data-plane={plane}] img.base")
        assert image.evaluate("one => one.decode().then(() => one.naturalWidth)") > 20


def test_keys_jump_to_evidence_and_step_through_it(plain: Page, room: tuple[str, str, ViewFacts]) -> None:
    _, _, facts = room
    own = [one for one in facts.evidence if one.level == "C2"]
    strongest = max(own, key=lambda one: one.score)
    plain.keyboard.press("4")
    plain.keyboard.press("2")
    assert slice_of(plain) == strongest.view_slice
    assert f"C2, evidence {own.index(strongest) + 1} of 2, slice {strongest.slice_index}" in plain.inner_text("#live")
    assert plain.is_visible("section#C2")
    assert plain.is_hidden("section#C4")
    order = [one.view_slice for one in facts.evidence]
    at = facts.evidence.index(strongest)
    for key, step in (("n", 1), ("n", 2), ("n", 3), ("p", 2), ("p", 1)):
        plain.keyboard.press(key)
        assert slice_of(plain) == order[(at + step) % len(order)]
    plain.keyboard.press("7")
    assert plain.inner_text("#live") == "C7 is not in the scan."
    plain.keyboard.press("1")
    assert "C1" in plain.inner_text("#live")


def test_keys_scroll_turn_windows_and_hide_the_overlay(plain: Page) -> None:
    plain.keyboard.press("3")
    start = slice_of(plain)
    plain.keyboard.press("ArrowUp")
    plain.keyboard.press("PageDown")
    assert slice_of(plain) == start - 9
    plain.keyboard.press("s")
    across = slice_of(plain, "sagittal")
    plain.keyboard.press("ArrowDown")
    assert (slice_of(plain, "sagittal"), slice_of(plain)) == (across - 1, start - 9)
    plain.keyboard.press("a")
    names = []
    for _ in range(4):
        plain.keyboard.press("w")
        names.append(plain.inner_text('[data-window][aria-pressed="true"]'))
    assert names == ["Soft tissue", "Cortex", "Airway", "Bone"]
    plain.keyboard.press("o")
    assert plain.is_hidden(".pane[data-plane=axial] img.overlay")
    assert "overlay=0" in plain.url
    plain.keyboard.press("o")
    assert plain.is_visible(".pane[data-plane=axial] img.overlay")


def test_keys_can_be_switched_off_and_never_disturb_writing(plain: Page) -> None:
    plain.keyboard.press("2")
    plain.fill("#comment-C2", "")
    plain.focus("#comment-C2")
    plain.keyboard.type("4wo")
    assert plain.input_value("#comment-C2") == "4wo"
    assert plain.is_visible("section#C2")
    plain.click("#keys")
    plain.keyboard.press("4")
    assert plain.is_visible("section#C2")
    plain.click("#keys")
    plain.keyboard.press("4")
    assert plain.is_visible("section#C4")


def test_help_and_the_full_slice_open_and_close(plain: Page, room: tuple[str, str, ViewFacts]) -> None:
    plain.keyboard.press("?")
    assert "next window" in plain.inner_text("#help-dialog")
    plain.keyboard.press("Escape")
    plain.keyboard.press("2")
    plain.keyboard.press("f")
    width = plain.locator("#source-dialog img").evaluate("one => one.decode().then(() => one.naturalWidth)")
    assert width == room[2].source_shape[2]
    assert plain.locator("#source-dialog .boxes rect").count() == 1
    plain.keyboard.press("Escape")
    assert plain.is_hidden("#source-dialog")


def test_everything_works_by_pointer(plain: Page, room: tuple[str, str, ViewFacts]) -> None:
    _, _, facts = room
    plain.click('.level-list a[data-level="C4"]')
    (only,) = (one for one in facts.evidence if one.level == "C4")
    assert slice_of(plain) == only.view_slice
    plain.click("#previous")
    assert plain.is_visible("section#C2")
    plain.click("section#C2 .evidence li:first-child a")
    assert slice_of(plain) == facts.evidence[0].view_slice
    box = plain.locator(".pane[data-plane=axial] .fitted").bounding_box()
    assert box is not None
    _, y, x = facts.grid.shape
    plain.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert slice_of(plain, "sagittal") == pytest.approx(x / 2, abs=1.5)
    assert slice_of(plain, "coronal") == pytest.approx(y / 2, abs=1.5)
    before = slice_of(plain)
    plain.mouse.wheel(0, 100)
    assert slice_of(plain) == before - 1
    plain.click('[data-window="soft"]')
    assert "window=soft" in (plain.get_attribute(".pane[data-plane=axial] img.base", "src") or "")
    plain.click(".pane[data-plane=coronal] .enlarge")
    assert plain.is_hidden(".pane[data-plane=axial]")
    plain.click(".pane[data-plane=coronal] .enlarge")
    assert plain.is_visible(".pane[data-plane=axial]")


def test_an_answer_is_saved_shown_and_still_there_later(plain: Page) -> None:
    plain.keyboard.press("2")
    form = plain.locator('form.answer[data-level="C2"]')
    form.locator("button:not([disabled])").wait_for()
    form.get_by_label("Correct").check(force=True)
    form.get_by_label("Yes").check(force=True)
    form.locator("select").select_option("dens-ii")
    form.locator("textarea").fill("low dens")
    form.get_by_role("button", name="Save answer").click()
    form.get_by_text("Saved.").wait_for()
    assert "Corrected by" in form.locator(".kept").inner_text()
    assert plain.locator('.level-list a[data-level="C2"] .answered').inner_text() == "✓ Corrected"
    plain.reload()
    plain.locator('form.answer[data-level="C2"] .kept', has_text="Corrected by").wait_for()
    assert plain.input_value("#comment-C2") == "low dens"


def test_niivue_shows_the_patient_as_the_server_does(
    chromium: Browser, assets: Path, room: tuple[str, str, ViewFacts]
) -> None:
    _, _, facts = room
    # A second Playwright would not start beside the one of ``chromium``.
    launch = chromium.browser_type.launch
    with launch(executable_path=need("chromium"), args=["--no-sandbox", *SOFTWARE]) as browser:
        page = entered(browser, room, "?rich=1&overlay=0&level=C4")
        page.wait_for_selector("html[data-room=rich]", state="attached", timeout=120_000)
        assert page.is_visible("#solid")
        grid, affine = facts.grid, np.array(facts.grid.affine)
        at = np.rint(np.linalg.solve(affine[:3, :3], np.array(MARKER) - affine[:3, 3])).astype(int)
        for plane, index in zip(("sagittal", "coronal", "axial"), at.tolist(), strict=True):
            page.fill(f".pane[data-plane={plane}] .slider", str(index))
        x, y, z = (at + 0.5) / grid.shape[::-1]
        width, height, up = np.array(grid.shape[::-1]) * grid.spacing
        expected = {
            "axial": (x, y, width, height),
            "sagittal": (y, 1 - z, height, up),
            "coronal": (x, 1 - z, width, up),
        }
        screen = np.asarray(Image.open(BytesIO(page.screenshot())).convert("RGB")).astype(int)
        for plane, (left, top, wide, high) in expected.items():
            box = page.locator(f".pane[data-plane={plane}] .picture").bounding_box()
            assert box is not None
            start, stop = (
                (round(box["y"]), round(box["x"])),
                (int(box["y"] + box["height"]), int(box["x"] + box["width"])),
            )
            picture = screen[start[0] : stop[0], start[1] : stop[1]]
            # White and not of the crosshair or of the letters, which are bluish.
            rows, columns = np.nonzero(picture.min(axis=-1) > 240)
            pane_high, pane_wide = picture.shape[:2]
            scale = min(pane_wide / wide, pane_high / high)
            place = (
                pane_wide / 2 + (left - 0.5) * wide * scale,
                pane_high / 2 + (top - 0.5) * high * scale,
            )
            assert (columns.mean(), rows.mean()) == pytest.approx(place, abs=0.035 * max(pane_wide, pane_high)), plane
        page.keyboard.press("2")
        strongest = max((one for one in facts.evidence if one.level == "C2"), key=lambda one: one.score)
        assert slice_of(page) == strongest.view_slice
        page.keyboard.press("o")
        page.keyboard.press("w")
        assert page.get_attribute("html", "data-room") == "rich"
