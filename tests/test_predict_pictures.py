"""``cspine predict`` on single pictures: what counts as one, what is written, and one bad picture among others."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cspine.cli.app import app
from cspine.errors import StudyError
from cspine.inference.bundle import StageName
from cspine.reports.picture_findings import COLUMNS, PictureFindings
from cspine.reports.pictures import MOST_SHOWN, Card, keep_strongest
from cspine.studies.pictures import kind_of, pictures_in
from dicom_factory import Grid, make_slice, save, write_series
from picture_oracle import SPOT, PictureRuntime, picture_bundle, spotted
from planar_oracle import use_of


@pytest.fixture(autouse=True)
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that find a bright spot, in place of trained ones."""
    monkeypatch.setattr("cspine.inference.pictures.make_runtime", lambda *_: PictureRuntime())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return made(tmp_path / "bundle", {"classifier": use_of("slice", "visible")})


def made(folder: Path, stages: dict[StageName, dict[str, object] | None]) -> Path:
    picture_bundle(folder, stages)
    return folder


def predict(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, ["predict", *map(str, arguments)])


def draw(path: Path, *, bright: bool = True, size: tuple[int, int] = (120, 160)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((spotted(size, bright=bright).pixels * 255).astype(np.uint8)).save(path)
    return path


# ---------------------------------------------------------------- what counts as a picture


def test_files_and_folders_of_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "deep/b.jpg", "masks/a.png", ".hidden.png", "c.tif"):
        draw(tmp_path / "set" / name)
    (tmp_path / "set" / "labels.csv").write_text("file,label\n")
    assert [item.name for item in pictures_in(tmp_path / "set")] == ["a.png", "c.tif", "deep/b.jpg"]
    without = draw(tmp_path / "x.png").rename(tmp_path / "no-ending")
    assert kind_of(without) == "pictures"


def test_a_study_is_a_study_whatever_pictures_lie_beside_it(tmp_path: Path) -> None:
    write_series(tmp_path / "study", Grid())
    draw(tmp_path / "study" / "a-screenshot.png")
    assert kind_of(tmp_path / "study") == "study"
    single = tmp_path / "one.dcm"
    save(make_slice(Grid(), 5, 5), single)
    assert kind_of(single) == "slice"
    (tmp_path / "text.dcm").write_text("no image")
    assert kind_of(tmp_path / "text.dcm") == kind_of(tmp_path / "nowhere") == "study"


# ---------------------------------------------------------------- what is written


