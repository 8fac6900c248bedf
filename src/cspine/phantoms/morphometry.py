"""Sizes of the vertebrae C1 to T5 and how they vary between people.

Means for C2 to C7 follow Panjabi et al., "Cervical human vertebrae: quantitative three-dimensional anatomy of the
middle and lower regions", Spine 16(8), 1991; for T1 to T5 Panjabi et al., "Thoracic human vertebrae", Spine 16(8),
1991; for C1 Doherty and Heggeness, "The quantitative anatomy of the atlas", Spine 19(22), 1994; for C2 the same
authors, "Quantitative anatomy of the second cervical vertebra", Spine 20(5), 1995. Body heights are raised by about
1 mm and canal depths lowered by about 2 mm, to what CT of living people shows, and body widths include the
uncinate processes. Sexes differ by about 9 % in linear size.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np

FIRST_THORACIC = 8
LAST_LEVEL = 12
FEMALE_SCALE = 0.915


@dataclass(frozen=True, slots=True)
class Dims:
    """Linear sizes of one vertebra in mm, angles in degrees, of a mean man before scaling."""

    width_top: float  # body, at the upper endplate, left to right
    width_bottom: float
    depth_top: float  # body, front to back
    depth_bottom: float
    height: float  # body, endplate to endplate
    disc: float  # disc below this vertebra
    canal_width: float
    canal_depth: float
    spinous: float  # from the posterior wall of the body to the tip
    spinous_drop: float  # how far the tip lies below the body centre
    transverse: float  # tip to tip
    pedicle_width: float
    pedicle_height: float
    pillar_width: float
    facet_angle: float  # of the facet plane to the axial plane
    lamina_height: float
    lamina_thickness: float
    uncus: float  # height of the uncinate processes


# C2's numbers are those of its lower part; its dens and shoulders are drawn by ``vertebra.py``.
_MEAN: dict[int, Dims] = {
    2: Dims(17.0, 18.0, 14.5, 16.0, 18.0, 4.6, 24.5, 18.0, 34.5, 9.0, 52.0, 8.5, 9.0, 11.5, 40.0, 12.0, 5.6, 0.0),
    3: Dims(20.2, 20.4, 15.4, 16.0, 13.2, 4.8, 21.4, 14.0, 29.6, 10.0, 51.0, 5.6, 7.4, 11.5, 42.0, 10.5, 4.2, 5.2),
    4: Dims(21.2, 21.0, 15.6, 16.2, 13.0, 4.9, 22.7, 13.8, 30.3, 10.5, 52.0, 5.4, 7.4, 11.8, 43.0, 10.6, 4.0, 5.4),
    5: Dims(21.7, 22.9, 15.6, 17.4, 12.7, 5.0, 23.2, 14.0, 29.8, 11.0, 54.0, 5.6, 7.0, 12.0, 44.0, 10.8, 4.1, 5.4),
    6: Dims(22.8, 25.1, 16.5, 18.0, 12.6, 5.1, 23.8, 14.2, 36.0, 14.0, 57.0, 6.0, 7.3, 12.3, 47.0, 11.2, 4.8, 5.0),
    7: Dims(24.6, 25.5, 17.2, 17.4, 14.0, 4.8, 23.0, 14.4, 46.0, 18.0, 67.0, 6.8, 7.8, 12.0, 54.0, 13.2, 6.0, 4.0),
    8: Dims(24.5, 27.0, 17.6, 18.4, 15.6, 4.2, 21.8, 16.2, 50.0, 24.0, 75.0, 8.5, 9.6, 11.0, 62.0, 15.0, 6.0, 1.6),
    9: Dims(25.0, 26.8, 18.6, 20.0, 16.8, 4.0, 19.5, 15.6, 51.0, 30.0, 69.0, 8.2, 11.4, 10.5, 66.0, 16.5, 6.4, 0.0),
    10: Dims(24.8, 26.0, 20.5, 22.0, 17.4, 4.0, 18.6, 16.0, 51.0, 34.0, 63.0, 6.8, 12.0, 10.0, 68.0, 17.5, 6.6, 0.0),
    11: Dims(24.6, 26.4, 22.0, 23.5, 17.8, 4.2, 17.8, 16.2, 51.0, 37.0, 61.0, 5.6, 12.0, 10.0, 70.0, 18.0, 6.6, 0.0),
    12: Dims(25.0, 27.0, 23.5, 24.8, 18.2, 4.4, 17.6, 16.4, 52.0, 39.0, 60.0, 5.4, 12.0, 10.0, 71.0, 18.5, 6.6, 0.0),
}


@dataclass(frozen=True, slots=True)
class AtlasDims:
    """Linear sizes of C1 in mm, of a mean man before scaling. The local origin lies between arch and dens."""

    width: float = 77.0  # transverse tip to tip
    front: float = 9.5  # from the origin forward to the anterior tubercle
    back: float = 36.0  # from the origin back to the posterior tubercle
    mass_gap: float = 22.0  # between the lateral masses, beside the dens
    mass_width: float = 14.0
    mass_depth: float = 18.0
    mass_height: float = 19.0
    anterior_height: float = 10.5
    anterior_thickness: float = 5.6
    posterior_height: float = 8.0
    posterior_thickness: float = 5.8


@dataclass(frozen=True, slots=True)
class AxisDims:
    """Sizes of the upper part of C2 in mm, of a mean man before scaling."""

    dens_height: float = 29.5  # tip above the body centre
    dens_waist: float = 13.5  # height of the waist above the body centre
    dens_width: float = 10.4
    dens_depth: float = 10.8
    shoulder_out: float = 16.5  # centre of the superior facet from the midline
    shoulder_up: float = 9.0  # and above the body centre
    shoulder_width: float = 16.0
    shoulder_depth: float = 17.0
    arch_height: float = 21.0  # of C1's arch above the body centre


_Upper = TypeVar("_Upper", AtlasDims, AxisDims)


def sample_dims(rng: np.random.Generator, level: int, scale: float, *, habitus: Dims | None = None) -> Dims:
    """Sizes of one vertebra of one person.

    Args:
        rng: source of the person's own variation (about 4 % a measure, as the standard deviations published).
        level: 2..12, C2 to T5.
        scale: overall linear size, 1 = mean man.
        habitus: multipliers shared by all levels of the person, as made by ``sample_habitus``.
    """
    mean = _MEAN[level]
    values = {}
    for entry in fields(Dims):
        value = getattr(mean, entry.name) * rng.normal(1.0, 0.035)
        if habitus is not None:
            value *= getattr(habitus, entry.name)
        values[entry.name] = value if entry.name == "facet_angle" else value * scale
    return Dims(**values)


def mean_dims(level: int) -> Dims:
    """Sizes of vertebra ``level`` (2..12, C2 to T5) of a mean man."""
    return _MEAN[level]


def sample_habitus(rng: np.random.Generator) -> Dims:
    """Multipliers that one person's vertebrae share: tall or flat bodies, wide or narrow canals, long processes."""
    spread = {
        "spinous": 0.12,
        "spinous_drop": 0.22,
        "transverse": 0.06,
        "disc": 0.14,
        "uncus": 0.18,
        "facet_angle": 0.08,
    }
    values = {entry.name: float(rng.normal(1.0, spread.get(entry.name, 0.06))) for entry in fields(Dims)}
    # The two endplates of a body belong together; so do heights along the column.
    values["width_bottom"] = values["width_top"] * float(rng.normal(1.0, 0.015))
    values["depth_bottom"] = values["depth_top"] * float(rng.normal(1.0, 0.015))
    return Dims(**{name: float(np.clip(value, 0.6, 1.5)) for name, value in values.items()})


def sample_atlas(rng: np.random.Generator, scale: float) -> AtlasDims:
    """Sizes of C1 for one person."""
    return _varied(AtlasDims(), rng, scale)


def sample_axis(rng: np.random.Generator, scale: float) -> AxisDims:
    """Sizes of C2's dens and shoulders for one person; the height varies most, as it does in people."""
    tall = float(np.clip(rng.normal(1.0, 0.07), 0.85, 1.18))
    axis = _varied(AxisDims(), rng, scale)
    return replace(
        axis,
        dens_height=axis.dens_height * tall,
        dens_waist=axis.dens_waist * tall,
        arch_height=axis.arch_height * tall,
    )


def _varied(mean: _Upper, rng: np.random.Generator, scale: float) -> _Upper:
    values = {entry.name: getattr(mean, entry.name) * scale * rng.normal(1.0, 0.04) for entry in fields(mean)}
    return type(mean)(**values)
