"""Heat maps: Grad-CAM of every kind of network lies where the verdict comes from, and in the right place in mm."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from cspine.anatomy import LEVELS, Level
from cspine.cli.app import app
from cspine.errors import RecipeError, StudyError, UsageError
from cspine.inference.planar import PlanarView, Pooling
from cspine.training.explain import Explainer, LevelHeat, chosen_levels, judging_stage
from cspine.training.fit import CHECKPOINT
from cspine.training.heat import Verdict, block_heat, explained_layer
from cspine.training.heat_pictures import level_picture, on_image, write_heat
from cspine.training.planar_networks import build_planar
from cspine.training.recipe import (
    ClassifierStage,
    PlanarNetwork,
    PlanarStage,
    Recipe,
    SequenceNetwork,
    StackNetwork,
)
from cspine.training.sequence_network import SequenceNet
from cspine.training.stack_network import StackNet
from training_factory import block_case

STACK = StackNetwork(widths=(4, 4, 8, 8), blocks=(1, 1, 1), neck=8, hidden=8)
CASE = block_case(5, fractured=True)


@pytest.fixture(autouse=True)
def _fixed_weights() -> None:
    torch.manual_seed(0)


def planar_stage(**changes: Any) -> PlanarStage:
    """A small U-Net-free network of 64 pixels that says of each image which levels it shows broken."""
    network = {"body": "own", "heads": ("broken",)} | changes
    return PlanarStage(
        network=PlanarNetwork(pretrained=False, **network),  # type: ignore[arg-type]
        view=PlanarView(size=64, step_mm=4.0),
        pooling=Pooling(top=2),
    )


def prediction(case: Any = CASE, visible: tuple[Level, ...] = LEVELS) -> Any:
    """What a locator would say that knows the truth."""
    levels = tuple(
        SimpleNamespace(visible=level in visible, body_center_mm=case.levels[level].body_center_mm) for level in LEVELS
    )
    return SimpleNamespace(
        labels=case.labels, labels_affine=case.volume.affine, findings=SimpleNamespace(levels=levels)
    )


class Spot(nn.Module):
    """Says how bright an image is on average; nothing but a bright spot can speak for it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace=True), nn.MaxPool2d(4))
        self.head = nn.Conv2d(2, 3, 1)
        with torch.no_grad():
            self.encoder[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.encoder(image)
        said = features[:, 0].mean((1, 2)) - features[:, 1].mean((1, 2)) + 0 * self.head(features).mean()
        return {"slice": said[:, None]}


def spot(network: nn.Module) -> tuple[Verdict, Tensor]:
    """A dark block of three images with one bright spot in the last, at row 8 and column 20."""
    block = torch.full((1, 1, 3, 32, 48), -1.0)
    block[0, 0, 2, 8:12, 20:24] = 2.0
    return Verdict(network, lambda said: said["slice"].mean(), stacked=False), block


@pytest.mark.parametrize("method", ["gradcam", "gradcam++"])
def test_heat_lies_on_what_speaks_for_the_verdict(method: Any) -> None:
    verdict, block = spot(Spot())
    layer = explained_layer(verdict, block)
    heat = block_heat(verdict, block, layer, method)
    assert heat.shape == (3, 32, 48)
    assert heat.max() == pytest.approx(1)
    assert set(zip(*np.nonzero(heat > 0.5), strict=True)) == {
        (2, row, column) for row in range(8, 12) for column in range(20, 24)
    }
    assert all(parameter.grad is None for parameter in verdict.parameters())


def test_the_layer_is_the_last_convolution_with_its_activation_and_no_head() -> None:
    verdict, block = spot(Spot())
    assert explained_layer(verdict, block).name == "encoder.1"


def test_a_network_may_name_the_layer_itself() -> None:
    class Named(Spot):
        @property
        def explained_layer(self) -> nn.Module:
            return self.encoder[2]

    verdict, block = spot(Named())
    layer = explained_layer(verdict, block)
    assert layer.name == "encoder.2"
    assert block_heat(verdict, block, layer, "gradcam").shape == (3, 8, 12)


def test_nothing_that_speaks_for_it_has_no_heat() -> None:
    verdict, _ = spot(Spot())
    block = torch.full((1, 1, 2, 32, 32), -1.0)
    assert not block_heat(verdict, block, explained_layer(verdict, block), "gradcam").any()


def test_a_network_without_convolutions_is_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32 * 48, 1)

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {"slice": self.linear(image.flatten(1))}

    verdict, block = spot(Flat())
    with pytest.raises(UsageError, match="no convolution"):
        explained_layer(verdict, block)


