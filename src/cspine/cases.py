"""``Case``: a volume with what is known to be true of it, for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cspine.anatomy import LEVELS, Level
from cspine.volume import Volume


@dataclass(frozen=True, slots=True)
class LevelTruth:
    """What is true of one vertebra.

    Attributes:
        visible_fraction: share of the vertebra inside the field of view, 0..1; NaN when unknown.
        fractured: acute fracture present.
        types: names of the fractures, see ``cspine.phantoms.fractures.FractureType``; empty when none or unknown.
        severity: 0 (none) to 1 (displaced); of the worst fracture.
        old_fracture: a healed fracture is present (not a positive label).
        body_center_mm: LPS millimetres, or None when unknown. Convention as in ``findings.json``.
        displacement_mm: how far its most displaced acute fracture is, see ``phantoms.displacement``; None when there
            is none or it is unknown.
        confounders: what may be taken for a fracture and is none, see ``phantoms.confounders.ConfounderKind``.
        place_known: False for a fractured vertebra when nothing says where in it the fracture is.
    """

    visible_fraction: float
    fractured: bool
    types: tuple[str, ...] = ()
    severity: float = 0.0
    old_fracture: bool = False
    body_center_mm: tuple[float, float, float] | None = None
    displacement_mm: float | None = None
    confounders: tuple[str, ...] = ()
    place_known: bool = True


@dataclass(frozen=True, slots=True)
class SliceBox:
    """The extent of fracture in one slice, pixels of that slice: inclusive min, exclusive max."""

    slice_index: int
    x_min: int
    y_min: int
    x_max: int
    y_max: int
    level: Level | None = None


@dataclass(frozen=True, slots=True)
class Pictures:
    """What is known of slices that were labelled one by one. They may lie anywhere, so nothing lies between two.

    Attributes:
        fractured: of each slice along z, whether it shows a fracture; None where unknown.
        levels: of each slice, the vertebrae that it shows; None where unknown.
        grey: the volume holds grey levels, 0 black to 255 white, instead of HU, and its millimetres mean nothing.
    """

    fractured: tuple[bool | None, ...]
    levels: tuple[tuple[Level, ...] | None, ...]
    grey: bool


@dataclass(frozen=True, slots=True)
class Case:
    """A volume and its truth. Masks share the volume's shape ``[z, y, x]`` and affine.

    Attributes:
        name: unique in a data set; the StudyInstanceUID for RSNA 2022.
        volume: the CT.
        labels: uint8 mask, values of ``cspine.anatomy`` (1..7 = C1..C7, 8 thoracic, 9 other bone), or None.
        fracture: bool mask of fracture voxels, or None when unknown.
        levels: truth a level, keyed by ``Level``; missing keys are unknown.
        boxes: fracture boxes a slice.
        overall: whether any level is fractured, where that is known but perhaps not which.
        thoracic_mm: body centres of the thoracic vertebrae, LPS mm, keyed 8 (T1) and up; None when unknown.
        pictures: for a set of slices that were labelled one by one, what is known of each; None for a scan.
        patient: groups the studies of one patient; never shown. Empty when the study is the patient's only one.
    """

    name: str
    volume: Volume
    labels: NDArray[np.uint8] | None = None
    fracture: NDArray[np.bool_] | None = None
    levels: dict[Level, LevelTruth] = field(default_factory=dict)
    boxes: tuple[SliceBox, ...] = ()
    overall: bool | None = None
    thoracic_mm: dict[int, tuple[float, float, float]] | None = None
    pictures: Pictures | None = None
    patient: str = ""

    @property
    def patient_fractured(self) -> bool | None:
        """True when any level is fractured; None when neither a level nor the patient's own label is known."""
        if not self.levels:
            return self.overall
        return bool(self.overall) or any(self.levels[level].fractured for level in LEVELS if level in self.levels)
