"""Planar stages: images and their truth, fit, resume, export. Small networks on fake cases."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cspine.errors import CspineError, MissingExtraError, OutputError, RecipeError, StudyError, UsageError
from cspine.imaging.pipeline import Pipeline
from cspine.inference.planar import PlanarView
from cspine.inference.planar_images import images, plane_grid
from cspine.inference.runtime import make_runtime
from cspine.training.data import type_names
from cspine.training.export import _in_place, export_bundle
from cspine.training.fit import CHECKPOINT, FitOptions, fit_stage, load_network
from cspine.training.planar_data import GROUPS, PlanarHeldBack, PlanarPool, PlanarStream, collated
from cspine.training.planar_draw import Scan, draw_image
from cspine.training.planar_export import planar_distance, planar_interface
from cspine.training.planar_module import PlanarModule
from cspine.training.planar_networks import build_planar, probe
from cspine.training.planar_samples import PlanarSample, planar_sample, read_planar, write_planar
from cspine.training.recipe import PlanarLoss, PlanarNetwork, PlanarStage, Recipe, Schedule
from cspine.training.trainer import typed_errors, world
from cspine.volume import Volume
from training_factory import block_case

ALL = ("levels", "fracture", "types", "visible", "broken", "slice")
SCHEDULE = Schedule(learning_rate=2e-3, batch_size=4, steps=3, warmup_steps=1, ema_decay=0.5, freeze_norm_at=1.0)
NETWORK = PlanarNetwork(encoder="tu-test_resnet", heads=ALL, decoder=(16, 16, 8, 8, 8), pretrained=False)
STAGE = PlanarStage(network=NETWORK, view=PlanarView(size=64), schedule=SCHEDULE)
OPTIONS = FitOptions(workers=0, progress=False, accelerator="cpu", validate_every=2, validate_limit=4, patience=0)


def judge(**changes: Any) -> PlanarStage:
    """A small slice classifier."""
    network = PlanarNetwork(body="own", heads=("slice",), fully_connected=(8,), pretrained=False)
    return PlanarStage(network=network, view=PlanarView(size=32), schedule=SCHEDULE).model_copy(update=changes)


def recipe(stage: PlanarStage, **changes: Any) -> Recipe:
    return Recipe(name="tiny", locator=stage, refiner="none", classifier="none", **changes)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases, one of them held back."""
    folder = tmp_path_factory.mktemp("samples")
    for number in (0, 1, 2):
        write_planar(planar_sample(block_case(number)), folder / "planar", f"phantom-{number:06d}")
    return folder


@pytest.fixture(scope="module")
def scan(samples: Path) -> Scan:
    return Scan(read_planar(samples / "planar" / "phantom-000001"))


def some(array: np.ndarray[Any, Any]) -> int:
    """An axial image in which ``array`` has something."""
    return int(array.any(axis=(1, 2)).argmax())


def test_an_image_is_what_inference_cuts(scan: Scan) -> None:
    view = PlanarView(size=64, neighbours=1, windows=((600, 1800), (400, 2000)))
    stage = STAGE.model_copy(update={"view": view})
    for plane in ("axial", "sagittal"):
        volume = scan.sample.volume
        grid = plane_grid(
            volume, view.model_copy(update={"step_mm": volume.spacing[2 if plane == "axial" else 0]}), plane
        )
        wanted = images(volume, grid, view, 30, 1)[0]
        # The neighbours of inference are ``step_mm`` apart; columns of the stored scan are not.
        part = slice(None) if plane == "axial" else slice(2, 4)
        found = draw_image(scan, stage, plane, 30, np.random.default_rng(0), plain=True)["image"]
        assert found.shape == (6, 64, 64)
        assert np.abs(found[part] - wanted[part]).max() < 1e-3


def test_the_truth_of_an_image(scan: Scan) -> None:
    fracture = scan.sample.fracture
    assert fracture is not None
    index = some(fracture)
    example = draw_image(scan, STAGE, "axial", index, np.random.default_rng(0), plain=True)
    level = int(fracture[index].max())
    assert example["slice"] == 1
    assert example["broken"][level - 1] == example["visible"][level - 1] == 1
    assert example["levels"][example["fracture"] > 0].max() == level
    assert example["types"][type_names().index("burst")] == 1
    assert all(example[f"{name}_known"].all() for name in ALL)


