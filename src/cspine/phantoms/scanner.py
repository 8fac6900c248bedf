"""``Scanner``: one scan protocol, and where its field of view lies on a patient.

A scanner knows nothing of a patient; ``field_of`` puts its field on a spine. ``sample_scanner`` draws protocols as
they occur: whole trauma scans, crops of the column, and coarse scans that show much or little of the neck.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cspine.errors import UsageError
from cspine.phantoms.grid import Grid

Kernel = Literal["bone", "soft"]
Preset = Literal["clinical", "spine", "coarse"]
Storage = Literal["feet-first", "head-first", "shuffled"]

PRESETS: tuple[Preset, ...] = get_args(Preset)
# How far vertebrae reach before and behind their body centres, mm, C1 to C7: the field is centred on the column.
REACH_FRONT_MM = 16.0
REACH_BACK_MM = (42.0, 50.0, 50.0, 50.0, 54.0, 60.0, 66.0)
# Scenes hold vertebrae down to T5, about this far below C7.
DEEPEST_MM = 105.0
MIN_SLICES = 8
MAX_SLICES = 1200
# Thicker slices are averages of samples no further apart than this, so that thin structures are not stepped over.
MAX_SAMPLE_MM = 1.0
MAX_TILT_DEG = 30.0
# A disc this many times as wide as the field leaves no corner dark.
WHOLE_FIELD = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """A CT protocol. Lengths in mm, angles in degrees; strengths are 0 (none) to 1 (severe).

    Attributes:
        pixel: between pixel centres, in plane.
        matrix: rows and columns.
        spacing: between slice centres.
        thickness: of a slice, full width at half maximum of its profile.
        kernel: reconstruction kernel, sharp or smooth.
        sharpness: cut-off of the kernel relative to a usual one (0.8 to 1.4).
        dose: relative to a usual trauma scan; noise goes with its inverse root.
        modulation: how far the tube current evens out the noise between thin and thick parts, 0 none to 1 wholly.
        above_c1: end of the field above the centre of C1; negative cuts below it.
        below_c7: end of the field below the centre of C7; negative cuts above it.
        offset: of the field's centre from the column's, to the left and to the back.
        circle: diameter of the reconstructed disc in units of the field's width; 2 or more shows the corners.
        padding: value stored outside the disc.
        tilt: gantry tilt about the left-right axis.
        motion: of the patient during the scan.
        beam_hardening: cupping and dark bands between dense bones.
        metal: how strongly dental metal throws streaks, when the patient has any.
        sample: largest distance of the samples averaged into a voxel.
        storage: how the slices are stored on disk.
    """

    pixel: float = 0.35
    matrix: tuple[int, int] = (512, 512)
    spacing: float = 0.8
    thickness: float = 1.0
    kernel: Kernel = "bone"
    sharpness: float = 1.0
    dose: float = 1.0
    modulation: float = 0.35
    above_c1: float = 40.0
    below_c7: float = 50.0
    offset: tuple[float, float] = (0.0, 0.0)
    circle: float = 2.0
    padding: int = -1024
    tilt: float = 0.0
    motion: float = 0.0
    beam_hardening: float = 0.4
    metal: float = 0.6
    sample: float = MAX_SAMPLE_MM
    storage: Storage = "feet-first"

    def __post_init__(self) -> None:
        lengths = (self.pixel, self.spacing, self.thickness, self.dose, self.sharpness, self.circle, self.sample)
        if min(lengths) <= 0 or min(self.matrix) < 1:
            raise UsageError("a scanner needs positive pixel, matrix, spacing, thickness, dose, sharpness and circle")
        if self.kernel not in get_args(Kernel) or self.storage not in get_args(Storage):
            raise UsageError(f"unknown kernel {self.kernel!r} or storage {self.storage!r}")
        if abs(self.tilt) > MAX_TILT_DEG:
            raise UsageError(f"a gantry tilts at most {MAX_TILT_DEG:.0f} degrees, got {self.tilt}")

    @property
    def field(self) -> tuple[float, float]:
        """Width and depth of the image, mm."""
        return self.matrix[1] * self.pixel, self.matrix[0] * self.pixel


def field_of(scanner: Scanner, poses: dict[int, NDArray[np.float64]]) -> Grid:
    """The voxels that ``scanner`` shows of a patient whose vertebrae lie at ``poses`` (4x4, local → world, 1 = C1).

    Slices run from the feet up. A tilted gantry makes a sheared grid: the table still moves along z.

    Raises:
        UsageError: the two ends of the field leave less than ``MIN_SLICES`` or more than ``MAX_SLICES`` slices.
    """
    centers = np.array([poses[label][:3, 3] for label in range(1, 8)])
    top = poses[1][2, 3] + scanner.above_c1
    bottom = poses[7][2, 3] - scanner.below_c7
    count = round(float((top - bottom) / scanner.spacing))
    if not MIN_SLICES <= count <= MAX_SLICES:
        raise UsageError(
            f"the field holds {count} slices, expected {MIN_SLICES} to {MAX_SLICES}",
            where="above_c1, below_c7, spacing",
        )
    across = (centers[:, 0].min() + centers[:, 0].max()) / 2
    front, back = centers[:, 1].min() - REACH_FRONT_MM, (centers[:, 1] + REACH_BACK_MM).max()
    rows, columns = scanner.matrix
    angle = np.deg2rad(scanner.tilt)
    affine = np.eye(4)
    affine[:3, 0] = (scanner.pixel, 0.0, 0.0)
    affine[:3, 1] = scanner.pixel * np.array([0.0, np.cos(angle), np.sin(angle)])
    affine[:3, 2] = (0.0, 0.0, scanner.spacing)
    middle = (across + scanner.offset[0], (front + back) / 2 + scanner.offset[1], (top + bottom) / 2)
    affine[:3, 3] = middle - affine[:3, :3] @ np.array([(columns - 1) / 2, (rows - 1) / 2, (count - 1) / 2])
    # Scanners give positions to the micrometre; so can be stored exactly in DICOM's decimal strings.
    affine[:3, 3] = np.round(affine[:3, 3], 3)
    return Grid(affine, (count, rows, columns))


def disc_of(rows: int, columns: int, circle: float) -> NDArray[np.bool_] | None:
    """Which pixels ``[rows, columns]`` the scanner reconstructs, or None when all are; ``circle`` as in ``Scanner``."""
    if circle >= WHOLE_FIELD or circle**2 >= 1 + (rows / columns) ** 2:
        return None
    y = np.arange(rows, dtype=np.float64)[:, None] - (rows - 1) / 2
    x = np.arange(columns, dtype=np.float64)[None, :] - (columns - 1) / 2
    return np.asarray(np.hypot(y, x) <= circle * columns / 2)


def sample_scanner(rng: np.random.Generator, *, preset: Preset = "clinical") -> Scanner:
    """A protocol as it may occur.

    Args:
        rng: source of chance.
        preset: ``clinical`` is a whole 512 x 512 trauma scan; ``spine`` crops it to the cervical column (cheap, for
            classifiers); ``coarse`` is a whole neck at 1 to 3 mm with fields of every kind, 15 % of them with little
            or no cervical spine (for locators).

    Raises:
        UsageError: no such preset.
    """
    if preset == "clinical":
        return _clinical(rng)
    if preset == "spine":
        return _spine(rng)
    if preset == "coarse":
        return _coarse(rng)
    raise UsageError(f"no scanner preset {preset!r}, expected one of {', '.join(PRESETS)}")


def _image_quality(rng: np.random.Generator, bone_share: float) -> dict[str, object]:
    """Kernel, dose and artefacts, the same for all presets."""
    moved = rng.random() < 0.12
    bone = rng.random() < bone_share
    return {
        "kernel": "bone" if bone else "soft",
        "sharpness": float(rng.uniform(0.85, 1.35 if bone else 1.15)),
        "dose": float(np.exp(rng.normal(0.0, 0.5))),
        "modulation": float(rng.uniform(0.25, 0.5)),
        "motion": float(rng.uniform(0.2, 1.0)) if moved else 0.0,
        "beam_hardening": float(rng.uniform(0.1, 0.8)),
        "metal": float(rng.uniform(0.3, 1.0)),
    }


def _clinical(rng: np.random.Generator) -> Scanner:
    """As the RSNA 2022 scans: thin, mostly bone kernel, small field, often a disc with a padding value around."""
    spacing = float(rng.choice([0.6, 0.625, 0.75, 0.8, 1.0], p=[0.2, 0.3, 0.15, 0.2, 0.15]))
    thickness = float(max(spacing, rng.choice([spacing, 0.75, 1.0, 1.25], p=[0.55, 0.15, 0.2, 0.1])))
    count = rng.uniform(245, 305)
    extra = max(60.0, count * spacing - 110.0)
    share = rng.uniform(0.4, 0.6)
    disc = rng.random() < 0.6
    return Scanner(
        pixel=round(float(rng.triangular(0.3, 0.37, 0.5)), 6),
        spacing=spacing,
        thickness=thickness,
        above_c1=float(extra * share),
        below_c7=float(min(extra * (1 - share), DEEPEST_MM)),
        offset=(float(rng.normal(0, 5)), float(rng.normal(2, 8))),
        circle=float(rng.choice([1.0, 1.0, 1.15])) if disc else 2.0,
        padding=int(rng.choice([-3024, -2048, -2000])) if disc else -1024,
        storage="feet-first" if rng.random() < 0.3 else "head-first",
        **_image_quality(rng, 0.85),  # type: ignore[arg-type]
    )


def _spine(rng: np.random.Generator) -> Scanner:
    """A crop of a thin scan around C1 to T1."""
    pixel = float(rng.uniform(0.4, 0.6))
    spacing = float(rng.choice([0.6, 0.75, 1.0, 1.25, 1.5], p=[0.1, 0.2, 0.4, 0.2, 0.1]))
    return Scanner(
        pixel=pixel,
        matrix=(round(118.0 / pixel), round(100.0 / pixel)),
        spacing=spacing,
        thickness=float(spacing * rng.choice([1.0, 1.0, 1.25])),
        above_c1=float(rng.uniform(16, 24)),
        below_c7=float(rng.uniform(24, 32)),
        offset=(float(rng.normal(0, 1.5)), float(rng.normal(0, 1.5))),
        **_image_quality(rng, 0.8),  # type: ignore[arg-type]
    )


def _coarse_ends(rng: np.random.Generator) -> tuple[float, float]:
    """Ends of a coarse scan above C1 and below C7: whole neck, head-heavy, chest-heavy, or hardly any neck."""
    kind = rng.choice(["neck", "head", "chest", "head-only", "chest-only"], p=[0.45, 0.2, 0.2, 0.06, 0.09])
    if kind == "neck":
        return rng.uniform(10, 70), rng.uniform(5, 90)
    if kind == "head":
        return rng.uniform(50, 140), rng.uniform(-80, 5)
    if kind == "chest":
        return rng.uniform(-80, 15), rng.uniform(40, DEEPEST_MM)
    if kind == "head-only":
        return rng.uniform(90, 140), rng.uniform(-125, -85)
    return rng.uniform(-125, -90), rng.uniform(75, DEEPEST_MM)


def _coarse(rng: np.random.Generator) -> Scanner:
    """A whole neck at 1 to 3 mm; the wider the field, the larger its pixels, as after resampling."""
    above, below = _coarse_ends(rng)
    width = float(rng.uniform(160, 420))
    pixel = float(np.clip(width / rng.uniform(100, 190), 1.0, 3.0))
    spacing = float(rng.choice([1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0], p=[0.1, 0.15, 0.25, 0.2, 0.2, 0.06, 0.04]))
    disc = rng.random() < 0.35
    quality = _image_quality(rng, 0.6)
    # Resampled thin slices: the noise has been averaged, whatever its kernel was.
    quality["dose"] = float(quality["dose"]) * 1.5  # type: ignore[arg-type]
    return Scanner(
        pixel=pixel,
        matrix=(round(width * rng.uniform(0.8, 1.0) / pixel), round(width / pixel)),
        spacing=spacing,
        thickness=spacing,
        above_c1=float(above),
        below_c7=float(below),
        offset=(float(rng.normal(0, 15)), float(rng.normal(-5, 22))),
        circle=float(rng.uniform(1.0, 1.2)) if disc else 2.0,
        sample=1.5,
        **quality,  # type: ignore[arg-type]
    )
