"""Bundles of planar networks give findings like any other: with networks that know the truth, the truth comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cspine.anatomy import LEVELS, Level
from cspine.errors import BundleError
from cspine.findings import Findings
from cspine.inference import predictor as predictor_module
from cspine.inference import verify as verify_module
from cspine.inference.bundle import Bundle
from cspine.inference.planar import PlanarUse
from cspine.inference.planar_answers import PlaneAnswers, ask
from cspine.inference.planar_images import PlaneGrid, planar_volume
from cspine.inference.planar_run import MARGIN_MM, box_around
from cspine.inference.predictor import Prediction, Predictor
from cspine.inference.verify import expectation_of, record_into, verify
from cspine.volume import Volume
from oracle import Patient, make_patient
from planar_oracle import PlanarOracle, PlanarRuntime, planar_bundle, use_of
from test_stacks import ORDERS, stored

LOCATORS = {
    "pixels": use_of("levels"),
    "pixels from the side": use_of("levels", planes=("sagittal",)),
    "pixels of both": use_of("levels", planes=("axial", "sagittal"), size=64),
    "boxes": use_of("boxes"),
    "visibility": use_of("visible"),
}
JUDGES = {
    "pixels": use_of("fracture", "types", pooling={"top": 10}),
    "pixels from the side": use_of("fracture", planes=("sagittal",), pooling={"top": 5}),
    "levels broken": use_of("broken", "visible", pooling={"top": 1, "by_visibility": True}),
    "slices": use_of("slice", pooling={"top": 1}),
    "boxes": use_of("boxes"),
}


@pytest.fixture(scope="module")
def patient() -> Patient:
    """A whole neck, a bead on the left of C4."""
    return make_patient(spacing=(1.2, 1.2, 2.0), z_mm=(-165.0, 45.0), bead_on=4)


def judged(folder: Path, patient: Patient, **stages: dict[str, object] | None) -> Prediction:
    bundle = planar_bundle(folder / "bundle", stages, classes=14 if stages.get("classifier") == JUDGES["boxes"] else 7)
    return Predictor(bundle, PlanarRuntime(patient)).predict_full(patient.volume)


def off(findings: Findings, patient: Patient) -> float:
    """Largest distance of a body centre from the truth, mm, of C2 and below."""
    return max(
        float(np.linalg.norm(np.subtract(item.body_center_mm, patient.centers[level])))
        for item, level in zip(findings.levels, LEVELS, strict=True)
        if level > Level.C1 and item.body_center_mm is not None
    )


@pytest.mark.parametrize("locator", LOCATORS)
def test_any_planar_locator_serves_the_stack_classifier(tmp_path: Path, patient: Patient, locator: str) -> None:
    prediction = judged(tmp_path, patient, locator=LOCATORS[locator], classifier=None)
    findings = prediction.findings
    assert findings.status == "ok"
    assert [item.fracture for item in findings.levels] == [level == Level.C4 for level in LEVELS]
    assert all(item.visible_fraction > 0.9 and item.confidence > 0.8 for item in findings.levels)
    assert off(findings, patient) < (8.0 if locator == "visibility" else 5.0)
    middle = np.reshape(findings.levels[3].evidence[0].box_mm, (2, 3)).mean(axis=0)
    np.testing.assert_allclose(middle, patient.bead, atol=5.0)


@pytest.mark.parametrize("judge", JUDGES)
def test_a_solid_locator_serves_any_planar_classifier(tmp_path: Path, patient: Patient, judge: str) -> None:
    prediction = judged(tmp_path, patient, locator=None, classifier=JUDGES[judge])
    findings = prediction.findings
    assert findings.status == "ok"
    assert [item.fracture for item in findings.levels] == [level == Level.C4 for level in LEVELS]
    assert findings.patient.fracture
    hit = findings.levels[3]
    assert hit.type == ("lamina" if judge == "pixels" else None)
    if judge == "boxes":
        # A box says where the vertebra is, not where in it.
        assert hit.evidence
    else:
        middle = np.reshape(hit.evidence[0].box_mm, (2, 3)).mean(axis=0)
        np.testing.assert_allclose(middle, patient.bead, atol=9.0)
    assert prediction.logits["C4"] > 1 > -1 > prediction.logits["C5"]


SHARED = {
    "pixels": ({"heads": ("levels",)}, {"heads": ("fracture", "types"), "pooling": {"top": 8}}),
    "visible and broken": (
        {"heads": ("visible",)},
        {"heads": ("broken",), "pooling": {"top": 1, "by_visibility": True}},
    ),
    "boxes": ({"heads": ("boxes",)}, {"heads": ("boxes",)}),
}


@pytest.mark.parametrize("method", SHARED)
def test_a_network_that_locates_and_judges_is_run_once(tmp_path: Path, patient: Patient, method: str) -> None:
    locating, judging = (use_of() | part for part in SHARED[method])
    stages = {"locator": locating, "classifier": judging}
    bundle = planar_bundle(tmp_path / "bundle", stages, shared=True, classes=14 if method == "boxes" else 7)
    runtime = PlanarRuntime(patient)
    prediction = Predictor(bundle, runtime).predict_full(patient.volume)
    assert list(runtime.loaded) == ["locator"]
    assert runtime.loaded["locator"].calls == len(runtime.loaded["locator"].parts)
    assert [item.fracture for item in prediction.findings.levels] == [level == Level.C4 for level in LEVELS]
    assert prediction.findings.levels[3].evidence


def test_what_was_said_of_each_image_is_told(tmp_path: Path, patient: Patient) -> None:
    stages = {"locator": use_of("boxes"), "classifier": use_of("boxes")}
    bundle = planar_bundle(tmp_path / "bundle", stages, shared=True, classes=14)
    said = Predictor(bundle, PlanarRuntime(patient)).predict_full(patient.volume).images
    assert said is not None and said.boxes is not None and said.broken is not None and said.fracture is not None
    assert said.grid.plane == "axial"
    assert said.visible.shape == said.broken.shape == (said.grid.count, 7)
    assert said.fracture.shape == (said.grid.count,)
    at = [round(float(np.linalg.solve(said.grid.affine, np.append(place, 1))[2])) for place in (
        patient.centers[4], patient.bead)]  # fmt: skip
    assert said.visible[at[0]].argmax() == Level.C4.index
    assert said.fracture[at[1]] > 0.8 > 0.2 > said.fracture[0]
    assert said.broken[at[1]].argmax() == Level.C4.index
    # Broken or not, a vertebra is a vertebra.
    assert {int(label) for rows in said.boxes for label in rows[:, 0]} == set(range(1, 8))


def test_images_of_solid_and_planar_stages_together(tmp_path: Path, patient: Patient) -> None:
    said = judged(tmp_path, patient, locator=None, classifier=JUDGES["slices"]).images
    assert said is not None and said.fracture is not None
    assert said.broken is None and said.boxes is None
    # What an image shows is then told by the mask.
    assert said.visible.max() > 0.9
    assert judged(tmp_path / "b", patient, locator=None, classifier=None).images is None


def test_images_seen_from_the_side_alone_still_tell_of_axial_ones(tmp_path: Path, patient: Patient) -> None:
    said = judged(tmp_path, patient, locator=LOCATORS["pixels from the side"], classifier=None).images
    assert said is not None and said.grid.plane == "axial"
    assert said.visible.shape == (said.grid.count, 7)
    assert said.broken is None and said.fracture is None


def test_a_method_without_a_classifier_locates_and_says_so(tmp_path: Path, patient: Patient) -> None:
    prediction = judged(tmp_path, patient, locator=LOCATORS["visibility"])
    findings = prediction.findings
    assert findings.status == "refused"
    assert findings.patient.probability is None
    assert "locates-only" in {item.code for item in findings.warnings}
    for item in findings.levels:
        assert item.visible and item.body_center_mm is not None
        assert item.probability is None and item.fracture is None
        assert item.not_judged == "this method finds vertebrae and does not judge them"
    assert set(np.unique(prediction.labels)) >= set(range(1, 8))
    assert prediction.images is not None
    assert Findings.from_json(findings.to_json()) == findings


def test_levels_outside_the_field_are_not_guessed(tmp_path: Path) -> None:
    short = make_patient(spacing=(1.2, 1.2, 2.0), z_mm=(-72.0, 30.0), bead_on=4)
    for number, locator in enumerate(LOCATORS.values()):
        findings = judged(tmp_path / str(number), short, locator=locator, classifier=JUDGES["pixels"]).findings
        assert findings.status == "partial"
        assert [item.visible for item in findings.levels] == [True] * 4 + [False] * 3
        assert findings.levels[3].fracture
        assert "levels-not-visible" in {item.code for item in findings.warnings}


@pytest.mark.parametrize("locator", LOCATORS)
def test_a_chest_is_refused(tmp_path: Path, locator: str) -> None:
    chest = make_patient(spacing=(2.0, 2.0, 2.0), z_mm=(-230.0, -135.0), count=14)
    findings = judged(tmp_path, chest, locator=LOCATORS[locator], classifier=JUDGES["pixels"]).findings
    assert findings.status == "refused"
    assert findings.warnings[-1].code == "no-cervical-spine"
    assert not any(item.visible for item in findings.levels)


def detected(folder: Path) -> Bundle:
    stages = {
        "detector": use_of("boxes", size=64, step_mm=6.0),
        "locator": use_of("levels", field="detected"),
        "classifier": use_of("fracture", planes=("sagittal",), field="detected"),
    }
    return planar_bundle(folder / "bundle", stages)


def test_images_are_cut_to_what_a_detector_found(tmp_path: Path) -> None:
    wide = make_patient(spacing=(2.0, 2.0, 2.0), z_mm=(-165.0, 45.0), size_mm=(240.0, 240.0), bead_on=4)
    finder = PlanarOracle(wide, PlanarUse.model_validate(use_of("boxes", size=64, step_mm=6.0)))
    box = box_around((ask(finder, finder.use, planar_volume(wide.volume), finder.grids[0]),))
    assert box is not None
    np.testing.assert_allclose((box[0] + box[1])[:2] / 2, (37.0, -21.0 + 18), atol=3)
    runtime = PlanarRuntime(wide, box=box)
    prediction = Predictor(detected(tmp_path), runtime).predict_full(wide.volume)
    assert prediction.images is not None
    assert np.linalg.norm(prediction.images.grid.affine[:3, 0]) < 0.6 * 240 / 96
    assert [item.fracture for item in prediction.findings.levels] == [level == Level.C4 for level in LEVELS]
    assert prediction.findings.provenance.bundle.precision.startswith("detector f32, locator f32")


def test_without_detections_the_whole_field_is_looked_at(tmp_path: Path, patient: Patient) -> None:
    class Blind(PlanarOracle):
        def _boxes(self, labels, broken):
            boxes, scores = super()._boxes(labels, broken)
            return boxes, np.zeros_like(scores)

    findings = Predictor(detected(tmp_path), PlanarRuntime(patient, Blind)).predict(patient.volume)
    assert [item.fracture for item in findings.levels] == [level == Level.C4 for level in LEVELS]


def test_stray_detections_do_not_widen_the_box() -> None:
    grid = PlaneGrid(np.eye(4), 40, 200, "axial")
    rows = [np.array([[1, 0.9, 90, 90, 110, 120]], np.float32) for _ in range(40)]
    box = box_around((PlaneAnswers(grid, boxes=tuple(rows)),))
    rows[7] = np.array([[3, 0.9, 0, 0, 12, 12], [4, 0.1, 0, 0, 200, 200]], np.float32)
    same = box_around((PlaneAnswers(grid, boxes=tuple(rows)),))
    assert box is not None and same is not None
    np.testing.assert_allclose(box[0][:2], 89.5 - MARGIN_MM)
    np.testing.assert_allclose(box[1][:2], (109.5 + MARGIN_MM, 119.5 + MARGIN_MM))
    np.testing.assert_allclose(same[0][:2], box[0][:2])
    assert box_around((PlaneAnswers(grid, boxes=tuple(rows[:2])),)) is None


def spoilt(name: str, change) -> type[PlanarOracle]:
    class Spoilt(PlanarOracle):
        def answer(self, grid, start):
            out = super().answer(grid, start)
            out = {key: change(value) if key == name else value for key, value in out.items()}
            return {key: value for key, value in out.items() if value is not None}

    return Spoilt


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("levels", lambda _: None, "'levels' of shape .*no such output"),
        ("levels", lambda x: x[:, :8], "'levels' of shape .8, 9, 96, 96."),
        ("visible", lambda x: x * np.nan, "'visible' with numbers that are not finite"),
        ("visible", lambda x: x[:, :3], "'visible'"),
        ("types", lambda x: x[..., None], r"'types' of shape \(8, any\)"),
        ("scores", lambda x: x[..., :5], "'scores'"),
        ("scores", lambda x: x[:, :2], "'scores'"),
        ("boxes", lambda _: None, "'boxes'"),
        ("heat", lambda x: x[:, 0], "'heat'"),
        ("slice", lambda x: x[:4], "'slice'"),
    ],
)
def test_answers_of_another_kind_are_refused(tmp_path: Path, patient: Patient, name: str, change, words: str) -> None:
    stages = {"locator": use_of("levels", "visible", "types", "boxes", "slice")}
    bundle = planar_bundle(tmp_path / "bundle", stages)
    with pytest.raises(BundleError, match=words):
        Predictor(bundle, PlanarRuntime(patient, spoilt(name, change))).predict(patient.volume)


def test_the_bundle_can_be_verified(tmp_path: Path, patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bundle"
    planar_bundle(folder, {"locator": use_of("levels"), "classifier": use_of("fracture", "types")}, shared=True)
    monkeypatch.setattr(predictor_module, "make_runtime", lambda *_: PlanarRuntime(patient))
    monkeypatch.setattr(verify_module, "draw_phantom", lambda seed: (patient.volume, f"made-up neck {seed}"))
    bundle = record_into(folder, 3)
    assert expectation_of(bundle)[0].levels[3].evidence_mm is not None
    runs = list(verify(bundle))
    assert len(runs) == 2
    assert all(run.largest == 0 and not run.mismatches for run in runs)


def test_stages_that_share_a_network_share_its_precision(tmp_path: Path, patient: Patient) -> None:
    record = {"bf16": {"error": 0.001, "tolerance": 0.02, "inputs": 4}}
    stages = {"locator": use_of("levels"), "classifier": use_of("fracture")}
    one = planar_bundle(tmp_path / "one", stages, shared=True, precision={"locator": record})
    both = planar_bundle(tmp_path / "both", stages, shared=True, precision={"locator": record, "classifier": record})
    apart = planar_bundle(tmp_path / "apart", stages, precision={"locator": record})
    precisions = [
        tuple(Predictor(bundle, PlanarRuntime(patient)).precision_of(stage) for stage in ("locator", "classifier"))
        for bundle in (one, both, apart)
    ]
    assert precisions == [("f32", "f32"), ("bf16", "bf16"), ("bf16", "f32")]


def test_progress_rises(tmp_path: Path, patient: Patient) -> None:
    bundle = planar_bundle(tmp_path / "bundle", {"locator": LOCATORS["pixels of both"], "classifier": JUDGES["slices"]})
    seen: list[float] = []
    Predictor(bundle, PlanarRuntime(patient)).predict(patient.volume, lambda share, _: seen.append(share))
    assert seen == sorted(seen)
    assert len(seen) > 20 and seen[-1] <= 1


def test_storage_does_not_change_findings(tmp_path: Path, patient: Patient) -> None:
    bundle = planar_bundle(tmp_path / "bundle", {"locator": use_of("levels"), "classifier": JUDGES["pixels"]})
    first = Predictor(bundle, PlanarRuntime(patient)).predict(patient.volume)
    for order, flips in ORDERS[5::14]:
        again = Predictor(bundle, PlanarRuntime(patient)).predict(stored(patient.volume, order, flips))
        assert again.levels == first.levels


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, None])
@pytest.mark.parametrize("method", ["pixels", "boxes", "images"])
def test_networks_that_know_nothing_give_findings_all_the_same(
    tmp_path: Path, patient: Patient, method: str, value: float | None
) -> None:
    rng = np.random.default_rng(7)

    class Clueless(PlanarOracle):
        def answer(self, grid, start):
            out = {k: np.full_like(v, value or 0) for k, v in super().answer(grid, start).items()}
            if value is None:
                out = {k: rng.random(v.shape, np.float32) * (96 if k == "boxes" else 1) for k, v in out.items()}
            return out

    heads = {
        "pixels": ("levels", "fracture", "types"),
        "boxes": ("boxes",),
        "images": ("visible", "broken", "slice", "types"),
    }[method]
    use = use_of(*heads, planes=("axial", "sagittal"), size=32, step_mm=6.0, pooling={"by_visibility": True})
    bundle = planar_bundle(tmp_path / "bundle", {"locator": use, "classifier": use}, shared=True, classes=14)
    prediction = Predictor(bundle, PlanarRuntime(patient, Clueless)).predict_full(patient.volume)
    assert Findings.from_json(prediction.findings.to_json()) == prediction.findings
    assert prediction.images is not None


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 5, 7), (40, 1, 9)])
def test_tiny_volumes_are_refused_not_crashed(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    tiny = Patient({}, Volume(np.zeros(shape, np.int16), np.eye(4)), Volume(np.zeros(shape, np.uint8), np.eye(4)), None)
    for number, use in enumerate(LOCATORS.values()):
        bundle = planar_bundle(tmp_path / str(number), {"locator": use, "classifier": use_of("slice")})
        findings = Predictor(bundle, PlanarRuntime(tiny)).predict(tiny.volume)
        assert findings.status == "refused"
