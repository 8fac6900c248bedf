"""A made-up patient and networks that know the truth, so that everything around the networks can be tested.

The patient is asymmetric on purpose: a bright bead on the left of one vertebra stands for a fracture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cspine.inference.bundle import Bundle, write_bundle
from cspine.inference.locate import Located, locate, locator_input
from cspine.volume import Volume

Edit = Callable[[NDArray[np.float32], NDArray[np.float64]], None]

BEAD_HU = 1400.0
ORIGIN = (37.0, -21.0, 400.0)


@dataclass(frozen=True)
class Patient:
    """Centres by label (8 and up thoracic), the volume, its labels and the bead's place."""

    centers: dict[int, NDArray[np.float64]]
    volume: Volume
    labels: Volume
    bead: NDArray[np.float64] | None


def centers(
    top: float = 0.0, count: int = 12, step: float = 17.0, curve: float = 0.0
) -> dict[int, NDArray[np.float64]]:
    """Body centres LPS mm from C1 (label 1) down, the first at z = ``top``."""
    out, z = {}, top
    for label in range(1, count + 1):
        out[label] = np.array([0.0, curve * np.sin((top - z) / 60.0), z])
        z -= 20.5 if label == 1 else step
    return out


def paint(points: NDArray[np.float64], spine: dict[int, NDArray[np.float64]]) -> NDArray[np.uint8]:
    """Labels of LPS points ``(…, 3)``: a drum for each body (a ring for C1, a dens on C2) and a spinous process."""
    labels = np.zeros(points.shape[:-1], np.uint8)
    for label, centre in spine.items():
        near = np.abs(points[..., 2] - centre[2]) < 27
        p = points[near] - centre
        radius = np.hypot(p[..., 0], p[..., 1])
        if label == 1:
            ring = np.hypot(p[..., 0], p[..., 1] - 18.0)
            bone = (np.abs(p[..., 2]) < 6) & (ring > 15) & (ring < 22)
        else:
            body = (radius < 9.5) & (np.abs(p[..., 2]) < 6.5)
            arch = np.hypot(p[..., 0], p[..., 1] - 18.0)
            arch_bone = (arch > 9) & (arch < 13) & (np.abs(p[..., 2]) < 5) & (p[..., 1] > 8)
            spinous = (np.abs(p[..., 0]) < 3) & (p[..., 1] > 29) & (p[..., 1] < 46) & (np.abs(p[..., 2] + 2) < 5)
            bone = body | arch_bone | spinous
            if label == 2:
                dens = (np.hypot(p[..., 0], p[..., 1] - 4.0) < 5.0) & (p[..., 2] > 0) & (p[..., 2] < 26)
                bone |= dens
        labels[near] = np.where(bone, min(label, 8), labels[near])
    return labels


def make_patient(
    *,
    z_mm: tuple[float, float] = (-175.0, 40.0),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.5),
    size_mm: tuple[float, float] = (130.0, 150.0),
    bead_on: int | None = None,
    count: int = 12,
    curve: float = 0.0,
    origin: tuple[float, float, float] = ORIGIN,
) -> Patient:
    """A scan of the made-up neck in canonical axes, field ``z_mm`` around C1, its world moved by ``origin``."""
    shift = np.asarray(origin)
    spine = centers(count=count, curve=curve)
    start = np.array([-size_mm[0] / 2, -size_mm[1] / 2 + 20, z_mm[0]])
    number = [round(size_mm[0] / spacing[0]), round(size_mm[1] / spacing[1]), round((z_mm[1] - z_mm[0]) / spacing[2])]
    axes = [start[k] + np.arange(number[k]) * spacing[k] for k in range(3)]
    z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    points = np.stack([x, y, z], axis=-1)
    labels = paint(points, spine)
    hu = np.where(np.hypot(x * 0.9, y - 15) < 55, 40, -1000).astype(np.int16)
    hu[labels > 0] = 500
    bead = None
    if bead_on is not None:
        bead = spine[bead_on] + np.array([7.0, 20.0, 1.0]) if bead_on > 1 else spine[1] + np.array([18.0, 18.0, 0.0])
        hu[np.linalg.norm(points - bead, axis=-1) < 4.0] = int(BEAD_HU)
        bead = bead + shift
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing)
    affine[:3, 3] = start + shift
    inside = {label: c + shift for label, c in spine.items()}
    return Patient(inside, Volume(hu, affine), Volume(labels, affine), bead)


