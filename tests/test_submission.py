"""The competition's answer file: every row has a number, and nobody is told that a study was read when it was not."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cspine.anatomy import LEVELS
from cspine.cli.app import app
from cspine.errors import DamagedFileError, NoImagesError, StudyError, UsageError
from cspine.evaluation.metrics import competition_score
from cspine.evaluation.submission import (
    BASE_RATES,
    KINDS,
    OVERALL_RATE,
    answers_of,
    open_test_folder,
    submission_csv,
)
from cspine.studies.rsna_tables import read_studies
from cspine.volume import Volume
from fake_predictor import findings_of
from training_factory import block_case


def study_folders(path: Path, *names: str, images: str = "test_images") -> Path:
    for name in names:
        (path / images / name).mkdir(parents=True)
    return path


@pytest.mark.shared_data
def test_base_rates_are_those_of_the_published_labels(shared_data: Path) -> None:
    rows = read_studies(shared_data / "rsna2022" / "train.csv").values()
    truth = np.array([[*row.fractured, row.overall] for row in rows])
    rates = [*(BASE_RATES[level] for level in LEVELS), OVERALL_RATE]
    assert truth.mean(axis=0) == pytest.approx(rates)
    assert competition_score(truth, np.tile(rates, (len(truth), 1))) == pytest.approx(0.5638, abs=1e-4)
    assert competition_score(truth, np.full(truth.shape, 0.5)) == pytest.approx(0.6931, abs=1e-4)


def test_rows_follow_the_table_or_all_folders(tmp_path: Path) -> None:
    study_folders(tmp_path, "1.2.3", "1.2.4")
    found = open_test_folder(tmp_path)
    assert found.studies == ("1.2.3", "1.2.4") and len(found.rows) == 16
    assert found.rows[0][0] == "1.2.3_C1" and found.rows[7][0] == "1.2.3_patient_overall"
    (tmp_path / "test.csv").write_text(
        "row_id,StudyInstanceUID,prediction_type\n1.2.4_C5,1.2.4,C5\n1.2.4_patient_overall,1.2.4,patient_overall\n"
    )
    assert [row[0] for row in open_test_folder(tmp_path).rows] == ["1.2.4_C5", "1.2.4_patient_overall"]
    (tmp_path / "test.csv").write_text("row_id,StudyInstanceUID,prediction_type\nx,1.2.4,C9\n")
    with pytest.raises(DamagedFileError, match=r"test\.csv, row 2"):
        open_test_folder(tmp_path)


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="test_images"):
        open_test_folder(tmp_path)
    (tmp_path / "train_images").mkdir()
    with pytest.raises(NoImagesError):
        open_test_folder(tmp_path)


def test_levels_that_were_not_judged_get_their_base_rate() -> None:
    found = findings_of(block_case(0).volume, neck=True)
    silent = found.levels[2].model_copy(update={"probability": None})
    found = found.model_copy(update={"levels": (*found.levels[:2], silent, *found.levels[3:])})
    answers = answers_of(found)
    assert answers["C1"] == 0.1 and answers["patient_overall"] == 0.2
    assert answers["C3"] == pytest.approx(73 / 2019)
    rows = [("a_C3", "a", "C3"), ("b_C1", "b", "C1")]
    assert submission_csv(rows, {"a": answers}).splitlines() == [
        "row_id,fractured", "a_C3,0.0361565", f"b_C1,{146 / 2019:.6g}",
    ]  # fmt: skip


class Judge:
    asked = 0

    def __init__(self, *_: object, **__: object) -> None:
        self.bundle = SimpleNamespace(sha256="d" * 64)

    def predict(self, volume: Volume) -> Any:
        from cspine.findings import BundleProvenance

        Judge.asked += 1
        found = findings_of(volume, neck=True)
        made = BundleProvenance(
            name="base", version="1", sha256="d" * 64, trained_on="nothing", runtime="none", precision="f32"
        )
        return found.model_copy(update={"provenance": found.provenance.model_copy(update={"bundle": made})})


def test_the_command_writes_every_row_and_says_what_it_could_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(path: Path, **_: object) -> Volume:
        if path.name == "1.2.9":
            raise StudyError("expected DICOM files, got none", where=path.name)
        return block_case(0).volume

    monkeypatch.setattr("cspine.inference.predictor.Predictor", Judge)
    monkeypatch.setattr("cspine.inference.bundle.Bundle.load", lambda _: None)
    monkeypatch.setattr("cspine.studies.open_study", opened)
    data = study_folders(tmp_path / "data", "1.2.3", "1.2.9")
    out = tmp_path / "submission.csv"
    command = ["submission", str(tmp_path), str(data), "-o", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 8 and "1.2.9" in done.output
    with out.open() as stream:
        rows = {row["row_id"]: float(row["fractured"]) for row in csv.DictReader(stream)}
    assert len(rows) == 2 * len(KINDS)
    assert rows["1.2.3_C4"] == 0.1
    assert rows["1.2.9_patient_overall"] == pytest.approx(OVERALL_RATE, abs=1e-5)
    CliRunner().invoke(app, command)
    # What was judged before is not judged again.
    assert Judge.asked == 1
