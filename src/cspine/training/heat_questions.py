"""What is asked of a network about one vertebra, so that heat can be computed: its images, and the verdict on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cspine.anatomy import LEVELS, Level
from cspine.inference import stacks
from cspine.inference.planar import Head, Plane
from cspine.inference.planar_images import PlaneGrid, images, planar_volume, plane_grid, sample_planes
from cspine.inference.predictor import Prediction
from cspine.training.heat import Answers
from cspine.training.planar_draw import DETECTED_MARGIN_MM
from cspine.training.recipe_stages import PlanarStage
from cspine.training.samples import LOCATOR_SPACING_MM
from cspine.volume import Volume

Float = NDArray[np.float64]
Point = tuple[float, float, float]
# Of what a planar network answers, the first of these that it has is explained; the last is all that a locator has.
HEADS: tuple[Head, ...] = ("fracture", "broken", "slice", "visible")
# A vertebra is shown by many images; heat is computed over the strongest and its neighbours, this many in all.
MAX_IMAGES = 9
# Images that the strongest is looked for in at once.
_BATCH = 4


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about one level.

    Attributes:
        block: images ``[1, C, N, H, W]``.
        shown: channel of the block that is the image itself.
        read: the verdict ``()``, a logit, from the network's answers.
        probability: of the verdict, ``()``, from the same.
        evidence: from the same the network's own map ``[N, h, w]``, 0..1; None when it has none.
        affine: index ``(x, y, z)`` → LPS mm, of cells of shape ``(z, y, x)`` that divide the block's field evenly.
        sagittal: the images are sagittal, not axial.
    """

    block: Tensor
    shown: int
    read: Callable[[Answers], Tensor]
    probability: Callable[[Answers], Tensor]
    evidence: Callable[[Answers], Tensor | None]
    affine: Callable[[tuple[int, int, int]], Float]
    sagittal: bool = False


def centers(prediction: Prediction) -> dict[Level, Point]:
    """Body centres, LPS mm, of the levels in view."""
    return {
        level: item.body_center_mm
        for level, item in zip(LEVELS, prediction.findings.levels, strict=True)
        if item.visible and item.body_center_mm is not None
    }


class StackQuestions:
    """Asks about the stacks of slices that vertebra classifiers see.

    Args:
        volume: canonical axes, HU.
        prediction: says where the levels are.
    """

    def __init__(self, volume: Volume, prediction: Prediction) -> None:
        self._volume = volume
        # Classifiers learnt with masks of the locator's voxels.
        mask = Volume(prediction.labels, prediction.labels_affine).resampled(LOCATOR_SPACING_MM, order=0)
        self._labels, self._affine = mask.hu.astype(np.uint8), mask.affine
        found = {int(level): point for level, point in centers(prediction).items()}
        self._frames = stacks.frames(found, self._labels, self._affine)

    def __call__(self, level: Level) -> Question:
        """What is asked about one level that is in view."""
        frame = self._frames[level]
        mask = stacks.mask_volume(self._labels, self._affine, level)
        stack = torch.from_numpy(stacks.sample_stack(self._volume, mask, frame, level))
        return Question(
            block=stack.transpose(0, 1).unsqueeze(0),
            shown=1,
            read=lambda said: said["vertebra"][0],
            probability=lambda said: said["vertebra"][0].sigmoid(),
            evidence=lambda said: said["evidence"][0].sigmoid() if "evidence" in said else None,
            affine=lambda shape: stacks.evidence_affine(frame, level, shape),
        )


