"""The classifier's network: an encoder a slice, mixing along z, an evidence map, and a recurrent part over slices."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cspine.training.encoders import block2d, encoder_parts
from cspine.training.recipe import StackNetwork

# Prior log-odds at the start of training: fracture evidence and body centres are rare, so nothing floods at step one.
RARE_LOGIT = -4.0
# Cells of the evidence map that a vertebra's verdict is read from: a hairline covers about this many.
TOP_CELLS = 24
# The type is read where the evidence map, times this, says: background cells are many and must not outweigh it.
SHARPNESS = 2.0
# Numbers that say where the evidence lies, see ``_place``.
_PLACES = 5


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


class _TypeHead(nn.Module):
    """One type out of all, from features and from where in the vertebra the evidence lies.

    Shapes: features ``[B, inputs]`` and ``_place`` ``[B, 5]`` → ``[B, T]``: the logit of each type's softmax
    probability, so that a sigmoid gives the probability that it is this type rather than another.
    """

    def __init__(self, inputs: int, config: StackNetwork) -> None:
        super().__init__()
        self.mix = nn.Linear(inputs + _PLACES, config.hidden)
        self.out = nn.Linear(config.hidden, config.types)

    def forward(self, features: Tensor, place: Tensor) -> Tensor:
        hidden = functional.relu(self.mix(torch.cat([features, place.to(features.dtype)], 1)))
        share = functional.log_softmax(self.out(hidden).float(), 1)
        return share - torch.log1p(-share.exp().clamp(max=1 - 1e-6))


def _place(weight: Tensor) -> Tensor:
    """Where weights ``[B, S, h, w]`` that sum to 1 lie: how far back, how far from the middle, how far they spread.

    Height is left out but for its spread: a part of a stack does not know where in the vertebra it begins.
    """
    slices, rows, columns = weight.shape[1:]
    out = []
    for index, count in ((1, slices), (2, rows), (3, columns)):
        line = weight.sum([axis for axis in (1, 2, 3) if axis != index])
        # Positions from -1 to 1 across the field; slices in units of eight.
        unit = 8.0 if index == 1 else count / 2
        at = (torch.arange(count, device=weight.device, dtype=weight.dtype) - (count - 1) / 2) / unit
        mean = (line * at).sum(1, keepdim=True)
        spread = ((line * at.square()).sum(1, keepdim=True) - mean.square()).clamp(min=1e-6).sqrt()
        if index == 2:
            out.append(mean)
        elif index == 3:
            # Left and right are alike: stacks are mirrored at random.
            out.append((line * at.abs()).sum(1, keepdim=True))
        out.append(spread)
    return torch.cat(out, 1)


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
        self.smooth = block2d(neck, neck)
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
        self.type_head: nn.Module = nn.Linear(4 * config.hidden, config.types)
        self.types_from_evidence = config.types_from == "evidence"
        if self.types_from_evidence:
            self.type_head = _TypeHead(4 * config.hidden + neck, config)
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
            "types": self._types(self.dropout(pooled), neck, maps),
            "evidence": maps,
        }

    def _types(self, pooled: Tensor, neck: Tensor, maps: Tensor) -> Tensor:
        """Logits of the types ``[B, T]``."""
        if not self.types_from_evidence:
            plain: Tensor = self.type_head(pooled)
            return plain
        weight = functional.softmax(SHARPNESS * maps.detach().float().flatten(1), 1)
        cells = neck.reshape(maps.shape[0], maps.shape[1], *neck.shape[1:]).permute(0, 1, 3, 4, 2).flatten(1, 3)
        gathered = torch.bmm(weight.unsqueeze(1).to(cells.dtype), cells).squeeze(1)
        known = torch.cat([pooled, gathered.to(pooled.dtype)], 1)
        out: Tensor = self.type_head(known, _place(weight.view_as(maps)))
        return out

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


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")
