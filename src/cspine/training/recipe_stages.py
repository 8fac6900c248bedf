"""The stages of a recipe: each one trained network with its data, augmentation, losses and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from cspine.imaging.pipeline import Pipeline
from cspine.inference.planar import PlanarUse, PlanarView, Pooling
from cspine.training.recipe_networks import (
    FlexibleUNetNetwork,
    Fraction,
    PlanarNetwork,
    Positive,
    Range,
    SequenceNetwork,
    StackNetwork,
    StackWindow,
    UNet3dNetwork,
)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _kind(network: Any, default: str) -> str:
    """The ``kind`` of a network's table; a table without one means the default."""
    kind = network.get("kind", default) if isinstance(network, Mapping) else getattr(network, "kind", default)
    return str(kind)


def _locator_kind(network: Any) -> str:
    return _kind(network, "unet3d")


def _classifier_kind(network: Any) -> str:
    return _kind(network, "stack-bilstm")


LocatorNetwork = Annotated[
    Annotated[UNet3dNetwork, Tag("unet3d")] | Annotated[FlexibleUNetNetwork, Tag("flexible-unet3d")],
    Discriminator(_locator_kind),
]
ClassifierNetwork = Annotated[
    Annotated[StackNetwork, Tag("stack-bilstm")] | Annotated[SequenceNetwork, Tag("sequence")],
    Discriminator(_classifier_kind),
]
# What tells the alternatives of a union apart; no part of a key that an error names.
TAGS = ("planar", "solid", "unet3d", "flexible-unet3d", "stack-bilstm", "sequence")


class Schedule(_Model):
    """How long and how fast a stage learns: linear warm-up, then the rate falls as ``decay`` says.

    ``cosine`` is half a cosine down to ``final_factor``; ``step`` multiplies by 0.1 after each third; ``none`` keeps
    the rate. ``accumulate`` batches make one step. With ``patience`` training ends when that many validations in a
    row were no better than the best.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Fraction = Field(default=0.9, description="of sgd")
    decay: Literal["cosine", "step", "none"] = "cosine"
    accumulate: int = Field(default=1, ge=1)
    patience: int | None = Field(default=None, ge=1)
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
    """Weights of the classifier's losses.

    ``verdict`` is how the vertebra's logit is compared with the truth: cross-entropy, focal (Lin et al., 2017), the
    hinge of a support vector machine, or the competition's weights of 1 for an intact and 2 for a broken vertebra.
    """

    verdict: Literal["cross-entropy", "focal", "hinge", "competition"] = "cross-entropy"
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

    network: LocatorNetwork = UNet3dNetwork()
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


def _check_window(
    network: UNet3dNetwork | FlexibleUNetNetwork, window: tuple[int, int, int], class_weights: tuple[float, ...]
) -> None:
    step = 2 ** len(network.widths)
    if any(n % step for n in window):
        raise ValueError(f"window must be multiples of {step} for {len(network.widths)} widths")
    if len(class_weights) != network.classes:
        raise ValueError(f"loss.class_weights needs {network.classes} values")


class ClassifierStage(_Model):
    """The network that judges one vertebra from its stack of slices."""

    network: ClassifierNetwork = StackNetwork()
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


class PlanarLoss(_Model):
    """Weights of a planar network's losses: how a head is compared with the truth, and how much each head counts.

    ``pixels`` are summed over the heads ``levels`` and ``fracture``, ``images`` over ``visible``, ``broken``,
    ``slice`` and ``types``. ``levels_as`` reads the pixel classes as exclusive, or each by itself.
    """

    cross_entropy: float = Field(default=1.0, ge=0)
    dice: float = Field(default=1.0, ge=0)
    jaccard: float = Field(default=0.0, ge=0)
    focal: float = Field(default=0.0, ge=0)
    levels: float = Field(default=1.0, ge=0)
    fracture: float = Field(default=1.0, ge=0)
    types: float = Field(default=0.2, ge=0)
    visible: float = Field(default=1.0, ge=0)
    broken: float = Field(default=1.0, ge=0)
    slice: float = Field(default=1.0, ge=0)
    levels_as: Literal["one", "each"] = "one"
    positive_weight: Positive = 1.0
    label_smoothing: Fraction = 0.0


class PlanarStage(_Model):
    """A network that sees images, one at a time; detector, locator, classifier or the last two at once."""

    network: PlanarNetwork = PlanarNetwork()
    view: PlanarView = PlanarView()
    pooling: Pooling = Pooling()
    schedule: Schedule = Schedule(learning_rate=1e-3, batch_size=16, steps=4000, freeze_norm_at=1.0)
    augment: Pipeline = Pipeline()
    loss: PlanarLoss = PlanarLoss()
    positive_share: Fraction = Field(default=0.5, description="share of images with a fracture, where one is judged")
    bone_share: Fraction = Field(default=0.9, description="share of images that show a cervical vertebra")
    fold: int = Field(default=0, ge=0, description="part of splits.json that is held back, where there is one")

    @property
    def use(self) -> PlanarUse:
        """What a bundle has to know of it."""
        return PlanarUse(view=self.view, heads=self.network.heads, pooling=self.pooling)
