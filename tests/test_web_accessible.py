"""Every page, looked at by axe-core in light and in dark: nothing that WCAG 2.2 AA forbids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from web_browser import entered, look
from web_site import ADA, AUDREY, PATIENT, ROOT, Site, furnish, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MIN_PAGES = 25


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return furnish(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pages(site: Site) -> dict[str | None, list[str]]:
    """Addresses of pages by who may see them."""
    return {email: pages_of(site, email) for email in (None, ADA, ROOT, AUDREY)}


def test_every_page_is_accessible_in_light_and_dark(
    site: Site, pages: dict[str | None, list[str]], assets: Path, chromium: Browser
) -> None:
    wrong: dict[str, list[str]] = {}
    seen = []
    with served(site.app) as base:
        for email, addresses in pages.items():
            page = entered(chromium, base, site.cookie(email))
            for address in addresses:
                response = page.goto(base + address)
                assert response is not None
                if page.url.removeprefix(base) in seen:
                    continue
                seen.append(page.url.removeprefix(base))
                faults = look(page)
                if any(text in page.title() or text in page.url for text in PATIENT):
                    faults.append("title or address names the patient")
                if faults:
                    wrong[f"{address} {email}"] = faults
            if email is None:
                wrong["a wrong password"] = wrong_password(page, base)
            page.context.close()
    assert not any(wrong.values()), "\n".join(
        f"{where}: {fault}" for where, faults in wrong.items() for fault in faults
    )
    assert len(seen) >= MIN_PAGES


def wrong_password(page: Page, base: str) -> list[str]:
    """The page that says what was wrong."""
    page.goto(f"{base}/login")
    page.fill("#email", "who@example.org")
    page.fill("#password", "not this one")
    page.click("main button.primary")
    page.get_by_role("alert").wait_for()
    return look(page)


def pages_of(site: Site, email: str | None) -> list[str]:
    """Addresses that answer this person with a page: of every rule, and a few states that rules do not tell apart."""
    inside, found = site.browser(email), []
    for rule, _ in site.rules("GET"):
        if rule.endpoint in ("static", "viewing.asset") or rule.endpoint.endswith(".result"):
            continue
        for address in site.addresses(rule):
            answer = inside.get(address)
            if answer.mimetype == "text/html" and answer.status_code in (200, 404, 410):
                found.append(address)
    uploads = [f"/uploads/{number}" for number in site.numbers] if email == ADA else []
    found += [one for one in uploads if inside.get(one).status_code == 200]
    return [*found, *site.links.get(email, [])]