def test_what_nobody_outlined_is_not_known(scan: Scan) -> None:
    sample = replace(
        scan.sample, fracture=None, fractured=(True, *[False] * 5, None), placed=(False, *[True] * 5, False)
    )
    labels = sample.labels
    assert labels is not None
    rng = np.random.default_rng(0)
    doubtful = draw_image(Scan(sample), STAGE, "axial", some(labels == 1), rng, plain=True)
    assert doubtful["slice_known"] == doubtful["fracture_known"] == doubtful["types_known"] == 0
    assert doubtful["broken_known"].tolist()[0] == 0
    clear = draw_image(Scan(sample), STAGE, "axial", some(labels == 4), rng, plain=True)
    assert clear["slice_known"] == clear["fracture_known"] == 1
    assert clear["slice"] == 0
    nothing = replace(sample, labels=None)
    example = draw_image(Scan(nothing), STAGE, "axial", 0, rng, plain=True)
    assert example["levels_known"] == example["slice_known"] == 0
    assert not example["visible_known"].any()


def test_grey_pictures_are_shown_as_they_are_and_know_their_label() -> None:
    grey = np.zeros((2, 40, 40), np.int16)
    grey[:, 10:30, 10:30] = 255
    grey[1, 15:20, 15:20] = 128
    unknown = (None,) * 7
    sample = PlanarSample(
        Volume(grey, np.eye(4)), None, None, unknown, (False,) * 7, ((),) * 7, image_fractured=(True, None), grey=True
    )
    stage = judge(view=PlanarView(size=64, windows=((500, 2000), (50, 400))))
    first, second = (
        draw_image(Scan(sample), stage, "axial", k, np.random.default_rng(0), plain=True) for k in (0, 1)
    )  # fmt: skip
    assert first["image"].min() == -1
    assert first["image"].max() == pytest.approx(1, abs=1e-5)
    assert second["image"][0, 28, 28] == pytest.approx(128 / 127.5 - 1, abs=0.01)
    assert np.array_equal(first["image"][0], first["image"][1])
    assert (first["slice"], first["slice_known"], second["slice_known"]) == (1, 1, 0)


def test_pictures_that_name_their_level_teach_it_without_a_mask() -> None:
    hu = np.full((4, 40, 40), 40, np.int16)
    hu[2] = 900
    known = ((3,), (3, 4), (5,), None)
    sample = PlanarSample(
        Volume(hu, np.eye(4)), None, None, (None,) * 7, (False,) * 7, ((),) * 7,
        image_fractured=(True, True, False, None), image_levels=known,
    )  # fmt: skip
    stage = STAGE.model_copy(update={"view": PlanarView(size=64, neighbours=1)})
    one, two, intact, unknown = (
        draw_image(Scan(sample), stage, "axial", k, np.random.default_rng(0), plain=True) for k in range(4)
    )
    assert one["visible"].tolist() == one["broken"].tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert one["broken_known"].all()
    # Which of the two is broken nobody says; the others are not.
    assert two["broken_known"].tolist() == [1, 1, 0, 0, 1, 1, 1]
    assert intact["fracture_known"] == intact["broken_known"].min() == 1
    assert not unknown["visible_known"].any()
    assert not unknown["broken_known"].any()
    assert one["levels_known"] == one["fracture_known"] == unknown["slice_known"] == 0
    # Nothing lies between pictures, so the neighbours of one are itself.
    assert np.array_equal(one["image"][0], one["image"][2])


def test_what_teaches_a_network_nothing_is_not_drawn(tmp_path: Path) -> None:
    sample = planar_sample(block_case(1))
    write_planar(replace(sample, labels=None, fracture=None), tmp_path, "phantom-000001")
    wanted: list[tuple[Any, ...]] = [("boxes",), ("levels",), ("visible",), ("levels", "slice")]
    for heads in wanted:
        network = PlanarNetwork(body="fcos" if "boxes" in heads else "unet", heads=heads, pretrained=False)
        pool = PlanarPool(tmp_path, judge(network=network), held_back=False)
        pool.refresh()
        assert not pool.entries, heads


