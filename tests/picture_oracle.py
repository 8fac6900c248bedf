"""Planar networks that find a bright spot in a picture, so that what becomes of their answers can be tested."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cspine.inference.bundle import Bundle
from cspine.inference.planar import PlanarUse
from cspine.inference.runtime import Tensors
from cspine.studies.images import SliceImage
from cspine.volume import Source
from planar_oracle import planar_bundle

Image = NDArray[np.float32]
CELL = 8
# Where the spot is: rows and columns, shares of the picture. It is on C4.
SPOT = (0.3, 0.7)
LEVEL = 4


def spotted(size: tuple[int, int] = (120, 160), *, bright: bool = True, name: str = "picture") -> SliceImage:
    """A grey picture with a spot that is fractured when it is bright."""
    rows, columns = np.indices(size)
    away = np.hypot(rows + 0.5 - SPOT[0] * size[0], columns + 0.5 - SPOT[1] * size[1])
    pixels = np.where(away < max(size) / 12, 1.0 if bright else 0.5, 0.0).astype(np.float32)
    return SliceImage(pixels, "grey", None, Source(kind="image", name=name, sha256="0" * 64))


class PictureOracle:
    """Says that pictures with a bright spot are fractured there; keeps what it was shown."""

    def __init__(self, use: PlanarUse, classes: int) -> None:
        self.use, self.classes = use, classes
        self.seen: list[Image] = []

    def __call__(self, inputs: Tensors) -> dict[str, Image]:
        images = inputs["image"]
        self.seen.append(images.copy())
        spot, bright = images[:, 0] > -0.5, images[:, 0] > 0.6
        broken = bright.any(axis=(1, 2))
        levels = np.full((len(images), 7), 0.03, np.float32)
        levels[:, LEVEL - 1] = np.where(spot.any(axis=(1, 2)), 0.95, 0.03)
        verdict = np.where(broken, 0.9, 0.04)
        cells = bright.reshape(len(images), *(n for side in bright.shape[1:] for n in (side // CELL, CELL)))
        out = {
            "levels": np.where(np.arange(9)[:, None, None] == spot[:, None] * LEVEL, 0.92, 0.01),
            "fracture": np.where(bright, 0.9, 0.02)[:, None],
            "visible": levels,
            "broken": np.where(np.arange(7) == LEVEL - 1, verdict[:, None], 0.02),
            "slice": verdict[:, None],
        }
        shown = {name: np.asarray(out[name], np.float32) for name in self.use.heads if name in out}
        if {"slice", "broken"} & set(self.use.heads):
            shown["heat"] = np.asarray(cells.mean(axis=(2, 4))[:, None], np.float32)
        if "boxes" in self.use.heads:
            shown["boxes"], shown["scores"] = self._boxes(spot, broken)
        return shown

    def _boxes(self, spot: NDArray[np.bool_], broken: NDArray[np.bool_]) -> tuple[Image, Image]:
        boxes = np.zeros((len(spot), 2, 4), np.float32)
        scores = np.full((len(spot), 2, self.classes), 0.01, np.float32)
        for number, image in enumerate(spot):
            if image.any():
                rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
                boxes[number, 1] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
                kind = LEVEL - 1 + (7 if self.classes == 14 and broken[number] else 0)
                scores[number, 1, kind] = 0.9
        return boxes, scores


class PictureRuntime:
    """A ``Runtime`` for bundles of ``picture_bundle``."""

    name = "picture oracle 1.0"

    def __init__(self) -> None:
        self.loaded: dict[str, PictureOracle] = {}

    def supports(self, precision: str) -> bool:
        return precision == "f32"

    def load(self, model: bytes, precision: str = "f32") -> PictureOracle:
        told = json.loads(model)
        network = PictureOracle(PlanarUse.model_validate(told["use"]), told["classes"])
        self.loaded[told["name"]] = network
        return network


def picture_bundle(
    folder: Path, stages: dict[str, dict[str, object] | None], *, classes: int = 7, shared: bool = False
) -> Bundle:
    """A bundle for ``PictureRuntime``."""
    return planar_bundle(folder, stages, classes=classes, shared=shared)