@pytest.mark.parametrize(
    ("network", "layer", "cells"),
    [
        (STACK, "smooth", (32, 32)),
        (SequenceNetwork(encoder="own", size=64, hidden=8, pretrained=False), "encoder.body", (8, 8)),
        (SequenceNetwork(encoder="resnet18", size=64, hidden=8, pretrained=False, frozen=True), "encoder", (2, 2)),
        (SequenceNetwork(encoder="resnet18", unet=True, size=64, hidden=8, pretrained=False), "encoder", (32, 32)),
    ],
    ids=["stack", "own", "resnet", "unet"],
)
def test_stacks_are_explained_in_all_their_slices(network: Any, layer: str, cells: tuple[int, int]) -> None:
    module = (StackNet(network) if isinstance(network, StackNetwork) else SequenceNet(network)).eval()
    verdict = Verdict(module, lambda said: said["vertebra"][0], stacked=True)
    block = torch.randn(1, 4, 4, 128, 128)
    found = explained_layer(verdict, block)
    assert found.name.startswith(layer)
    heat = block_heat(verdict, block, found, "gradcam")
    assert heat.shape == (4, *cells)
    assert np.isfinite(heat).all() and heat.min() >= 0


@pytest.mark.parametrize(
    ("body", "encoder", "heads", "layer"),
    [
        ("own", "", ("slice",), "encoder"),
        ("encoder", "resnet18", ("visible",), "encoder"),
        ("encoder", "convnext_atto", ("broken",), "encoder"),
        ("encoder", "efficientnet_b0", ("broken", "visible"), "encoder"),
        ("encoder", "vit_tiny_patch16_224", ("visible",), "encoder.blocks.11.norm1"),
        ("encoder", "swin_tiny_patch4_window7_224", ("visible",), "encoder.norm"),
        ("unet", "resnet18", ("levels", "fracture", "types"), "decoder"),
        ("unet", "resnet18", ("levels", "slice"), "encoder"),
    ],
)
def test_images_are_explained_whatever_sees_them(body: Any, encoder: str, heads: Any, layer: str) -> None:
    network = PlanarNetwork(body=body, encoder=encoder, heads=heads, pretrained=False)
    module = build_planar(network, PlanarView(size=64)).eval()
    head = next(name for name in ("fracture", "broken", "slice", "visible") if name in heads)
    verdict = Verdict(module, lambda said: said[head].mean(), stacked=False)
    block = torch.randn(1, 1, 2, 64, 64)
    found = explained_layer(verdict, block)
    assert found.name.startswith(layer)
    heat = block_heat(verdict, block, found, "gradcam++")
    assert heat.shape[0] == 2 and heat.shape[1] == heat.shape[2] > 1
    assert np.isfinite(heat).all() and 0 <= heat.min() <= heat.max() <= 1


def test_the_heat_of_a_stack_lies_in_its_vertebra() -> None:
    explainer = Explainer("tiny", "classifier", ClassifierStage(network=STACK), StackNet(STACK).eval())
    (found,) = explainer.explain(CASE.volume, prediction(), [Level.C4])
    assert found.images.shape == (24, 128, 160)
    assert found.heat.values.shape == found.evidence.values.shape == (24, 32, 40)  # type: ignore[union-attr]
    # Where its bone is, the picture is bright.
    index = np.argwhere(CASE.labels == Level.C4)[::50]
    points = CASE.volume.to_world(index[:, ::-1])
    at = np.rint((points - found.affine[:3, 3]) @ np.linalg.inv(found.affine[:3, :3]).T).astype(int)
    assert np.median(found.images[tuple(at.T[::-1])]) > found.images.mean() + 0.3
    # The corners of the cells are those of the images.
    assert corners(found.heat.affine, found.heat.values) == pytest.approx(corners(found.affine, found.images))


def corners(affine: Any, values: Any) -> Any:
    """LPS mm of the outer corners of the first and last cell."""
    ends = np.array([[-0.5] * 3, np.array(values.shape[::-1]) - 0.5])
    return ends @ affine[:3, :3].T + affine[:3, 3]