def test_pictures_are_judged_and_written(tmp_path: Path, bundle: Path) -> None:
    draw(tmp_path / "in" / "broken.png", size=(300, 500))
    draw(tmp_path / "in" / "whole.png", bright=False)
    result = predict(tmp_path / "in", "-o", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 0, result.output
    assert "2 pictures, fracture suspected in 1" in result.stdout
    found = PictureFindings.load(tmp_path / "out" / "pictures.json")
    broken, whole = found.pictures
    assert [(item.name, item.fracture) for item in found.pictures] == [("broken.png", True), ("whole.png", False)]
    assert (broken.columns, broken.rows, broken.unit) == (500, 300, "grey")
    assert broken.probability == pytest.approx(0.9) and broken.threshold == 0.5
    assert [item.code for item in broken.warnings] == ["grey-levels"]
    assert broken.strongest_px is not None
    np.testing.assert_allclose(broken.strongest_px[::-1], np.multiply(SPOT, (300, 500)), atol=30)
    assert max(broken.levels, key=lambda item: item.shown or 0).level == "C4"
    assert all(item.fracture is None for item in whole.levels)
    assert found.provenance.bundle.name == "planar"
    assert "Not a diagnosis" in found.notice
    with (tmp_path / "out" / "pictures.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["picture"], row["fracture"], row["status"]) for row in rows] == [
        ("broken.png", "yes", "ok"), ("whole.png", "no", "ok"),
    ]  # fmt: skip


def test_the_page_shows_each_picture_and_its_heat(tmp_path: Path, bundle: Path) -> None:
    draw(tmp_path / "in" / "b<i>.png", bright=False)
    draw(tmp_path / "in" / "a.png")
    assert predict(tmp_path / "in", "-o", tmp_path / "out", "--bundle", bundle).exit_code == 0
    page = (tmp_path / "out" / "pictures.html").read_text()
    assert "Research use only" in page
    assert "A fracture is suspected in 1 of 2 pictures" in page
    assert page.count("data:image/jpeg") == 2
    assert page.count("data:image/png") == 1
    # The suspicious one first; names are text and nothing else.
    assert page.index('alt="a.png"') < page.index('alt="b&lt;i&gt;.png"')
    assert "<i>" not in page and "<script" not in page and "http://" not in page and "https://" not in page


def test_a_bundle_that_names_no_level_says_nothing_of_one(tmp_path: Path) -> None:
    bundle = made(tmp_path / "slices", {"classifier": use_of("slice")})
    draw(tmp_path / "a.png")
    assert predict(tmp_path / "a.png", "-o", tmp_path / "out", "--bundle", bundle).exit_code == 0
    assert PictureFindings.load(tmp_path / "out" / "pictures.json").pictures[0].levels == ()
    assert "Nothing is said of a level." in (tmp_path / "out" / "pictures.html").read_text()


def test_a_bundle_that_only_names_levels(tmp_path: Path) -> None:
    bundle = made(tmp_path / "boxes", {"locator": use_of("boxes")})
    draw(tmp_path / "a.png")
    result = predict(tmp_path / "a.png", "-o", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 0, result.output
    (item,) = PictureFindings.load(tmp_path / "out" / "pictures.json").pictures
    assert item.probability is None and item.fracture is None and item.threshold is None
    assert [(box.level, box.fractured) for box in item.boxes] == [("C4", None)]
    page = (tmp_path / "out" / "pictures.html").read_text()
    assert "does not judge fractures" in page and "<rect" in page


def test_single_dicom_slices_are_judged_in_hu(tmp_path: Path, bundle: Path) -> None:
    for number in (4, 5):
        save(make_slice(Grid(), number, number), tmp_path / f"{number}.dcm")
    result = predict(tmp_path / "4.dcm", tmp_path / "5.dcm", "-o", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 0, result.output
    assert [item.unit for item in PictureFindings.load(tmp_path / "out" / "pictures.json").pictures] == ["HU", "HU"]


def test_formats_are_chosen_and_names_told_apart(tmp_path: Path, bundle: Path) -> None:
    same = [draw(tmp_path / part / "a.png") for part in ("x", "y")]
    result = predict(*same, "-o", tmp_path / "out", "--bundle", bundle, "--formats", "json", "-q")
    assert (result.exit_code, result.output) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pictures.csv", "pictures.json"]
    found = PictureFindings.load(tmp_path / "out" / "pictures.json").pictures
    assert [item.name for item in found] == ["a.png", "a.png-2"]


def test_the_same_pictures_give_the_same_answers(tmp_path: Path, bundle: Path) -> None:
    for number in range(11):
        draw(tmp_path / "in" / f"{number:02d}.png", bright=number % 4 == 0)
    for out in ("one", "two"):
        assert predict(tmp_path / "in", "-o", tmp_path / out, "--bundle", bundle).exit_code == 0
    one, two = (PictureFindings.load(tmp_path / out / "pictures.json") for out in ("one", "two"))
    assert one.pictures == two.pictures
    assert [item.fracture for item in one.pictures] == [number % 4 == 0 for number in range(11)]


# ---------------------------------------------------------------- what goes wrong


def test_a_damaged_picture_does_not_stop_the_others(tmp_path: Path, bundle: Path) -> None:
    draw(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "=b.png").write_bytes(draw(tmp_path / "c.png").read_bytes()[:60])
    result = predict(tmp_path / "in", "-o", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 8
    assert "1 of 2 pictures have no result" in result.stderr
    bad, good = PictureFindings.load(tmp_path / "out" / "pictures.json").pictures
    assert (bad.status, good.status) == ("refused", "ok")
    assert bad.reason and bad.probability is None
    # A spreadsheet must not take a name for a formula.
    assert "\n'=b.png,refused," in (tmp_path / "out" / "pictures.csv").read_text()
    assert "Not judged" in (tmp_path / "out" / "pictures.html").read_text()


def test_the_only_picture_is_refused_with_its_own_error(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    result = predict(tmp_path / "a.png", "-o", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == StudyError.exit_code
    assert json.loads((tmp_path / "out" / "pictures.json").read_text())["pictures"][0]["status"] == "refused"


def test_the_built_in_bundle_says_what_to_train(tmp_path: Path) -> None:
    result = predict(draw(tmp_path / "a.png"), "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "cannot judge single pictures" in result.stderr
    assert "cspine train slice-densenet121 --stage classifier" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"), [(("--series", "1.2"), "no series"), (("nowhere",), "no such file"), (("study",), "judged apart")]
)
def test_what_has_no_meaning_for_pictures(tmp_path: Path, bundle: Path, more: tuple[str, ...], said: str) -> None:
    write_series(tmp_path / "study", Grid())
    given = [tmp_path / item if item in ("study", "nowhere") else item for item in more]
    result = predict(draw(tmp_path / "a.png"), *given, "-o", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 2
    assert said in result.stderr


def test_slices_without_a_bundle_for_them_are_refused_as_studies(tmp_path: Path) -> None:
    save(make_slice(Grid(), 5, 5), tmp_path / "one.dcm")
    result = predict(tmp_path / "one.dcm", "-o", tmp_path / "out")
    assert result.exit_code == StudyError.exit_code
    assert (tmp_path / "out" / "findings.json").exists()


def test_a_volume_and_a_bundle_of_pictures(tmp_path: Path, bundle: Path) -> None:
    write_series(tmp_path / "study", Grid())
    result = predict(tmp_path / "study", "-o", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 4
    assert "no locator" in result.stderr


def test_a_file_of_another_kind_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "pictures.json").write_text('{"schema_version": "2.0"}')
    with pytest.raises(StudyError, match="schema_version"):
        PictureFindings.load(tmp_path / "pictures.json")


def test_a_page_keeps_the_most_suspicious(tmp_path: Path, bundle: Path) -> None:
    assert predict(draw(tmp_path / "a.png"), "-o", tmp_path / "out", "--bundle", bundle).exit_code == 0
    (item,) = PictureFindings.load(tmp_path / "out" / "pictures.json").pictures
    cards = [Card(item.model_copy(update={"probability": k / 1000}), b"", None) for k in range(MOST_SHOWN + 5)]
    keep_strongest(cards)
    assert len(cards) == MOST_SHOWN
    assert min(card.finding.probability or 0 for card in cards) == pytest.approx(0.005)
