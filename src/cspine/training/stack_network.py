"""The classifier's network: an encoder a slice, mixing along z, an evidence map, and a recurrent part over slices."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cspine.training.blocks import Residual3d, block2d, block3d
from cspine.training.encoders import CHANNELS, encoder_parts
from cspine.training.judge import RARE_LOGIT, Judge
from cspine.training.recipe import StackNetwork


class _AlongZ(nn.Module):
    """Adds what the two neighbouring slices say: a convolution of three slices, one pixel wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels // 2)
        self.expand = nn.Conv2d(3 * (channels // 2), channels, 1)
        # Starts as identity, so that a stack begins as independent slices.
        nn.init.zeros_(self.expand.weight)
        if self.expand.bias is not None:
            nn.init.zeros_(self.expand.bias)

    def forward(self, x: Tensor, slices: int) -> Tensor:
        small = functional.relu(self.norm(self.reduce(x)))
        stack = small.reshape(-1, slices, *small.shape[1:])
        below = functional.pad(stack[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
        above = functional.pad(stack[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1))
        mixed: Tensor = self.expand(torch.cat([below, stack, above], 2).flatten(0, 1))
        return x + mixed


class _Depth(nn.Module):
    """A path that sees the stack in three dimensions: a fracture is a surface, and noise is none.

    Shapes: stack ``[B, S, 4, H, W]`` → ``[B * S, outputs, H / 4, W / 4]``; zeros before it has learnt anything.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        half = channels // 2
        self.stem = block3d(CHANNELS, half, kernel=(3, 5, 5), stride=(1, 2, 2))
        self.fine = Residual3d(half)
        self.down = block3d(half, channels, stride=(1, 2, 2))
        self.coarse = nn.Sequential(Residual3d(channels), Residual3d(channels))
        self.out = nn.Conv3d(channels, outputs, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, stack: Tensor) -> Tensor:
        """See the class."""
        x = stack.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)
        x = self.out(self.coarse(self.down(self.fine(self.stem(x)))))
        # Channels last in the stack is channels last in each slice.
        planes: Tensor = x.permute(0, 2, 3, 4, 1).flatten(0, 1)
        return planes.permute(0, 3, 1, 2)


class StackNet(nn.Module):
    """Judges one vertebra from its stack of slices.

    The evidence map is supervised densely and feeds the recurrent part, so the vertebra's logit learns from what
    the map shows. Shapes: stack ``[B, S, 4, H, W]`` (H and W multiples of 16) → a dictionary of logits:
    ``vertebra [B]``, ``slices [B, S]``, ``types [B, T]``, ``evidence [B, S, H / 4, W / 4]``.
    """

    def __init__(self, config: StackNetwork) -> None:
        super().__init__()
        parts = encoder_parts(config)
        w4, w8, w16 = parts.widths
        self.stem, self.stage4 = parts.stem, parts.stage4
        self.stage8 = parts.stage8
        self.along8 = _AlongZ(w8)
        self.stage16 = parts.stage16
        self.along16 = _AlongZ(w16)
        neck = config.neck
        self.lateral16 = nn.Conv2d(w16, neck, 1)
        self.lateral8 = nn.Conv2d(w8, neck, 1)
        self.lateral4 = nn.Conv2d(w4, neck, 1)
        self.depth = _Depth(config.depth, neck) if config.depth else None
        self.smooth = block2d(neck, neck)
        self.evidence = nn.Conv2d(neck, 1, 1)
        nn.init.constant_(self.evidence.bias, RARE_LOGIT / 2)  # type: ignore[arg-type]
        self.judge = Judge(neck, 2 * w16, config)

    def forward(self, stack: Tensor) -> dict[str, Tensor]:
        """See the class."""
        slices = stack.shape[1]
        x = stack.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        fine = self.stage4(self.stem(x))
        middle = self.along8(self.stage8(fine), slices)
        deep = self.along16(self.stage16(middle), slices)
        neck = self.lateral8(middle) + _twice(self.lateral16(deep))
        neck = self.lateral4(fine) + _twice(neck)
        if self.depth is not None:
            neck = neck + self.depth(stack)
        neck = self.smooth(neck)
        evidence = self.evidence(neck).squeeze(1)
        cells = neck.permute(0, 2, 3, 1).flatten(1, 2)
        summary = torch.cat([deep.mean((2, 3)), deep.amax((2, 3))], 1)
        stacked = [part.reshape(-1, slices, *part.shape[1:]) for part in (cells, summary, evidence)]
        judged: dict[str, Tensor] = self.judge(*stacked)
        return judged


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
