"""``cspine predict`` from the outside: what users give it by mistake, and what is left on disk afterwards.

Studies are opened for real; the networks are replaced by one that looks at nothing, so that this stays fast.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cspine.cli.app import app
from cspine.findings import Findings
from dicom_factory import Grid, write_localizer, write_series

FAKE = Path(__file__).with_name("fake_predictor.py")


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle and a predictor that need no trained networks."""
    from fake_predictor import FakePredictor

    monkeypatch.setattr("cspine.inference.predictor.Predictor", FakePredictor)
    monkeypatch.setattr(
        "cspine.inference.bundle.Bundle.default", classmethod(lambda _: SimpleNamespace(sha256="0" * 64))
    )


def predict(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, ["predict", *map(str, arguments)])


def good(folder: Path, **options: object) -> Path:
    write_series(folder, Grid(), **options)  # type: ignore[arg-type]
    return folder


def content(folder: Path) -> set[str]:
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# One function a mistake: each makes it below a folder and returns what the user would type.


def empty_folder(root: Path) -> Path:
    (root / "bad").mkdir()
    return root / "bad"


def text_named_dcm(root: Path) -> Path:
    path = root / "bad.dcm"
    path.write_text("this is a letter, not an image\n" * 100)
    return path


def truncated_slice(root: Path) -> Path:
    paths = write_series(root / "bad", Grid())
    paths[3].write_bytes(paths[3].read_bytes()[:-500])
    return root / "bad"


def missing_slices(root: Path) -> Path:
    write_series(root / "bad", Grid(count=16), places=[0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15])
    return root / "bad"


def mr_series(root: Path) -> Path:
    def edit(index: int, ds: object) -> None:
        ds.Modality = "MR"  # type: ignore[attr-defined]
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"  # type: ignore[attr-defined]

    return good(root / "bad", edit=edit)


def localizer_only(root: Path) -> Path:
    write_localizer(root / "bad")
    return root / "bad"


def unit_scale_nifti(root: Path) -> Path:
    values = np.random.default_rng(1).random((24, 24, 24), dtype=np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 1.0, 1.0])), root / "bad.nii.gz")
    return root / "bad.nii.gz"


