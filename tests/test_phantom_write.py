"""Writing phantoms: NIfTI, DICOM, and the layout of RSNA 2022; whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from cspine.cases import Case
from cspine.errors import OutputError, UsageError
from cspine.phantoms.acquisition import acquire
from cspine.phantoms.case import case_of
from cspine.phantoms.cohort import Cohort
from cspine.phantoms.scanner import Scanner
from cspine.phantoms.write import write_dicom, write_nifti, write_rsna_mask, writing
from cspine.volume import Volume
from fake_scene import FakeFracture, FakeScene

SMALL = Scanner(
    pixel=2.5, matrix=(40, 36), spacing=3.0, thickness=3.0, above_c1=10, below_c7=10, sample=2.5, circle=1.05,
    padding=-3024, storage="head-first",
)  # fmt: skip


@cache
def fake_case(name: str = "fake", seed: int = 0, scanner: Scanner = SMALL) -> Case:
    scene = FakeScene((FakeFracture(5),))
    return case_of(scene, acquire(scene, scanner, np.random.default_rng(seed)), name=name)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Phantoms made of the fake scene; the list of seeds that were made."""
    made: list[int] = []

    def make(seed: int, *, name: str, **_: Any) -> Case:
        made.append(seed)
        return replace(fake_case(seed=seed), name=name)

    monkeypatch.setattr("cspine.phantoms.case.make_case", make)
    return made


def tree(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def lps_of(path: Path) -> Volume:
    image = nibabel.load(path)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    return Volume(np.asarray(image.dataobj).T, affine)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_round_trip_keeps_voxels_and_places(tmp_path: Path, ending: str) -> None:
    case = fake_case()
    path = tmp_path / f"ct{ending}"
    write_nifti(case.volume.hu, case.volume.affine, path)
    again = lps_of(path)
    np.testing.assert_array_equal(again.hu, case.volume.hu)
    np.testing.assert_allclose(again.affine, case.volume.affine, atol=1e-4)
    assert nibabel.aff2axcodes(nibabel.load(path).affine) == ("L", "P", "S")
    assert list(tmp_path.iterdir()) == [path]


def test_rsna_masks_need_their_affine(tmp_path: Path) -> None:
    case = fake_case()
    assert case.labels is not None
    write_rsna_mask(np.where(case.labels == 1, 9, case.labels).astype(np.uint8), case.volume.affine, tmp_path / "m.nii")
    stored = lps_of(tmp_path / "m.nii")
    back = stored.reoriented()
    expected = np.where(case.labels == 1, 0, case.labels)
    assert not np.array_equal(stored.hu, expected)
    np.testing.assert_array_equal(back.hu, expected)
    np.testing.assert_allclose(back.affine, case.volume.affine, atol=1e-4)


@pytest.mark.parametrize("storage", ["feet-first", "head-first", "shuffled"])
def test_dicom_slices_say_where_they_are(tmp_path: Path, storage: str) -> None:
    case = fake_case(scanner=replace(SMALL, storage=storage))  # type: ignore[arg-type]
    numbers = write_dicom(case, tmp_path / "s")
    assert sorted(numbers) == list(range(1, case.volume.shape[0] + 1))
    for k, number in enumerate(numbers):
        data = pydicom.dcmread(tmp_path / "s" / f"{number}.dcm")
        np.testing.assert_allclose(data.ImagePositionPatient, case.volume.to_world([0, 0, k]), atol=1e-5)
        hu = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
        padded = hu == -3024
        assert padded[0, 0]
        assert not padded[20, 18]
        np.testing.assert_array_equal(np.where(padded, -1024, hu), case.volume.hu[k])
    assert data.Modality == "CT"
    assert data.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert str(data.PatientName) == "PHANTOM"
    assert data.StudyInstanceUID.startswith(pydicom.uid.PYDICOM_ROOT_UID)
    assert data.PixelPaddingValue == -2000
    np.testing.assert_allclose(data.PixelSpacing, case.volume.spacing[:2], rtol=1e-6)


def test_dicom_uids_are_unique_valid_and_stable(tmp_path: Path) -> None:
    case = fake_case()
    write_dicom(case, tmp_path / "a")
    write_dicom(case, tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in (tmp_path / "a").iterdir()]
    uids = {h.SOPInstanceUID for h in headers}
    assert len(uids) == len(headers)
    assert all(uid.is_valid and len(uid) <= 64 for uid in uids)
    assert len({h.SeriesInstanceUID for h in headers}) == 1
    write_dicom(fake_case(seed=1), tmp_path / "c")
    other = pydicom.dcmread(next((tmp_path / "c").iterdir()), stop_before_pixels=True)
    assert other.StudyInstanceUID != headers[0].StudyInstanceUID


def test_a_tilted_gantry_is_written_as_scanners_do(tmp_path: Path) -> None:
    case = fake_case(scanner=replace(SMALL, tilt=12.0))
    write_dicom(case, tmp_path / "s")
    data = pydicom.dcmread(tmp_path / "s" / "1.dcm")
    assert float(data.GantryDetectorTilt) == 12
    np.testing.assert_allclose(data.ImageOrientationPatient[3:], (0, np.cos(np.pi / 15), np.sin(np.pi / 15)), atol=1e-5)


def test_dicom_opens_as_the_case_it_was(tmp_path: Path) -> None:
    from cspine.studies import open_study

    case = fake_case()
    write_dicom(case, tmp_path / "s")
    opened = open_study(tmp_path / "s")
    np.testing.assert_array_equal(opened.hu, case.volume.hu)
    np.testing.assert_allclose(opened.affine, case.volume.affine, atol=1e-4)


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    def fail() -> None:
        with writing(tmp_path / "x") as partial:
            partial.mkdir()
            (partial / "half").write_text("…")
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"No space left.*finished studies are kept"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError):
        write_dicom(fake_case(), tmp_path / "f" / "s")


