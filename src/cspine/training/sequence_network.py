"""Classifiers that read the slices of a stack in order: a 2D encoder for each slice, then a recurrent part or none."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cspine.inference.stacks import COLUMNS, ROWS
from cspine.training.image_encoders import ImageEncoder, image_encoder
from cspine.training.judge import RARE_LOGIT
from cspine.training.recipe import SequenceNetwork

# Channels of a stack are below, at, above and mask; see ``inference.stacks``.
CHANNELS = {"slice": slice(1, 2), "neighbours": slice(0, 3), "neighbours-mask": slice(0, 4)}
# Encoders halve the image up to five times.
STEP = 32
# The evidence map's cells are this many pixels of the stack wide.
STRIDE = 4


class SequenceNet(nn.Module):
    """Judges one vertebra from its stack of slices, as ``StackNet`` does.

    Each slice is resized, encoded and pooled; dropout; a recurrent part or none; a convolution over slices or none;
    then attention (Bahdanau et al., 2015) or a plain pooling gives one vector, and a linear layer the verdict. With
    ``pool = "top"`` every slice gets a verdict and the ``top`` highest are averaged.

    The evidence map is a 1x1 convolution of the feature map. A slice's logit is the logarithm of the mean of its
    exponentials (Pinheiro and Collobert, 2015), and the highest adds to the verdict: so the map learns where a
    fracture shows even when nothing but the vertebra's truth is given (weights ``evidence`` and ``slices`` of 0).

    Shapes: stack ``[B, S, 4, H, W]`` → a dictionary of logits: ``vertebra [B]``, ``slices [B, S]``, ``types [B, T]``,
    ``evidence [B, S, H / 4, W / 4]``. Stacks of fewer rows than ``inference.stacks.ROWS`` keep their pixel size.

    Raises:
        RecipeError: no library knows the encoder, or it cannot see images of that size.
    """

    def __init__(self, config: SequenceNetwork) -> None:
        super().__init__()
        self.size = config.size
        self.channels = CHANNELS[config.channels]
        self.encoder: ImageEncoder = image_encoder(config, len(range(*self.channels.indices(4))), _size(config.size))
        self.evidence = nn.Conv2d(self.encoder.width, 1, 1)
        nn.init.constant_(self.evidence.bias, RARE_LOGIT / 2)  # type: ignore[arg-type]
        self.reader = _Reader(self.encoder.summary, config)
        self.vertebra_head = nn.Linear(self.reader.width, 1)
        self.type_head = nn.Linear(self.reader.width, config.types)
        self.evidence_weight = nn.Parameter(torch.ones(1))
        self.top = config.top if config.pool == "top" and not config.attention else 0

    def forward(self, stack: Tensor) -> dict[str, Tensor]:
        """See the class."""
        slices, rows, columns = stack.shape[1], stack.shape[3], stack.shape[4]
        images = stack[:, :, self.channels].flatten(0, 1)
        size = _size(self.size, rows, columns)
        if size != (rows, columns):
            images = functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
        features, summary = self.encoder(images.contiguous(memory_format=torch.channels_last))
        coarse = self.evidence(features).float()
        logits = _log_mean_exp(coarse.flatten(1)).reshape(-1, slices)
        cells = (rows // STRIDE, columns // STRIDE)
        maps = functional.interpolate(coarse, size=cells, mode="bilinear", align_corners=False)
        read, pooled = self.reader(summary.reshape(-1, slices, summary.shape[-1]))
        if self.top:
            each = self.vertebra_head(read).squeeze(-1)
            judged = each.topk(min(self.top, slices), dim=1).values.mean(1)
        else:
            judged = self.vertebra_head(pooled).squeeze(-1)
        return {
            "vertebra": judged + self.evidence_weight * logits.amax(1),
            "slices": logits,
            "types": self.type_head(pooled),
            "evidence": maps.reshape(-1, slices, *cells),
        }

    def pretrained_parts(self) -> list[tuple[nn.Module, str, int]]:
        """Modules that take ImageNet's weights, the name of each encoder, and how many channels it sees."""
        return self.encoder.pretrained_parts()


class _Reader(nn.Module):
    """Reads the slices of a stack in order.

    Shapes: ``[B, S, inputs]`` → features of each slice ``[B, S, width]`` and of the stack ``[B, width]``.
    """

    def __init__(self, inputs: int, config: SequenceNetwork) -> None:
        super().__init__()
        self.pool = config.pool
        self.hidden = config.hidden
        self.dropout = nn.Dropout(config.dropout)
        self.channel_dropout = nn.Dropout1d(config.spatial_dropout) if config.spatial_dropout else nn.Identity()
        self.width = inputs
        self.recurrent: nn.LSTM | nn.GRU | None = None
        if config.recurrent != "none":
            kind = nn.LSTM if config.recurrent == "lstm" else nn.GRU
            self.recurrent = kind(
                inputs,
                config.hidden,
                config.layers,
                batch_first=True,
                bidirectional=config.bidirectional,
                dropout=config.dropout if config.layers > 1 else 0.0,
            )
            self.width = config.hidden * (2 if config.bidirectional else 1)
        self.convolution = nn.Conv1d(self.width, self.width, 3, padding=1) if config.convolution else None
        self.attention = nn.Linear(self.width, 1) if config.attention else None
        # Read backwards, the first slice is the one that was read last.
        self.both_ends = config.bidirectional and self.recurrent is not None and self.convolution is None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.channel_dropout(self.dropout(x).transpose(1, 2)).transpose(1, 2)
        if self.recurrent is not None:
            x, _ = self.recurrent(x)
        if self.convolution is not None:
            x = functional.relu(self.convolution(x.transpose(1, 2))).transpose(1, 2)
        return x, self.dropout(self._pooled(x))

    def _pooled(self, x: Tensor) -> Tensor:
        if self.attention is not None:
            return (functional.softmax(self.attention(x), 1) * x).sum(1)
        if self.pool == "max":
            return x.amax(1)
        if self.pool == "last":
            if self.both_ends:
                return torch.cat([x[:, -1, : self.hidden], x[:, 0, self.hidden :]], 1)
            return x[:, -1]
        return x.mean(1)


def _log_mean_exp(cells: Tensor) -> Tensor:
    """``[N, C]`` → ``[N]``: between the mean and the maximum, and smooth."""
    top = cells.amax(1, keepdim=True)
    return (top + (cells - top).exp().mean(1, keepdim=True).log()).squeeze(1)


def _size(size: int, rows: int = ROWS, columns: int = COLUMNS) -> tuple[int, int]:
    """Rows and columns of the images of a stack: ``size`` rows for a whole one, multiples of 32."""
    scale = size / ROWS
    return max(STEP, round(rows * scale / STEP) * STEP), max(STEP, round(columns * scale / STEP) * STEP)
