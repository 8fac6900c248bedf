"""Input drift: are the studies of late like those the node began with? Thickness, kernel, maker, HU, share positive.

The population stability index compares two distributions over the same bins, PSI = Σ (aᵢ - eᵢ) ln(aᵢ / eᵢ), with eᵢ
the shares in the reference window and aᵢ those in the window of late (N. Siddiqi, Credit Risk Scorecards, Wiley 2006,
ch. 10; 0.1 and 0.25 are its customary limits). Small windows give large values by chance: without drift PSI is
distributed like χ² with B - 1 degrees of freedom times (1/N + 1/M) for windows of N and M (B. Yurdakul and
J. Naranjo, J. Risk Model Validation 14(4), 2020), so a value counts only above the 99th percentile of that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from cspine.volume import Volume

# Studies in the window of late, in the reference window, and the fewest in either for a statement.
WINDOW, REFERENCE, FEWEST = 200, 500, 30
NOTICE, ALARM = 0.1, 0.25
# A share is never taken as less than this: half a study in a thousand, so that an empty bin does not make it infinite.
_LEAST_SHARE = 5e-4

THICKNESS_MM = (0.7, 1.05, 1.55, 2.05, 3.05)
# Air, lung, fat, soft tissue, contrast and spongy bone, compact bone, metal.
HU_EDGES = (-950, -700, -200, -100, -20, 20, 60, 100, 200, 300, 500, 800, 1500, 2500)
# A histogram needs no more voxels than this.
_SAMPLE = 250_000

Feature = Literal["thickness", "kernel", "maker", "hu", "positive"]
FEATURES: tuple[Feature, ...] = ("thickness", "kernel", "maker", "hu", "positive")


class StudyFacts(BaseModel):
    """What drift is measured from. Holds nothing of the patient.

    Attributes:
        thickness_mm: slice thickness as the scanner states it, else the spacing of slices.
        kernel: reconstruction kernel, empty when it is not stated.
        maker: of the scanner, empty when it is not stated.
        hu: share of voxels in each bin of ``HU_EDGES``, open at both ends.
        positive: a fracture is stated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    thickness_mm: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    kernel: str = ""
    maker: str = ""
    hu: tuple[float, ...] = Field(min_length=len(HU_EDGES) + 1, max_length=len(HU_EDGES) + 1)
    positive: bool | None = None


def facts_of(volume: Volume, positive: bool | None) -> StudyFacts:
    """What is kept of a study that was opened; ``positive`` as in ``StudyFacts``."""
    said = volume.source.acquisition
    thickness = said.get("slice_thickness_mm")
    return StudyFacts(
        thickness_mm=float(thickness) if isinstance(thickness, float | int) else round(float(max(volume.spacing)), 3),
        kernel=str(said.get("kernel", ""))[:32],
        maker=str(said.get("manufacturer", ""))[:32],
        hu=hu_shares(volume.hu),
        positive=positive,
    )


def hu_shares(hu: NDArray[np.int16] | NDArray[np.float32]) -> tuple[float, ...]:
    """Share of voxels in each bin of ``HU_EDGES``.

    Args:
        hu: array of any shape, HU; every n-th voxel is looked at when there are many.
    """
    flat = hu.reshape(-1)
    some = flat[:: max(1, flat.size // _SAMPLE)]
    bins = np.digitize(some, np.asarray(HU_EDGES, dtype=np.float64))
    counts = np.bincount(bins, minlength=len(HU_EDGES) + 1)
    return tuple(float(share) for share in np.round(counts / max(1, some.size), 6))


@dataclass(frozen=True, slots=True)
class Drift:
    """One feature.

    Attributes:
        feature: what is compared.
        psi: population stability index, 0 or more.
        chance: what it stays below in 99 of 100 windows without drift.
        studies: in the window of late and in the reference window.
    """

    feature: Feature
    psi: float
    chance: float
    studies: tuple[int, int]

    @property
    def state(self) -> Literal["same", "notice", "alarm"]:
        """``same`` when chance explains it or when it is below the customary limits."""
        if self.psi <= max(self.chance, NOTICE):
            return "same"
        return "notice" if self.psi <= ALARM else "alarm"


def psi(reference: NDArray[np.float64], late: NDArray[np.float64]) -> float:
    """Population stability index of two rows of shares over the same bins; each row sums to 1.

    Returns:
        0 for equal rows, larger the more they differ; symmetric in its arguments.
    """
    e, a = (np.maximum(row, _LEAST_SHARE) for row in (reference, late))
    return float(np.sum((a - e) * np.log(a / e)))


def measure(late: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> list[Drift]:
    """Drift of every feature, or nothing while either window has fewer than ``FEWEST`` studies.

    Args:
        late: facts of the studies of late, as stored.
        reference: facts of those that they are measured against; the two must not overlap.
    """
    windows = [[facts for row in rows if (facts := _facts(row)) is not None] for rows in (late, reference)]
    new, old = windows
    if min(len(new), len(old)) < FEWEST:
        return []
    return [_drift(feature, new, old) for feature in FEATURES]


def _facts(row: Mapping[str, Any]) -> StudyFacts | None:
    """None for what another version wrote in another form."""
    try:
        return StudyFacts.model_validate(row)
    except ValidationError:
        return None


def _drift(feature: Feature, new: list[StudyFacts], old: list[StudyFacts]) -> Drift:
    counts = (len(new), len(old))
    if feature == "hu":
        # The mean histogram of each window: its bins count voxels, not studies, so the distribution above is not its.
        rows = [np.asarray([facts.hu for facts in window], dtype=np.float64).mean(axis=0) for window in (old, new)]
        return Drift(feature, psi(rows[0], rows[1]), 0.0, counts)
    before, after = (Counter(_bin(feature, facts) for facts in window) for window in (old, new))
    bins = sorted(set(before) | set(after))
    shares = [np.asarray([seen[name] for name in bins]) / seen.total() for seen in (before, after)]
    return Drift(feature, psi(shares[0], shares[1]), _chance(len(bins), counts), counts)


def _bin(feature: Feature, facts: StudyFacts) -> str:
    if feature == "thickness":
        value = facts.thickness_mm
        return "?" if value is None else str(int(np.searchsorted(THICKNESS_MM, value)))
    if feature == "positive":
        return str(facts.positive)
    return facts.kernel if feature == "kernel" else facts.maker


def _chance(bins: int, counts: tuple[int, int]) -> float:
    """The 99th percentile of PSI without drift."""
    from scipy.special import chdtri  # slow to load, and no child needs it

    return float(chdtri(bins - 1, 0.01)) * (1.0 / counts[0] + 1.0 / counts[1]) if bins > 1 else 0.0
