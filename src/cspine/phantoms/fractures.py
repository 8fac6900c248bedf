"""Fractures: planned from a vertebra's landmarks, then applied to its solid, point by point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from cspine.errors import UsageError
from cspine.phantoms.breakage import BrokenBone, Change, Points, SampleDistance, changed
from cspine.phantoms.fracture_arch import (
    plan_facet,
    plan_lamina,
    plan_pillar,
    plan_spinous_process,
    plan_transverse_process,
)
from cspine.phantoms.fracture_body import plan_burst, plan_teardrop, plan_wedge
from cspine.phantoms.fracture_draft import Draft, Side
from cspine.phantoms.fracture_types import FractureType, draw_severity, draw_type, frequencies
from cspine.phantoms.fracture_upper import plan_dens_i, plan_dens_ii, plan_dens_iii, plan_hangman, plan_jefferson

_PLANS: Mapping[FractureType, Callable[[Draft], tuple[Change, ...]]] = MappingProxyType(
    {
        FractureType.JEFFERSON: plan_jefferson,
        FractureType.DENS_I: plan_dens_i,
        FractureType.DENS_II: plan_dens_ii,
        FractureType.DENS_III: plan_dens_iii,
        FractureType.HANGMAN: plan_hangman,
        FractureType.TEARDROP: plan_teardrop,
        FractureType.BURST: plan_burst,
        FractureType.WEDGE: plan_wedge,
        FractureType.FACET: plan_facet,
        FractureType.PILLAR: plan_pillar,
        FractureType.LAMINA: plan_lamina,
        FractureType.TRANSVERSE_PROCESS: plan_transverse_process,
        FractureType.SPINOUS_PROCESS: plan_spinous_process,
    }
)


@dataclass(frozen=True)
class Fracture:
    """One fracture of one vertebra, with everything needed to draw it.

    Attributes:
        type: by name.
        level: label value, 1 (C1) to 7 (C7); 8 and above thoracic.
        severity: 0 hairline to 1 displaced.
        chronic: old: dense rounded edges, no truth voxels.
        side: of one-sided types; for others it only breaks the symmetry.
        changes: surfaces, movements, crushing and chips, in local millimetres.
    """

    type: FractureType
    level: int
    severity: float
    chronic: bool
    side: Side
    changes: tuple[Change, ...]


def plan_fracture(
    rng: np.random.Generator,
    level: int,
    landmarks: Mapping[str, Any],
    *,
    type: FractureType | str | None = None,  # noqa: A002  (the word of the field)
    severity: float | None = None,
    chronic: bool = False,
    side: Side | None = None,
) -> Fracture:
    """A random fracture of a vertebra.

    Args:
        rng: source of all chance; the same state gives the same fracture.
        level: label value of the vertebra, 1..12.
        landmarks: its named points, local mm (``Spine.landmarks[level]``).
        type: one of those possible there, or None to draw one at its frequency.
        severity: 0 hairline to 1 displaced, or None to draw it.
        chronic: an old fracture.
        side: "left" or "right", or None to draw it.

    Raises:
        UsageError: the level cannot have that type, severity is out of range, or a landmark is missing.
    """
    if type is not None and type not in list(FractureType):
        raise UsageError(f"no fracture type {type}", fix="Use one of: " + ", ".join(FractureType))
    kind = draw_type(rng, level) if type is None else FractureType(type)
    if kind not in frequencies(level):
        possible = ", ".join(frequencies(level))
        raise UsageError(f"vertebra {level} cannot have a {kind} fracture", fix=f"Possible there: {possible}.")
    strength = draw_severity(rng) if severity is None else float(severity)
    if not 0.0 <= strength <= 1.0:
        raise UsageError(f"severity must be 0 to 1, got {strength}")
    chosen: Side = side or ("left" if rng.uniform() < 0.5 else "right")
    # A stream of its own: what is drawn after a fracture does not depend on how many numbers it took.
    own = np.random.default_rng(int(rng.integers(2**63)))
    draft = Draft(own, level, landmarks, chosen, strength, chronic)
    return Fracture(kind, level, strength, chronic, chosen, _PLANS[kind](draft))


def break_bone(fracture: Fracture, points: Points, sample: SampleDistance) -> BrokenBone:
    """The bone with one fracture.

    Args:
        fracture: what to draw.
        points: float32 (N, 3), local millimetres.
        sample: signed distance float32 (N,) of the unbroken bone at any points (N, 3).
    """
    return changed(fracture.changes, points, sample)


def break_all(
    fractures: tuple[Fracture, ...],
    points: Points,
    sample: SampleDistance,
    confounders: tuple[Change, ...] = (),
    *,
    trace: bool = False,
) -> BrokenBone:
    """The bone with all its fractures, first to last, and what else is peculiar about it.

    Args:
        fractures: of this vertebra.
        points: float32 (N, 3), local millimetres.
        sample: signed distance float32 (N,) of the unbroken bone at any points (N, 3).
        confounders: canals, outgrowths and the like (``confounders.vertebra_confounders``); older than the fractures.
        trace: also tell where the material came from (``BrokenBone.source``).
    """
    changes = confounders + tuple(change for fracture in fractures for change in fracture.changes)
    return changed(changes, points, sample, trace=trace)
