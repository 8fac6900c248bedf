"""Encoders of the classifier: what turns each slice of a stack into features at strides 4, 8 and 16.

``own`` is a small residual network trained from random weights. ``efficientnet-lite0`` is the first part, down to
stride 16, of EfficientNet-Lite0 (Tan and Le, 2019; the Lite variant of TensorFlow's authors, without squeeze and
excitation and with ReLU6), which ``training.pretrained`` fills with weights learnt on photographs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cspine.training.blocks import block2d
from cspine.training.recipe import StackNetwork

# Input channels: three neighbouring slices, which stand where a photograph has its colours, and the mask.
COLOURS, CHANNELS = 3, 4
# Slices that the frozen part looks at at once: its wide first layers then stay in the processor's cache, which
# makes them three times as fast as the whole batch at once.
CHUNK = 16
# Repeats, kernel, stride, expansion and channels of the stages of EfficientNet-Lite0 down to stride 16.
_STEM = 32
_FINE = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24))
_MIDDLE = ((2, 5, 2, 6, 40),)
_DEEP = ((3, 3, 2, 6, 80), (3, 5, 1, 6, 112))


@dataclass(frozen=True, slots=True)
class Parts:
    """An encoder in four parts, one after the other.

    Attributes:
        stem: image ``[N, 4, H, W]`` → what ``stage4`` takes.
        stage4: → features at stride 4.
        stage8: → features at stride 8.
        stage16: → features at stride 16.
        widths: channels at strides 4, 8 and 16.
    """

    stem: nn.Module
    stage4: nn.Module
    stage8: nn.Module
    stage16: nn.Module
    widths: tuple[int, int, int]


def encoder_parts(config: StackNetwork) -> Parts:
    """The encoder that a network's configuration names, with random weights."""
    if config.encoder == "efficientnet-lite0":
        detail, fine = config.detail, _FINE[-1][-1]
        widths = (fine + detail, _MIDDLE[-1][-1], _DEEP[-1][-1])
        return Parts(nn.Identity(), LiteFine(detail), LiteMiddle(detail), LiteDeep(), widths)
    w2, w4, w8, w16 = config.widths
    first, second, third = config.blocks
    return Parts(
        block2d(CHANNELS, w2, 2), _stage(w2, w4, first), _stage(w4, w8, second), _stage(w8, w16, third), (w4, w8, w16)
    )


class _Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = block2d(inputs, outputs, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            pool: list[nn.Module] = [nn.AvgPool2d(stride)] if stride > 1 else []
            self.shortcut = nn.Sequential(*pool, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(x)) + self.shortcut(x))


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        *(_Residual(inputs if k == 0 else outputs, outputs, 2 if k == 0 else 1) for k in range(blocks))
    )


class _Conv(nn.Conv2d):
    """A convolution padded as TensorFlow does: more behind than before when it strides over an even size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, depthwise: bool = False) -> None:
        padding = 0 if stride > 1 else kernel // 2
        super().__init__(inputs, outputs, kernel, stride, padding, groups=inputs if depthwise else 1)
        self.before = (kernel - stride) // 2
        self.behind = kernel - stride - self.before
        fan = kernel * kernel * (1 if depthwise else inputs)
        nn.init.normal_(self.weight, std=math.sqrt(2 / fan))
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            x = functional.pad(x, (self.before, self.behind, self.before, self.behind))
        return super().forward(x)


class _MobileBlock(nn.Module):
    """Inverted residual (Sandler et al., 2018) without batch normalisation, which is folded into the weights."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers: list[nn.Module] = [_Conv(inputs, inner, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        layers += [_Conv(inner, inner, kernel, stride, depthwise=True), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, _Conv(inner, outputs, 1))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.shortcut else out


def _mobile(inputs: int, plan: tuple[tuple[int, int, int, int, int], ...]) -> nn.Sequential:
    blocks = []
    for repeats, kernel, stride, expansion, outputs in plan:
        for k in range(repeats):
            blocks.append(_MobileBlock(inputs, outputs, kernel, stride if k == 0 else 1, expansion))
            inputs = outputs
    return nn.Sequential(*blocks)


class _Frozen(nn.Module):
    """Pretrained layers that never learn: in training they cost one forward pass, a few slices at a time."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                return torch.cat([self.layers(part) for part in torch.split(x, CHUNK)])
        out: Tensor = self.layers(x)
        return out


class LiteFine(nn.Module):
    """Down to stride 4: pretrained layers that never learn, beside a thin path of ``detail`` channels that does.

    The thin path sees the mask, which no photograph has, and what hairlines need. Frozen layers keep what was learnt
    from a million photographs from being unlearnt on a few phantoms.

    Shapes: ``[N, 4, H, W]`` → ``[N, 24 + detail, H / 4, W / 4]``.
    """

    def __init__(self, detail: int) -> None:
        super().__init__()
        self.pretrained = _Frozen(_Conv(COLOURS, _STEM, 3, 2), nn.ReLU6(inplace=True), _mobile(_STEM, _FINE))
        self.detail = nn.Sequential(block2d(CHANNELS, detail, 2), block2d(detail, detail, 2))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([self.pretrained(x[:, :COLOURS]), self.detail(x)], 1)


class LiteMiddle(nn.Module):
    """Stride 4 to 8: pretrained layers that never learn, and what the thin path adds to them, little at first.

    Shapes: ``[N, 24 + detail, h, w]`` → ``[N, 40, h / 2, w / 2]``.
    """

    def __init__(self, detail: int) -> None:
        super().__init__()
        self.known, width = _FINE[-1][-1], _MIDDLE[-1][-1]
        self.pretrained = _Frozen(_mobile(self.known, _MIDDLE))
        self.detail = block2d(detail, width, 2)
        self.merge = nn.Conv2d(width, width, 1)
        nn.init.normal_(self.merge.weight, std=0.01)
        nn.init.zeros_(self.merge.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        known: Tensor = self.pretrained(x[:, : self.known])
        added: Tensor = self.merge(self.detail(x[:, self.known :]))
        return known + added


class LiteDeep(nn.Module):
    """Stride 8 to 16: ``[N, 40, h, w]`` → ``[N, 112, h / 2, w / 2]``. Learns, but for its 5x5 filters.

    Gradients of depthwise 5x5 weights have no fast kernel on processors; the 1x1 layers around them learn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pretrained = _mobile(_MIDDLE[-1][-1], _DEEP)
        for layer in self.pretrained.modules():
            if isinstance(layer, _Conv) and layer.kernel_size[0] == 5:
                layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.pretrained(x)
        return out


def pretrained_convolutions(network: nn.Module) -> Iterator[nn.Conv2d]:
    """The convolutions of a network that come from EfficientNet-Lite0, in its order; none for another encoder."""
    for part in network.modules():
        if isinstance(part, (LiteFine, LiteMiddle, LiteDeep)):
            yield from (layer for layer in part.pretrained.modules() if isinstance(layer, nn.Conv2d))
