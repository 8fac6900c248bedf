"""The real children of the application, with the real networks: an upload is recognised, and a neck judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from cspine.cli.demo import make_study
from cspine.findings import Findings
from cspine.node.child import JobOutcome
from cspine.node.privacy import Pseudonyms
from cspine.phantoms.scanner import Scanner
from cspine.web import progress
from cspine.web.child import JUDGE, RECOGNISE
from cspine.web.orders import RECOGNISED_FILE, VIEW_FOLDER, IntakeOrder, JudgeOrder, Received, Recognised
from cspine.web.supervising import CHILD, supervise

GIB = 2**30
# Coarse, so that it is drawn and judged in seconds.
SCANNER = Scanner(pixel=0.9, matrix=(180, 180), spacing=2.0, thickness=2.0, above_c1=20.0, below_c7=25.0)


@pytest.fixture(scope="module")
def neck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A neck with two fractures, as DICOM files."""
    folder = tmp_path_factory.mktemp("neck") / "study"
    make_study(folder, 7, scanner=SCANNER)
    for path in folder.iterdir():
        header = dcmread(path)
        header.PatientName, header.PatientID, header.OperatorsName = "Secret^Name", "SECRET-ID", "Secret^Operator"
        header.save_as(path)
    return folder


def recognised(folder: Path, files: list[Path], *, deidentify: bool) -> tuple[JobOutcome, Recognised]:
    key = folder / "key"
    Pseudonyms.from_file(key)
    order = IntakeOrder(
        key="k",
        study=folder,
        out=folder / "sorted",
        formats=(),
        memory_bytes=8 * GIB,
        files=tuple(Received(path=path, name=path.name) for path in files),
        deidentify=deidentify,
        pseudonym_key=key,
        most_bytes=GIB,
    )
    outcome = supervise(order, 120, (*CHILD, RECOGNISE))
    found = order.out / RECOGNISED_FILE
    return outcome, Recognised.model_validate_json(found.read_bytes()) if found.exists() else Recognised()


def judged(folder: Path, kind: str, title: str) -> tuple[JobOutcome, list[str]]:
    """The outcome, and the steps that were seen on the way."""
    order = JudgeOrder(
        key="k",
        study=folder / "sorted" / "0",
        out=folder / "result",
        formats=(),
        memory_bytes=8 * GIB,
        threads=1,
        kind="pictures" if kind == "pictures" else "volume",
        title=title,
        progress=folder / "progress.json",
    )
    steps: list[str] = []

    def look() -> bool:
        mark = progress.read(folder / "progress.json")
        if mark is not None and mark.step not in steps:
            steps.append(mark.step)
        return True

    return supervise(order, 300, (*CHILD, JUDGE), go_on=look), steps


def test_a_neck_is_recognised_without_its_names_and_judged(neck: Path, tmp_path: Path) -> None:
    outcome, found = recognised(tmp_path, sorted(neck.iterdir()), deidentify=True)
    assert outcome.ending == "judged", outcome
    (study,) = found.studies
    assert study.patient_label.startswith("P-") and study.facts["slices"] == len(list(neck.iterdir()))
    assert any(one.code == "deidentified-pixels" for one in study.notes)

    outcome, steps = judged(tmp_path, study.kind, study.title)
    assert outcome.ending == "judged", outcome
    assert outcome.positive and "C2" in outcome.levels and outcome.probability is not None
    names = {"json", "html", "pdf", "csv", "seg", "sr", "sc", "gsps", "dicom-pdf", "fhir"}
    assert set(outcome.files) == names
    folder = tmp_path / "result"
    assert all((folder / name).is_file() for files in outcome.files.values() for name in files)
    assert (folder / VIEW_FOLDER / "view.json").is_file()
    assert Findings.load(folder / "findings.json").status == "ok"
    assert dcmread(folder / "sr.dcm").PatientID == study.patient_label
    assert steps and steps == [step for _, step in progress.STEPS if step in steps], "steps come in their order"
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        assert b"SECRET" not in data and b"Secret^" not in data, path.name


def test_pictures_need_a_model_that_was_trained_for_them(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 50), 120, np.uint8)).save(tmp_path / "a.png")
    _, found = recognised(tmp_path, [tmp_path / "a.png"], deidentify=False)
    (study,) = found.studies
    outcome, _ = judged(tmp_path, study.kind, study.title)
    assert (outcome.ending, outcome.reason) == ("refused", "no-picture-method")


def test_a_child_that_wants_too_much_memory_is_refused_it(neck: Path, tmp_path: Path) -> None:
    order = JudgeOrder(key="k", study=neck, out=tmp_path / "out", formats=(), memory_bytes=300 * 2**20)
    outcome = supervise(order, 120, (*CHILD, JUDGE))
    assert outcome.ending == "failed" and outcome.reason in ("memory", "crashed", "killed")