class PlanarQuestions:
    """Asks about the images of the whole field that show a level.

    Args:
        volume: canonical axes, HU.
        prediction: says where the levels are.
        stage: how images are cut.
        network: looks for the strongest of them.
    """

    def __init__(self, volume: Volume, prediction: Prediction, stage: PlanarStage, network: nn.Module) -> None:
        self._volume, self._stage, self._network = planar_volume(volume), stage, network
        self._labels = Volume(prediction.labels, prediction.labels_affine)
        self._centers = centers(prediction)
        self._plane: Plane = "axial" if "axial" in stage.view.planes else "sagittal"
        self._grid = plane_grid(self._volume, stage.view, self._plane, self._box())
        self._head = next(name for name in HEADS if name in stage.network.heads)

    def __call__(self, level: Level) -> Question:
        """What is asked about one level that is in view."""
        start, count = self._strongest(level)
        view, grid = self._stage.view, self._grid
        block = torch.from_numpy(images(self._volume, grid, view, start, count))
        mask = self._mask(level, start, count)
        return Question(
            block=block.transpose(0, 1).unsqueeze(0),
            shown=view.neighbours * len(view.windows),
            read=lambda said: self._pooled(self._each(said, level, mask)),
            probability=lambda said: self._probability(said, level, mask),
            evidence=lambda said: self._own_map(said, level),
            affine=lambda shape: _cells(grid, start, count, shape),
            sagittal=self._plane == "sagittal",
        )

    def _box(self) -> tuple[Float, Float] | None:
        """Around C1..C7 with a detector's usual margin, for networks that see only what was detected."""
        index = np.argwhere((self._labels.hu > 0) & (self._labels.hu <= Level.C7))
        if self._stage.view.field == "whole" or not len(index):
            return None
        points = self._labels.to_world(index[:, ::-1])
        margin = float(np.mean(DETECTED_MARGIN_MM))
        return points.min(axis=0) - margin, points.max(axis=0) + margin

    def _range(self, level: Level) -> tuple[int, int]:
        """First image that shows a level, and how many do."""
        index = np.argwhere(self._labels.hu == level)
        points = self._labels.to_world(index[:, ::-1]) if len(index) else np.array([self._centers[level]])
        at = np.rint((points - self._grid.affine[:3, 3]) @ np.linalg.inv(self._grid.affine[:3, :3]).T)[:, 2]
        first, last = np.clip([at.min(), at.max()], 0, self._grid.count - 1).astype(int)
        return int(first), int(last - first) + 1

    def _strongest(self, level: Level) -> tuple[int, int]:
        """The part of a level's images around the one that says most."""
        start, count = self._range(level)
        if count <= MAX_IMAGES:
            return start, count
        each = []
        for first in range(start, start + count, _BATCH):
            size = min(_BATCH, start + count - first)
            shown = torch.from_numpy(images(self._volume, self._grid, self._stage.view, first, size))
            with torch.no_grad():
                each.append(self._each(self._network(shown), level, self._mask(level, first, size)))
        middle = start + int(torch.cat(each).argmax())
        return int(np.clip(middle - MAX_IMAGES // 2, start, start + count - MAX_IMAGES)), MAX_IMAGES

    def _mask(self, level: Level, start: int, count: int) -> Tensor | None:
        """Pixels of a level, bool ``[N, S, S]``, where the verdict is read from pixels."""
        if self._head != "fracture":
            return None
        own = Volume((self._labels.hu == level).astype(np.float32), self._labels.affine)
        return torch.from_numpy(sample_planes(own, self._grid, start, count, fill=0.0) >= 0.5)

    def _each(self, said: Mapping[str, Tensor], level: Level, mask: Tensor | None) -> Tensor:
        """The logit of each image, ``[N]``; of pixels their mean over the level."""
        found = said[self._head]
        if mask is not None:
            return torch.where(mask, found[:, 0], 0.0).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)
        return found[:, 0] if self._head == "slice" else found[:, level - 1]

    def _pooled(self, each: Tensor) -> Tensor:
        """The mean of the strongest images, as the stage pools them; of pixel verdicts the mean of all."""
        count = len(each) if self._head == "fracture" else min(self._stage.pooling.top, len(each))
        return each.topk(count).values.mean()

    def _probability(self, said: Mapping[str, Tensor], level: Level, mask: Tensor | None) -> Tensor:
        """The mean of the strongest pixels of the level, or of the strongest images."""
        values = self._each(said, level, None) if mask is None else said[self._head][:, 0][mask]
        if not len(values):
            return torch.zeros(())
        return values.topk(min(self._stage.pooling.top, len(values))).values.sigmoid().mean()

    def _own_map(self, said: Mapping[str, Tensor], level: Level) -> Tensor | None:
        """The fracture map; else the class activation maps, each times how strongly its image speaks."""
        if "fracture" in said:
            return said["fracture"][:, 0].sigmoid()
        if "heat" not in said or self._head == "visible":
            return None
        # As ``inference.planar_answers`` and ``planar_fractures`` read them.
        heat = said["heat"][:, 0].relu()
        strength = self._each(said, level, None).sigmoid()
        return heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-6) * strength[:, None, None]


def _cells(grid: PlaneGrid, start: int, count: int, shape: tuple[int, int, int]) -> Float:
    """Affine of cells that divide ``count`` images from number ``start`` on evenly."""
    ratio = np.array([grid.size / shape[2], grid.size / shape[1], count / shape[0]])
    affine = grid.affine.copy()
    first = np.array([0.0, 0.0, float(start)]) + (ratio - 1) / 2
    affine[:3, 3] = grid.affine[:3, :3] @ first + grid.affine[:3, 3]
    affine[:3, :3] = grid.affine[:3, :3] * ratio
    return affine
