"""Planar networks on their way into a bundle: probabilities instead of logits, and how far two answers are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cspine.training.onnx_files import Interface
from cspine.training.recipe_stages import PlanarStage

# Pixels that may differ more than a planar answer's distance says: one in a thousand.
PIXEL_QUANTILE = 0.999
# Boxes nobody would look at do not count.
MIN_BOX_SCORE = 0.05
# What is a probability already, or a length.
_PLAIN = ("boxes", "scores")


def planar_interface(stage: PlanarStage, name: str) -> Interface:
    """Input ``image`` ``[B, C, S, S]`` with any B, and the outputs of ``inference.planar.HEADS`` that a stage has."""
    heads = stage.network.heads
    outputs = [output for head in heads for output in (_PLAIN if head == "boxes" else (head,))]
    if {"slice", "broken"} & set(heads):
        outputs.append("heat")
    view = stage.view
    return Interface(name, "image", tuple(outputs), (2, view.channels, view.size, view.size), {0: "batch"})


class Probabilities(nn.Module):
    """A planar network that answers with probabilities, as bundles hold it.

    Args:
        network: answers with logits; of detectors with boxes and probabilities, which stay.
        levels_as: whether the classes of ``levels`` exclude each other.
    """

    def __init__(self, network: nn.Module, levels_as: Literal["one", "each"]) -> None:
        super().__init__()
        self.network, self.levels_as = network, levels_as

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """See the class."""
        found: dict[str, Tensor] = self.network(image)
        return {name: self._read(name, value) for name, value in found.items()}

    def _read(self, name: str, value: Tensor) -> Tensor:
        if name in _PLAIN:
            return value
        return torch.softmax(value, 1) if name == "levels" and self.levels_as == "one" else torch.sigmoid(value)


def planar_distance(exact: Mapping[str, NDArray[np.float32]], other: Mapping[str, NDArray[np.float32]]) -> float:
    """How far two answers of a planar network are apart.

    The largest of: the share of vertebra pixels (in either answer) whose class changes; the change of a fracture
    pixel that one pixel in a thousand exceeds; the largest change of any probability of an image; and that of a
    class's best score in an image, where either answer would show a box. The heat map, which explains and decides
    nothing, does not count. NaN in any answer makes it NaN.
    """
    if not all(np.isfinite(value).all() for value in (*exact.values(), *other.values())):
        return float("nan")
    worst = 0.0
    for name, a in exact.items():
        b = other[name]
        if name == "levels":
            first, second = a.argmax(1), b.argmax(1)
            bone = (first > 0) | (second > 0)
            worst = max(worst, float((first != second)[bone].mean()) if bone.any() else 0.0)
        elif name == "fracture":
            worst = max(worst, float(np.quantile(np.abs(a - b), PIXEL_QUANTILE)))
        elif name == "scores":
            worst = max(worst, _score_distance(a, b))
        elif name not in ("boxes", "heat"):
            worst = max(worst, float(np.abs(a - b).max()))
    return worst


def _score_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Largest change of the best score of any class in an image; which boxes are among the best may differ."""
    best, other = a.max(axis=1), b.max(axis=1)
    shown = (best > MIN_BOX_SCORE) | (other > MIN_BOX_SCORE)
    return float(np.abs(best - other)[shown].max()) if shown.any() else 0.0