def zip_bomb(root: Path) -> Path:
    with zipfile.ZipFile(root / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.dcm", bytes(64 << 20))
    return root / "bad.zip"


def escaping_zip(root: Path) -> Path:
    with zipfile.ZipFile(root / "bad.zip", "w") as archive:
        archive.writestr("../../escaped.dcm", b"x")
    return root / "bad.zip"


def chest_ct(root: Path) -> Path:
    """A CT without a neck: ``FakePredictor`` takes the kernel's name for what is in view."""

    def edit(index: int, ds: object) -> None:
        ds.ConvolutionKernel = "CHEST"  # type: ignore[attr-defined]

    return good(root / "bad", edit=edit)


MISTAKES: dict[Callable[[Path], Path], str] = {
    empty_folder: "no-images",
    text_named_dcm: "no-images",
    truncated_slice: "damaged-file",
    missing_slices: "geometry",
    mr_series: "not-ct",
    localizer_only: "not-ct",
    unit_scale_nifti: "intensity",
    zip_bomb: "unsafe-archive",
    escaping_zip: "unsafe-archive",
    chest_ct: "no-cervical-spine",
}


@pytest.mark.parametrize(("make", "code"), MISTAKES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_bad_study_is_refused_with_a_reason(make: Callable[[Path], Path], code: str, tmp_path: Path) -> None:
    study = make(tmp_path)
    before = content(tmp_path)
    result = predict(study, "-o", tmp_path / "out")
    assert result.exit_code == 3, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    findings = Findings.load(tmp_path / "out" / "findings.json")
    assert findings.status == "refused"
    assert code in [warning.code for warning in findings.warnings]
    assert all(level.probability is None for level in findings.levels)
    # Nothing beside the refusal: no half-written file, nothing unpacked anywhere.
    left = content(tmp_path) - before
    assert left - {"out/run.json"} == {"out/findings.json", "out/report.html"}


@pytest.mark.parametrize("make", MISTAKES, ids=lambda make: make.__name__)
def test_one_bad_study_among_good_ones_costs_only_itself(make: Callable[[Path], Path], tmp_path: Path) -> None:
    studies = [good(tmp_path / "a"), make(tmp_path), good(tmp_path / "c")]
    out = tmp_path / "out"
    result = predict(*studies, "-o", out, "--formats", "json")
    assert result.exit_code == 8, result.output
    assert "1 of 3 studies" in result.stderr
    with (out / "summary.csv").open(newline="") as stream:
        rows = {row["study"]: row for row in csv.DictReader(stream)}
    assert {name: row["status"] for name, row in rows.items()} == {"a": "ok", "bad": "refused", "c": "ok"}
    assert rows["bad"]["reason"]
    assert rows["a"]["C3_probability"]
    for name in rows:
        assert (out / name / "findings.json").is_file()


def test_one_study_goes_to_the_output_folder(tmp_path: Path) -> None:
    result = predict(good(tmp_path / "neck"), "-o", tmp_path / "deep" / "out")
    assert result.exit_code == 0, result.output
    assert content(tmp_path / "deep" / "out") == {"findings.json", "report.html", "run.json"}
    assert "neck  ok" in result.stdout


def test_two_series_in_one_folder_the_better_one_is_judged_and_it_says_why(tmp_path: Path) -> None:
    study = good(tmp_path / "neck", series="1")
    write_series(study, Grid(count=6), series="2")
    write_localizer(study)
    assert predict(study, "-o", tmp_path / "out").exit_code == 0
    source = Findings.load(tmp_path / "out" / "findings.json").provenance.input
    assert source is not None
    assert source.series_uid is not None
    assert source.series_uid.endswith(".1")
    assert source.selection


def test_one_missing_slice_is_filled_in_and_said(tmp_path: Path) -> None:
    write_series(tmp_path / "neck", Grid(), places=[0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11])
    assert predict(tmp_path / "neck", "-o", tmp_path / "out").exit_code == 0
    findings = Findings.load(tmp_path / "out" / "findings.json")
    assert "filled-missing-slices" in [warning.code for warning in findings.warnings]


def test_another_series_can_be_asked_for(tmp_path: Path) -> None:
    study = good(tmp_path / "neck", series="1")
    write_series(study, Grid(count=8), series="2")
    wanted = next(p for p in study.glob("s2_*.dcm"))
    from pydicom import dcmread

    uid = dcmread(wanted).SeriesInstanceUID
    assert predict(study, "-o", tmp_path / "out", "--series", uid).exit_code == 0
    source = Findings.load(tmp_path / "out" / "findings.json").provenance.input
    assert source is not None
    assert source.series_uid == uid


def test_a_series_that_is_not_there_costs_only_the_studies_without_it(tmp_path: Path) -> None:
    studies = [good(tmp_path / "a", series="1"), good(tmp_path / "b", series="2")]
    from pydicom import dcmread

    uid = dcmread(next(studies[0].iterdir())).SeriesInstanceUID
    result = predict(*studies, "-o", tmp_path / "out", "--series", uid)
    assert result.exit_code == 8, result.output
    assert [Findings.load(tmp_path / "out" / name / "findings.json").status for name in "ab"] == ["ok", "refused"]
    assert predict(studies[1], "-o", tmp_path / "one", "--series", uid).exit_code == 2


def test_a_scale_opens_what_is_not_hu(tmp_path: Path) -> None:
    study = unit_scale_nifti(tmp_path)
    assert predict(study, "-o", tmp_path / "out", "--scale", "2000,-1000").exit_code == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--scale", "1"],
        ["--scale", "0,5"],
        ["--scale", "a,b"],
        ["--formats", "docx"],
        ["--runtime", "tensorrt"],
        ["--threads", "0"],
    ],
)
def test_options_that_make_no_sense_end_with_2(options: list[str], tmp_path: Path) -> None:
    result = predict(good(tmp_path / "neck"), "-o", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "out").exists()


