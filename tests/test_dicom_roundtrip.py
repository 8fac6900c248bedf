"""Results go into a real PACS by C-STORE and STOW-RS and come back by WADO-RS: not a voxel and not a word changes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from pydicom.dataset import FileDataset
from typer.testing import CliRunner

from components import need, quick, validation_errors
from cspine.anatomy import LEVELS
from cspine.cli.app import app
from cspine.studies import open_study
from dicom_factory import Grid, write_series
from dicom_results import OBLIQUE, assert_voxels_are_ours, frames_of, judge, neck, read, segment_numbers
from fake_predictor import FakePredictor
from orthanc_server import Orthanc
from report_factory import make_volume

SCANS = {
    "axial": neck(),
    "reversed": neck(orientation=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0)),
    "oblique": neck(orientation=OBLIQUE),
    "anisotropic": neck(count=16, thickness=5.0, spacing=(0.7, 1.3), rows=70),
}


def client(orthanc: Orthanc) -> DICOMwebClient:
    """A DICOMweb client that no proxy of the environment comes between."""
    session = requests.Session()
    session.trust_env = False
    return DICOMwebClient(orthanc.dicomweb, session=session)


def c_store(orthanc: Orthanc, *paths: Path) -> None:
    """Send files with DCMTK's storescu; it fails when one is refused."""
    command = [need("storescu"), "-aec", orthanc.ae_title, "-R", orthanc.host, str(orthanc.dicom_port)]
    subprocess.run([*command, *map(str, paths)], check=True, capture_output=True, timeout=60, env=quick())


def stow(orthanc: Orthanc, *paths: Path) -> None:
    """Send files by STOW-RS."""
    answer = client(orthanc).store_instances([read(path) for path in paths])
    assert not answer.get("FailedSOPSequence")
    assert len(answer.ReferencedSOPSequence) == len(paths)


def wado(orthanc: Orthanc, sent: Dataset) -> FileDataset:
    """The same instance by WADO-RS."""
    uids = (str(sent.StudyInstanceUID), str(sent.SeriesInstanceUID), str(sent.SOPInstanceUID))
    return client(orthanc).retrieve_instance(*uids)  # type: ignore[return-value]


@pytest.mark.parametrize("send", [c_store, stow], ids=["C-STORE", "STOW-RS"])
@pytest.mark.parametrize("name", SCANS)
def test_voxels_come_back_in_their_place(name: str, send: object, orthanc: Orthanc, tmp_path: Path) -> None:
    study = judge(tmp_path / "study", SCANS[name])
    files = study.write(tmp_path / "out", "seg", "sr")
    send(orthanc, *sorted(study.folder.iterdir())[:3], files["seg"], files["sr"])  # type: ignore[operator]
    seg, report = (wado(orthanc, read(files[key])) for key in ("seg", "sr"))
    assert_voxels_are_ours(seg, study.series)
    assert seg == read(files["seg"])
    assert report == read(files["sr"])
    # All in one study of one patient, so that a viewer shows them together.
    (found,) = orthanc.json("/studies?expand")
    assert found["PatientMainDicomTags"]["PatientID"] == str(study.series.context.PatientID)
    modalities = {series["MainDicomTags"]["Modality"] for series in orthanc.json("/series?expand")}
    assert modalities == {"CT", "SEG", "SR"}


def test_the_same_result_sent_twice_is_there_once(orthanc: Orthanc, tmp_path: Path) -> None:
    study = judge(tmp_path / "study")
    for run in ("first", "second"):
        c_store(orthanc, *(path for path in study.write(tmp_path / run, "seg", "sr").values()))
    assert len(orthanc.instances()) == 2


def test_every_image_that_the_results_refer_to_can_be_fetched(orthanc: Orthanc, tmp_path: Path) -> None:
    study = judge(tmp_path / "study")
    files = study.write(tmp_path / "out", "seg", "sr")
    c_store(orthanc, *sorted(study.folder.iterdir()), *(files[key] for key in ("seg", "sr")))
    stored = set(orthanc.instances())
    for key in ("seg", "sr"):
        assert references(read(files[key])) <= stored


def references(data: Dataset) -> set[str]:
    """Every SOPInstanceUID that an object refers to."""
    found: set[str] = set()
    data.walk(lambda _, e: found.add(str(e.value)) if e.keyword == "ReferencedSOPInstanceUID" else None)
    return found


def test_the_command_writes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cspine.inference.predictor.Predictor", FakePredictorWithMask)
    write_series(tmp_path / "s", Grid(count=20))
    out = tmp_path / "out"
    run = CliRunner().invoke(app, ["predict", str(tmp_path / "s"), "-o", str(out), "--formats", "json,seg,sr", "-q"])
    assert run.exit_code == 0, run.output
    assert {path.name for path in out.iterdir()} == {"findings.json", "seg.dcm", "sr.dcm", "run.json"}
    assert segment_numbers(read(out / "seg.dcm")) == {level.name: int(level) for level in LEVELS}
    assert sum(int(frame.mask.sum()) for frame in frames_of(read(out / "seg.dcm"))) > 0
    for name in ("seg.dcm", "sr.dcm"):
        assert validation_errors(out / name) == []


def test_results_written_into_the_study_itself_are_no_part_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cspine.inference.predictor.Predictor", FakePredictorWithMask)
    write_series(tmp_path, Grid(count=20))
    command = ["predict", str(tmp_path), "-o", str(tmp_path), "--formats", "json,seg,sr", "-q"]
    assert CliRunner().invoke(app, command).exit_code == 0
    before = (tmp_path / "run.json").read_bytes()
    stamp = (tmp_path / "seg.dcm").stat().st_mtime_ns
    assert open_study(tmp_path).shape[0] == 20
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (tmp_path / "run.json").read_bytes() == before
    assert (tmp_path / "seg.dcm").stat().st_mtime_ns == stamp, "a finished result was made again"


def test_nifti_has_no_results_in_dicom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cspine.phantoms.write import write_nifti

    monkeypatch.setattr("cspine.inference.predictor.Predictor", FakePredictorWithMask)
    volume = make_volume((20, 20, 20))
    volume.hu[:, :6], volume.hu[:, 12:14] = -1000, 700
    write_nifti(volume.hu, volume.affine, tmp_path / "n.nii.gz")
    command = ["predict", str(tmp_path / "n.nii.gz"), "-o", str(tmp_path / "out"), "--formats", "json,seg"]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 2
    assert "DICOM" in run.output
    assert not (tmp_path / "out" / "seg.dcm").exists()


class FakePredictorWithMask(FakePredictor):
    """Finds one large voxel a level, off the middle."""

    def predict_full(self, volume: object, progress: object = None) -> object:
        prediction = super().predict_full(volume, progress)  # type: ignore[arg-type]
        labels = np.zeros((7, 3, 3), np.uint8)
        labels[:, 1, 2] = [int(level) for level in reversed(LEVELS)]
        prediction.labels, prediction.labels_affine = labels, np.diag([6.0, 6.0, 6.0, 1.0])
        prediction.labels_affine[:3, 3] = (-6.0, -6.0, -18.0)
        return prediction
