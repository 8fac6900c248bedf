"""The whole chain with networks that know the truth: what is planted comes back at its level, side, slice and pixel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cspine.anatomy import Level
from cspine.errors import BundleError, StudyWarning
from cspine.findings import Findings
from cspine.inference.bundle import Bundle
from cspine.inference.predictor import Predictor
from cspine.volume import Source, Volume
from oracle import OracleRuntime, Patient, make_patient, oracle_bundle
from test_stacks import ORDERS, stored


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return oracle_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def short() -> Patient:
    """C1 to C4 and a cut C5, a bead on the left of C4."""
    return make_patient(spacing=(1.0, 1.25, 2.0), z_mm=(-72.0, 30.0), bead_on=4)


@pytest.fixture(scope="module")
def long() -> Patient:
    return make_patient(spacing=(1.2, 1.2, 1.5), bead_on=6)


@pytest.fixture(scope="module")
def short_predictor(bundle: Bundle, short: Patient) -> Predictor:
    return Predictor(bundle, OracleRuntime(short))


def without_clock(findings: Findings) -> dict[str, object]:
    content = findings.model_dump()
    content["provenance"].pop("seconds")
    content["provenance"].pop("created")
    return content


def test_a_full_scan_is_judged_at_all_levels(bundle: Bundle, long: Patient) -> None:
    prediction = Predictor(bundle, OracleRuntime(long)).predict_full(long.volume)
    findings = prediction.findings
    assert findings.status == "ok"
    assert [item.fracture for item in findings.levels] == [level == Level.C6 for level in Level]
    assert findings.patient.fracture
    for item, level in zip(findings.levels, Level, strict=True):
        assert item.visible
        assert item.visible_fraction == 1.0
        assert item.confidence > 0.9
        assert item.not_judged is None
        assert np.linalg.norm(np.subtract(item.body_center_mm, long.centers[level])) < 1
    hit = findings.levels[Level.C6.index]
    assert hit.type == "lamina"
    assert hit.threshold == 0.5
    assert set(prediction.evidence) == {level.name for level in Level}
    assert prediction.labels.dtype == np.uint8
    assert findings.levels[0].evidence == ()


@pytest.mark.parametrize(("order", "flips"), ORDERS)
def test_a_planted_fracture_comes_back_at_its_side_slice_and_pixel(
    short: Patient, short_predictor: Predictor, order: tuple[int, ...], flips: tuple[bool, ...]
) -> None:
    findings = short_predictor.predict(stored(short.volume, order, flips))
    hit = findings.levels[Level.C4.index]
    assert hit.fracture
    best = hit.evidence[0]
    middle = (np.array(best.box_mm[:3]) + np.array(best.box_mm[3:])) / 2
    assert short.bead is not None
    np.testing.assert_allclose(middle, short.bead, atol=3.5)
    # On the patient's left, and behind the body centre.
    assert middle[0] > hit.body_center_mm[0] + 3
    assert middle[1] > hit.body_center_mm[1] + 10
    z, y, x = short.volume.hu.shape
    plane = short.volume.hu[best.slice_index]
    x0, y0, x1, y1 = (round(value) for value in best.box_px)
    assert plane[y0:y1, x0:x1].max() > 1000
    assert plane[:, x - x1 : x - x0].max() < 1000 or x0 < x / 2 < x1
    assert findings.provenance.input.shape == (z, y, x)


def test_same_volume_same_findings(short: Patient, short_predictor: Predictor, bundle: Bundle) -> None:
    first = short_predictor.predict(short.volume)
    second = Predictor(bundle, OracleRuntime(short)).predict(short.volume)
    assert without_clock(first) == without_clock(second)


def test_levels_outside_the_field_are_not_guessed(short: Patient, short_predictor: Predictor) -> None:
    findings = short_predictor.predict(short.volume)
    assert findings.status == "partial"
    assert [item.visible for item in findings.levels] == [True] * 4 + [False] * 3
    c5 = findings.levels[Level.C5.index]
    assert c5.visible_fraction < 0.5
    assert c5.not_judged
    assert findings.levels[6].probability is None
    assert findings.levels[6].visible_fraction == 0
    assert "levels-not-visible" in {item.code for item in findings.warnings}


def test_blank_slices_do_not_make_levels_visible(bundle: Bundle, short: Patient, short_predictor: Predictor) -> None:
    blank = np.full((40, *short.volume.shape[1:]), -1024, np.int16)
    affine = short.volume.affine.copy()
    affine[:3, 3] = short.volume.to_world([0, 0, -40])
    padded = Volume(np.concatenate([blank, short.volume.hu]), affine)
    before = short_predictor.predict(short.volume)
    after = Predictor(bundle, OracleRuntime(replace(short, volume=padded))).predict(padded)
    assert [item.visible for item in after.levels] == [item.visible for item in before.levels]
    assert [item.fracture for item in after.levels] == [item.fracture for item in before.levels]


def test_a_chest_is_refused(bundle: Bundle) -> None:
    chest = make_patient(spacing=(2.0, 2.0, 2.0), z_mm=(-230.0, -135.0), count=14)
    findings = Predictor(bundle, OracleRuntime(chest)).predict(chest.volume)
    assert findings.status == "refused"
    assert "no-cervical-spine" in {item.code for item in findings.warnings}
    assert findings.patient.probability is None
    assert findings.patient.fracture is None
    assert not any(item.visible for item in findings.levels)


@pytest.mark.parametrize(
    ("spacing", "judged"), [((1.5, 1.5, 2.0), True), ((1.0, 1.0, 4.0), True), ((1.5, 1.5, 6.0), False)]
)
def test_coarse_voxels_are_warned_of_and_then_not_judged(
    bundle: Bundle, spacing: tuple[float, float, float], judged: bool
) -> None:
    coarse = make_patient(spacing=spacing)
    findings = Predictor(bundle, OracleRuntime(coarse)).predict(coarse.volume)
    assert "too-coarse-for-fractures" in {item.code for item in findings.warnings}
    assert findings.levels[3].visible
    assert (findings.levels[3].probability is not None) == judged
    assert findings.status == ("ok" if judged else "refused")
    assert (findings.levels[3].not_judged is None) == judged


def test_uncertain_levels_are_said_to_be(tmp_path: Path, short: Patient) -> None:
    plain = {"posterior": 1.0, "head": 0.0, "chest": 0.0, "contradicted": 0.0, "bias": 0.0}
    hot = oracle_bundle(tmp_path / "hot", calibration={"level_temperature": 60.0, "level_confidence": plain})
    findings = Predictor(hot, OracleRuntime(short)).predict(short.volume)
    assert "levels-uncertain" in {item.code for item in findings.warnings}


def test_thresholds_and_curves_of_the_bundle_are_used(tmp_path: Path, short: Patient) -> None:
    strict = oracle_bundle(
        tmp_path / "strict",
        thresholds={"levels": {"C4": 0.99}, "default": 0.5, "patient": 0.99},
        calibration={"levels": {"C4": {"kind": "platt", "slope": 0.5, "offset": 0.0}}},
    )
    findings = Predictor(strict, OracleRuntime(short)).predict(short.volume)
    hit = findings.levels[Level.C4.index]
    assert hit.probability == pytest.approx(1 / (1 + np.exp(-1.5)), abs=1e-3)
    assert not hit.fracture
    assert hit.type is None
    assert hit.evidence
    assert not findings.patient.fracture


def test_a_type_that_cannot_occur_at_a_level_is_not_named(tmp_path: Path, short: Patient) -> None:
    narrow = oracle_bundle(tmp_path / "narrow", types=("jefferson", "dens-ii", "hangman"),
                           type_levels={"jefferson": ("C1",), "hangman": ("C2",)})  # fmt: skip
    findings = Predictor(narrow, OracleRuntime(short)).predict(short.volume)
    assert findings.levels[Level.C4.index].type == "dens-ii"


def test_provenance_and_warnings_of_the_study_travel_along(short: Patient, short_predictor: Predictor) -> None:
    uids = tuple(f"1.2.{k}" for k in range(short.volume.shape[0]))
    source = Source("dicom", name="neck", sha256="ab" * 32, series_uid="1.2.3", sop_instance_uids=uids)
    warned = StudyWarning("resampled", "uneven slices")
    findings = short_predictor.predict(replace(short.volume, source=source, warnings=(warned, warned)))
    assert findings.provenance.input.sha256 == "ab" * 32
    assert findings.provenance.bundle.runtime == "oracle 1.0"
    assert findings.provenance.bundle.precision == "locator f32, classifier f32"
    assert {"load", "locate", "levels", "stacks", "classify", "combine", "total"} <= set(findings.provenance.seconds)
    assert [item.code for item in findings.warnings].count("resampled") == 1
    best = findings.levels[Level.C4.index].evidence[0]
    assert best.sop_instance_uid == uids[best.slice_index]
    assert Findings.from_json(findings.to_json()) == findings


def test_progress_rises_to_nearly_one(short: Patient, short_predictor: Predictor) -> None:
    seen: list[float] = []
    short_predictor.predict(short.volume, lambda share, _: seen.append(share))
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] <= 1


def test_the_volume_is_left_as_it_was(short: Patient, short_predictor: Predictor) -> None:
    before = short.volume.hu.copy()
    short_predictor.predict(short.volume)
    assert short.volume.hu.dtype == np.int16
    assert (short.volume.hu == before).all()


class WrongShape:
    name = "wrong"

    def supports(self, precision: str) -> bool:
        return True

    def load(self, model: bytes, precision: str = "f32"):
        return lambda _: {"locator": np.zeros((1, 9, 2, 2, 2), np.float32)}


def test_a_network_of_another_shape_is_refused(bundle: Bundle, short: Patient) -> None:
    with pytest.raises(BundleError, match="locator"):
        Predictor(bundle, WrongShape()).predict(short.volume)


def test_bf16_needs_the_gates_word(bundle: Bundle, tmp_path: Path) -> None:
    record = {"error": 0.001, "tolerance": 0.02, "inputs": 4}
    measured = oracle_bundle(tmp_path / "m", precision={"locator": {"bf16": record}})
    assert Predictor(bundle, WrongShape()).precision_of("locator") == "f32"
    predictor = Predictor(measured, WrongShape())
    assert predictor.precision_of("locator") == "bf16"
    assert predictor.precision_of("classifier") == "f32"
    assert Predictor(measured, WrongShape(), precision="f32").precision_of("locator") == "f32"


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 5, 7)])
def test_tiny_volumes_are_refused_not_crashed(bundle: Bundle, short: Patient, shape: tuple[int, int, int]) -> None:
    class Silent(WrongShape):
        def load(self, model: bytes, precision: str = "f32"):
            def answer(inputs):
                logits = np.full((1, 11, *inputs["image"].shape[2:]), -8, np.float32)
                logits[:, 0] = 8
                return {"locator": logits}

            return answer

    findings = Predictor(bundle, Silent()).predict(Volume(np.zeros(shape, np.int16), np.eye(4)))
    assert findings.status == "refused"
