"""Debian's Chromium under Playwright, and the scripts that npm builds: what tests of pages share."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from components import missing, need

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FRONTEND = Path(__file__).resolve().parents[1] / "frontend"
BUILT = FRONTEND.parent / "src/cspine/web/static/built"
AXE = FRONTEND / "node_modules/axe-core/axe.min.js"
# Pictures drawn by the processor, which every machine has; without these there is no WebGL.
WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
PLAIN = ("--disable-gpu", "--disable-webgl", "--disable-webgl2")


TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice"]
LOOK = """async ([options]) => {
  const found = await axe.run(document, { ...options, iframes: false, resultTypes: ["violations"] });
  const why = (node) => [...node.any, ...node.all, ...node.none][0]?.message ?? "";
  return found.violations.flatMap((one) => one.nodes.map((node) => `${one.id}: ${node.target} ${why(node)}`));
}"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of built scripts; built when they are not there or older than what they are made of."""
    npm = need("npm")
    with (Path(tempfile.gettempdir()) / f"cspine-assets-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker of the suite may be at it
        if not AXE.is_file():
            _npm(npm, "ci", "--prefer-offline", "--no-audit", "--no-fund")
        if not _fresh():
            _npm(npm, "run", "build")
    return BUILT


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser without WebGL: lighter, and what it shows everybody can see. To the end of the module only, since
    Playwright's loop is in the way of other loops."""
    with launched(*PLAIN) as browser:
        yield browser


@contextmanager
def launched(*arguments: str) -> Iterator[Browser]:
    """A browser of one's own."""
    path = need("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *arguments])
        try:
            yield browser
        finally:
            browser.close()


def look(page: Page) -> list[str]:
    """What is wrong with a page: in light all of it, in dark the colours; and whether it fits a tablet."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    found: list[str] = page.evaluate(LOOK, [{"runOnly": {"type": "tag", "values": TAGS}}])
    page.emulate_media(color_scheme="dark")
    found += page.evaluate(LOOK, [{"runOnly": {"type": "rule", "values": ["color-contrast"]}}])
    for width in (1280, 820):
        page.set_viewport_size({"width": width, "height": 1000})
        if page.evaluate(OVERFLOW) > 0:
            found.append(f"wider than {width} px")
    return found


def entered(chromium: Browser, base: str, cookie: str | None) -> Page:
    """A page of somebody with this session; fails on anything that a script or the policy complains about."""
    window = chromium.new_context(viewport={"width": 1280, "height": 1000})
    if cookie is not None:
        window.add_cookies([{"name": "cspine", "value": cookie, "url": base}])
    page = window.new_page()
    page.on("pageerror", _fail)
    page.on("console", lambda said: _fail(said.text) if "Content Security Policy" in said.text else None)
    return page


def _fail(error: Any) -> None:
    raise AssertionError(str(error))


def _fresh() -> bool:
    manifest = BUILT / "manifest.json"
    if not manifest.is_file():
        return False
    made = manifest.stat().st_mtime
    sources = [*(FRONTEND / "src").rglob("*"), *FRONTEND.glob("*.mjs"), FRONTEND / "package-lock.json"]
    return all(path.stat().st_mtime <= made for path in sources if path.is_file())


def _npm(npm: str, *arguments: str) -> None:
    run = subprocess.run([npm, *arguments], cwd=FRONTEND, capture_output=True, check=False)
    if run.returncode:
        missing(f"npm {arguments[0]} failed: {run.stderr.decode()[-800:]}")
