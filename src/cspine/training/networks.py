"""The networks of the base recipe. Everything here is plain torch, traced to ONNX by ``training.export``."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from cspine.training.recipe import StackNetwork, UNet3dNetwork

# Prior log-odds at the start of training: fracture evidence and body centres are rare, so nothing floods at step one.
RARE_LOGIT = -4.0
# Cells of the evidence map that a vertebra's verdict is read from: a hairline covers about this many.
TOP_CELLS = 24


def _block3d(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)
    )


def _block2d(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class UNet3d(nn.Module):
    """3D U-Net that works from half resolution down and writes its output at full resolution.

    The stem has stride 2 over the raw image and the last layer is a transposed convolution with one 2x2x2 kernel an
    output channel: each coarse voxel predicts its eight fine voxels from features that saw the raw image.
    Batch normalisation, because CT intensities are absolute and the share of air in a field must not move them.

    Shapes: image ``[B, 1, Z, Y, X]`` → ``[B, classes + 1, Z, Y, X]``: class logits, then the body-centre logit.
    Z, Y and X must be multiples of ``2 ** len(widths)``.
    """

    def __init__(self, config: UNet3dNetwork) -> None:
        super().__init__()
        widths = config.widths
        self.stem = _block3d(1, widths[0], 2)
        self.first = _block3d(widths[0], widths[0])
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(
            nn.Sequential(_block3d(a, b, 2), _block3d(b, b), *([_block3d(b, b)] if depth else []))
            for depth, (a, b) in enumerate(pairs)
        )
        self.lift = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in pairs)
        self.up = nn.ModuleList(nn.Sequential(_block3d(2 * a, a), _block3d(a, a)) for a, _ in pairs)
        self.head = nn.ConvTranspose3d(widths[0], config.classes + 1, 2, 2)
        bias = self.head.bias
        if bias is not None:
            nn.init.zeros_(bias)
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


class _Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _block2d(inputs, outputs, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            pool: list[nn.Module] = [nn.AvgPool2d(stride)] if stride > 1 else []
            self.shortcut = nn.Sequential(*pool, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(x)) + self.shortcut(x))


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


class StackNet(nn.Module):
    """Judges one vertebra from its stack of slices.

    The evidence map is supervised densely and feeds the recurrent part, so the vertebra's logit learns from what
    the map shows. Shapes: stack ``[B, S, 4, H, W]`` (H and W multiples of 16) → a dictionary of logits:
    ``vertebra [B]``, ``slices [B, S]``, ``types [B, T]``, ``evidence [B, S, H / 4, W / 4]``.
    """

    def __init__(self, config: StackNetwork) -> None:
        super().__init__()
        w2, w4, w8, w16 = config.widths
        self.stem = _block2d(4, w2, 2)
        self.stage4 = _stage(w2, w4, config.blocks[0])
        self.stage8 = _stage(w4, w8, config.blocks[1])
        self.along8 = _AlongZ(w8)
        self.stage16 = _stage(w8, w16, config.blocks[2])
        self.along16 = _AlongZ(w16)
        neck = config.neck
        self.lateral16 = nn.Conv2d(w16, neck, 1)
        self.lateral8 = nn.Conv2d(w8, neck, 1)
        self.lateral4 = nn.Conv2d(w4, neck, 1)
        self.smooth = _block2d(neck, neck)
        self.evidence = nn.Conv2d(neck, 1, 1)
        features = 2 * w16 + neck + 2
        self.dropout = nn.Dropout(config.dropout)
        self.squeeze = nn.Linear(features, 2 * config.hidden)
        self.recurrent = nn.LSTM(2 * config.hidden, config.hidden, batch_first=True, bidirectional=True)
        self.slice_head = nn.Linear(2 * config.hidden, 1)
        self.vertebra_head = nn.Linear(4 * config.hidden + 2, 1)
        # The strongest evidence speaks for itself; the recurrent part adds to it or takes from it.
        self.evidence_weight = nn.Parameter(torch.ones(1))
        nn.init.zeros_(self.vertebra_head.weight)
        self.type_head = nn.Linear(4 * config.hidden, config.types)
        for head in (self.evidence, self.slice_head):
            nn.init.constant_(head.bias, RARE_LOGIT / 2)  # type: ignore[arg-type]

    def forward(self, stack: Tensor) -> dict[str, Tensor]:
        """See the class."""
        slices = stack.shape[1]
        x = stack.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        fine = self.stage4(self.stem(x))
        middle = self.along8(self.stage8(fine), slices)
        deep = self.along16(self.stage16(middle), slices)
        neck = self.lateral8(middle) + _twice(self.lateral16(deep))
        neck = self.smooth(self.lateral4(fine) + _twice(neck))
        evidence = self.evidence(neck).squeeze(1)
        described = self._describe(deep, neck, evidence)
        per_slice = described.reshape(-1, slices, described.shape[1])
        hidden = functional.relu(self.squeeze(self.dropout(per_slice)))
        hidden, _ = self.recurrent(hidden)
        slice_logits = self.slice_head(hidden).squeeze(-1)
        pooled = torch.cat([hidden.mean(1), hidden.amax(1)], 1)
        maps = evidence.reshape(-1, slices, *evidence.shape[1:])
        peaks = torch.cat([maps.flatten(1).amax(1, keepdim=True), slice_logits.amax(1, keepdim=True)], 1)
        judged = self.vertebra_head(torch.cat([self.dropout(pooled), peaks.to(pooled.dtype)], 1)).squeeze(-1)
        strongest = maps.flatten(1).float().topk(TOP_CELLS, dim=1).values.mean(1)
        vertebra = judged + self.evidence_weight * strongest
        return {
            "vertebra": vertebra,
            "slices": slice_logits,
            "types": self.type_head(self.dropout(pooled)),
            "evidence": maps,
        }

    @staticmethod
    def _describe(deep: Tensor, neck: Tensor, evidence: Tensor) -> Tensor:
        """What the recurrent part sees of each slice, ``[B * S, features]``."""
        flat = evidence.flatten(1)
        # Features gathered where the evidence is: a softmax over the slice's cells.
        attention = functional.softmax(flat, 1).unsqueeze(1).to(neck.dtype)
        gathered = torch.bmm(attention, neck.permute(0, 2, 3, 1).flatten(1, 2)).squeeze(1)
        top = flat.amax(1, keepdim=True)
        total = (flat - top).exp().sum(1, keepdim=True).log() + top
        scale = 0.25
        return torch.cat([deep.mean((2, 3)), deep.amax((2, 3)), gathered, scale * top, scale * total], 1)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(
        *(_Residual(inputs if k == 0 else outputs, outputs, 2 if k == 0 else 1) for k in range(blocks))
    )


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def build_network(config: UNet3dNetwork | StackNetwork) -> UNet3d | StackNet:
    """The network that a recipe's ``network`` table describes, with random weights."""
    return UNet3d(config) if isinstance(config, UNet3dNetwork) else StackNet(config)
