"""Training curves: logs of resumed runs are joined in order, and a run without logs is said to have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cspine.cli.app import app
from cspine.errors import OutputError, UsageError
from cspine.training.curves import draw_curves, read_logs, smoothed

HEADER = "epoch,step,train/learning_rate,train/total,val/auc,val/score"


def write_log(folder: Path, rows: list[str]) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("\n".join([HEADER, *rows]) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A classifier that was killed after step 59, went on from step 40, and again from step 100; and a locator."""
    write_log(tmp_path / "classifier" / "log", ["0,19,0.1,4.0,,", "0,39,0.1,3.0,0.6,0.2", "0,59,0.1,9.0,,"])
    write_log(tmp_path / "classifier" / "log-from-100", ["1,119,0.1,1.0,,", "1,119,,,0.9,0.3", "1,13"])
    write_log(tmp_path / "classifier" / "log-from-40", ["0,59,0.1,2.5,,", "0,79,0.1,2.0,nan,", "0,99,0.1,1.5,0.8,0.2"])
    write_log(tmp_path / "locator" / "log", ["0,19,0.1,1.0,,"])
    (tmp_path / "samples").mkdir()
    return tmp_path


def test_logs_are_joined_and_steps_that_were_done_again_count_once(run: Path) -> None:
    locator, classifier = read_logs(run)
    assert (locator.name, classifier.name) == ("locator", "classifier")
    loss = classifier.loss
    assert loss is not None
    assert loss.steps.tolist() == [19, 39, 59, 79, 99, 119]
    assert loss.values.tolist() == [4.0, 3.0, 2.5, 2.0, 1.5, 1.0]
    assert classifier.resumed == (40, 100)
    assert locator.resumed == ()


def test_validation_shows_the_figures(run: Path) -> None:
    classifier = read_logs(run)[1]
    assert list(classifier.figures) == ["val/auc"]
    assert classifier.figures["val/auc"].values.tolist() == [0.6, 0.8, 0.9]
    assert read_logs(run)[0].figures == {}


def test_details_are_left_out_where_something_sums_them_up(tmp_path: Path) -> None:
    folder = tmp_path / "locator" / "log"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,val/dice_c1,val/dice_cervical,val/dice_fracture\n9,0.1,0.2,0.3\n")
    assert list(read_logs(tmp_path)[0].figures) == ["val/dice_cervical", "val/dice_fracture"]
    (folder / "metrics.csv").write_text("step,val/dice_c1,val/dice_c2\n9,0.1,0.2\n")
    assert list(read_logs(tmp_path)[0].figures) == ["val/dice_c1", "val/dice_c2"]


def test_the_log_of_a_library_counts_epochs(tmp_path: Path) -> None:
    folder = tmp_path / "detector" / "log"
    folder.mkdir(parents=True)
    (folder / "results.csv").write_text(
        "epoch,  train/box_loss,train/cls_loss,metrics/mAP50(B),val/box_loss\n1,1.0,2.0,0.25,9\n2,0.5,1.0,0.5,9\n"
    )
    (log,) = read_logs(tmp_path)
    assert log.unit == "epochs"
    assert log.loss is not None
    assert log.loss.values.tolist() == [3.0, 1.5]
    assert list(log.figures) == ["val/mAP50"]


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_picture_has_a_panel_a_stage(run: Path, ending: str) -> None:
    out = draw_curves(run, run / "pictures" / f"curves{ending}")
    assert out.stat().st_size > 1000
    if ending == ".png":
        width, height = Image.open(out).size
        assert (width, height) == (1200, 870)


def test_the_command_draws_and_names_the_picture(run: Path) -> None:
    result = CliRunner().invoke(app, ["curves", str(run), "-o", str(run / "curves.png")])
    assert result.exit_code == 0
    assert result.stdout.strip() == str(run / "curves.png")


def test_a_run_without_logs_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="logged nothing yet"):
        draw_curves(tmp_path, tmp_path / "curves.png")
    write_log(tmp_path / "locator" / "log", [])
    with pytest.raises(UsageError, match="logged nothing yet"):
        read_logs(tmp_path)
    with pytest.raises(UsageError, match="no such run"):
        read_logs(tmp_path / "elsewhere")


def test_pictures_are_of_a_known_kind_in_a_folder_that_can_be_written(run: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.png"):
        draw_curves(run, run / "curves.docx")
    (run / "file").write_text("in the way")
    with pytest.raises(OutputError):
        draw_curves(run, run / "file" / "curves.png")


@pytest.mark.parametrize("count", [1, 2, 50])
def test_smoothing_keeps_constants_and_calms_noise(count: int) -> None:
    assert smoothed(np.full(count, 3.0)) == pytest.approx(np.full(count, 3.0))
    noise = np.random.default_rng(0).normal(size=400)
    assert smoothed(noise).std() < 0.5 * noise.std()