def test_augmentation_moves_image_and_truth_together(scan: Scan) -> None:
    flip = Pipeline.model_validate({"steps": [{"kind": "flip", "probability": 1}, {"kind": "noise", "sigma": 5.0}]})
    fracture = scan.sample.fracture
    assert fracture is not None
    index = some(fracture)
    plain = draw_image(scan, STAGE, "axial", index, np.random.default_rng(0), plain=True)
    turned = draw_image(
        scan, STAGE.model_copy(update={"augment": flip}), "axial", index, np.random.default_rng(0)
    )  # fmt: skip
    assert np.array_equal(turned["levels"][:, ::-1], plain["levels"])
    assert np.array_equal(turned["fracture"][:, ::-1], plain["fracture"])
    assert np.abs(turned["image"][:, :, ::-1] - plain["image"]).mean() < 0.02


def test_a_detected_field_holds_the_vertebrae_and_little_else(scan: Scan) -> None:
    stage = STAGE.model_copy(update={"view": PlanarView(size=64, field="detected")})
    assert scan.sample.labels is not None
    index = some(scan.sample.labels == 3)
    whole, cut = (
        draw_image(scan, one, "axial", index, np.random.default_rng(0)) for one in (STAGE, stage)
    )  # fmt: skip
    assert (cut["levels"] == 3).sum() > 1.5 * (whole["levels"] == 3).sum()
    border = np.concatenate([cut["levels"][0], cut["levels"][-1], cut["levels"][:, 0], cut["levels"][:, -1]])
    assert not border.any()


@pytest.mark.parametrize(
    "table",
    [
        {"steps": [{"kind": "one-of", "steps": [{"kind": "clahe"}]}]},
        {"steps": [{"kind": "resize"}]},
        {"features": [{"kind": "hog"}]},
    ],
)
def test_steps_that_prediction_does_not_know_are_refused(tmp_path: Path, table: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="planar"):
        PlanarPool(tmp_path, judge(augment=Pipeline.model_validate(table)), held_back=False)


def test_images_are_drawn_by_the_shares_of_the_recipe(samples: Path) -> None:
    rng = np.random.default_rng(0)
    drawn: dict[float, float] = {}
    for share in (0.0, 0.5, 1.0):
        pool = PlanarPool(samples / "planar", judge(positive_share=share), held_back=False)
        pool.refresh()
        found = [float(example["slice"][0]) for _ in range(60) for example in pool.draw(rng, 2)]
        drawn[share] = float(np.mean(found))
    assert drawn[0.0] == 0
    assert 0.3 < drawn[0.5] < 0.7
    assert drawn[1.0] > 0.95


def test_balance_steps_decide_instead_of_the_shares(samples: Path) -> None:
    def counts(**table: Any) -> dict[str, int]:
        stage = judge(augment=Pipeline.model_validate(table), positive_share=1.0)
        pool = PlanarPool(samples / "planar", stage, held_back=False)
        pool.refresh()
        return {name: sum(len(entry.images[name]) for entry in pool.drawable[name]) for name in GROUPS}

    plain, under = counts(), counts(balance=[{"kind": "under-sample"}])
    assert under["positive"] == plain["positive"] == under["bone"] + under["rest"]
    over = counts(balance=[{"kind": "over-sample"}])
    assert over["positive"] == over["bone"] + over["rest"] == plain["bone"] + plain["rest"]
    with pytest.raises(UsageError, match="SMOTE"):
        counts(balance=[{"kind": "smote"}])


def test_mixing_keeps_what_is_unknown_unknown(samples: Path) -> None:
    stage = STAGE.model_copy(update={"augment": Pipeline.model_validate({"batch": [{"kind": "mixup"}]})})
    pool = PlanarPool(samples / "planar", stage, held_back=False)
    pool.refresh()
    examples = pool.draw(np.random.default_rng(0), 6)
    examples[0] = {**examples[0], "slice_known": np.float32([0])}
    batch = collated(examples, stage, np.random.default_rng(1))
    assert batch["slice_known"].min() == 0
    assert set(batch["slice_known"].unique().tolist()) <= {0.0, 1.0}
    assert batch["levels"].dtype == torch.uint8
    assert batch["image"].shape == (6, 1, 64, 64)


def test_the_stream_repeats_itself_and_ranks_differ(samples: Path) -> None:
    def first(seed: tuple[int, int]) -> torch.Tensor:
        return next(iter(PlanarStream(samples / "planar", judge(), seed)))["image"]

    assert torch.equal(first((3, 0)), first((3, 0)))
    assert not torch.equal(first((3, 0)), first((3, 1)))


