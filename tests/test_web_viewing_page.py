"""The reading room's page, without a browser: what it says, links to, and refuses."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from flask import Flask

from cspine.inference.pictures import PictureAnswer, PictureHeat
from cspine.reports import colours, words
from cspine.reports.picture_findings import PictureFindings, PictureProvenance, finding_of
from cspine.studies.images import SliceImage
from cspine.volume import Source
from cspine.web import viewing_assets
from cspine.web.app import Context
from cspine.web.models import Study, StudyKind, StudyState
from cspine.web.strings import catalogue
from cspine.web.viewing import forget_pictures
from cspine.web.viewing_facts import VIEW_FOLDER
from cspine.web.viewing_pictures import prepare_picture_view
from report_factory import make_findings
from viewing_factory import RUN, add_study, judged
from web_factory import Browser, browser, person, web_app

ROOT = Path(__file__).resolve().parents[1]
READER = "reader@example.org"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    return web_app(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def owner(app: Flask) -> str:
    return person(app, READER)


@pytest.fixture(scope="module")
def reader(app: Flask, owner: str) -> Browser:
    return browser(app, READER)


@pytest.fixture(scope="module")
def study(app: Flask, owner: str) -> str:
    return add_study(app, owner)


def text_of(page: str) -> str:
    """What a person reads, with plain spaces."""
    shown = re.sub(r"<script.*?</script>", " ", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", shown)))


def test_the_page_says_what_the_report_says_and_no_more(reader: Browser, study: str) -> None:
    page = reader.get(f"/studies/{study}").get_data(as_text=True)
    findings = judged()[1].findings
    said = text_of(page)
    for sentence in (words.headline(findings), *words.said(findings), words.RESEARCH, words.LIMITS):
        assert re.sub(r"\s+", " ", sentence) in said
    assert "not on patients of this house" in said
    assert "C7 not judged" in said
    assert "Below the end of the scan." in said
    assert "dens II" in said
    for word in ("AI ", "artificial intelligence", "diagnosed"):
        assert word not in said


def test_the_title_names_no_patient_and_the_page_does(reader: Browser, study: str) -> None:
    page = reader.get(f"/studies/{study}").get_data(as_text=True)
    assert "Anna Example" in page
    assert "Anna" not in re.search(r"<title>.*?</title>", page, re.DOTALL).group()  # type: ignore[union-attr]


def test_nothing_stands_in_the_page_that_the_policy_would_refuse(reader: Browser, study: str) -> None:
    answer = reader.get(f"/studies/{study}")
    page = answer.get_data(as_text=True)
    assert "'unsafe" not in answer.headers["Content-Security-Policy"]
    assert " style=" not in page
    assert not re.search(r"\son\w+=", page)
    assert not re.search(r"<script(?![^>]*(src=|application/json))", page)
    assert not re.search(r"(src|href)=\"(https?:)?//", page)


def test_links_work_without_scripts(reader: Browser, study: str) -> None:
    page = reader.get(f"/studies/{study}?level=C4&window=soft&overlay=0").get_data(as_text=True)
    assert re.search(r'data-level="C4" aria-current="true"', page)
    assert "jpg?window=soft" in page
    assert re.search(r'<img class="overlay"[^>]*hidden', page)
    section = re.search(r'<section class="level" id="C4"[^>]*>', page)
    assert section is not None
    assert "hidden" not in section.group()
    nonsense = reader.get(f"/studies/{study}?level=C9&window=x&slice=-4&overlay=x")
    assert nonsense.status_code == 200


def test_pictures_come_with_the_right_kind_and_stay_out_of_caches(reader: Browser, study: str) -> None:
    kinds = {
        "slices/axial/3.jpg": "image/jpeg",
        "slices/coronal/3.jpg?window=soft": "image/jpeg",
        "overlays/sagittal/3.png": "image/png",
        "source/3.png": "image/png",
        "view/ct.nii.gz": "application/gzip",
        "view/C2.mz3": "application/octet-stream",
        "view/map.jpg": "image/jpeg",
    }
    for name, kind in kinds.items():
        answer = reader.get(f"/studies/{study}/{name}")
        assert (answer.status_code, answer.mimetype) == (200, kind), name
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Content-Encoding" not in answer.headers


@pytest.mark.parametrize(
    "name",
    ["slices/axial/9999.jpg", "slices/oblique/1.jpg", "slices/axial/1.jpg?window=none", "overlays/axial/9999.png",
     "source/9999.png", "view/slices.zip", "view/view.json", "view/ct.npy", "view/no.jpg", "view/..%2Ffindings.json"],
)  # fmt: skip
def test_what_is_not_there_is_not_found(reader: Browser, study: str, name: str) -> None:
    assert reader.get(f"/studies/{study}/{name}").status_code == 404


def test_the_first_look_of_a_reader_makes_the_study_read(app: Flask, reader: Browser, owner: str) -> None:
    fresh = add_study(app, owner, title="New")
    context: Context = app.extensions["cspine"]
    reader.get(f"/studies/{fresh}")
    with context.sessions() as session:
        found = session.get(Study, fresh)
        assert found is not None
        assert found.read_at is not None


@pytest.mark.parametrize("state", [one for one in StudyState if one != StudyState.DELETED])
def test_a_study_without_results_says_what_it_waits_for(app: Flask, reader: Browser, owner: str, state: str) -> None:
    context: Context = app.extensions["cspine"]
    with context.sessions() as session:
        made = Study(owner_id=owner, state=state, title="x")
        session.add(made)
        session.commit()
    answer = reader.get(f"/studies/{made.id}")
    assert answer.status_code == 200
    assert catalogue()[f"read.waiting.{state}"] in answer.get_data(as_text=True)


def test_pictures_are_shown_beside_their_heat(app: Flask, reader: Browser, owner: str, tmp_path: Path) -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[2, 5] = 0.9
    image = SliceImage(
        np.linspace(0, 1, 64 * 48).reshape(64, 48).astype(np.float32), "grey", None, Source("image", "a")
    )
    broken = PictureAnswer("a.png", fracture=0.8, heat=PictureHeat(heat, np.diag([6.0, 8.0, 1.0])))
    whole = PictureAnswer("b.png", fracture=0.1)
    shown = [(finding_of(one.name, image, one), image, one) for one in (whole, broken)]
    bundle = make_findings().provenance.bundle
    assert bundle is not None
    findings = PictureFindings(
        pictures=tuple(item for item, _, _ in shown),
        provenance=PictureProvenance(cspine="0", created="2030-01-01T00:00:00+00:00", bundle=bundle),
    )
    context: Context = app.extensions["cspine"]
    with context.sessions() as session:
        made = Study(owner_id=owner, kind=StudyKind.PICTURES, state=StudyState.DONE, title="Slices", result=RUN)
        session.add(made)
        session.commit()
    results = context.store.run_folder(made.id, RUN)
    facts = prepare_picture_view(shown, results / VIEW_FOLDER)
    (results / "pictures.json").write_text(findings.to_json())
    assert [item.heat is not None for item in facts.pictures] == [False, True]
    page = reader.get(f"/studies/{made.id}").get_data(as_text=True)
    said = text_of(page)
    assert "2 pictures were judged." in said
    assert "A fracture is suspected in one of them." in said
    assert page.index("a.png") < page.index("b.png")  # the most suspicious first
    for name in re.findall(r'src="(/studies/[^"]+)"', page):
        assert reader.get(name).status_code == 200


def test_colours_of_the_page_are_those_of_the_report() -> None:
    sheet = (ROOT / "src/cspine/web/static/css/reading.css").read_text()
    for theme, count in (("light", 1), ("dark", 2)):
        for step, colour in enumerate(colours.ramp(theme)):
            assert sheet.count(f"--p{step}: {colours.hex_of(colour)};") == count


def test_every_string_that_scripts_ask_for_is_in_the_catalogue() -> None:
    known = catalogue()
    for path in sorted((ROOT / "frontend/src/reading").glob("*.ts")) + [ROOT / "frontend/src/pages/reading.ts"]:
        for key in re.findall(r"\bt\(\s*\"([\w.-]+)\"", path.read_text()):
            assert f"read.{key}" in known, f"{path.name}: {key}"


def test_built_scripts_are_packed_and_kept_for_ever(
    app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reading-ABC.js").write_text("export {};")
    (tmp_path / "reading-ABC.js.gz").write_bytes(b"packed")
    (tmp_path / "licences.txt").write_text("thanks")
    (tmp_path / "manifest.json").write_text(json.dumps({"reading.js": "reading-ABC.js"}))
    monkeypatch.setattr(viewing_assets, "BUILT", tmp_path)
    with app.test_request_context():
        assert viewing_assets.built("reading.js") == "/static/built/reading-ABC.js"
        assert viewing_assets.built("other.js") is None
    anyone = app.test_client()
    plain = anyone.get("/static/built/reading-ABC.js")
    assert plain.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert plain.mimetype == "text/javascript"
    packed = anyone.get("/static/built/reading-ABC.js", headers={"Accept-Encoding": "gzip"})
    assert packed.get_data() == b"packed"
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["ETag"] != plain.headers["ETag"]
    again = anyone.get("/static/built/reading-ABC.js", headers={"If-None-Match": plain.headers["ETag"]})
    assert again.status_code == 304
    assert "immutable" not in anyone.get("/static/built/licences.txt").headers["Cache-Control"]
    for name in ("manifest.json", "nothing.js", "..%2F..%2Fapp.py"):
        assert anyone.get(f"/static/built/{name}").status_code == 404


def test_without_built_scripts_the_page_still_stands(
    reader: Browser, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewing_assets, "BUILT", tmp_path)
    page = reader.get(f"/studies/{study}").get_data(as_text=True)
    assert 'type="module"' not in re.sub(r"<script[^>]*static/js[^>]*>", "", page)
    assert 'class="base" src="/studies/' in page


def test_the_owner_finds_the_way_to_sharing_and_deletion(reader: Browser, study: str) -> None:
    page = reader.get(f"/studies/{study}").get_data(as_text=True)
    assert "Share or delete" in page


def test_what_was_drawn_of_a_deleted_study_is_forgotten(app: Flask, reader: Browser, study: str) -> None:
    reader.get(f"/studies/{study}/slices/axial/4.jpg")
    with app.app_context():
        cache = app.extensions["viewing-pictures"]
        key = (study, RUN, "axial", 4, "bone")
        assert cache.get(key) is not None
        forget_pictures(study)
        assert cache.get(key) is None
