"""A 3D U-Net over an encoder of MONAI (FlexibleUNet), with the outputs of the base recipe's locator."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from monai.networks.nets.flexible_unet import FlexibleUNet
from torch import Tensor, nn
from torch.nn import functional

from cspine.errors import RecipeError
from cspine.training.judge import RARE_LOGIT
from cspine.training.recipe import FlexibleUNetNetwork

# The encoder halves the grid five times.
MULTIPLE = 32
# What MONAI builds in three dimensions with feature maps at strides 2, 4, 8, 16 and 32.
BACKBONES = (
    *(f"resnet{depth}" for depth in (10, 18, 34, 50, 101, 152, 200)),
    *(f"efficientnet-b{size}" for size in range(8)),
)
# Layers behind the last feature map, which a U-Net has no use for.
_UNUSED = ("_conv_head", "_conv_head_padding", "_bn1", "_avg_pooling", "_dropout", "_fc", "avgpool", "fc")


class _Shortcut(nn.Module):
    """Every ``stride``-th voxel, with zeros for the channels that are new (He et al., 2016, option A).

    MONAI's own keeps gradients from passing and cannot be traced for any size.
    """

    def __init__(self, planes: int, stride: int) -> None:
        super().__init__()
        self.planes, self.stride = planes, stride

    def forward(self, x: Tensor) -> Tensor:
        x = functional.avg_pool3d(x, 1, self.stride)
        return functional.pad(x, (0, 0, 0, 0, 0, 0, 0, self.planes - x.shape[1]))


class FlexibleUNet3d(nn.Module):
    """MONAI's FlexibleUNet in three dimensions: any of ``BACKBONES`` below a decoder of ``widths`` channels.

    Shapes: image ``[B, 1, Z, Y, X]`` → ``[B, classes + 1, Z, Y, X]``: class logits, then the body-centre logit.
    Z, Y and X must be multiples of 32, at training and at inference; a bundle's manifest says so by a ``window`` of
    such sides, see ``inference.locate.side_multiple``.

    MONAI's larger backbones (efficientnet-b8 and -l2) are left out: in three dimensions they ask for more memory
    than a locator may. Padding inside the decoder is off, since it depends on the size of the image, which a traced
    graph must not.

    Raises:
        RecipeError: another backbone.
    """

    def __init__(self, config: FlexibleUNetNetwork) -> None:
        super().__init__()
        if config.backbone not in BACKBONES:
            raise RecipeError(
                f"expected one of {', '.join(BACKBONES)}, got {config.backbone!r}",
                where="network.backbone",
                fix="Choose one of these",
            )
        self.body: Any = FlexibleUNet(
            in_channels=config.inputs,
            out_channels=config.classes + 1,
            backbone=config.backbone,
            pretrained=False,
            decoder_channels=config.widths,
            spatial_dims=3,
            is_pad=False,
        )
        encoder: nn.Module = self.body.encoder
        for name in {name for name, _ in encoder.named_children()}.intersection(_UNUSED):
            setattr(encoder, name, nn.Identity())
        for block in encoder.modules():
            old = getattr(block, "downsample", None)
            if isinstance(old, partial):
                block.downsample = _Shortcut(old.keywords["planes"], old.keywords["stride"])
        bias: Any = self.body.segmentation_head[0].bias
        nn.init.zeros_(bias)
        with torch.no_grad():
            bias[-1] = RARE_LOGIT

    def forward(self, image: Tensor) -> Tensor:
        """See the class.

        Raises:
            RecipeError: in training a batch has one cell of the coarsest grid, which has no statistics.
        """
        if self.training and image.shape[0] * math.prod(image.shape[2:]) <= MULTIPLE**3:
            raise RecipeError(
                f"expected more than one cell of {MULTIPLE} voxels a side in a batch, got one",
                where="locator.window",
                fix="Choose a larger window or schedule.batch_size",
            )
        out: Tensor = self.body(image)
        return out
