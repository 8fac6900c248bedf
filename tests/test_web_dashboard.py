"""The dashboard: agreement with readers, what a call is worth, drift, throughput; drawings say what they show."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from cspine.node.drift import HU_EDGES
from cspine.web import charts
from cspine.web.app import context
from cspine.web.dashboard import duration
from cspine.web.dashboard_figures import agreements, days, drifts, speed
from cspine.web.database import db
from cspine.web.models import Study, now
from web_factory import Browser, person, web_app
from web_studies import CLEAR, USUAL, add_answers, add_job, add_study, findings_of, fresh, visit


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    return web_app(tmp_path_factory.mktemp("web"))


@pytest.fixture
def ada(app: Flask) -> str:
    return person(app, fresh())


@pytest.fixture
def page(app: Flask, ada: str) -> Browser:
    return visit(app, ada)


def mine(ada: str) -> sa.Select[Study]:
    """All studies of a person."""
    return sa.select(Study).where(Study.owner_id == ada)


def test_the_newest_answers_are_compared_with_what_was_found(app: Flask, ada: str) -> None:
    hit = add_study(app, ada, findings=findings_of(USUAL))
    add_answers(app, hit, ada, C5=False, patient=True)
    add_answers(app, hit, ada, C5=True, C1=False, C2=True)
    clear = add_study(app, ada, findings=findings_of(CLEAR))
    add_answers(app, clear, ada, patient=False, C3=None)
    unjudged = add_study(app, ada, findings=findings_of(USUAL))
    add_answers(app, unjudged, ada, C7=True)
    with app.app_context():
        found = agreements(db.session, mine(ada), context().store)
    assert (found.patient.both, found.patient.neither, found.patient.statements) == (1, 1, 2)
    assert (found.levels.both, found.levels.read_only, found.levels.neither) == (1, 1, 1)
    assert list(found.by_level) == ["C1", "C2", "C5"] and found.by_level["C5"].both == 1
    assert found.unsure == 2  # "cannot be said", and a level that was not judged


def test_without_files_the_row_still_knows_the_patient(app: Flask, ada: str) -> None:
    study = add_study(app, ada, state="done", positive=True, probability=0.9)
    add_answers(app, study, ada, patient=False, C1=True)
    with app.app_context():
        found = agreements(db.session, mine(ada), context().store)
    assert found.patient.found_only == 1 and found.levels.statements == 0


def test_days_have_their_own_counts_and_times(app: Flask, ada: str) -> None:
    study = add_study(app, ada, findings=findings_of(), hours_ago=0)
    start = now() - timedelta(minutes=10)
    for waited, worked in ((60, 120), (180, 240), (120, 180)):
        began = start + timedelta(seconds=waited)
        add_job(app, study, ada, created=start, started=began, ended=began + timedelta(seconds=worked))
    add_job(app, study, ada, "failed", created=start, started=start, ended=start + timedelta(seconds=1))
    with app.app_context():
        lately = days(db.session, mine(ada), 3)
        whole = speed(db.session, mine(ada), 3)
    assert len(lately) == 3
    done = [one for one in lately if one.done]
    assert sum(one.done for one in lately) == 3 and sum(one.ended_badly for one in lately) == 1
    assert sum(one.came for one in lately) == 1 and done[0].worked is not None
    assert (whole.jobs, whole.waited, whole.worked) == (3, 120.0, 180.0)


def facts(thickness: float) -> dict[str, Any]:
    shares = [1 / (len(HU_EDGES) + 1)] * (len(HU_EDGES) + 1)
    said = {"thickness_mm": thickness, "kernel": "B70s", "maker": "X", "hu": shares, "positive": False}
    return {"drift": said}


def test_a_change_of_the_input_is_seen_in_the_newer_studies(app: Flask, ada: str) -> None:
    with app.app_context():
        rows = [
            Study(
                owner_id=ada,
                state="done",
                facts=facts(1.0 if k < 40 else 3.0),
                created=now() - timedelta(hours=100 - k),
            )
            for k in range(80)
        ]
        db.session.add_all(rows)
        db.session.commit()
        found = {one.feature: one.state for one in drifts(db.session, mine(ada))}
    assert found["thickness"] == "alarm" and found["kernel"] == "same"


def test_few_studies_say_nothing_of_drift(app: Flask, ada: str, page: Browser) -> None:
    add_study(app, ada, findings=findings_of(), facts=facts(1.0))
    assert "At least 30 judged studies" in page.get("/dashboard").get_data(as_text=True)


def test_the_page_says_what_a_call_is_worth_here(app: Flask, ada: str, page: Browser) -> None:
    for truth, probabilities in ((True, USUAL), (True, USUAL), (False, CLEAR), (False, CLEAR), (False, USUAL)):
        add_answers(app, add_study(app, ada, findings=findings_of(probabilities)), ada, patient=truth)
    counted = page.get("/dashboard").get_data(as_text=True)
    assert "At 40 % fractures" in counted
    stated = page.get("/dashboard?prevalence=5").get_data(as_text=True)
    assert "At 5 % fractures" in stated
    # Sensitivity 1, specificity 2/3: one in 7.3 calls at 5 %.
    assert "14 %" in stated
    for nonsense in ("0", "100", "abc", "-3", "nan"):
        assert "At 40 % fractures" in page.get(f"/dashboard?prevalence={nonsense}").get_data(as_text=True)


def test_an_empty_dashboard_says_what_to_do(page: Browser) -> None:
    text = page.get("/dashboard").get_data(as_text=True)
    assert "Nobody has answered yet" in text and "None" not in re.sub("<[^>]+>", " ", text)


def test_each_person_sees_figures_of_the_own_studies_and_an_administrator_sums_of_all(app: Flask, ada: str) -> None:
    study = add_study(app, ada, findings=findings_of())
    add_answers(app, study, ada, patient=True)
    other = visit(app, person(app, fresh())).get("/dashboard").get_data(as_text=True)
    assert "Nobody has answered yet" in other
    whole = visit(app, person(app, fresh(), "administrator")).get("/dashboard").get_data(as_text=True)
    assert "Sums over all studies" in whole and "Nobody has answered yet" not in whole
    assert visit(app, person(app, fresh(), "auditor")).get("/dashboard").status_code == 403


def test_the_page_has_no_style_or_script_of_its_own(app: Flask, ada: str, page: Browser) -> None:
    study = add_study(app, ada, findings=findings_of())
    add_answers(app, study, ada, patient=True, C5=True, C1=False)
    add_job(app, study, ada, started=now(), ended=now())
    text = page.get("/dashboard").get_data(as_text=True)
    drawn = text.partition("<main")[2].partition("</main>")[0]
    assert "<svg" in drawn and " style=" not in drawn and "<style" not in drawn and "<script" not in drawn


@given(
    st.lists(st.tuples(st.one_of(st.none(), st.floats(0, 1e6)), st.floats(0, 1e6), st.text()), min_size=1, max_size=40),
    st.text(),
)
def test_bars_are_well_formed_and_stay_inside(values: list[tuple[float | None, float, str]], label: str) -> None:
    drawn = charts.bars([charts.Bar(name, value, more) for value, more, name in values], label)
    root = ET.fromstring(_xml(str(drawn)))  # noqa: S314 ours
    for one in root.iter("rect"):
        assert float(one.attrib["y"]) >= -0.2 and float(one.attrib["height"]) >= 0
        assert float(one.attrib["x"]) + float(one.attrib["width"]) <= charts.WIDTH + 0.2


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_intervals_stay_on_their_line(value: float, low: float, high: float) -> None:
    root = ET.fromstring(charts.interval(value, low, high, "a < b"))  # noqa: S314 ours
    assert root.attrib["aria-label"] == "a < b"
    assert 4 <= float(root.find("circle").attrib["cx"]) <= 196  # type: ignore[union-attr]
    assert "range" not in charts.interval(0.5, float("nan"), float("nan"), "none")


def _xml(text: str) -> str:
    """Without characters that no XML can hold; browsers take them."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]", "", text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (4.2, "4 s"), (99, "99 s"), (150, "2 min"), (7200, "2.0 h")]
)
def test_durations_are_as_long_as_they_feel(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