def test_rsna_layout_is_complete(tmp_path: Path, quick: list[int]) -> None:
    cohort = Cohort(tmp_path, seed=2)
    cohort.begin()
    for k in range(4):
        cohort.make(k)
    assert cohort.finish() == 4
    assert quick == [200_000, 200_001, 200_002, 200_003]
    train = list(csv.DictReader((tmp_path / "train.csv").open()))
    assert list(train[0]) == ["StudyInstanceUID", "patient_overall", "C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    assert {row["patient_overall"] for row in train} == {"1"}
    assert {row["C5"] for row in train} == {"1"}
    assert {row["C4"] for row in train} == {"0"}
    for row in train:
        assert (tmp_path / "train_images" / row["StudyInstanceUID"] / "1.dcm").is_file()
        assert (tmp_path / "segmentations" / f"{row['StudyInstanceUID']}.nii").is_file()
    test = list(csv.DictReader((tmp_path / "test.csv").open()))
    sample = list(csv.DictReader((tmp_path / "sample_submission.csv").open()))
    assert len(test) == 3 * 8
    assert [row["row_id"] for row in test] == [row["row_id"] for row in sample]
    assert len(list(csv.DictReader((tmp_path / "truth.csv").open()))) == 4 * 7


def test_rsna_boxes_lie_on_the_fracture_in_the_named_slice(tmp_path: Path, quick: list[int]) -> None:
    cohort = Cohort(tmp_path)
    cohort.begin()
    cohort.make(0)
    cohort.finish()
    case = fake_case()
    assert case.fracture is not None
    boxes = list(csv.DictReader((tmp_path / "train_bounding_boxes.csv").open()))
    assert len(boxes) == int(case.fracture.any(axis=(1, 2)).sum())
    for box in boxes:
        path = tmp_path / "train_images" / box["StudyInstanceUID"] / f"{box['slice_number']}.dcm"
        height = float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])
        k = round((height - case.volume.affine[2, 3]) / 3.0)
        x, y, w, h = (round(float(box[key])) for key in ("x", "y", "width", "height"))
        inside = case.fracture[k, y : y + h, x : x + w]
        assert inside.sum() == case.fracture[k].sum() > 0


