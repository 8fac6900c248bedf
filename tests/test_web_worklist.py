"""The worklist: what stands on top, what filters leave, what one may see, and lines that are asked for again."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from cspine.web.database import db
from cspine.web.models import Study
from cspine.web.worklist_query import PAGE, Filters
from web_factory import Browser, browser, person, web_app
from web_studies import CLEAR, add_answers, add_group, add_job, add_study, findings_of, fresh, visit


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    """One application: each test brings people of its own, who see nothing of the others."""
    return web_app(tmp_path_factory.mktemp("web"))


@pytest.fixture
def ada(app: Flask) -> str:
    return person(app, fresh())


@pytest.fixture
def page(app: Flask, ada: str) -> Browser:
    return visit(app, ada)


def ids(visitor: Browser, address: str = "/", **form: str) -> list[str]:
    """The studies that stand on a page, from the top; with a form, on the page that answers it."""
    answer = visitor.send(address, **form) if form else visitor.get(address)
    assert answer.status_code == 200
    return re.findall(r'<tr data-id="([^"]+)"', answer.get_data(as_text=True))


def test_suspected_fractures_stand_on_top_the_most_probable_first(app: Flask, ada: str, page: Browser) -> None:
    clear = add_study(app, ada, findings=findings_of(CLEAR), hours_ago=1)
    strong = add_study(app, ada, findings=findings_of((0.02, 0.95, *CLEAR[2:])), hours_ago=9)
    weak = add_study(app, ada, findings=findings_of(), hours_ago=2)
    nothing = add_study(app, ada, findings=findings_of((None,) * 7), positive=None, probability=None)
    running, queued = add_study(app, ada, state="running"), add_study(app, ada, state="queued")
    assert ids(page) == [strong, weak, nothing, clear, running, queued]
    assert ids(page, "/?order=newest")[-1] == strong


def test_a_study_is_open_until_the_patient_is_answered(app: Flask, ada: str, page: Browser) -> None:
    first = add_study(app, ada, findings=findings_of())
    second = add_study(app, ada, findings=findings_of())
    add_answers(app, first, ada, C5=True)
    add_answers(app, second, ada, C5=True, patient=True)
    assert ids(page) == [first]
    assert ids(page, "/?show=read") == [second]


def test_problems_have_a_tab_and_say_why(app: Flask, ada: str, page: Browser) -> None:
    study = add_study(app, ada, state="refused")
    add_job(app, study, ada, "refused", message="The images are no CT.")
    assert ids(page) == []
    text = page.get("/?show=problems").get_data(as_text=True)
    assert "The images are no CT." in text
    assert ids(page, "/?show=problems") == [study]


def test_others_studies_are_seen_only_through_a_group(app: Flask, ada: str, page: Browser) -> None:
    otto = person(app, fresh("otto"))
    group = add_group(app, f"Emergency {ada}", ada, otto)
    shared = add_study(app, otto, findings=findings_of(), groups=[group])
    add_study(app, otto, findings=findings_of())
    mine = add_study(app, ada, findings=findings_of(CLEAR))
    assert ids(page) == [shared, mine]
    assert ids(page, "/?owner=me") == [mine]
    assert ids(page, f"/?owner={otto}") == [shared]
    assert ids(page, f"/?group={group}") == [shared]
    assert "from otto" in page.get("/").get_data(as_text=True)


def test_days_are_those_of_the_server(app: Flask, ada: str, page: Browser) -> None:
    add_study(app, ada, findings=findings_of(), hours_ago=24 * 8)
    new = add_study(app, ada, findings=findings_of(), hours_ago=0)
    assert ids(page, "/?days=7") == ids(page, "/?days=1") == [new]
    assert len(ids(page, "/?days=30")) == 2


def test_search_looks_at_title_and_patient_and_takes_signs_as_they_are(app: Flask, ada: str, page: Browser) -> None:
    doe = add_study(app, ada, findings=findings_of(), patient_label="Doe^Jane")
    fall = add_study(app, ada, findings=findings_of(), title="CT 100%_neck, fall")
    assert ids(page, search="jane") == [doe]
    assert ids(page, search="FALL ct") == [fall]
    assert ids(page, search="100%_") == [fall]
    assert ids(page, search="%") == [fall]
    assert ids(page, search="' OR 1=1 --") == []


def test_a_search_stands_in_no_address(app: Flask, ada: str, page: Browser) -> None:
    for _ in range(PAGE + 1):
        add_study(app, ada, findings=findings_of(), patient_label="Doe^Jane")
    answer = page.send("/", search="Doe")
    links = re.findall(r'(?:href|action)="([^"]*)"', answer.get_data(as_text=True))
    assert answer.status_code == 200 and not [link for link in links if "Doe" in link]
    # The next page is a button of the same form.
    assert len(ids(page, "/", search="Doe", page="2")) == 1
    assert "Doe" not in page.send("/", search="", show="read").headers["Location"]


def test_pages(app: Flask, ada: str, page: Browser) -> None:
    made = {add_study(app, ada, findings=findings_of(), hours_ago=k) for k in range(PAGE + 3)}
    first, second = ids(page), ids(page, "/?page=2")
    assert (len(first), len(second)) == (PAGE, 3)
    assert {*first, *second} == made
    assert ids(page, "/?page=99") == second


def test_new_studies_are_marked_until_they_are_opened(app: Flask, ada: str, page: Browser) -> None:
    study = add_study(app, ada, findings=findings_of())
    assert 'class="new"' in page.get("/").get_data(as_text=True)
    with app.app_context():
        row = db.session.get_one(Study, study)
        row.read_at = row.created
        db.session.commit()
    assert 'class="new"' not in page.get("/").get_data(as_text=True)


def test_lines_alone_are_small_and_not_sent_twice(app: Flask, ada: str, page: Browser) -> None:
    add_study(app, ada, findings=findings_of())
    lines = page.get("/", headers={"X-Part": "list"})
    text = lines.get_data(as_text=True)
    assert "<html" not in text and "csrf" not in text and "<tr data-id" in text
    again = page.get("/", headers={"X-Part": "list", "If-None-Match": lines.headers["ETag"]})
    assert again.status_code == 304 and not again.data
    add_study(app, ada, findings=findings_of())
    assert page.get("/", headers={"X-Part": "list", "If-None-Match": lines.headers["ETag"]}).status_code == 200


def test_progress_is_shown(app: Flask, ada: str, page: Browser) -> None:
    study = add_study(app, ada, state="running")
    add_job(app, study, ada, "running", progress=0.4, step="locate")
    text = page.get("/").get_data(as_text=True)
    assert 'value="0.400"' in text and "Finding the spine" in text


@pytest.mark.parametrize(
    ("address", "words"),
    [("/", "Nothing here yet"), ("/?days=7", "No study matches"), ("/?group=none", "No study matches")],
)
def test_empty_lists_say_what_to_do(page: Browser, address: str, words: str) -> None:
    text = page.get(address).get_data(as_text=True)
    assert words in text and 'class="button' in text


def test_when_all_is_read_the_list_says_so(app: Flask, ada: str, page: Browser) -> None:
    add_answers(app, add_study(app, ada, findings=findings_of()), ada, patient=True)
    assert "Nothing is waiting for you" in page.get("/").get_data(as_text=True)


def test_those_without_studies_are_led_to_their_own_page(app: Flask) -> None:
    answer = visit(app, person(app, fresh(), "administrator")).get("/")
    assert answer.status_code == 302 and answer.headers["Location"] != "/"
    assert browser(app).get("/").headers["Location"].startswith("/login")


def test_patients_never_stand_in_the_title_of_the_page(app: Flask, ada: str, page: Browser) -> None:
    add_study(app, ada, findings=findings_of(), patient_label="<b>Doe</b>", title="<script>x</script>")
    text = page.get("/").get_data(as_text=True)
    assert "Doe" not in text.partition("</title>")[0]
    assert "<b>Doe</b>" not in text and "<script>x" not in text


@given(st.dictionaries(st.sampled_from(("show", "days", "owner", "group", "order", "page", "search")), st.text()))
def test_filters_take_whatever_an_address_says(values: dict[str, str]) -> None:
    filters = Filters.of(values)
    assert 1 <= filters.page < 100_000
    assert Filters.of(filters.query()) == replace(filters, search="")