def test_held_back_images_are_fixed_and_of_held_back_scans(samples: Path) -> None:
    one, two = (PlanarHeldBack(samples / "planar", STAGE, 6) for _ in range(2))
    assert len(one) == 6
    assert [entry.path.name for entry in one.pool.entries] == ["phantom-000000"]
    assert torch.equal(one[5]["image"], two[5]["image"])
    assert len(PlanarHeldBack(samples / "nowhere", STAGE, 6)) == 0


def test_a_judge_waits_for_fractures(tmp_path: Path) -> None:
    write_planar(planar_sample(block_case(1, fractured=False)), tmp_path, "phantom-000001")
    with pytest.raises(StudyError, match="with and without"):
        next(iter(PlanarStream(tmp_path, judge(), (0, 0), patience=0)))


BODIES = [
    ("encoder", "vit_tiny_patch16_224"),
    ("encoder", "swin_tiny_patch4_window7_224"),
    ("encoder", "convnext_atto"),
    ("encoder", "inception_v3"),
    ("encoder", "resnetv2_50"),
    ("encoder", "tf_efficientnetv2_b0"),
    ("unet", "tu-resnet10t"),
]


@pytest.mark.parametrize(("body", "encoder"), BODIES)
def test_every_kind_of_encoder_answers_with_its_heads(body: Any, encoder: str) -> None:
    view = PlanarView(size=64, windows=((600, 1800), (400, 2000)))
    heads = ("slice", "visible") if body == "encoder" else ALL
    shapes = probe(build_planar(PlanarNetwork(body=body, encoder=encoder, heads=heads), view), view)
    assert shapes["slice"] == (1, 1)
    assert shapes["visible"] == (1, 7)
    assert 64 % shapes["heat"][-1] == 0
    if body == "unet":
        assert (shapes["levels"], shapes["fracture"]) == ((1, 9, 64, 64), (1, 1, 64, 64))


@pytest.mark.parametrize("body", ["encoder", "unet"])
def test_an_unknown_encoder_is_refused(body: Any) -> None:
    with pytest.raises(RecipeError, match="no encoder 'nonsense'"):
        build_planar(PlanarNetwork(body=body, encoder="nonsense", heads=("slice",)), PlanarView(size=64))


def test_heat_is_where_the_answer_comes_from() -> None:
    torch.manual_seed(0)
    network = build_planar(PlanarNetwork(body="own", heads=("slice",)), PlanarView(size=64)).eval()
    image = torch.zeros(1, 1, 64, 64)
    quiet = network(image)
    image[0, 0, 40:56, 8:24] = 1
    found = network(image)
    change = (found["heat"] - quiet["heat"]).abs()[0, 0]
    assert change[2:, :2].sum() > 0.5 * change.sum() > 0
    # Far from the patch nothing changes.
    assert not change[0].any()
    assert not change[:, 3].any()


def test_a_fit_repeats_resumes_and_refuses_another_network(samples: Path, tmp_path: Path) -> None:
    one, two = (
        torch.load(fit_stage(recipe(STAGE), "locator", samples, tmp_path / name, OPTIONS), weights_only=True)
        for name in ("one", "two")
    )
    for name, value in one["average"]["values"].items():
        assert torch.equal(value, two["average"]["values"][name]), name
    assert "val/score" in (tmp_path / "one" / "locator" / "log" / "metrics.csv").read_text()
    longer = STAGE.model_copy(update={"schedule": SCHEDULE.model_copy(update={"steps": 9, "accumulate": 2})})
    again = fit_stage(recipe(longer), "locator", samples, tmp_path / "one", replace(OPTIONS, max_steps=4))
    _, stage, facts = load_network(again)
    assert facts["steps"] == 4
    assert stage.network == STAGE.network
    for other in (
        judge(network=NETWORK),
        STAGE.model_copy(update={"network": NETWORK.model_copy(update={"dropout": 0})}),
    ):
        with pytest.raises(RecipeError, match="another network"):
            fit_stage(recipe(other), "locator", samples, tmp_path / "one", OPTIONS)
    with pytest.raises(RecipeError, match="another network"):
        fit_stage(Recipe(name="base"), "locator", samples, tmp_path / "one", OPTIONS)


