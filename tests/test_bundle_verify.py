"""A bundle carries a phantom and what was said of it, and says when the same is not said here."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cspine.cli.app import app
from cspine.errors import BundleError
from cspine.findings import Findings
from cspine.inference import predictor as predictor_module
from cspine.inference import verify as verify_module
from cspine.inference.bundle import Bundle, write_bundle
from cspine.inference.predictor import Predictor
from cspine.inference.runtime import make_runtime
from cspine.inference.verify import (
    EXPECTATION,
    PHANTOM,
    STEP_HU,
    Expectation,
    compare,
    expectation_of,
    forget,
    record_into,
    recorded,
    verify,
)
from oracle import OracleRuntime, Patient, make_patient, oracle_bundle

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def patient() -> Patient:
    return make_patient(spacing=(1.6, 1.6, 2.0), z_mm=(-72.0, 30.0), bead_on=4)


@pytest.fixture(scope="module", autouse=True)
def oracle(patient: Patient) -> Iterator[OracleRuntime]:
    """Both runtimes are networks that know the truth; the phantom is the made-up patient."""
    runtime = OracleRuntime(patient)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor_module, "make_runtime", lambda *_: runtime)
        patch.setattr(verify_module, "draw_phantom", lambda seed: (patient.volume, f"made-up neck {seed}"))
        yield runtime


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, oracle: OracleRuntime) -> Path:
    folder = tmp_path_factory.mktemp("made") / "bundle"
    oracle_bundle(folder)
    record_into(folder, 5)
    return folder


@pytest.fixture
def bundle(tmp_path: Path, made: Path) -> Bundle:
    return Bundle.load(Path(shutil.copytree(made, tmp_path / "bundle")))


def changed(expected: Expectation, level: int, **fields: object) -> Expectation:
    levels = list(expected.levels)
    levels[level] = levels[level].model_copy(update=fields)
    return expected.model_copy(update={"levels": tuple(levels)})


@pytest.fixture(scope="module")
def said(made: Path) -> tuple[Expectation, Findings]:
    loaded = Bundle.load(made)
    expected, volume = expectation_of(loaded)
    return expected, Predictor(loaded).predict(volume)


def test_a_recorded_bundle_verifies_in_both_runtimes(bundle: Bundle) -> None:
    runs = list(verify(bundle))
    assert len(runs) == 2
    assert not any(run.mismatches for run in runs)
    assert all(run.largest == 0 for run in runs)


def test_the_phantom_comes_back_where_it_was(bundle: Bundle, patient: Patient) -> None:
    expected, volume = expectation_of(bundle)
    assert expected.phantom == "made-up neck 5"
    assert volume.shape == patient.volume.shape
    assert np.allclose(volume.affine, patient.volume.affine, atol=1e-3)
    assert np.abs(volume.hu.astype(float) - patient.volume.hu).max() <= STEP_HU / 2


def test_recording_twice_gives_the_same_bundle(bundle: Bundle, tmp_path: Path) -> None:
    assert record_into(tmp_path / "bundle", 5).sha256 == bundle.sha256


def test_forgetting_lets_another_export_go_there(bundle: Bundle, tmp_path: Path) -> None:
    fields = bundle.manifest.model_dump(exclude={"schema_version", "files"}, mode="json")
    files = {name: bundle.files[name] for name in ("locator.onnx", "classifier.onnx")}
    with pytest.raises(BundleError, match="only files listed"):
        write_bundle(tmp_path / "bundle", files, fields)
    forget(tmp_path / "bundle")
    assert EXPECTATION not in write_bundle(tmp_path / "bundle", files, fields).files


def test_other_networks_are_noticed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = make_patient(spacing=(1.6, 1.6, 2.0), z_mm=(-72.0, 30.0), curve=9.0)
    monkeypatch.setattr(predictor_module, "make_runtime", lambda *_: OracleRuntime(stranger))
    runs = list(verify(bundle))
    assert all(run.mismatches for run in runs)


@pytest.mark.parametrize(
    ("level", "fields", "text"),
    [
        (3, {"probability": 0.5}, "C4: expected probability 0.5000"),
        (3, {"probability": None}, "C4: expected probability none"),
        (0, {"visible": False}, "C1: expected visible False"),
        (1, {"body_center_mm": (0.0, 0.0, 0.0)}, "C2 centre"),
        (3, {"fracture": False}, "C4: expected fracture False"),
        (3, {"evidence_mm": (0.0, 0.0, 0.0)}, "C4 evidence"),
    ],
)
def test_each_difference_is_named(
    said: tuple[Expectation, Findings], level: int, fields: dict[str, object], text: str
) -> None:
    expected, findings = said
    assert not list(compare(expected, findings))
    assert any(text in sentence for sentence in compare(changed(expected, level, **fields), findings))


def test_what_rounding_explains_is_no_difference(said: tuple[Expectation, Findings]) -> None:
    expected, findings = said
    found = expected.levels[3].probability
    assert found is not None
    near = changed(expected, 3, probability=found - 0.005)
    assert not list(compare(near, findings))
    further = changed(expected, 3, probability=found - 0.05)
    assert list(compare(further, findings, "f32"))
    assert not list(compare(further, findings, "bf16"))


def test_a_probability_at_the_threshold_may_fall_to_either_side(said: tuple[Expectation, Findings]) -> None:
    expected, findings = said
    found = expected.levels[3].probability
    at = changed(expected, 3, fracture=False, threshold=found)
    assert not list(compare(at, findings))


def test_a_bundle_without_a_phantom_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cspine bundle record"):
        expectation_of(oracle_bundle(tmp_path / "plain"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (EXPECTATION, b"{}"),
        (EXPECTATION, b"not json"),
        (PHANTOM, b"not gzip"),
        (PHANTOM, gzip.compress(b"not an image" * 100, mtime=0)),
    ],
    ids=["expectation without keys", "expectation not JSON", "phantom not gzip", "phantom not an image"],
)
def test_damage_that_the_digests_vouch_for_is_still_an_error(bundle: Bundle, name: str, content: bytes) -> None:
    spoilt = Bundle(bundle.manifest, bundle.sha256, {**bundle.files, name: content})
    with pytest.raises(BundleError):
        expectation_of(spoilt)


def test_the_command_ends_with_0_or_4(bundle: Bundle, tmp_path: Path, patient: Patient) -> None:
    folder = tmp_path / "bundle"
    result = CliRunner().invoke(app, ["bundle", "verify", str(folder)])
    assert result.exit_code == 0
    assert result.output.count("same findings") == 2
    files = recorded(bundle, patient.volume, "made-up neck")
    wrong = json.loads(files[EXPECTATION])
    wrong["levels"][3]["probability"] = 0.2
    fields = bundle.manifest.model_dump(exclude={"schema_version", "files"}, mode="json")
    write_bundle(folder, {**bundle.files, EXPECTATION: json.dumps(wrong).encode()}, fields)
    result = CliRunner().invoke(app, ["bundle", "verify", str(folder)])
    assert result.exit_code == 4
    assert "OTHER FINDINGS" in result.output
    (folder / "locator.onnx").write_bytes(b"something else")
    assert CliRunner().invoke(app, ["bundle", "verify", str(folder)]).exit_code == 4


def test_info_tells_what_is_inside(bundle: Bundle, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bundle", "info", str(tmp_path / "bundle")])
    assert result.exit_code == 0
    for text in ("oracle 1", bundle.sha256, "locator.onnx", "jefferson", "phantom to verify with  yes"):
        assert text in result.output


def test_record_prints_the_new_identity(tmp_path: Path) -> None:
    oracle_bundle(tmp_path / "bundle")
    result = CliRunner().invoke(app, ["bundle", "record", str(tmp_path / "bundle"), "--seed", "3"])
    assert result.exit_code == 0
    assert Bundle.load(tmp_path / "bundle").sha256 in result.output


def test_the_commands_are_documented() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    part = text.partition("## cspine bundle\n")[2].partition("\n## ")[0]
    for word in ("verify", "info", "record", "--threads", "--seed"):
        assert word in part


@pytest.mark.slow
def test_the_built_in_bundle_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "make_runtime", make_runtime)
    bundle = Bundle.default()
    if PHANTOM not in bundle.files:
        pytest.skip("the built-in bundle carries no phantom")
    for run in verify(bundle):
        assert not run.mismatches
