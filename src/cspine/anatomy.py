"""The cervical levels: order, names, codes, colours and the label values that every mask uses."""

from __future__ import annotations

from enum import IntEnum

# Label values of every mask in cspine. 1..7 = C1..C7 as in the RSNA 2022 segmentations; 8..19 = T1..T12 there.
BACKGROUND = 0
THORACIC = 8
OTHER_BONE = 9


class Level(IntEnum):
    """A cervical vertebra. The value is its label in a mask: ``Level.C1 == 1`` … ``Level.C7 == 7``."""

    C1 = 1
    C2 = 2
    C3 = 3
    C4 = 4
    C5 = 5
    C6 = 6
    C7 = 7

    @property
    def index(self) -> int:
        """Position in arrays of seven, 0 (C1) to 6 (C7)."""
        return self.value - 1

    @property
    def snomed(self) -> str:
        """SNOMED CT concept of the vertebra (scheme SCT)."""
        return _SNOMED[self.index]

    @property
    def colour(self) -> tuple[int, int, int]:
        """Colour in sRGB 0..255, distinguishable with the common colour-vision deficiencies (Okabe and Ito, 2008)."""
        return _COLOURS[self.index]


_SNOMED = ("14806007", "39976000", "113205007", "5329002", "36978003", "36054005", "87391001")
_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)

LEVELS: tuple[Level, ...] = tuple(Level)
