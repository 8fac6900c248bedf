"""The recipes that ship: each says where it is from, can be built from libraries, and is listed and described."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from cspine.cli.app import app
from cspine.errors import RecipeError
from cspine.imaging.pipeline import STEPS
from cspine.inference.planar import PlanarView, Pooling
from cspine.inference.planar_images import STORED_SIZE
from cspine.training import recipe as schema
from cspine.training.recipe import (
    ClassifierStage,
    FlexibleUNetNetwork,
    LocatorStage,
    PlanarNetwork,
    PlanarStage,
    Recipe,
    SequenceNetwork,
    load_recipe,
    recipe_names,
)

DOCS = Path(__file__).resolve().parents[1] / "docs"
OURS = ("base",)
SEEDS = tuple(name for name in recipe_names() if name not in OURS)
# What the issue and the documents name; docs/recipes.md says which document each is from.
WANTED = {
    "S0": ("unet-densenet121",),
    "S1": (
        "effunet-cracknet", "effunet-25d", "effunet-nocrop", "effunet-resnet101-3d", "effunet-efficientnetv2",
        "cnn-lstm", "alexnet-lstm", "resnet-lstm", "vgg-lstm", "resnet50-blstm256", "resnet50-nocrop", "cnn-svm",
        "yolov5-alone",
    ),
    "S2": (
        "slice-cnn", "slice-cnn-1fc", "slice-cnn-2fc", "slice-cnn-3fc", "slice-resnet50", "slice-densenet121",
        "detector-fcos", "detector-yolov5l", "detector-yolov8n", "detector-yolov8s", "detector-yolov8m",
        "detector-yolov8l",
    ),
    "S3": ("joint-efficientnetv2",),
    "S4": (
        "multilabel-own", "multilabel-vit", "multilabel-convnext", "multilabel-inceptionv3", "multilabel-resnet152v2",
        "multilabel-swin", "winner-1", "winner-2", "winner-8",
    ),
}  # fmt: skip
YOLO = re.compile(r"yolov(5|8)[nsmlx]")


@cache
def timm_names() -> frozenset[str]:
    import timm

    return frozenset(timm.list_models())


@cache
def unet_names() -> frozenset[str]:
    from segmentation_models_pytorch.encoders import get_encoder_names

    return frozenset(get_encoder_names())


@cache
def torchvision_names() -> frozenset[str]:
    from torchvision.models import list_models

    return frozenset(list_models())


def exists(network: object) -> bool:
    """Whether the library that builds a network knows its encoder. Nothing is built."""
    if isinstance(network, PlanarNetwork):
        if network.body == "own":
            return True
        if network.body == "yolo":
            return YOLO.fullmatch(network.encoder) is not None
        if network.body == "unet":
            name = network.encoder
            return name in unet_names() or (name.startswith("tu-") and name.removeprefix("tu-") in timm_names())
        return network.encoder in (timm_names() if network.body == "encoder" else torchvision_names())
    if isinstance(network, SequenceNetwork):
        if network.unet:
            return network.encoder in unet_names()
        _, torchvision, name = network.encoder.rpartition("torchvision:")
        return name == "own" or name in (torchvision_names() if torchvision else timm_names())
    if isinstance(network, FlexibleUNetNetwork):
        from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE

        return network.backbone in FLEXUNET_BACKBONE.register_dict
    return True


def test_every_method_of_the_documents_is_a_recipe() -> None:
    assert sorted(SEEDS) == sorted(name for names in WANTED.values() for name in names)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_where_it_is_from(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.title
    assert recipe.source
    if name in OURS:
        return
    document = next(key for key, names in WANTED.items() if name in names)
    assert recipe.source.startswith(document)
    assert recipe.claim
    assert recipe.claim.startswith("none") or any(map(str.isdigit, recipe.claim))
    own = Path(sys.modules["cspine.training.recipe"].__file__ or "").parent / "recipes" / f"{name}.toml"
    text = own.read_text(encoding="utf-8")
    assert text.startswith(("# S", "# First", "# Second", "# Eighth"))
    for key in ("name", "title", "source", "claim"):
        assert re.search(rf"^{key} = ", text, re.MULTILINE), f"{key} is not this recipe's own"


@pytest.mark.parametrize("name", SEEDS)
def test_its_networks_exist_in_their_libraries(name: str) -> None:
    for stage, table in load_recipe(name).stages().items():
        assert exists(table.network), stage


@pytest.mark.parametrize("name", SEEDS)
def test_its_stages_fit_together(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.refiner is None
    stages = recipe.stages()
    assert "locator" in stages
    assert recipe.shared + (recipe.classifier is not None) <= 1
    cut = [table.view.field for table in stages.values() if isinstance(table, PlanarStage)]
    assert ("detected" in cut) == (recipe.detector is not None)
    for table in stages.values():
        if isinstance(table, PlanarStage):
            assert table.network.kind == "planar"
            assert all(step.kind in STEPS for step in table.augment.steps)
        elif isinstance(table, ClassifierStage):
            assert table.network.kind == "sequence"
        elif isinstance(table, LocatorStage):
            assert table.network.kind == "flexible-unet3d"
            assert all(side % 32 == 0 for side in table.window)


@pytest.mark.parametrize("name", SEEDS)
def test_its_images_can_be_changed_as_it_says(name: str) -> None:
    from cspine.training.planar_draw import check_steps

    for table in load_recipe(name).stages().values():
        if isinstance(table, PlanarStage):
            check_steps(table)


def test_networks_are_of_the_sizes_that_the_documents_give() -> None:
    sizes = {
        "unet-densenet121": 256, "effunet-cracknet": 512, "detector-fcos": 512, "joint-efficientnetv2": 384,
        "multilabel-vit": 224, "winner-8": STORED_SIZE,
    }  # fmt: skip
    for name, size in sizes.items():
        locator = load_recipe(name).locator
        assert isinstance(locator, PlanarStage)
        assert locator.view.size == size, name
    judge = load_recipe("slice-cnn").classifier
    assert isinstance(judge, PlanarStage)
    assert (judge.view.size, judge.view.windows) == (224, ((500.0, 2000.0),))
    windows = load_recipe("effunet-cracknet").locator
    assert isinstance(windows, PlanarStage)
    assert windows.view.windows == ((600.0, 2800.0), (700.0, 4000.0), (400.0, 1800.0))
    assert windows.view.channels == 3


def test_ablations_differ_in_what_they_are_named_after() -> None:
    def layers(name: str) -> tuple[int, ...]:
        judge = load_recipe(name).classifier
        assert isinstance(judge, PlanarStage)
        return judge.network.fully_connected

    assert [layers(f"slice-cnn-{count}fc") for count in (1, 2, 3)] == [(), (512,), (512, 128)]
    assert layers("slice-cnn") == layers("slice-cnn-3fc")
    whole, cut, stacked = (load_recipe(name) for name in ("effunet-nocrop", "effunet-cracknet", "effunet-25d"))
    assert (whole.detector, cut.detector is None) == (None, False)
    assert whole.classifier == cut.classifier == stacked.classifier
    assert isinstance(stacked.locator, PlanarStage)
    assert (stacked.locator.view.neighbours, len(stacked.locator.view.windows)) == (1, 1)


@pytest.mark.parametrize("name", SEEDS)
def test_it_survives_json(name: str) -> None:
    recipe = load_recipe(name)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('like = "unet-densenet121"\nsurprise = 1\n', "surprise"),
        ('like = "unet-densenet121"\n[locator.network]\nsurprise = 1\n', "locator.network.surprise"),
        ('like = "unet-densenet121"\n[locator.view]\nsize = 100\n', "locator.view.size"),
        ('like = "unet-densenet121"\n[locator.network]\nheads = ["thoughts"]\n', "locator.network.heads.0"),
        ('like = "unet-densenet121"\n[locator.network]\nheads = ["types"]\n', "top level"),
        ('like = "unet-densenet121"\nclassifier = {}\n', "top level"),
        ('like = "slice-cnn"\n[classifier.network]\nheads = ["fracture"]\n', "classifier.network"),
        ('like = "slice-cnn"\n[classifier.augment]\nsteps = [{ kind = "smear" }]\n', "classifier.augment.steps.0"),
        ('like = "winner-1"\n[locator.network]\nkind = "cube"\n', "locator.network"),
        ('like = "winner-1"\n[locator]\nwindow = [100, 128, 128]\n', "locator"),
        ('like = "winner-1"\n[classifier.network]\nsize = 100\n', "classifier.network.size"),
        ('like = "effunet-cracknet"\ndetector = "none"\n', "top level"),
        ('like = "no-such-recipe"\n', "like"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.where == f"mine.toml: {key}"


def test_a_shared_network_leaves_no_classifier(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('like = "slice-cnn"\nshared = true\n')
    with pytest.raises(RecipeError, match='needs classifier = "none"'):
        load_recipe(path)


def test_a_table_without_a_kind_changes_the_network_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('like = "effunet-cracknet"\n[locator.network]\nencoder = "resnet18"\n')
    changed, before = load_recipe(path).locator, load_recipe("effunet-cracknet").locator
    assert isinstance(changed, PlanarStage)
    assert isinstance(before, PlanarStage)
    assert changed == before.model_copy(update={"network": before.network.model_copy(update={"encoder": "resnet18"})})


def test_the_document_names_every_recipe() -> None:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    for name in recipe_names():
        assert f"`{name}`" in text, name


# Tables of docs/reference/recipes.md in order.
TABLES: tuple[type[BaseModel], ...] = (
    Recipe, PlanarStage, PlanarNetwork, PlanarView, Pooling, schema.PlanarLoss, schema.Schedule, LocatorStage,
    schema.UNet3dNetwork, FlexibleUNetNetwork, schema.LocatorAugment, schema.RefinerStage, schema.RefinerAugment,
    schema.LocatorLoss, schema.RefinerLoss, ClassifierStage, schema.StackNetwork, SequenceNetwork,
    schema.ClassifierAugment, schema.ClassifierLoss, schema.PhantomData,
)  # fmt: skip


def documented(value: Any) -> Any:
    """A default as the reference writes it."""
    if value is None or isinstance(value, BaseModel):
        return "none" if value is None else "table"
    return [documented(item) for item in value] if isinstance(value, tuple) else value


def test_the_reference_has_every_key_with_its_default() -> None:
    text = (DOCS / "reference" / "recipes.md").read_text(encoding="utf-8")
    tables = re.findall(r"\| key \| default \| meaning \|\n\|---\|---\|---\|\n((?:\|.*\n?)+)", text)
    assert len(tables) == len(TABLES)
    for model, table in zip(TABLES, tables, strict=True):
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \| ", table, re.MULTILINE)
        assert [key for key, _ in rows] == list(model.model_fields), model.__name__
        for key, written in rows:
            field = model.model_fields[key]
            wanted = "needed" if field.is_required() else documented(field.get_default())
            plain = written in ("needed", "none", "table")
            assert (written if plain else tomllib.loads(f"x = {written}")["x"]) == wanted, f"{model.__name__}.{key}"


def test_the_command_lists_every_recipe_with_its_source() -> None:
    result = CliRunner().invoke(app, ["recipes"])
    assert result.exit_code == 0
    listed = {line.split()[0] for line in result.stdout.splitlines() if line and not line.startswith(" ")}
    assert set(recipe_names()) <= listed
    rows = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).stdout)
    assert [row["name"] for row in rows] == list(recipe_names())
    for row in rows:
        assert row["source"]
        assert row["networks"]
        assert set(row["networks"]) <= {"detector", "locator", "refiner", "classifier"}


def test_the_command_shows_one_recipe_in_full() -> None:
    result = CliRunner().invoke(app, ["recipes", "effunet-cracknet"])
    assert result.exit_code == 0
    for word in (
        "S1: Kim", "claim", "detector: FCOS on resnet50", "locator: U-Net on efficientnet-b5: levels",
        "windows [[600.0, 2800.0], [700.0, 4000.0], [400.0, 1800.0]]", "jaccard 1.0", "2 x BiLSTM 256", "steps 14000",
        "kind coarse-dropout",
    ):  # fmt: skip
        assert word in result.stdout, word
    whole = CliRunner().invoke(app, ["recipes", "effunet-cracknet", "--json"])
    assert Recipe.model_validate_json(whole.stdout) == load_recipe("effunet-cracknet")


def test_the_command_names_the_recipes_there_are_when_asked_for_another() -> None:
    result = CliRunner().invoke(app, ["recipes", "nonsense"])
    assert result.exit_code == RecipeError.exit_code
    assert "unet-densenet121" in result.stderr


def test_listing_recipes_needs_no_training_library() -> None:
    code = """
import sys
from cspine.cli.app import app
try:
    app(["recipes", "winner-1"])
except SystemExit as end:
    assert not end.code
print("LOADED", *sorted({name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert not loaded & {"torch", "timm", "monai", "torchvision", "lightning", "skimage", "sklearn", "imblearn"}