def test_early_stopping_ends_a_run_that_gets_no_better(samples: Path, tmp_path: Path) -> None:
    schedule = SCHEDULE.model_copy(update={"steps": 40, "patience": 1, "learning_rate": 1e-12, "ema_decay": 1.0})
    done = fit_stage(
        recipe(STAGE.model_copy(update={"schedule": schedule})), "locator", samples, tmp_path,
        replace(OPTIONS, validate_every=1),
    )  # fmt: skip
    assert load_network(done)[2]["steps"] < 10


def test_a_loss_that_is_not_finite_is_named_and_the_checkpoint_kept(samples: Path, tmp_path: Path) -> None:
    checkpoint = fit_stage(recipe(STAGE), "locator", samples, tmp_path, replace(OPTIONS, max_steps=1))
    before = checkpoint.read_bytes()
    wild = STAGE.model_copy(update={"loss": PlanarLoss(levels=float("inf"))})
    with pytest.raises(CspineError, match="loss became"):
        fit_stage(recipe(wild), "locator", samples, tmp_path, OPTIONS)
    assert checkpoint.read_bytes() == before


def test_memory_and_disk_that_run_out_are_named(tmp_path: Path) -> None:
    with pytest.raises(CspineError, match="batches of 4") as caught, typed_errors(STAGE, tmp_path):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    assert caught.value.where == "schedule.batch_size"
    with pytest.raises(OutputError, match="cannot be written"), typed_errors(STAGE, tmp_path):
        raise RuntimeError("PytorchStreamWriter failed writing file data/3")
    with pytest.raises(RuntimeError, match="something else"), typed_errors(STAGE, tmp_path):
        raise RuntimeError("something else")