def test_a_study_that_is_not_there_ends_with_2(tmp_path: Path) -> None:
    result = predict(good(tmp_path / "neck"), tmp_path / "gone", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "gone" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_is_not_there_ends_with_4(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    result = predict(good(tmp_path / "neck"), "-o", tmp_path / "out", "--bundle", tmp_path / "bundle")
    assert result.exit_code == 4
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_output_folder_ends_with_5_and_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    result = predict(good(tmp_path / "neck"), "-o", tmp_path / "out")
    assert result.exit_code == 5
    assert (tmp_path / "out").read_text() == "mine"


def test_an_output_folder_that_cannot_be_written_ends_with_5(tmp_path: Path) -> None:
    study, out = good(tmp_path / "neck"), tmp_path / "out"
    out.mkdir()
    if os.geteuid() == 0:
        # Permissions do not bind root; the kernel's own file system does.
        out = Path("/proc/cspine-out")
        if not Path("/proc").is_dir():
            pytest.skip("nothing is read-only for root here")
    else:
        out.chmod(0o500)
    result = predict(study, "-o", out)
    assert result.exit_code == 5, result.output
    assert "Traceback" not in result.output


def run_apart(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``cspine predict`` in a process of its own, with the fake model, after some code."""
    start = f"""
import sys
sys.path.insert(0, {str(FAKE.parent)!r})
import cspine.inference.predictor, cspine.inference.bundle
from types import SimpleNamespace
from fake_predictor import FakePredictor
cspine.inference.predictor.Predictor = FakePredictor
cspine.inference.bundle.Bundle.default = classmethod(lambda _: SimpleNamespace(sha256="0" * 64))
from cspine.cli.app import app
"""
    return subprocess.run(
        [sys.executable, "-c", f"{start}{code}\napp()", "predict", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files, which Windows cannot")
def test_a_full_disk_ends_with_5_and_leaves_no_part_of_a_result(tmp_path: Path) -> None:
    studies, out = [good(tmp_path / "a"), good(tmp_path / "b")], tmp_path / "out"
    # No file may grow past this many bytes: what a write meets on a full disk, without filling one.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"
    done = run_apart(limit, *studies, "-o", out)
    assert done.returncode == 5, done.stdout + done.stderr
    assert done.stderr.count("error:") == 1
    assert content(out) <= {"summary.csv"}
    assert run_apart("", *studies, "-o", out).returncode == 0


def test_an_interrupted_run_goes_on_without_loss(tmp_path: Path) -> None:
    studies, out = [good(tmp_path / name) for name in "abc"], tmp_path / "out"
    # Ctrl-C arrives while the second study is judged.
    interrupt = """
import os, signal
# A shell that starts a suite in the background makes its children deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
real, seen = FakePredictor.predict_full, []
def predict_full(self, volume, progress=None):
    seen.append(volume)
    if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return real(self, volume, progress)
FakePredictor.predict_full = predict_full
"""
    done = run_apart(interrupt, *studies, "-o", out)
    assert done.returncode == 130, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert {"a/findings.json", "a/report.html", "a/run.json", "summary.csv"} == content(out)
    first = (out / "a" / "findings.json").stat().st_mtime_ns
    done = run_apart("", *studies, "-o", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "a" / "findings.json").stat().st_mtime_ns == first
    assert done.stdout.count("(done before)") == 1
    assert {"b/findings.json", "c/findings.json"} <= content(out)


def test_a_bug_met_in_one_study_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_predictor import FakePredictor

    real = FakePredictor.predict_full

    def predict_full(self: FakePredictor, volume: object, progress: object = None) -> object:
        if volume.source.name == "a":  # type: ignore[attr-defined]
            raise ZeroDivisionError("a bug")
        return real(self, volume, progress)  # type: ignore[arg-type]

    monkeypatch.setattr(FakePredictor, "predict_full", predict_full)
    studies = [good(tmp_path / "a"), good(tmp_path / "b")]
    result = predict(*studies, "-o", tmp_path / "out")
    assert result.exit_code == 8
    assert json.loads((tmp_path / "out" / "a" / "findings.json").read_text())["warnings"][0]["code"] == "error"
    assert "ZeroDivisionError" in predict(*studies, "-o", tmp_path / "out", "--verbose").stderr
    assert predict(studies[0], "-o", tmp_path / "one").exit_code == 1


def test_results_name_nobody(tmp_path: Path) -> None:
    study = good(tmp_path / "neck")
    result = predict(study, "-o", tmp_path / "out")
    written = result.output + "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    for secret in ("Secret", "SECRET-ID"):
        assert secret not in written


def test_quiet_says_nothing(tmp_path: Path) -> None:
    result = predict(good(tmp_path / "neck"), "-o", tmp_path / "out", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_formats_choose_what_is_written(tmp_path: Path) -> None:
    assert predict(good(tmp_path / "neck"), "-o", tmp_path / "out", "--formats", "json").exit_code == 0
    assert content(tmp_path / "out") == {"findings.json", "run.json"}


def test_the_line_of_a_study_is_never_clear_when_a_level_is_suspected() -> None:
    from cspine.cli.progress import line

    def said(patient: bool, level: bool) -> str:
        levels = [SimpleNamespace(level="C3", probability=0.12, fracture=level)]
        found = SimpleNamespace(patient=SimpleNamespace(probability=0.4, fracture=patient), levels=levels)
        job = SimpleNamespace(name="one", folder=Path("out"))
        outcome: Any = SimpleNamespace(job=job, status="ok", error=None, findings=found, resumed=False, seconds=1.0)
        return line(outcome).plain

    assert "(no fracture found)" in said(False, False)
    assert "(possible fracture)  C3 0.12" in said(False, True)
    assert "(fracture)" in said(True, True)
