"""Single pictures: shown as training shows them, asked of the right networks, answered in their own pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cspine.errors import BundleError, UsageError
from cspine.imaging.intensity import as_picture
from cspine.inference.bundle import Bundle, StageName
from cspine.inference.pictures import PictureAnswer, PicturePredictor, judge_pictures
from cspine.inference.planar import PlanarView
from cspine.inference.planar_answers import BATCH
from cspine.inference.planar_images import as_channels, picture_input, picture_volume
from cspine.inference.predictor import Predictor
from cspine.studies.images import SliceImage, open_image
from cspine.studies.picture_folder import PictureFolder
from cspine.training.planar_draw import Scan, draw_image
from cspine.training.planar_samples import planar_sample
from cspine.training.recipe import PlanarNetwork, PlanarStage
from cspine.volume import Source, Volume
from labelled_factory import write_picture
from picture_oracle import SPOT, PictureRuntime, picture_bundle, spotted
from planar_oracle import use_of


def image(pixels: np.ndarray, unit: str = "grey", name: str = "a") -> SliceImage:
    return SliceImage(pixels, unit, None, Source(kind="image", name=name))  # type: ignore[arg-type]


def answers(folder: Path, stages: dict[StageName, dict[str, object]], *images: SliceImage, classes: int = 7,
            shared: bool = False) -> tuple[PictureAnswer, ...]:  # fmt: skip
    bundle = picture_bundle(folder / "bundle", stages, classes=classes, shared=shared)
    return PicturePredictor(bundle, PictureRuntime()).judge(images)


# ---------------------------------------------------------------- what a network sees


@pytest.mark.parametrize("size", [(90, 120), (500, 700), (64, 64)])
@pytest.mark.parametrize("neighbours", [0, 1])
def test_a_picture_is_shown_as_training_shows_it(tmp_path: Path, size: tuple[int, int], neighbours: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, size).astype(np.uint8)
    write_picture(tmp_path / "fractured" / "a.png", pixels)
    view = PlanarView(size=96, step_mm=3.0, windows=((400.0, 1000.0), (0.0, 300.0)), neighbours=neighbours)
    stage = PlanarStage(network=PlanarNetwork(body="own", heads=("slice",)), view=view)
    taught = draw_image(
        Scan(planar_sample(PictureFolder.open(tmp_path).case("fractured_a"))), stage, "axial", 0,
        np.random.default_rng(0), plain=True,
    )["image"]  # fmt: skip
    bundle = picture_bundle(tmp_path / "bundle", {"classifier": use_of("slice", **view.model_dump(exclude={"planes"}))})
    runtime = PictureRuntime()
    PicturePredictor(bundle, runtime).judge([open_image(tmp_path / "fractured" / "a.png")])
    (network,) = runtime.loaded.values()
    np.testing.assert_allclose(network.seen[0][0], taught, atol=1e-5)
    # The rest of the batch is black.
    assert (network.seen[0][1:] == -1).all()


def test_hu_goes_through_the_windows_and_a_grey_picture_through_the_first() -> None:
    view = PlanarView(size=32, windows=((100.0, 200.0), (1000.0, 200.0)), neighbours=1)
    hu = picture_volume(Volume(np.full((1, 32, 32), 150.0, np.float32), np.eye(4)))
    shown, _ = picture_input(hu, view, grey=False)
    assert shown.shape == (6, 32, 32)
    np.testing.assert_allclose(shown[:, 5, 5], [0.5, -1, 0.5, -1, 0.5, -1], atol=1e-4)
    grey, _ = picture_input(replace(hu, hu=np.full((1, 32, 32), 191.25, np.float32)), view, grey=True)
    np.testing.assert_allclose(grey[:, 5, 5], [0.5] * 6, atol=1e-4)


def test_the_sides_keep_their_proportion_and_what_is_beside_is_black() -> None:
    wide = picture_volume(Volume(np.full((1, 20, 60), 255.0, np.float32), np.eye(4)))
    shown, _ = picture_input(wide, PlanarView(size=96), grey=True)
    assert (shown[0, 33:63] > 0.99).all()
    assert (shown[0, :31] == -1).all() and (shown[0, 65:] == -1).all()


def test_a_scan_can_be_shown_as_a_picture_of_any_window_would_be() -> None:
    hu = np.random.default_rng(0).uniform(-800, 1600, (1, 64, 64)).astype(np.float32)
    view = PlanarView(size=64, windows=((500.0, 2000.0),))
    png = np.rint(np.clip((hu - (300 - 450)) / 900, 0, 1) * 255)
    shown, _ = picture_input(picture_volume(Volume(png.astype(np.float32), np.eye(4))), view, grey=True)
    taught = as_picture(hu, 300, 900, shown_level=500, shown_width=2000)
    np.testing.assert_allclose(shown, as_channels(taught, view)[0], atol=1e-5)


# ---------------------------------------------------------------- what is answered


JUDGES = {
    "slice": (use_of("slice"), 7),
    "broken": (use_of("broken", "visible"), 7),
    "pixels": (use_of("fracture", pooling={"top": 3}), 7),
    "boxes": (use_of("boxes"), 14),
}


@pytest.mark.parametrize("head", JUDGES)
def test_every_kind_of_judge_answers(tmp_path: Path, head: str) -> None:
    use, classes = JUDGES[head]
    broken, intact = answers(tmp_path, {"classifier": use}, spotted(), spotted(bright=False), classes=classes)
    assert broken.fracture is not None and intact.fracture is not None
    assert broken.fracture > 0.6 > 0.2 > intact.fracture


def test_levels_count_with_how_surely_they_are_shown(tmp_path: Path) -> None:
    (answer,) = answers(tmp_path, {"classifier": use_of("broken", "visible")}, spotted())
    assert answer.visible is not None and answer.broken is not None
    assert answer.fracture == pytest.approx(float((answer.broken * answer.visible).max()))
    assert int(answer.visible.argmax()) == 3


@pytest.mark.parametrize("head", ["slice", "fracture"])
@pytest.mark.parametrize("size", [(120, 160), (700, 500)])
def test_heat_lies_where_the_fracture_is_in_pixels_of_the_picture(
    tmp_path: Path, head: str, size: tuple[int, int]
) -> None:
    (answer,) = answers(tmp_path, {"classifier": use_of(head)}, spotted(size))
    assert answer.heat is not None
    heat = answer.heat.over(size)
    assert heat.shape == size
    middle = np.argwhere(heat > 0.8 * heat.max()).mean(axis=0)
    np.testing.assert_allclose(middle, np.multiply(SPOT, size), atol=0.06 * max(size))
    assert heat.min() >= 0 and heat.max() <= 1


@pytest.mark.parametrize("size", [(120, 160), (700, 500)])
def test_boxes_are_in_pixels_of_the_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    (answer,) = answers(tmp_path, {"locator": use_of("boxes")}, spotted(size))
    assert answer.boxes is not None and answer.visible is not None
    label, score, x0, y0, x1, y1 = answer.boxes[0]
    assert (label, score) == (4, pytest.approx(0.9))
    np.testing.assert_allclose([(y0 + y1) / 2, (x0 + x1) / 2], np.multiply(SPOT, size), atol=0.03 * max(size))
    assert 0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]
    # This bundle names levels and judges nothing.
    assert answer.fracture is None and answer.broken is None and answer.visible.argmax() == 3


def test_the_classifier_judges_and_the_locator_names(tmp_path: Path) -> None:
    (answer,) = answers(tmp_path, {"locator": use_of("levels"), "classifier": use_of("slice")}, spotted())
    assert answer.fracture == pytest.approx(0.9) and answer.visible is not None and answer.visible.argmax() == 3


def test_a_network_that_does_both_is_asked_once(tmp_path: Path) -> None:
    stages = {"locator": use_of("visible"), "classifier": use_of("broken")}
    bundle = picture_bundle(tmp_path / "bundle", stages, shared=True)
    runtime = PictureRuntime()
    (answer,) = PicturePredictor(bundle, runtime).judge([spotted()])
    (network,) = runtime.loaded.values()
    assert len(network.seen) == 1
    assert answer.fracture == pytest.approx(0.9 * 0.95, abs=1e-3)


def test_an_answer_does_not_depend_on_what_lies_beside(tmp_path: Path) -> None:
    many = [spotted(bright=bool(k % 3)) for k in range(BATCH + 3)]
    together = answers(tmp_path, {"classifier": use_of("slice")}, *many)
    assert len(together) == BATCH + 3
    assert [round(float(item.fracture or 0)) for item in together] == [bool(k % 3) for k in range(BATCH + 3)]
    assert answers(tmp_path / "b", {"classifier": use_of("slice")}) == ()


# ---------------------------------------------------------------- bundles


def test_a_bundle_that_judges_volumes_alone_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="cannot judge single pictures") as caught:
        judge_pictures(Bundle.default(), [])
    assert "cspine train slice-densenet121 --stage classifier" in str(caught.value.fix)


@pytest.mark.parametrize("more", [{"planes": ("sagittal",)}, {"field": "detected"}])
def test_networks_that_never_saw_a_whole_axial_image_are_not_asked(tmp_path: Path, more: dict[str, object]) -> None:
    bundle = picture_bundle(tmp_path, {"locator": use_of("levels", **more)})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot judge single pictures"):
        PicturePredictor(bundle, PictureRuntime())


def test_a_classifier_alone_judges_pictures_and_no_volume(tmp_path: Path) -> None:
    bundle = picture_bundle(tmp_path, {"classifier": use_of("slice")})
    assert not bundle.manifest.judges_volumes
    with pytest.raises(BundleError, match="no locator") as caught:
        Predictor(bundle, PictureRuntime())
    assert caught.value.fix


@pytest.mark.parametrize("stages", [{"classifier": None}, {"refiner": None}, {"detector": use_of("boxes")}, {}])
def test_a_bundle_needs_a_locator_or_a_classifier_of_images(tmp_path: Path, stages: dict[StageName, object]) -> None:
    with pytest.raises(BundleError, match="a locator, or a planar classifier alone"):
        picture_bundle(tmp_path, stages)  # type: ignore[arg-type]