def test_the_images_of_a_level_are_those_that_show_it() -> None:
    stage = planar_stage()
    explainer = Explainer("tiny", "classifier", stage, build_planar(stage.network, stage.view).eval())
    heats = explainer.explain(CASE.volume, prediction())
    assert [heat.level for heat in heats] == list(LEVELS)
    for heat in heats:
        own = CASE.volume.to_world(np.argwhere(CASE.labels == heat.level)[:, ::-1])[:, 2]
        low, high = sorted(corners(heat.affine, heat.images)[:, 2])
        assert low == pytest.approx(own.min(), abs=5) and high == pytest.approx(own.max(), abs=5)
        assert corners(heat.heat.affine, heat.heat.values) == pytest.approx(corners(heat.affine, heat.images))
        assert heat.evidence is not None
        if heat.peak_mm is not None:
            assert low < heat.peak_mm[2] < high


def test_pixel_verdicts_are_read_inside_the_level() -> None:
    class Pixels(nn.Module):
        """Says that all bone is broken."""

        def __init__(self) -> None:
            super().__init__()
            self.decoder = nn.Conv2d(1, 2, 1)

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {"fracture": 5 * image + 2 + 0 * self.decoder(image).mean(1, keepdim=True)}

    stage = planar_stage(body="unet", encoder="resnet18", heads=("fracture",))
    (found,) = Explainer("tiny", "locator", stage, Pixels().eval()).explain(CASE.volume, prediction(), [Level.C3])
    assert found.probability > 0.5
    assert found.evidence is not None and found.evidence.values.shape == found.images.shape


def test_only_the_images_around_the_strongest_are_explained() -> None:
    stage = planar_stage().model_copy(update={"view": PlanarView(size=64, step_mm=0.8)})
    explainer = Explainer("tiny", "classifier", stage, build_planar(stage.network, stage.view).eval())
    (found,) = explainer.explain(CASE.volume.resampled((1.5, 1.5, 0.8)), prediction(), [Level.C5])
    assert len(found.images) == 9


def test_detected_views_are_cut_around_the_neck() -> None:
    stage = planar_stage()
    near = stage.model_copy(update={"view": stage.view.model_copy(update={"field": "detected"})})
    network = build_planar(stage.network, stage.view).eval()
    sizes = [
        np.ptp(corners(found.affine, found.images), axis=0)[0]
        for one in (stage, near)
        for found in Explainer("tiny", "classifier", one, network).explain(CASE.volume, prediction(), [Level.C4])
    ]
    assert sizes[1] < 0.8 * sizes[0]


def test_levels_out_of_view_are_said() -> None:
    explainer = Explainer("tiny", "classifier", ClassifierStage(network=STACK), StackNet(STACK).eval())
    with pytest.raises(StudyError, match="not in view in this scan: C7"):
        explainer.explain(CASE.volume, prediction(visible=LEVELS[:3]), [Level.C2, Level.C7])
    with pytest.raises(StudyError, match="C1 to C7"):
        explainer.explain(CASE.volume, prediction(visible=()))


def test_levels_are_chosen_by_name() -> None:
    assert chosen_levels(["c2", "C7", "C2"]) == (Level.C2, Level.C7)
    with pytest.raises(UsageError, match="expected C1 to C7, got 'T1'"):
        chosen_levels(["C2", "T1"])


def test_the_judging_stage_of_each_kind_of_recipe() -> None:
    broken, visible = planar_stage(), planar_stage(heads=("visible",))
    boxes = planar_stage(body="fcos", encoder="resnet50", heads=("boxes",), fractured_boxes=True)
    assert judging_stage(Recipe(name="a")) == "classifier"
    assert judging_stage(Recipe(name="a", locator=visible, classifier=broken)) == "classifier"
    both = planar_stage(heads=("visible", "broken"))
    assert judging_stage(Recipe(name="a", locator=both, classifier=None, shared=True)) == "locator"
    assert judging_stage(Recipe(name="a", locator=visible, classifier=None)) == "locator"
    with pytest.raises(UsageError, match=r"a detector .* has no Grad-CAM"):
        judging_stage(Recipe(name="a", locator=boxes, classifier=None, shared=True))
    with pytest.raises(UsageError, match="no network that judges"):
        judging_stage(Recipe(name="a", classifier=None))


