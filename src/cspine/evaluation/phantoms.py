"""Whole phantom studies that nobody trained on, with fractures as patients have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cspine.errors import UsageError

if TYPE_CHECKING:
    from cspine.cases import Case
    from cspine.phantoms.scanner import Preset

# Seeds of evaluation phantoms start here and never meet those of training.
SEED_BASE = 900_000_000
CASES_PER_SEED = 10_000


@dataclass(frozen=True, slots=True)
class PhantomSet:
    """Which phantoms are scored; a ``running.CaseSet``.

    Attributes:
        count: how many.
        seed: 0 and up; sets of different seeds share no phantom.
        preset: kind of scan, see ``phantoms.scanner.sample_scanner``.
        multiplier: factor on the prevalence of fractures.
    """

    count: int = 60
    seed: int = 0
    preset: str = "clinical"
    multiplier: float = 2.0

    def phantom_seed(self, number: int) -> int:
        """Seed of one phantom of the set."""
        return SEED_BASE + self.seed * CASES_PER_SEED + number

    def name(self, number: int) -> str:
        """Name of one phantom of the set; says all that makes it."""
        return f"{self.preset}-x{self.multiplier:g}-{self.phantom_seed(number)}"

    def case(self, number: int) -> Case:
        """One phantom of the set.

        Raises:
            UsageError: there is no such preset.
        """
        from cspine.phantoms.case import make_case

        return make_case(
            self.phantom_seed(number),
            preset=known_preset(self.preset),
            multiplier=self.multiplier,
            name=self.name(number),
        )


def known_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UsageError: there is none.
    """
    from cspine.phantoms.scanner import PRESETS

    for preset in PRESETS:
        if preset == name:
            return preset
    raise UsageError(f"no phantom preset {name!r}, expected one of {', '.join(PRESETS)}")
