"""Test sets of the classifier: parametric phantoms, phantoms of meshes, real bone with planted fractures.

Cases are made when they are needed, always the same ones: a set's kind, seed and number say all. None of their seeds
meets one of training. Of every four studies two are fractured, with RSNA 2022's pattern of levels; one is unbroken;
one is unbroken and full of what may be taken for a fracture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cspine.errors import UsageError
from cspine.evaluation.phantoms import known_preset

if TYPE_CHECKING:
    from cspine.cases import Case
    from cspine.phantoms.scene import Scene

# Training's seeds lie below 1e8 and those of PhantomSet below 3e9.
SEED_BASE = {"parametric": 3_000_000_000, "mesh": 4_000_000_000, "planted": 5_000_000_000}
CASES_PER_SEED, SEEDS = 10_000, 100_000
# A thin scan (0.6 to 1.5 mm slices, 0.4 to 0.6 mm pixels) cropped around C1 to T1: as sharp as a whole one, made in a
# third of the time.
DEFAULT_PRESET = "spine"
# On the odds that a patient is fractured: all are.
_ALWAYS = 1e9
# Of the vertebrae of a confounded study, those that are given a confounder beside what they have by nature.
CONFOUNDED_SHARE = 0.6


class StudyKind(StrEnum):
    """What a study of a test set is there for."""

    FRACTURED = "fractured"
    PLAIN = "plain"
    CONFOUNDED = "confounded"


_TURN = (StudyKind.FRACTURED, StudyKind.PLAIN, StudyKind.FRACTURED, StudyKind.CONFOUNDED)


@dataclass(frozen=True, slots=True)
class FracturePhantoms:
    """Phantoms with and without fractures; a ``running.CaseSet``.

    Attributes:
        count: how many.
        seed: 0 and up; sets of different seeds share no patient.
        preset: kind of scan.
        meshes: folder of C1..C7 meshes that all vertebrae are drawn from; None for the parametric anatomy.

    Raises:
        UsageError: count or seed out of range, or no such preset.
    """

    count: int
    seed: int = 0
    preset: str = DEFAULT_PRESET
    meshes: Path | None = None

    def __post_init__(self) -> None:
        _check(self.count, self.seed)
        known_preset(self.preset)

    @property
    def family(self) -> str:
        """``parametric`` or ``mesh``."""
        return "parametric" if self.meshes is None else "mesh"

    def kind(self, number: int) -> StudyKind:
        """What study ``number`` is there for."""
        return _TURN[number % len(_TURN)]

    def name(self, number: int) -> str:
        """Name of study ``number``."""
        source = self.family if self.meshes is None else f"{self.family}-{self.meshes.resolve().name}"
        return f"{source}-{self.preset}-{self.seed:05d}-{number:04d}-{self.kind(number)}"

    def case(self, number: int) -> Case:
        """Study ``number`` with its truth."""
        from cspine.phantoms.acquisition import acquire
        from cspine.phantoms.case import case_of
        from cspine.phantoms.scanner import sample_scanner
        from cspine.phantoms.scene import make_scene

        kind, seed = self.kind(number), case_seed(self.family, self.seed, number)
        patient, scanner, noise, extra = np.random.SeedSequence(seed).spawn(4)
        options: dict[str, Any] = {} if self.meshes is None else {"meshes": _library(self.meshes)}
        multiplier = _ALWAYS if kind is StudyKind.FRACTURED else 0.0
        scene = make_scene(int(patient.generate_state(1)[0]), multiplier=multiplier, **options)
        if kind is StudyKind.CONFOUNDED:
            scene = confounded(scene, np.random.default_rng(extra))
        protocol = sample_scanner(np.random.default_rng(scanner), preset=known_preset(self.preset))
        acquired = acquire(scene, protocol, np.random.default_rng(noise))
        return case_of(scene, acquired, name=self.name(number))


@dataclass(frozen=True, slots=True)
class RealScan:
    """A scan of an unbroken neck, to plant fractures into.

    Attributes:
        path: of the study.
        labels: file of its mask, see ``evaluation.labelling``.
        digest: of that file; part of the names of cases.
        scale: slope and intercept when it is not HU.
    """

    path: Path
    labels: Path
    digest: str
    scale: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class PlantedFractures:
    """Real bone with planted fractures, and without; a ``running.CaseSet``.

    Half of the studies have fractures, half are the unbroken scan, handled the same way. Each study is the scan seen
    anew: turned and scaled in the axial plane, mirrored or not, with other noise.

    Attributes:
        count: how many.
        scans: taken in turn.
        seed: 0 and up.
        rate: share of vertebrae broken in a fractured study.

    Raises:
        UsageError: count or seed out of range, or no scan.
    """

    count: int
    scans: tuple[RealScan, ...] = field(default=())
    seed: int = 0
    rate: float = 0.3

    def __post_init__(self) -> None:
        _check(self.count, self.seed)
        if not self.scans:
            raise UsageError("planting needs a scan", fix="Give one with --scan FILE")

    def kind(self, number: int) -> StudyKind:
        """What study ``number`` is there for."""
        return (StudyKind.FRACTURED, StudyKind.PLAIN)[number // len(self.scans) % 2]

    def name(self, number: int) -> str:
        """Name of study ``number``."""
        scan = self.scans[number % len(self.scans)]
        place = f"{scan.path.name.split('.')[0]}-{scan.digest[:8]}"
        return f"planted-{place}-{self.seed:05d}-{number:04d}-{self.kind(number)}"

    def case(self, number: int) -> Case:
        """Study ``number`` with its truth."""
        from cspine.evaluation.labelling import labelled_scan, seen_anew
        from cspine.phantoms.planting import planted_case

        scan = self.scans[number % len(self.scans)]
        seed = case_seed("planted", self.seed, number)
        volume, labels = seen_anew(*labelled_scan(scan.path, scan.labels, scan.scale), np.random.default_rng([seed, 1]))
        rate = self.rate if self.kind(number) is StudyKind.FRACTURED else 0.0
        return planted_case(volume, labels, seed=seed, rate=rate, name=self.name(number))


def case_seed(family: str, seed: int, number: int) -> int:
    """Seed of one case of a set; no two sets share any."""
    return SEED_BASE[family] + seed * CASES_PER_SEED + number


def _check(count: int, seed: int) -> None:
    if not 1 <= count <= CASES_PER_SEED:
        raise UsageError(f"a set holds 1 to {CASES_PER_SEED} cases, got {count}")
    if not 0 <= seed < SEEDS:
        raise UsageError(f"the seed of a set is 0 to {SEEDS - 1}, got {seed}")


@lru_cache(maxsize=2)
def _library(folder: Path) -> Any:
    """All vertebrae from the meshes of one folder."""
    from cspine.phantoms.blending import MeshLibrary
    from cspine.phantoms.meshes import load_mesh_set

    return MeshLibrary(sets=(load_mesh_set(folder),), share=1.0)


def confounded(scene: Scene, rng: np.random.Generator) -> Scene:
    """A scene with an old fracture, and with a confounder in most cervical vertebrae beside those that it has.

    Args:
        scene: without acute fractures.
        rng: source of all chance.
    """
    from cspine.phantoms.lookalikes import any_confounder, old_fracture

    landmarks, odd = scene.spine.landmarks, dict(scene.confounders)
    old = int(rng.integers(1, 8))
    for level in range(1, 8):
        if level != old and rng.uniform() < CONFOUNDED_SHARE:
            odd[level] = (*odd.get(level, ()), any_confounder(rng, level, landmarks[level]))
    kept = tuple(f for f in scene.fractures if f.level != old)
    return replace(scene, confounders=odd, fractures=(*kept, old_fracture(rng, old, landmarks[old])))
