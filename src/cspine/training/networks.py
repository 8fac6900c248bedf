"""The networks of recipes, by configuration, and the base recipe's locator; ``training.export`` traces all to ONNX."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from cspine.training.blocks import block3d
from cspine.training.judge import RARE_LOGIT
from cspine.training.recipe import FlexibleUNetNetwork, SequenceNetwork, StackNetwork, UNet3dNetwork
from cspine.training.stack_network import StackNet

__all__ = ["StackNet", "UNet3d", "build_network", "channels_last"]


class UNet3d(nn.Module):
    """3D U-Net that works from half resolution down and writes its output at full resolution.

    The stem has stride 2 over the raw image and the last layer is a transposed convolution with one 2x2x2 kernel an
    output channel: each coarse voxel predicts its eight fine voxels from features that saw the raw image.
    Batch normalisation, because CT intensities are absolute and the share of air in a field must not move them.

    Shapes: image ``[B, inputs, Z, Y, X]`` → ``[B, classes + heat, Z, Y, X]``: class logits, then, when the
    configuration has ``heat``, the body-centre logit. Z, Y and X must be multiples of ``2 ** len(widths)``.
    """

    def __init__(self, config: UNet3dNetwork) -> None:
        super().__init__()
        widths = config.widths
        self.stem = block3d(config.inputs, widths[0], stride=(2, 2, 2))
        self.first = block3d(widths[0], widths[0])
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(
            nn.Sequential(block3d(a, b, stride=(2, 2, 2)), block3d(b, b), *([block3d(b, b)] if depth else []))
            for depth, (a, b) in enumerate(pairs)
        )
        self.lift = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in pairs)
        self.up = nn.ModuleList(nn.Sequential(block3d(2 * a, a), block3d(a, a)) for a, _ in pairs)
        self.head = nn.ConvTranspose3d(widths[0], config.classes + int(config.heat), 2, 2)
        bias = self.head.bias
        if bias is not None:
            nn.init.zeros_(bias)
            if config.heat:
                with torch.no_grad():
                    bias[-1] = RARE_LOGIT

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        features = [self.first(self.stem(image))]
        for down in self.down:
            features.append(down(features[-1]))
        x = features.pop()
        for lift, up in zip(reversed(self.lift), reversed(self.up), strict=True):
            coarse = functional.interpolate(lift(x), scale_factor=2.0, mode="nearest")
            x = up(torch.cat([coarse, features.pop()], 1))
        out: Tensor = self.head(x)
        return out


def build_network(config: UNet3dNetwork | FlexibleUNetNetwork | StackNetwork | SequenceNetwork) -> nn.Module:
    """The network that a recipe's ``network`` table describes, with random weights.

    Planar networks depend on what they are shown as well; see ``training.planar_networks``.

    Raises:
        RecipeError: a library does not know the encoder, or cannot build what is asked for.
    """
    # Imported when asked for: MONAI and timm take seconds to load.
    if isinstance(config, SequenceNetwork):
        from cspine.training.sequence_network import SequenceNet

        return SequenceNet(config)
    if isinstance(config, FlexibleUNetNetwork):
        from cspine.training.flexible_unet import FlexibleUNet3d

        return FlexibleUNet3d(config)
    return UNet3d(config) if isinstance(config, UNet3dNetwork) else StackNet(config)


def channels_last(network: nn.Module) -> None:
    """Lay out the weights of convolutions as processors like them: channels innermost."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in network.parameters():
        if weight.ndim in layouts:
            weight.data = weight.data.contiguous(memory_format=layouts[weight.ndim])