def locator_answer(
    patient_centers: dict[int, NDArray[np.float64]], points: NDArray[np.float64], origin: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Logits ``[11, …]`` of a perfect locator at LPS points ``(…, 3)``."""
    shift = np.asarray(origin)
    spine = {label: c - shift for label, c in patient_centers.items()}
    labels = paint(points - shift, spine)
    logits = np.full((11, *points.shape[:-1]), -4.0, np.float32)
    for value in range(10):
        logits[value][labels == value] = 4.0
    heat = np.zeros(points.shape[:-1], np.float32)
    for c in patient_centers.values():
        near = np.abs(points[..., 2] - c[2]) < 20
        heat[near] = np.maximum(heat[near], np.exp(-0.5 * ((points[near] - c) ** 2).sum(axis=-1) / 16.0))
    clipped = np.clip(heat, 1e-4, 0.97)
    logits[10] = np.log(clipped / (1 - clipped))
    return logits


def follow_bone(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """A refiner's logits ``[1, 4, …]``: all that is dense is bone, of the parity that its masks say, or other bone."""
    hu, odd, even = image[0, 0] * 1000, image[0, 1], image[0, 2]
    parity = np.where(np.maximum(odd, even) < 0.02, 3, np.where(odd >= even, 1, 2))
    classes = np.where(hu > 270, parity, 0)
    return np.asarray([[np.where(classes == value, 4.0, -4.0) for value in range(4)]], np.float32)


class OracleNetwork:
    """Answers from the truth (locator) or from what it sees (classifier: the bead's HU is the fracture)."""

    def __init__(self, stage: str, patient: Patient, origin: tuple[float, float, float]) -> None:
        self.stage, self.patient, self.origin = stage, patient, origin
        self._answers: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def __call__(self, inputs: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        if self.stage == "locator":
            return {"locator": self._locate(inputs["image"])}
        if self.stage == "refiner":
            return {"refiner": follow_bone(inputs["image"])}
        return self._classify(inputs["stack"])

    def _locate(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        shape = image.shape[2:]
        if shape not in self._answers:
            affine = locator_input(self.patient.volume, crop=True).affine
            z, y, x = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
            points = np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
            self._answers[shape] = locator_answer(self.patient.centers, points, self.origin)[None]
        return self._answers[shape]

    def _classify(self, stack: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        # Channel 1 is the plane itself; cells of 4 x 4 pixels.
        bright = (stack[:, :, 1] > 0.75) & (stack[:, :, 3] > 0.02)
        cells = bright.reshape(*bright.shape[:2], 32, 4, 40, 4).mean(axis=(3, 5))
        evidence = np.where(cells > 0.25, 3.0, -6.0).astype(np.float32)
        slices = evidence.max(axis=(2, 3))
        types = np.zeros((len(stack), 3), np.float32)
        types[:, 2] = 1.0
        return {"vertebra": slices.max(axis=1), "slices": slices, "types": types, "evidence": evidence}


class OracleRuntime:
    """A ``Runtime`` whose models are the words ``locator``, ``refiner`` and ``classifier``."""

    name = "oracle 1.0"

    def __init__(self, patient: Patient, origin: tuple[float, float, float] = ORIGIN) -> None:
        self.patient, self.origin = patient, origin

    def supports(self, precision: str) -> bool:
        return precision == "f32"

    def load(self, model: bytes, precision: str = "f32") -> OracleNetwork:
        return OracleNetwork(model.decode(), self.patient, self.origin)


def oracle_bundle(folder: Path, *, refiner: bool = False, **fields: object) -> Bundle:
    """A bundle for ``OracleRuntime``."""
    names = ("locator", "refiner", "classifier") if refiner else ("locator", "classifier")
    content = {
        "name": "oracle",
        "version": "1",
        "recipe": "none",
        "trained_on": "nothing",
        "stages": {name: {"file": f"{name}.onnx"} for name in names},
        "types": ("jefferson", "lamina", "burst"),
        "type_levels": {"jefferson": ("C1",), "burst": ("C3", "C4", "C5")},
        **fields,
    }
    return write_bundle(folder, {f"{name}.onnx": name.encode() for name in names}, content)


def located_of(patient: Patient, edit: Edit | None = None) -> Located:
    """A perfect locator's answer for a patient; ``edit(logits, points)`` may spoil it."""
    affine = locator_input(patient.volume, crop=True).affine

    def network(image: NDArray[np.float32]) -> NDArray[np.float32]:
        z, y, x = np.meshgrid(*[np.arange(n) for n in image.shape[2:]], indexing="ij")
        points = np.stack([x, y, z], axis=-1) @ affine[:3, :3].T + affine[:3, 3]
        logits = locator_answer(patient.centers, points, ORIGIN)
        if edit is not None:
            edit(logits, points)
        return logits[None]

    return locate(patient.volume, network)
