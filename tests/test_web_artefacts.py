"""What is taken away: types and names of files, the report in its frame, and the card of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask

from cspine import reports
from cspine.inference.bundle import Bundle
from cspine.web import artefacts
from cspine.web.found import found_in
from report_factory import make_volume
from web_factory import Browser, person, web_app
from web_studies import add_group, add_study, findings_of, fresh, visit


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    return web_app(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report, and files whose content does not matter here."""
    out = tmp_path_factory.mktemp("out")
    reports.write(findings_of(), make_volume(), out, formats=("json", "html", "csv"))
    for name in ("report.pdf", "seg.dcm", "sr.dcm", "diagnostic-report.json", "view.json", "outcome.json"):
        (out / name).write_bytes(b"content")
    return out


@pytest.fixture(scope="module")
def ada(app: Flask) -> str:
    return person(app, fresh())


@pytest.fixture(scope="module")
def page(app: Flask, ada: str) -> Browser:
    return visit(app, ada)


@pytest.fixture(scope="module")
def study(app: Flask, ada: str, files: Path) -> str:
    return add_study(app, ada, findings=findings_of(), files=files, title="Doe, Jane", patient_label="Doe^Jane")


@pytest.mark.parametrize(
    ("name", "kind", "shown"),
    [
        ("findings.json", "application/json", "attachment"),
        ("report.html", "text/html", "inline"),
        ("report.pdf", "application/pdf", "attachment"),
        ("seg.dcm", "application/dicom", "attachment"),
        ("diagnostic-report.json", "application/fhir+json", "attachment"),
        ("findings.csv", "text/csv", "attachment"),
    ],
)
def test_each_result_has_its_type_and_a_name_of_ours(
    page: Browser, study: str, name: str, kind: str, shown: str
) -> None:
    answer = page.get(f"/studies/{study}/results/{name}")
    assert answer.status_code == 200 and answer.mimetype == kind
    assert answer.headers["Content-Disposition"] == f'{shown}; filename="cspine-{study[:8]}-{name}"'
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_pdf_and_json_can_be_looked_at(page: Browser, study: str) -> None:
    answer = page.get(f"/studies/{study}/results/report.pdf?view")
    assert answer.headers["Content-Disposition"].startswith("inline")


@pytest.mark.parametrize(
    "name", ["view.json", "outcome.json", "answers-sr.dcm", "..", "../run-1/seg.dcm", "%2e%2e/seg.dcm", "", "SEG.DCM"]
)
def test_nothing_else_can_be_fetched(page: Browser, study: str, name: str) -> None:
    answer = page.get(f"/studies/{study}/results/{name}")
    assert answer.status_code in (404, 308) or (name == ".." and b"<h1>" in answer.data)


def test_the_report_runs_as_nobody_with_the_policy_that_it_brings(page: Browser, study: str) -> None:
    answer = page.get(f"/studies/{study}/results/report.html")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "sandbox allow-scripts" in policy
    assert "allow-same-origin" not in policy and "sha256-" in policy and "unsafe" not in policy
    assert "frame-ancestors 'self'" in policy and answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    frame = page.get(f"/studies/{study}/report").get_data(as_text=True)
    assert 'sandbox="allow-scripts allow-modals"' in frame


def test_a_report_that_brings_no_policy_of_ours_may_do_nothing(tmp_path: Path) -> None:
    for text in ("<html></html>", '<meta http-equiv="Content-Security-Policy" content="script-src http://evil">'):
        path = tmp_path / f"{len(text)}.html"
        path.write_text(text)
        assert artefacts.report_policy(path) == ""


def test_the_list_shows_what_there_is(page: Browser, study: str) -> None:
    text = page.get(f"/studies/{study}/results").get_data(as_text=True)
    assert "Segmentation (DICOM SEG)" in text and "Key images" not in text and "Answers (CSV)" not in text
    assert "Model card" in text and "Share or delete" in text


def test_others_get_nothing(app: Flask, study: str) -> None:
    stranger = visit(app, person(app, fresh()))
    for part in ("results", "results/findings.json", "report", "model", "answers"):
        assert stranger.get(f"/studies/{study}/{part}").status_code == 404


def test_members_of_a_group_take_away_but_do_not_share(app: Flask, ada: str, files: Path) -> None:
    otto = person(app, fresh("otto"))
    shared = add_study(app, ada, findings=findings_of(), files=files, groups=[add_group(app, f"G {ada}", ada, otto)])
    text = visit(app, otto).get(f"/studies/{shared}/results").get_data(as_text=True)
    assert "Segmentation" in text and "Share or delete" not in text


def test_a_study_without_results_says_so(app: Flask, ada: str, page: Browser) -> None:
    empty = add_study(app, ada, state="queued")
    assert "There are no results" in page.get(f"/studies/{empty}/results").get_data(as_text=True)
    assert page.get(f"/studies/{empty}/report").status_code == 404
    assert page.get(f"/studies/{empty}/model").status_code == 404


def test_the_card_of_the_model_is_one_click_away(app: Flask, ada: str, page: Browser) -> None:
    findings = findings_of()
    provenance = findings.provenance
    assert provenance.bundle is not None
    used = provenance.bundle.model_copy(update={"sha256": Bundle.default().sha256})
    known = findings.model_copy(update={"provenance": provenance.model_copy(update={"bundle": used})})
    text = page.get(f"/studies/{add_study(app, ada, findings=known)}/model").get_data(as_text=True)
    assert "Must not be used for" in text and "<table>" in text
    other = page.get(f"/studies/{add_study(app, ada, findings=findings)}/model").get_data(as_text=True)
    assert "not on this server any more" in other and "ab" * 32 in other


def test_a_card_cannot_bring_html_or_links() -> None:
    made = artefacts.markdown(
        "# <script>x</script>\n\n[a](javascript:x) <https://evil> ![p](http://evil/p)\n\n|a|\n|-|\n|b|"
    )
    assert "<script" not in made and "<a" not in made and "<img" not in made and "<td>b</td>" in made


def test_an_empty_corner_of_a_cards_table_is_no_heading() -> None:
    made = artefacts.markdown("| |b|\n|-|-|\n|c|d|")
    assert "<th></th>" not in made and made.count("<th>") == 1


def test_results_of_another_version_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "findings.json").write_text('{"schema_version": "9"}')
    assert dict(found_in(tmp_path)) == {} and dict(found_in(None)) == {}
    assert artefacts.provenance_of(tmp_path) is None
