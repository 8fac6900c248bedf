"""What judges a vertebra from its evidence map and its features, whichever network made them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cspine.training.recipe import StackNetwork

# Prior log-odds at the start of training: fracture evidence and body centres are rare, so nothing floods at step one.
RARE_LOGIT = -4.0
# Cells of the evidence map that a vertebra's verdict is read from: a hairline covers about this many.
TOP_CELLS = 24
# The type is read where the evidence map, times this, says: background cells are many and must not outweigh it.
SHARPNESS = 2.0
# What log-sums of evidence are multiplied with before the recurrent part sees them.
_SCALE = 0.25
# Numbers that say where the evidence lies, see ``_place``.
_PLACES = 5


class Judge(nn.Module):
    """Slices, vertebra and types from features.

    Args:
        cells: channels of the features at the evidence map's cells.
        summary: channels of what is known of each slice as a whole.
        config: of the network.

    The recurrent part reads the slices of a stack both ways; the strongest evidence speaks for itself.
    """

    def __init__(self, cells: int, summary: int, config: StackNetwork) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.squeeze = nn.Linear(summary + cells + 2, 2 * config.hidden)
        self.recurrent = nn.LSTM(2 * config.hidden, config.hidden, batch_first=True, bidirectional=True)
        self.slice_head = nn.Linear(2 * config.hidden, 1)
        self.vertebra_head = nn.Linear(4 * config.hidden + 2, 1)
        # The recurrent part adds to the strongest evidence or takes from it.
        self.evidence_weight = nn.Parameter(torch.ones(1))
        nn.init.zeros_(self.vertebra_head.weight)
        nn.init.constant_(self.slice_head.bias, RARE_LOGIT / 2)
        self.type_head: nn.Module = nn.Linear(4 * config.hidden, config.types)
        self.types_from_evidence = config.types_from == "evidence"
        if self.types_from_evidence:
            self.type_head = _TypeHead(4 * config.hidden + cells, config)

    def forward(self, cells: Tensor, summary: Tensor, maps: Tensor) -> dict[str, Tensor]:
        """Logits by name, see ``StackNet``.

        Args:
            cells: features ``[B, S, h * w, C]``.
            summary: ``[B, S, F]``.
            maps: evidence logits ``[B, S, h, w]``.
        """
        flat = maps.flatten(2)
        # Features gathered where the evidence is: a softmax over the slice's cells.
        attention = functional.softmax(flat, 2).unsqueeze(2).to(cells.dtype)
        gathered = (attention @ cells).squeeze(2)
        top = flat.amax(2, keepdim=True)
        total = (flat - top).exp().sum(2, keepdim=True).log() + top
        described = torch.cat([summary, gathered, _SCALE * top, _SCALE * total], 2)
        hidden = functional.relu(self.squeeze(self.dropout(described)))
        hidden, _ = self.recurrent(hidden)
        slice_logits = self.slice_head(hidden).squeeze(-1)
        pooled = self.dropout(torch.cat([hidden.mean(1), hidden.amax(1)], 1))
        peaks = torch.cat([flat.flatten(1).amax(1, keepdim=True), slice_logits.amax(1, keepdim=True)], 1)
        judged = self.vertebra_head(torch.cat([pooled, peaks.to(pooled.dtype)], 1)).squeeze(-1)
        strongest = flat.flatten(1).float().topk(TOP_CELLS, dim=1).values.mean(1)
        return {
            "vertebra": judged + self.evidence_weight * strongest,
            "slices": slice_logits,
            "types": self._types(pooled, cells, maps),
            "evidence": maps,
        }

    def _types(self, pooled: Tensor, cells: Tensor, maps: Tensor) -> Tensor:
        """Logits of the types ``[B, T]``."""
        if not self.types_from_evidence:
            plain: Tensor = self.type_head(pooled)
            return plain
        weight = functional.softmax(SHARPNESS * maps.detach().float().flatten(1), 1)
        gathered = torch.bmm(weight.unsqueeze(1).to(cells.dtype), cells.flatten(1, 2)).squeeze(1)
        known = torch.cat([pooled, gathered.to(pooled.dtype)], 1)
        out: Tensor = self.type_head(known, _place(weight.view_as(maps)))
        return out


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