def test_a_log_that_is_not_installed_is_named(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("tensorboard")

    monkeypatch.setattr("cspine.training.trainer.TensorBoardLogger", missing)
    with pytest.raises(MissingExtraError, match="TensorBoard"):
        fit_stage(recipe(judge(network=NETWORK)), "locator", samples, tmp_path, replace(OPTIONS, logger="tensorboard"))


def test_figures_of_a_validation(samples: Path) -> None:
    module = PlanarModule(STAGE)
    held = PlanarHeldBack(samples / "planar", STAGE, 12)
    batch = {name: torch.stack([held[k][name] for k in range(12)]) for name in held[0]}
    truth = {name: batch[name].float() * 8 - 4 for name in ("visible", "broken", "slice", "types")}
    truth["levels"] = torch.nn.functional.one_hot(batch["levels"].long(), 9).movedim(-1, 1) * 8.0
    truth["fracture"] = batch["fracture"].unsqueeze(1) * 8.0 - 4
    # A network that knows everything.
    module.network.forward = lambda _: truth  # type: ignore[method-assign, assignment]
    module.validation_step(batch, 0)
    figures = module.figures()
    assert set(figures) == {"dice_cervical", "dice_fracture", "auc_slice", "auc_broken", "f1_visible"}
    shown = batch["visible"].amax(0).mean()
    assert figures.pop("f1_visible") == pytest.approx(float(shown))
    assert all(value == pytest.approx(1) for value in figures.values())


def test_a_shared_network_becomes_both_stages_of_a_bundle(samples: Path, tmp_path: Path) -> None:
    shared = recipe(STAGE, shared=True)
    fit_stage(shared, "locator", samples, tmp_path / "run", replace(OPTIONS, max_steps=1))
    bundle = export_bundle(tmp_path / "run", tmp_path / "bundle", samples=samples)
    stages = bundle.manifest.stages
    assert set(stages) == {"locator", "classifier"}
    assert stages["locator"] == stages["classifier"]
    assert stages["locator"].planar == STAGE.use
    assert bundle.manifest.types == type_names()
    assert "locator: 2 phantoms" in bundle.manifest.trained_on
    network = make_runtime("onnxruntime").load(bundle.model("classifier"))
    held = PlanarHeldBack(samples / "planar", STAGE, 3)
    found = network({"image": np.stack([held[k]["image"].numpy() for k in range(3)])})
    assert {name: value.shape for name, value in found.items()} == {
        "levels": (3, 9, 64, 64), "fracture": (3, 1, 64, 64), "types": (3, 13), "visible": (3, 7), "broken": (3, 7),
        "slice": (3, 1), "heat": (3, 1, 2, 2),
    }  # fmt: skip
    assert np.allclose(found["levels"].sum(axis=1), 1, atol=1e-4)
    assert all(0 <= value.min() <= value.max() <= 1 for value in found.values())


def test_a_locator_alone_packs_without_types_and_missing_stages_are_named(samples: Path, tmp_path: Path) -> None:
    network = PlanarNetwork(body="own", heads=("visible",), pretrained=False)
    only = recipe(judge(network=network))
    fit_stage(only, "locator", samples, tmp_path / "run", replace(OPTIONS, max_steps=1))
    bundle = export_bundle(tmp_path / "run", tmp_path / "bundle", samples=samples)
    assert set(bundle.manifest.stages) == {"locator"}
    assert bundle.manifest.types == ()
    (tmp_path / "run" / "locator" / CHECKPOINT).unlink()
    with pytest.raises(UsageError, match="no trained locator"):
        export_bundle(tmp_path / "run", tmp_path / "bundle", samples=samples)


def test_a_detector_trains_by_its_own_losses(samples: Path, tmp_path: Path) -> None:
    network = PlanarNetwork(body="fcos", encoder="mobilenet_v3_large", heads=("boxes",), pretrained=False)
    stage = judge(network=network, view=PlanarView(size=64))
    done = fit_stage(
        recipe(stage), "locator", samples, tmp_path, replace(OPTIONS, max_steps=1, validate_every=1)
    )  # fmt: skip
    log = (done.parent / "log" / "metrics.csv").read_text()
    assert "train/classification" in log
    assert "val/recall_boxes" in log
    assert load_network(done)[1] == stage.model_copy(update={"schedule": SCHEDULE.model_copy(update={"steps": 1})})
    # Where the library of a YOLO is missing this is what is trained, and the card says so.
    planned = judge(network=network.model_copy(update={"body": "yolo", "encoder": "yolov8n"}))
    assert "fcos on mobilenet_v3_large took its place" in str(_in_place(recipe(planned), "locator", stage))
    assert _in_place(recipe(stage), "locator", stage) is None
    use = planar_interface(stage, "locator")
    assert (use.outputs, use.example) == (("boxes", "scores"), (2, 1, 64, 64))


def test_the_distance_of_answers_is_what_changes_decisions() -> None:
    levels = np.zeros((1, 9, 8, 8), np.float32)
    levels[:, 0] = 1
    levels[0, :, :4] = np.eye(9, dtype=np.float32)[3][:, None, None]
    answer = {"levels": levels, "slice": np.float32([[0.4]]), "heat": np.zeros((1, 1, 2, 2), np.float32)}
    assert planar_distance(answer, {**answer, "heat": answer["heat"] + 1}) == 0
    assert planar_distance(answer, {**answer, "slice": np.float32([[0.5]])}) == pytest.approx(0.1)
    other = levels.copy()
    other[0, :, 0] = np.eye(9, dtype=np.float32)[4][:, None]
    assert planar_distance(answer, {**answer, "levels": other}) == pytest.approx(0.25)
    assert np.isnan(planar_distance(answer, {**answer, "slice": np.float32([[np.nan]])}))


def test_phantoms_write_a_sample_for_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cspine.training import generate

    monkeypatch.setattr(generate, "phantom_with_thorax", lambda *_, **__: (block_case(5), {}))
    written = list(generate.generate("all", tmp_path, count=1))
    assert [path.parent.name for path in written] == ["classifier"]
    kinds = sorted(path.name for path in tmp_path.iterdir())
    assert kinds == ["classifier", "locator", "planar", "refiner"]
    shutil.rmtree(tmp_path / "planar")
    assert list(generate.generate("classifier", tmp_path, count=1)) == []
    assert [path.parent.name for path in generate.generate("planar", tmp_path, count=1)] == ["planar"]
    assert list(generate.generate("all", tmp_path, count=1)) == []
    assert generate.drawn_for("base", "locator") == "locator"
    assert generate.drawn_for("base", "refiner") == "classifier"


def test_torchrun_says_how_many_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world(OPTIONS) == (1, 1)
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_WORLD_SIZE", "2"), ("WORLD_SIZE", "6")):
        monkeypatch.setenv(name, value)
    assert world(OPTIONS) == (2, 3)
    assert world(replace(OPTIONS, devices=1, num_nodes=1)) == (1, 1)
