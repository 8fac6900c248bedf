"""The worklist by keys, in Chromium: up and down, open, search, and new lines that do not move one's place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flask import Flask

from cspine.web.database import db
from cspine.web.models import User
from web_factory import PASSWORD, person, web_app
from web_site import served
from web_studies import CLEAR, add_study, findings_of, fresh

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

AT = "document.activeElement.closest('tr')?.dataset.id ?? null"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    return web_app(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def ada(app: Flask) -> str:
    return person(app, fresh())


@pytest.fixture(scope="module")
def studies(app: Flask, ada: str) -> list[str]:
    """From the top: a suspected fracture, then two clear ones."""
    first = add_study(app, ada, findings=findings_of(), patient_label="Doe^Jane")
    return [first, *(add_study(app, ada, findings=findings_of(CLEAR), hours_ago=hours) for hours in (1, 2))]


@pytest.fixture(scope="module")
def page(app: Flask, ada: str, studies: list[str], assets: Path, chromium: Browser) -> Iterator[Page]:
    with app.app_context():
        email = db.session.get_one(User, ada).email
    with served(app) as base:
        page = chromium.new_page(base_url=base, viewport={"width": 1280, "height": 800})
        page.goto("/login")
        page.fill("[name=email]", email)
        page.fill("[name=password]", PASSWORD)
        page.press("[name=password]", "Enter")
        page.wait_for_selector("#filters.live", timeout=5000)
        yield page
        page.close()


def test_j_and_k_go_down_and_up_and_stop_at_the_ends(page: Page, studies: list[str]) -> None:
    went = []
    for key in "jjjjkkk":
        page.keyboard.press(key)
        went.append(studies.index(page.evaluate(AT)))
    assert went == [0, 1, 2, 2, 1, 0, 0]


def test_a_search_answers_while_one_types_and_stands_in_no_address(page: Page, studies: list[str]) -> None:
    from playwright.sync_api import expect

    lines = page.locator("#list tr[data-id]")
    page.keyboard.press("/")
    page.keyboard.type("jane")
    expect(lines).to_have_count(1)
    expect(lines).to_have_attribute("data-id", studies[0])
    assert "jane" not in page.url
    page.fill("[name=search]", "nobody")
    page.wait_for_selector("text=No study matches")
    page.fill("[name=search]", "")
    expect(lines).to_have_count(3)
    page.keyboard.press("Escape")


def test_new_lines_leave_the_place_where_it_is(app: Flask, ada: str, page: Page, studies: list[str]) -> None:
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate(AT) == studies[1]
    urgent = add_study(app, ada, findings=findings_of((0.99, *CLEAR[1:])))
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_selector(f'tr[data-id="{urgent}"]')
    assert page.evaluate(AT) == studies[1]
    assert page.text_content('[data-count="open"]') == "4"
    assert page.text_content("#news") == "The list has changed"


def test_enter_opens_the_study(page: Page, studies: list[str]) -> None:
    at = page.evaluate(AT)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/studies/{at}")
