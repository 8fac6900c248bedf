"""``Recipe``: a method as one typed configuration, loaded from TOML.

A recipe has stages; a stage is one trained network with its data, augmentation, losses and schedule.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cspine.errors import RecipeError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Range = tuple[float, float]
_Side = Annotated[int, Field(ge=32, multiple_of=16)]
# Slices, rows and columns of a part of a stack; networks halve rows and columns four times.
StackWindow = tuple[Annotated[int, Field(ge=4, le=24)], _Side, _Side]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class UNet3dNetwork(_Model):
    """A 3D U-Net whose first layer halves the grid: most of its work is done at twice the voxel size.

    ``widths`` are channels from the finest grid (twice the input's voxel size) to the coarsest; ``inputs`` is the
    number of channels of the image; with ``heat`` there is one more output, the body-centre logit.
    """

    kind: Literal["unet3d"] = "unet3d"
    widths: tuple[int, ...] = Field(default=(32, 48, 96, 160), min_length=2, max_length=6)
    classes: int = Field(default=10, ge=2)
    inputs: int = Field(default=1, ge=1)
    heat: bool = True


class StackNetwork(_Model):
    """A 2D encoder for each slice of a stack, mixing along z, an evidence map at stride 4, and a BiLSTM over slices.

    A path of ``depth`` channels sees the stack in three dimensions and adds to the evidence map's features.

    ``widths`` are channels of the own encoder at strides 2, 4, 8 and 16; ``blocks`` its residual blocks at strides
    4, 8 and 16. ``efficientnet-lite0`` has channels of its own and ``detail`` more at stride 4, see
    ``training.encoders``. Types are read from the recurrent part alone, or also from the features at the evidence
    and from where it lies.
    """

    kind: Literal["stack-bilstm"] = "stack-bilstm"
    encoder: Literal["own", "efficientnet-lite0"] = "own"
    detail: int = Field(default=32, ge=4)
    depth: int = Field(default=0, ge=0, description="channels of the path that sees the stack in 3D; 0 for none")
    widths: tuple[int, int, int, int] = (32, 64, 128, 192)
    blocks: tuple[int, int, int] = (1, 2, 2)
    neck: int = Field(default=48, ge=8)
    hidden: int = Field(default=96, ge=4)
    dropout: Fraction = 0.2
    types: int = Field(default=13, ge=1)
    types_from: Literal["slices", "evidence"] = "slices"


class Schedule(_Model):
    """How long and how fast a stage learns (AdamW, linear warm-up, then half a cosine)."""

    learning_rate: Positive = 2e-3
    weight_decay: float = Field(default=1e-2, ge=0)
    batch_size: int = Field(default=1, ge=1)
    steps: int = Field(default=8000, ge=1)
    warmup_steps: int = Field(default=100, ge=1)
    final_factor: Fraction = 0.02
    gradient_clip: Positive = 2.0
    ema_decay: Fraction = 0.998
    freeze_norm_at: Fraction = Field(
        default=0.5, description="part of the schedule after which batch statistics are fixed"
    )


class WindowAugment(_Model):
    """Random changes to any 3D window. Probabilities are 0..1; ranges are inclusive."""

    flip: Fraction = 0.5
    rotate_probability: Fraction = 0.35
    rotate_degrees: float = 12.0
    scale: Range = (0.88, 1.14)
    contrast: Range = (0.85, 1.15)
    shift_hu: float = 40.0
    noise_hu: float = 60.0
    blur_probability: Fraction = 0.15


class LocatorAugment(WindowAugment):
    """What else happens to a locator window."""

    crop_z_probability: Fraction = 0.4
    porous_probability: Fraction = 0.6
    coarse_probability: Fraction = 0.5
    coarse_mm: Range = Field(default=(2.5, 4.8), description="voxel of a coarse scan")
    air_outside_probability: Fraction = 0.1


class RefinerAugment(WindowAugment):
    """What else happens to a refiner window: how far the coarse mask is from the truth.

    Lengths are mm; ``warp_mm`` is the spread of a smooth displacement, ``ragged`` that of the level at which the
    blurred mask is cut (0.5 is the mask itself), ``holes`` and ``leaks`` are expected numbers of balls in which
    the mask is missing, or says vertebra of other bone or of its neighbour, and ``absent`` is the chance that a
    vertebra is not in the mask at all. ``thick_slices`` is the chance that the image shows slices of 2 to 5 mm.
    """

    warp_mm: Range = (0.3, 2.4)
    ragged: Range = (0.05, 0.4)
    holes: float = Field(default=1.0, ge=0)
    leaks: float = Field(default=1.0, ge=0)
    ball_mm: Range = (2.5, 8.0)
    absent: Fraction = 0.02
    thick_slices: Fraction = 0.25


class ClassifierAugment(_Model):
    """Random changes to a vertebra stack and to the mask and frame it is cut with."""

    flip: Fraction = 0.5
    shift_mm: float = 3.0
    rotate_degrees: float = 8.0
    scale: Range = (0.92, 1.1)
    coarse_mask: Fraction = 0.7
    mask_shift_mm: float = 2.0
    mask_leak: Fraction = 0.2
    contrast: Range = (0.88, 1.14)
    shift_hu: float = 30.0
    noise_hu: float = 60.0
    blur_probability: Fraction = 0.15
    thick_slices: Fraction = Field(default=0.15, description="chance that slices are as thick as 1.6 to 3.2 mm")
    drop_slices: Fraction = 0.15
    cutout: Fraction = 0.2
    mixup: Fraction = 0.15


class LocatorLoss(_Model):
    """Weights of the locator's losses."""

    cross_entropy: float = 1.0
    dice: float = 1.0
    heat: float = 1.0
    class_weights: tuple[float, ...] = (0.3, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.0, 0.6)


class RefinerLoss(_Model):
    """Weights of the refiner's losses."""

    cross_entropy: float = 1.0
    dice: float = 1.0
    class_weights: tuple[float, ...] = (0.6, 1.3, 1.3, 0.8)


class ClassifierLoss(_Model):
    """Weights of the classifier's losses."""

    vertebra: float = 1.0
    slices: float = 0.5
    evidence: float = 1.0
    evidence_dice: float = 0.5
    types: float = 0.15
    types_as: Literal["each", "one"] = Field(
        default="each", description="each type yes or no in every stack, or one out of all in stacks with a fracture"
    )
    label_smoothing: Fraction = 0.02
    positive_weight: float = 1.0


class LocatorStage(_Model):
    """The network that finds and names vertebrae, on windows ``[z, y, x]`` of ``spacing_mm`` voxels."""

    network: UNet3dNetwork = UNet3dNetwork()
    schedule: Schedule = Schedule()
    augment: LocatorAugment = LocatorAugment()
    loss: LocatorLoss = LocatorLoss()
    spacing_mm: Positive = 2.0
    window: tuple[int, int, int] = (112, 96, 80)
    heat_sigma_mm: Positive = 4.0
    anchored: Fraction = Field(default=0.85, description="share of windows that are placed to hold spine")
    scan_share: Fraction = Field(default=0.3, description="share of windows from real scans, when there are any")
    fold: int = Field(default=0, ge=0, description="part of splits.json that is held back, where there is one")

    @model_validator(mode="after")
    def _consistent(self) -> LocatorStage:
        _check_window(self.network, self.window, self.loss.class_weights)
        if self.network.inputs != 1 or not self.network.heat:
            raise ValueError("the locator's network has one input and a heat output")
        return self


class RefinerStage(_Model):
    """The network that redraws the locator's mask along the bone, on windows ``[z, y, x]`` of ``spacing_mm`` voxels.

    Its inputs and classes are those of ``cspine.inference.refine``.
    """

    network: UNet3dNetwork = UNet3dNetwork(widths=(32, 48, 96), classes=4, inputs=3, heat=False)
    schedule: Schedule = Schedule(steps=6000)
    augment: RefinerAugment = RefinerAugment(rotate_degrees=15.0, scale=(0.85, 1.2))
    loss: RefinerLoss = RefinerLoss()
    spacing_mm: float = Field(default=1.0, ge=1.0, le=1.0)
    window: tuple[int, int, int] = (64, 80, 80)
    fold: int = Field(default=0, ge=0, description="part of splits.json that is held back, where there is one")

    @model_validator(mode="after")
    def _consistent(self) -> RefinerStage:
        _check_window(self.network, self.window, self.loss.class_weights)
        if (self.network.inputs, self.network.classes, self.network.heat) != (3, 4, False):
            raise ValueError("the refiner's network has three inputs, four classes and no heat output")
        return self


def _check_window(network: UNet3dNetwork, window: tuple[int, int, int], class_weights: tuple[float, ...]) -> None:
    step = 2 ** len(network.widths)
    if any(n % step for n in window):
        raise ValueError(f"window must be multiples of {step} for {len(network.widths)} widths")
    if len(class_weights) != network.classes:
        raise ValueError(f"loss.class_weights needs {network.classes} values")


class ClassifierStage(_Model):
    """The network that judges one vertebra from its stack of slices."""

    network: StackNetwork = StackNetwork()
    schedule: Schedule = Schedule(learning_rate=1.5e-3, batch_size=8, steps=6000)
    augment: ClassifierAugment = ClassifierAugment()
    loss: ClassifierLoss = ClassifierLoss()
    positive_share: Fraction = Field(default=0.4, description="share of fractured vertebrae drawn in training")
    minimum_evidence: int = Field(default=12, ge=1, description="stack voxels of fracture that make a positive")
    windows: tuple[StackWindow, ...] = Field(
        default=((24, 128, 160),),
        min_length=1,
        description="slices, rows and columns of training stacks, drawn a batch; smaller ones make a batch of more",
    )
    fold: int = Field(default=0, ge=0, description="part of splits.json that is held back, where there is one")


class SliceStage(_Model):
    """The network that judges one axial picture of 8 bits; it learns from the classifier's samples.

    Pictures are ``size`` pixels wide. In training a pixel is ``pixel_mm`` wide and windows are drawn from
    ``window_level`` and ``window_width``, HU; of a real picture the middle ``crop`` of its side is taken.
    """

    network: StackNetwork = StackNetwork(encoder="efficientnet-lite0")
    schedule: Schedule = Schedule(learning_rate=1.5e-3, batch_size=16, steps=3000, freeze_norm_at=1.0)
    loss: ClassifierLoss = ClassifierLoss(types=0.0, slices=0.0)
    size: Annotated[int, Field(ge=64, multiple_of=16)] = 224
    pixel_mm: Range = (0.45, 0.85)
    rotate_degrees: float = 12.0
    shift_mm: float = 10.0
    window_level: Range = (200.0, 900.0)
    window_width: Range = (900.0, 3500.0)
    gamma: Range = (0.8, 1.25)
    noise_hu: float = 60.0
    blur_probability: Fraction = 0.3
    positive_share: Fraction = 0.5
    crop: Fraction = 0.6

    @property
    def classifier(self) -> ClassifierStage:
        """The same as a stage of stacks of one slice."""
        return ClassifierStage(
            network=self.network,
            schedule=self.schedule,
            loss=self.loss,
            augment=ClassifierAugment(mixup=0.0),
            positive_share=self.positive_share,
        )


class PhantomData(_Model):
    """Which phantoms are drawn for training."""

    locator_presets: tuple[str, ...] = ("coarse",)
    classifier_presets: tuple[str, ...] = ("spine",)
    fracture_multiplier: Positive = Field(default=6.0, description="factor on the odds of fractures, locator")
    fracture_rate: Fraction = Field(default=0.4, description="chance of a fracture a vertebra, classifier")
    mesh_share: Fraction = Field(default=0.7, description="share of spines drawn from meshes, when any are given")


class Recipe(_Model):
    """A complete method: who it comes from, its stages and its data. The refiner is optional in a bundle."""

    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9-]*$")
    version: str = "0.1.0"
    title: str = ""
    source: str = ""
    seed: int = 0
    locator: LocatorStage = LocatorStage()
    refiner: RefinerStage = RefinerStage()
    classifier: ClassifierStage = ClassifierStage()
    slice: SliceStage | None = Field(default=None, description="instead of the others: a judge of single pictures")
    phantoms: PhantomData = PhantomData()

    def on_fold(self, fold: int) -> Recipe:
        """The same method with another part of the data held back."""
        held = {"fold": fold}
        return self.model_copy(
            update={
                "locator": self.locator.model_copy(update=held),
                "refiner": self.refiner.model_copy(update=held),
                "classifier": self.classifier.model_copy(update=held),
            }
        )


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with cspine."""
    folder = resources.files("cspine.training") / "recipes"
    return tuple(sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml")))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A shipped recipe by name (``"base"``) or any TOML file by path.

    Raises:
        RecipeError: no such recipe, not TOML, or an invalid value; ``where`` names the file and the offending key.
    """
    text, where = _read(name_or_path)
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"expected TOML: {error}", where=where, fix="Correct the syntax") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "top level"
        got = "" if isinstance(first.get("input"), dict) else f", got {first.get('input')!r}"
        raise RecipeError(f"{first['msg']}{got}", where=f"{where}: {key}", fix="Correct or remove that key") from error


def _read(name_or_path: str | Path) -> tuple[str, str]:
    path = Path(name_or_path)
    if path.suffix == ".toml":
        try:
            return path.read_text(encoding="utf-8"), path.name
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe: {error}", where=path.name) from error
    known = recipe_names()
    if str(name_or_path) not in known:
        raise RecipeError(
            f"expected one of {', '.join(known)} or a .toml file, got {str(name_or_path)!r}",
            where="recipe",
            fix="Choose one of these names or give a path that ends in .toml",
        )
    file = resources.files("cspine.training") / "recipes" / f"{name_or_path}.toml"
    return file.read_text(encoding="utf-8"), f"{name_or_path}.toml"
