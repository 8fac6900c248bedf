"""The colours of probability: perceptually ordered, and told apart with the common colour-vision deficiencies.

A ramp runs from a quiet slate blue (0) to a warm, strong hue (1) with steadily changing lightness, so its order also
holds in grey and on paper. On light pages high means darker, on dark pages and on CT pictures high means brighter.
Blue against orange keeps apart for protan, deutan and tritan viewers; lightness does the rest.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

Theme = Literal["light", "dark"]
Rgb = tuple[int, int, int]

STEPS = 11
# OKLCH lightness, chroma and hue (degrees) at probability 0 and 1.
_ENDS = {
    "light": ((0.62, 0.060, 245.0), (0.50, 0.18, 36.0)),
    "dark": ((0.60, 0.070, 245.0), (0.86, 0.15, 78.0)),
}


@cache
def ramp(theme: Theme) -> tuple[Rgb, ...]:
    """Eleven sRGB colours, probability 0 to 1, for a page of that theme; pictures use ``dark``."""
    low, high = (_oklab(*end) for end in _ENDS[theme])
    steps = (index / (STEPS - 1) for index in range(STEPS))
    return tuple(_srgb(*(a + (b - a) * t for a, b in zip(low, high, strict=True))) for t in steps)


def step_of(probability: float) -> int:
    """Index into a ramp, 0 to 10."""
    return round(min(1.0, max(0.0, probability)) * (STEPS - 1))


def hex_of(colour: Rgb) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _oklab(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    angle = math.radians(hue)
    return lightness, chroma * math.cos(angle), chroma * math.sin(angle)


def _srgb(lightness: float, a: float, b: float) -> Rgb:
    """OKLab to sRGB 0..255, clipped (B. Ottosson, "A perceptual color space for image processing", 2020)."""
    l_ = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    m_ = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s_ = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * l_ - 3.3077115913 * m_ + 0.2309699292 * s_,
        -1.2684380046 * l_ + 2.6097574011 * m_ - 0.3413193965 * s_,
        -0.0041960863 * l_ - 0.7034186147 * m_ + 1.7076147010 * s_,
    )
    return tuple(_encoded(value) for value in linear)  # type: ignore[return-value]


def _encoded(linear: float) -> int:
    """One linear sRGB component as 0..255 (IEC 61966-2-1)."""
    value = min(1.0, max(0.0, linear))
    return round(255 * (12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055))