@pytest.mark.parametrize("layout", ["nifti", "dicom"])
def test_other_layouts_keep_truth_beside_the_studies(tmp_path: Path, quick: list[int], layout: Any) -> None:
    cohort = Cohort(tmp_path, layout=layout)
    cohort.begin()
    name = cohort.make(0)
    cohort.finish()
    study = tmp_path / "studies" / (f"{name}.nii.gz" if layout == "nifti" else name)
    assert study.exists()
    truth = json.loads((tmp_path / "truth" / f"{name}.json").read_text())
    assert truth["levels"]["C5"]["fractured"]
    case = fake_case()
    np.testing.assert_array_equal(lps_of(tmp_path / "truth" / f"{name}.labels.nii.gz").hu, case.labels)
    np.testing.assert_array_equal(lps_of(tmp_path / "truth" / f"{name}.fracture.nii.gz").hu, case.fracture)


def test_the_share_of_masks_is_settable(tmp_path: Path, quick: list[int]) -> None:
    cohort = Cohort(tmp_path, masks=0.0)
    cohort.begin()
    cohort.make(0)
    assert not (tmp_path / "segmentations").exists()


def test_same_settings_same_bytes(tmp_path: Path, quick: list[int]) -> None:
    for folder in ("a", "b"):
        cohort = Cohort(tmp_path / folder)
        cohort.begin()
        cohort.make(0)
        cohort.finish()
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, quick: list[int]) -> None:
    from cspine.cli.phantom import run

    cohort = Cohort(tmp_path)
    assert run(cohort, 2, workers=1, quiet=True) == (2, 0)
    (tmp_path / "truth" / f"{cohort.name_of(0)}.json").unlink()
    before = tree(tmp_path)
    assert run(cohort, 3, workers=1, quiet=True) == (2, 1)
    assert quick == [0, 1, 0, 2]
    after = tree(tmp_path)
    assert {path: after[path] for path in before if not path.endswith(".csv")}.items() <= after.items()


def test_an_interrupted_run_leaves_whole_studies_and_tables(
    tmp_path: Path, quick: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cspine.cli.phantom import run

    make = Cohort.make

    def interrupted(self: Cohort, k: int) -> str:
        if k == 1:
            raise KeyboardInterrupt
        return make(self, k)

    monkeypatch.setattr(Cohort, "make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(Cohort(tmp_path), 3, workers=1, quiet=True)
    assert len(list(csv.DictReader((tmp_path / "train.csv").open()))) == 1
    assert not list(tmp_path.rglob(".partial-*"))


def test_other_settings_need_another_folder(tmp_path: Path, quick: list[int]) -> None:
    Cohort(tmp_path).begin()
    Cohort(tmp_path).begin()
    with pytest.raises(UsageError, match="other settings"):
        Cohort(tmp_path, seed=1).begin()


@pytest.mark.parametrize(
    "wrong", [{"layout": "zip"}, {"preset": "huge"}, {"seed": -1}, {"masks": 2.0}, {"multiplier": -1.0}]
)
def test_settings_are_checked(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Cohort(tmp_path, **wrong)
    with pytest.raises(UsageError, match="count"):
        Cohort(tmp_path).missing(0)


def test_the_command_line(tmp_path: Path, quick: list[int]) -> None:
    import typer

    from cspine.cli.phantom import phantom

    app = typer.Typer()
    app.command()(phantom)
    out = tmp_path / "set"
    result = CliRunner().invoke(app, ["--out", str(out), "--count", "2", "--layout", "nifti", "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert "2 made, 0 were there" in result.output
    assert len(list((out / "studies").iterdir())) == 2


@pytest.mark.slow
def test_workers_make_the_same_bytes_as_one_process(tmp_path: Path) -> None:
    from cspine.cli.phantom import run

    before = dict(os.environ)
    many, one = (Cohort(tmp_path / name, layout="nifti", preset="coarse") for name in ("many", "one"))
    assert run(many, 2, workers=2, quiet=True) == (2, 0)
    assert dict(os.environ) == before
    assert run(one, 1, workers=1, quiet=True) == (1, 0)
    made = tree(tmp_path / "many")
    studies = {path: digest for path, digest in tree(tmp_path / "one").items() if one.name_of(0) in path}
    assert len(studies) == 4
    assert studies.items() <= made.items()
