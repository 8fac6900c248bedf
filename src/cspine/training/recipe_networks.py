"""The ``network`` tables of a recipe: which network a stage trains, and how large it is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cspine.inference.planar import Head

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Range = tuple[float, float]
_Side = Annotated[int, Field(ge=32, multiple_of=16)]
# Slices, rows and columns of a part of a stack; networks halve rows and columns four times.
StackWindow = tuple[Annotated[int, Field(ge=4, le=24)], _Side, _Side]
DETECTORS = ("retinanet", "fcos", "yolo")


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


class FlexibleUNetNetwork(_Model):
    """A 3D U-Net over an encoder of a library (MONAI's FlexibleUNet), with the same outputs as ``UNet3dNetwork``.

    ``backbone`` is a name MONAI knows: ``resnet10`` to ``resnet200``, ``efficientnet-b0`` to ``b7``. Sides of the
    window must be multiples of 32.
    """

    kind: Literal["flexible-unet3d"] = "flexible-unet3d"
    backbone: str = "resnet18"
    widths: tuple[int, ...] = Field(default=(256, 128, 64, 32, 16), min_length=5, max_length=5)
    classes: int = Field(default=10, ge=2)
    inputs: Literal[1] = 1
    heat: Literal[True] = True


class SequenceNetwork(_Model):
    """A 2D encoder for each slice of a stack, then something that reads the slices in order, then one logit.

    Attributes:
        encoder: name of a timm network, or ``torchvision:alexnet`` and the like, or ``own`` for a plain small CNN.
        unet: take features from the decoder of a U-Net on that encoder (segmentation-models-pytorch) instead.
        channels: what of a stack each image shows: the slice, it with its two neighbours, or these and the mask.
        size: rows of the images; columns follow in proportion, both in multiples of 32.
        recurrent: what reads the slices; ``none`` judges each by itself.
        layers, hidden, bidirectional: of the recurrent part.
        attention: weigh slices by learned attention instead of ``pool``.
        convolution: a 1D convolution over the slices after the recurrent part.
        spatial_dropout: chance to drop a whole feature channel in all slices.
        pool: how slices become one verdict.
        top: how many slices ``top`` takes the mean of.
        frozen: the encoder's weights do not learn.
        pretrained: start from ImageNet where the machine has those weights.
    """

    kind: Literal["sequence"] = "sequence"
    encoder: str = "resnet50"
    unet: bool = False
    channels: Literal["slice", "neighbours", "neighbours-mask"] = "neighbours"
    size: Annotated[int, Field(ge=32, le=512, multiple_of=32)] = 128
    recurrent: Literal["none", "lstm", "gru"] = "lstm"
    layers: int = Field(default=1, ge=1, le=4)
    hidden: int = Field(default=128, ge=4)
    bidirectional: bool = True
    attention: bool = False
    convolution: bool = False
    spatial_dropout: Fraction = 0.0
    dropout: Fraction = 0.2
    pool: Literal["last", "mean", "max", "top"] = "mean"
    top: int = Field(default=5, ge=1)
    frozen: bool = False
    pretrained: bool = True
    types: int = Field(default=13, ge=1)


class PlanarNetwork(_Model):
    """A 2D network that sees one image at a time and answers with ``heads``; see ``cspine.inference.planar``.

    Attributes:
        body: ``unet`` (segmentation-models-pytorch) has pixel heads and any other; ``encoder`` and ``own`` (a plain
            stack of convolution, ReLU and max-pooling) have image heads alone; the rest are detectors.
        encoder: name as segmentation-models-pytorch (``unet``) or timm (``encoder``) spells it; for detectors the
            torchvision backbone, or the ultralytics model for ``yolo``.
        fully_connected: widths of the layers between pooled features and the image heads.
        decoder: widths of a U-Net's decoder, coarsest first.
        dropout: before the image heads.
        pretrained: start from ImageNet where the machine has those weights.
        types: number of fracture types.
        fractured_boxes: a detector tells fractured vertebrae from intact ones (14 classes instead of 7).
    """

    kind: Literal["planar"] = "planar"
    body: Literal["unet", "encoder", "own", "retinanet", "fcos", "yolo"] = "unet"
    encoder: str = "densenet121"
    heads: tuple[Head, ...] = Field(default=("levels",), min_length=1)
    fully_connected: tuple[int, ...] = ()
    decoder: tuple[int, ...] = Field(default=(256, 128, 64, 32, 16), min_length=3, max_length=5)
    dropout: Fraction = 0.2
    pretrained: bool = True
    types: int = Field(default=13, ge=1)
    fractured_boxes: bool = False

    @model_validator(mode="after")
    def _possible(self) -> PlanarNetwork:
        boxes = {"boxes"} & set(self.heads)
        pixels = {"levels", "fracture"} & set(self.heads)
        if self.body in DETECTORS and set(self.heads) != {"boxes"}:
            raise ValueError(f"a {self.body} has boxes as its one head")
        if self.body not in DETECTORS and boxes:
            raise ValueError(f"boxes need a detector ({', '.join(DETECTORS)}), not {self.body}")
        if self.body != "unet" and pixels:
            raise ValueError(f"the heads levels and fracture need body unet, not {self.body}")
        return self