def made(shape: tuple[int, int, int] = (2, 8, 12), *, evidence: bool = True) -> tuple[LevelHeat, Explainer]:
    """Heat whose strongest cell is the first of the second image."""
    from cspine.inference.evidence import EvidenceMap

    values = np.zeros(shape, np.float32)
    values[1, 0, 0] = 1
    cells = EvidenceMap(values, np.diag([4.0, 4.0, 2.0, 1.0]))
    images = np.zeros((2, 32, 48), np.float32)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:2, 3] = -1.5
    heat = LevelHeat(Level.C2, 0.25, cells, cells if evidence else None, images, affine, "smooth")
    stage = ClassifierStage(network=STACK)
    return heat, Explainer("tiny", "classifier", stage, nn.Identity())


def test_a_map_is_laid_over_the_image_cell_on_cell() -> None:
    heat, _ = made()
    plane = on_image(heat.heat, heat, 1)
    assert plane.shape == (32, 48)
    # The first cell covers the first four pixels each way, and fades over its border.
    assert plane[:2, :2].min() == 1
    assert plane[3, 0] == pytest.approx(0.625)
    assert not plane[6:].any() and not on_image(heat.heat, heat, 0).any()


def test_pictures_and_index_are_written_and_earlier_ones_removed(tmp_path: Path) -> None:
    heat, explainer = made()
    (tmp_path / "C7.png").write_bytes(b"of an earlier study")
    index = json.loads(write_heat(tmp_path, [heat], explainer).read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["C2.png", "heat.json"]
    assert index["levels"] == [{"level": "C2", "probability": 0.25, "peak_mm": [0.0, 0.0, 2.0], "picture": "C2.png"}]
    assert (index["recipe"], index["method"], index["layer"]) == ("tiny", "gradcam", "smooth")


def test_a_method_without_evidence_has_two_panels() -> None:
    three, two = (Image.open(BytesIO(level_picture(*made(evidence=known)))).width for known in (True, False))
    assert two < 0.7 * three


def test_a_run_is_explained_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(name="tiny", classifier=ClassifierStage(network=STACK))
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    with pytest.raises(UsageError, match="no trained classifier"):
        Explainer.of_run(tmp_path)
    save(tmp_path / "classifier" / CHECKPOINT, recipe.classifier, StackNet(STACK))
    monkeypatch.setattr("cspine.studies.open_study", lambda *_, **__: CASE.volume)
    monkeypatch.setattr(
        "cspine.inference.predictor.Predictor", lambda _: SimpleNamespace(predict_full=lambda _: prediction())
    )
    arguments = ["explain", str(tmp_path), "study", "-o", str(tmp_path / "heat"), "--level", "C3"]
    result = CliRunner().invoke(app, [*arguments, "--method", "gradcam++"])
    assert result.exit_code == 0, result.output
    assert result.stdout.split()[0] == "C3" and result.stdout.split()[2].endswith("C3.png")
    assert json.loads((tmp_path / "heat" / "heat.json").read_text())["method"] == "gradcam++"


def test_a_run_of_images_is_read_as_well(tmp_path: Path) -> None:
    stage = planar_stage(heads=("visible", "broken"))
    recipe = Recipe(name="joint", locator=stage, classifier=None, refiner=None, shared=True)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    save(tmp_path / "locator" / CHECKPOINT, stage, build_planar(stage.network, stage.view))
    explainer = Explainer.of_run(tmp_path)
    assert (explainer.stage_name, explainer.stage) == ("locator", stage)
    assert explainer.of_fractures
    only = planar_stage(heads=("visible",))
    assert not Explainer("a", "locator", only, nn.Identity()).of_fractures


def save(path: Path, stage: Any, network: nn.Module) -> None:
    """A checkpoint as training writes it, as far as it is read."""
    path.parent.mkdir()
    facts = {"global_step": 0, "trained_seconds": 0.0, "stage": stage.model_dump(mode="json")}
    torch.save({**facts, "average": {"count": 0, "values": network.state_dict()}}, path)


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected the folder of a run"):
        Explainer.of_run(tmp_path)
    (tmp_path / "recipe.json").write_text('{"name": "a", "unheard-of": 1}')
    with pytest.raises(RecipeError, match="another version"):
        Explainer.of_run(tmp_path)
    result = CliRunner().invoke(app, ["explain", str(tmp_path), "study", "-o", "out", "--level", "C9"])
    assert result.exit_code == 2
    result = CliRunner().invoke(app, ["explain", str(tmp_path), "study", "-o", "out", "--level", "C2", "--score"])
    assert result.exit_code == 2
    assert "every fractured level" in result.stderr
