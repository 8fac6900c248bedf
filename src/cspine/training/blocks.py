"""Convolutional blocks that several networks are made of."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

Triple = tuple[int, int, int]


def block2d(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution, batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def block3d(inputs: int, outputs: int, *, kernel: Triple = (3, 3, 3), stride: Triple = (1, 1, 1)) -> nn.Sequential:
    """A 3D convolution that keeps the size but for its stride, batch normalisation and ReLU."""
    around = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel, stride, around, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual3d(nn.Module):
    """Two 3x3x3 convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = block3d(channels, channels)
        self.second = nn.Sequential(nn.Conv3d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm3d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return functional.relu(self.second(self.first(x)) + x)
