"""Planar networks that know the truth of a made-up patient, so that everything around them can be tested."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cspine.anatomy import Level
from cspine.inference.bundle import Bundle, write_bundle
from cspine.inference.planar import PlanarUse
from cspine.inference.planar_answers import BATCH
from cspine.inference.planar_images import PlaneGrid, planar_labels, planar_volume, plane_grid, sample_planes
from cspine.inference.runtime import Tensors
from oracle import OracleNetwork, Patient

Image = NDArray[np.float32]
Box = tuple[NDArray[np.float64], NDArray[np.float64]]

# Cells of heat are this many pixels wide.
CELL = 8
REACH_MM = 5.0


class PlanarOracle:
    """Answers a stage's images in the order in which they come; counts its calls."""

    def __init__(self, patient: Patient, use: PlanarUse, classes: int = 7, box: Box | None = None) -> None:
        small = planar_volume(patient.volume.reoriented())
        self.patient, self.use, self.classes = patient, use, classes
        cut = box if use.view.field == "detected" else None
        self.grids = [plane_grid(small, use.view, plane, cut) for plane in use.view.planes]
        self.labels = planar_labels(patient.labels.reoriented(), small)
        self.parts = [(grid, start) for grid in self.grids for start in range(0, grid.count, BATCH)]
        self.calls = 0

    def __call__(self, inputs: Tensors) -> dict[str, Image]:
        size = self.use.view.size
        assert inputs["image"].shape == (BATCH, self.use.view.channels, size, size)
        assert np.abs(inputs["image"]).max() <= 1
        grid, start = self.parts[self.calls % len(self.parts)]
        self.calls += 1
        return self.answer(grid, start)

    def answer(self, grid: PlaneGrid, start: int) -> dict[str, Image]:
        labels = sample_planes(self.labels, grid, start, BATCH, order=0, fill=0).astype(int)
        owner, bead = self._bead(grid, start)
        seen = np.stack([(labels == level).any(axis=(1, 2)) for level in Level], axis=1)
        broken = np.zeros((BATCH, 7), np.float32)
        if owner:
            broken[:, owner - 1] = bead.any(axis=(1, 2))
        visible = np.where(seen, 0.95, 0.03)
        out = {
            "levels": np.where(labels[:, None] == np.arange(9)[None, :, None, None], 0.92, 0.01),
            "fracture": np.where(bead, 0.9, 0.02)[:, None],
            "visible": visible,
            "broken": np.where(broken > 0, 0.9, 0.04),
            "slice": np.where(broken.any(axis=1, keepdims=True), 0.9, 0.04),
            "types": np.tile([0.1, 0.8, 0.2], (BATCH, 1)),
        }
        shown = {name: np.asarray(out[name], np.float32) for name in self.use.heads if name in out}
        if {"slice", "broken"} & set(self.use.heads):
            cells = bead.reshape(BATCH, grid.size // CELL, CELL, grid.size // CELL, CELL).mean(axis=(2, 4))
            shown["heat"] = np.asarray(40 * cells[:, None] + 0.01, np.float32)
        if "boxes" in self.use.heads:
            shown["boxes"], shown["scores"] = self._boxes(labels, broken)
        return shown

    def _bead(self, grid: PlaneGrid, start: int) -> tuple[int, NDArray[np.bool_]]:
        """The level that the bead is on, and the pixels that show it."""
        nothing = np.zeros((BATCH, grid.size, grid.size), bool)
        place = self.patient.bead
        if place is None:
            return 0, nothing
        z, y, x = np.indices(nothing.shape)
        index = np.stack([x, y, z + start], axis=-1)
        away = np.linalg.norm(index @ grid.affine[:3, :3].T + grid.affine[:3, 3] - place, axis=-1)
        near = {k: abs(c[2] - place[2]) for k, c in self.patient.centers.items()}
        return min(near, key=lambda k: near[k]), away < REACH_MM

    def _boxes(self, labels: NDArray[np.int_], broken: Image) -> tuple[Image, Image]:
        """One box a level and image, and one far off that nobody should believe."""
        boxes = np.zeros((BATCH, 9, 4), np.float32)
        scores = np.full((BATCH, 9, self.classes), 0.01, np.float32)
        for number, image in enumerate(labels):
            for label, box in enumerate(ndimage.find_objects(image, max_label=7), start=1):
                if box is not None:
                    boxes[number, label] = box[1].start, box[0].start, box[1].stop, box[0].stop
                    kind = label - 1 + (7 if self.classes == 14 and broken[number, label - 1] else 0)
                    scores[number, label, kind] = 0.9
        return boxes, scores


class PlanarRuntime:
    """A ``Runtime`` whose models name a planar stage, or are those of ``OracleRuntime``."""

    name = "planar oracle 1.0"

    def __init__(self, patient: Patient, network: type[PlanarOracle] = PlanarOracle, box: Box | None = None) -> None:
        self.patient, self.network, self.box = patient, network, box
        self.loaded: dict[str, PlanarOracle] = {}

    def supports(self, precision: str) -> bool:
        return True

    def load(self, model: bytes, precision: str = "f32") -> PlanarOracle | OracleNetwork:
        if not model.startswith(b"{"):
            return OracleNetwork(model.decode(), self.patient, (37.0, -21.0, 400.0))
        told = json.loads(model)
        use = PlanarUse.model_validate(told["use"])
        network = self.network(self.patient, use, told["classes"], self.box)
        self.loaded[told["name"]] = network
        return network


def use_of(*heads: str, planes: Sequence[str] = ("axial",), size: int = 96, **more: object) -> dict[str, object]:
    """A ``PlanarUse`` as a table; ``more`` goes to its view, but for ``pooling``."""
    pooling = more.pop("pooling", {})
    return {"view": {"planes": planes, "size": size, "step_mm": 3.0, **more}, "heads": heads, "pooling": pooling}


def planar_bundle(
    folder: Path,
    stages: dict[str, dict[str, object] | None],
    *,
    shared: bool = False,
    classes: int = 7,
    **fields: object,
) -> Bundle:
    """A bundle for ``PlanarRuntime``; a stage without a use is a solid one."""
    files: dict[str, bytes] = {}
    table: dict[str, object] = {}
    for name, use in stages.items():
        file = "locator.onnx" if shared else f"{name}.onnx"
        told = {"name": name, "use": use, "classes": classes}
        if use is not None and shared:
            heads = {head: None for other in stages.values() if other for head in other["heads"]}
            told = {"name": "locator", "use": {**use, "heads": tuple(heads)}, "classes": classes}
        files.setdefault(file, name.encode() if use is None else json.dumps(told).encode())
        table[name] = {"file": file} if use is None else {"file": file, "planar": use}
    content = {"name": "planar", "version": "1", "recipe": "none", "trained_on": "nothing", "stages": table}
    content["types"] = ("jefferson", "lamina", "burst")
    return write_bundle(folder, files, {**content, **fields})
