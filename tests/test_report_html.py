"""report.html: self-contained, escaped, structured, readable with and without eyes for colour."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cspine import reports
from cspine.anatomy import LEVELS
from cspine.findings import Findings, WarningItem
from cspine.reports import html, words
from cspine.reports.inputs import Predicted, ReportInput
from cspine.volume import Volume
from report_factory import MIDDLE, center_of, evidence_at, make_findings, make_level, make_prediction, make_volume

VOID = {"meta", "img", "br", "link", "input", "hr"}
NASTY = "\"><img src=x onerror=alert(1)></style><script>alert('{{ 7 * 7 }}')</script>&amp;"


@dataclass
class Page(HTMLParser):
    """What the page is made of; complains when tags do not match."""

    text: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    inside: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.feed(self.text)
        self.close()
        self.problems += [f"{tag} is not closed" for tag in self.stack]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.stack or self.stack.pop() != tag:
            self.problems.append(f"{tag} closes something else at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        for tag in self.stack[-1:]:
            self.inside.setdefault(tag, []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def full(warnings: tuple[WarningItem, ...] = (), name: str = "study") -> Page:
    """A page with everything on it."""
    volume = make_volume()
    places = {
        1: tuple(evidence_at(volume, (*center_of(1)[:2], center_of(1)[2] + up), 0.9 - up / 50) for up in (0, 3, 6)),
        3: (evidence_at(volume, center_of(3)),),
    }
    findings = make_findings(evidence=places, warnings=warnings, name=name)
    return page_of(make_prediction(volume, findings), volume)


def page_of(prediction: Predicted | Findings, volume: Volume | None) -> Page:
    return Page(html.render(ReportInput.of(prediction, volume)).decode())


@cache
def usual() -> Page:
    return full((WarningItem(code="thick-slices", message="Slices lie 4 mm apart"),))


@cache
def refused() -> Page:
    warning = WarningItem(code="no-cervical-spine", message="no cervical vertebra was found")
    return page_of(make_findings((None,) * 7, warnings=(warning,)), make_volume())


PAGES = pytest.mark.parametrize("page", [usual, refused], ids=["judged", "refused"])


@PAGES
def test_tags_match_and_ids_are_unique(page: object) -> None:
    found: Page = page()  # type: ignore[operator]
    assert found.problems == []
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        assert (attributes.get("aria-labelledby") or ids[0]) in ids
        link = attributes.get("href") or ""
        assert not link.startswith("#") or link[1:] in ids


@PAGES
def test_nothing_comes_from_a_network(page: object) -> None:
    found: Page = page()  # type: ignore[operator]
    for tag, attributes in found.tags:
        assert (
            tag not in {"link", "iframe", "object", "embed", "base", "video", "audio", "form"}
            or attributes.get("method") == "dialog"
        )
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/"))
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    assert "://" not in found.text
    assert "url(" not in found.text
    assert "@import" not in found.text


@PAGES
def test_policy_allows_this_style_and_script_only(page: object) -> None:
    found: Page = page()  # type: ignore[operator]
    policy = next(a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        assert len(found.all(tag)) == 1
        digest = base64.b64encode(hashlib.sha256("".join(found.inside[tag]).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_text_from_outside_is_only_text() -> None:
    warnings = (WarningItem(code=NASTY, message=NASTY),)
    for page in (full(warnings, NASTY), page_of(make_findings((None,) * 7, warnings=warnings, name=NASTY), None)):
        assert page.problems == []
        assert len(page.all("script")) == 1
        assert not [1 for _, attributes in page.tags if "onerror" in attributes]
        assert "<script>alert" not in page.text
        assert "49" not in "".join(page.inside["code"])
        assert NASTY in "".join(page.inside["b"])


def test_every_text_field_is_escaped() -> None:
    data = make_findings().model_dump()
    data["levels"][1]["type"] = NASTY
    data["levels"][6]["not_judged"] = NASTY
    for part in ("input", "bundle"):
        for name, value in data["provenance"][part].items():
            if isinstance(value, str):
                data["provenance"][part][name] = NASTY
    data["provenance"]["input"]["acquisition"] = {NASTY: NASTY}
    data["provenance"]["seconds"] = {NASTY: 1.0}
    data["provenance"]["created"] = data["provenance"]["cspine"] = data["notice"] = NASTY
    page = page_of(Findings.model_validate(data), make_volume())
    assert page.problems == []
    assert len(page.all("script")) == 1
    assert not [1 for _, attributes in page.tags if "onerror" in attributes]


def test_each_level_has_its_place() -> None:
    page = usual()
    articles = page.all("article")
    assert [article["id"] for article in articles] == [level.name for level in LEVELS]
    assert all(article["tabindex"] == "-1" for article in articles)
    rows = re.findall(r"<tr(?: class=\"flagged\")?>\s*<th scope=\"row\">.*?</tr>", page.text, re.S)
    assert [re.search(r'href="#(C\d)"', row).group(1) for row in rows] == [level.name for level in LEVELS]  # type: ignore[union-attr]
    assert "86\u00a0%" in rows[1]
    assert "suspected" in rows[1]
    assert "dens II" in rows[1]
    assert "not judged" in rows[6]


def test_statement_is_in_plain_words() -> None:
    page = usual()
    assert page.inside["h1"] == ["Fracture suspected"]
    assert "Suspected at C2 (86\u00a0%)." in page.text
    assert "at or above the threshold of 45\u00a0%" in page.text
    assert "C7 was not judged." in page.text
    assert "Below the end of the scan." in page.text
    assert "Research use only, not a diagnosis." in page.text


def test_evidence_is_listed_with_slice_and_millimetres() -> None:
    page = usual()
    assert [a for a in page.all("th") if "scope" not in a] == []
    level = re.search(r'<article[^>]*id="C2".*?</article>', page.text, re.S)
    assert level is not None
    one = make_volume()
    place = evidence_at(one, center_of(1))
    assert f"<td>{place.slice_index}</td>" in level.group(0)
    assert words.millimetres((place.box_mm[2] + place.box_mm[5]) / 2) in level.group(0)
    assert level.group(0).count('class="overlay"') >= 4


@PAGES
def test_people_who_do_not_see_it_can_read_it(page: object) -> None:
    found: Page = page()  # type: ignore[operator]
    assert found.all("html")[0]["lang"] == "en"
    assert all("alt" in image for image in found.all("img"))
    assert any(image["alt"] for image in found.all("img"))
    for landmark in ("header", "main", "footer"):
        assert len(found.all(landmark)) == 1
    assert len(found.all("h1")) == 1
    order = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(later <= earlier + 1 for earlier, later in pairwise(order))
    assert found.all("a")[0]["href"] == "#main"
    for figure in found.all("svg"):
        assert figure.get("aria-hidden") == "true" or figure.get("aria-label")


def test_refused_study_gets_reasons_and_advice() -> None:
    page = refused()
    assert page.inside["h1"] == ["Not judged"]
    assert "No cervical vertebra was found." in page.text
    assert "--series UID" in page.text
    assert not page.all("article")
    assert len(page.all("img")) == 2
    bare = page_of(make_findings((None,) * 7), None)
    assert bare.problems == []
    assert "Nothing in this study could be judged." in bare.text
    assert not bare.all("img")


def test_bare_findings_and_no_scan_make_a_page() -> None:
    page = page_of(make_findings((0.1,) * 7), None)
    assert page.problems == []
    assert page.inside["h1"] == ["No fracture suspected"]
    assert "No single level reaches its threshold" in page.text
    assert not page.all("img")
    with_scan = page_of(make_findings((0.1,) * 7), make_volume())
    assert len(with_scan.all("img")) == 2 + 7 * 2


def test_located_but_not_judged_levels_are_shown_when_refused() -> None:
    refused = make_findings((None,) * 7).model_dump()
    refused["levels"] = list(refused["levels"])
    refused["levels"][2] = {
        **make_level(2, 0.1).model_dump(),
        "probability": None,
        "fracture": None,
        "not_judged": "the voxels are too coarse",
    }
    page = page_of(Findings.model_validate(refused), make_volume())
    assert "The voxels are too coarse." in page.text
    assert "C3 marked" in page.text


def test_page_stays_small_when_every_level_is_flagged_and_noisy(tmp_path: Path) -> None:
    volume = make_volume()
    noise = np.random.default_rng(1).normal(300, 300, volume.shape).astype(np.int16)
    noisy = Volume(noise, volume.affine, volume.source)
    places = {
        k: tuple(evidence_at(volume, tuple(np.asarray(center_of(k)) + [0, 10, up])) for up in (0, 4, 8))
        for k in range(7)
    }
    findings = make_findings((0.9,) * 7, evidence=places)
    written = reports.write(make_prediction(volume, findings), noisy, tmp_path, formats=("html",))
    assert written["html"].stat().st_size < 3_000_000


# Contrast: WCAG 2.2, 1.4.3 (text, 4.5 to 1) and 1.4.11 (marks, 3 to 1).
GROUNDS = ("page", "surface", "sunken", "alert-soft", "accent-soft")


def variables() -> dict[str, dict[str, str]]:
    css = "".join(usual().inside["style"])
    blocks = re.findall(r"color-scheme: (light|dark);(.*?)\}", css, re.S)
    return {theme: dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", text)) for theme, text in blocks}


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_on_every_ground(theme: str) -> None:
    colours = variables()[theme]
    weak = {
        (text, ground): round(contrast(colours[text], colours[ground]), 2)
        for text in ("ink", "muted", "accent", "alert")
        for ground in GROUNDS
        if contrast(colours[text], colours[ground]) < 4.5
    }
    assert weak == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_marks_of_every_probability_have_contrast(theme: str) -> None:
    colours = variables()[theme]
    weak = {
        (step, ground): round(contrast(colours[f"p{step}"], colours[ground]), 2)
        for step in range(11)
        for ground in ("page", "alert-soft")
        if contrast(colours[f"p{step}"], colours[ground]) < 3
    }
    assert weak == {}


def test_paper_shows_the_overlay_and_no_controls() -> None:
    css = "".join(usual().inside["style"])
    printed = css[css.index("@media print") :]
    assert ".overlay { visibility: visible !important; }" in printed
    assert re.search(r"\.bar,[^{]*\{ display: none !important; \}", printed)
    assert "@media screen and (prefers-color-scheme: dark)" in css


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium to run the script under its policy")
def test_script_runs_under_the_policy_in_a_browser(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(usual().text, encoding="utf-8")
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    live = Page(done.stdout)
    buttons = {attributes.get("id"): attributes for attributes in live.all("button")}
    assert "hidden" not in buttons["overlay"]
    assert len([1 for a in live.all("button") if a.get("class") == "enlarge"]) == len(live.all("figure"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "<1\u00a0%"),
        (0.004, "<1\u00a0%"),
        (0.5, "50\u00a0%"),
        (0.995, ">99\u00a0%"),
        (1.0, ">99\u00a0%"),
    ],
)
def test_percent_never_promises(value: float | None, text: str) -> None:
    assert words.percent(value) == text


def test_negative_positions_have_a_true_minus() -> None:
    assert words.point((-1.25, 2.0, float(MIDDLE[2]))) == "\u22121.2,\u00a02.0,\u00a0400.0\u00a0mm"


def test_a_suspected_level_is_never_under_a_clear_headline() -> None:
    findings = make_findings((0.1, 0.6, 0.1, 0.7, 0.1, 0.1, 0.1))
    patient = findings.patient.model_copy(update={"probability": 0.4, "fracture": False, "threshold": 0.54})
    assert words.headline(findings.model_copy(update={"patient": patient})) == "Possible fracture at C2, C4"
