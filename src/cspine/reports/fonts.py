"""Type for pictures and PDF: Bitstream Vera, which comes with ReportLab, so that every machine draws the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import ImageFont

from cspine.reports.words import NBSP

REGULAR = "Vera.ttf"
BOLD = "VeraBd.ttf"
# What the face lacks of what sentences here hold; anything else it lacks becomes a question mark.
_SPELT = str.maketrans({"→": "to", "\u2010": "-", "\u2011": "-", "\u202f": NBSP, "\u2009": " ", "\t": " "})


def file(name: str) -> Path:
    """Where a face lies."""
    # ReportLab is in the extra "dicom"; importing this module must not need it.
    import reportlab

    return Path(reportlab.__file__).parent / "fonts" / name


@cache
def of_size(pixels: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A face for drawing, by its size in pixels. The basic layout engine: the same glyphs with every Pillow."""
    return ImageFont.truetype(str(file(BOLD if bold else REGULAR)), pixels, layout_engine=ImageFont.Layout.BASIC)


@cache
def _glyphs() -> frozenset[int]:
    from reportlab.pdfbase.ttfonts import TTFontFile

    return frozenset(TTFontFile(str(file(REGULAR))).charToGlyph)


def known(text: str) -> str:
    """Text in characters that the face has, on one line; others become question marks."""
    line = " ".join(text.splitlines()).translate(_SPELT)
    return "".join(letter if ord(letter) in _glyphs() else "?" for letter in line)


def drawn(text: str) -> str:
    """Text as it is drawn, once lines are broken: the face makes a space that does not break twice as wide."""
    return known(text).replace(NBSP, " ")


def length(text: str, font: ImageFont.FreeTypeFont) -> float:
    """How wide a line is when drawn, pixels."""
    return font.getlength(drawn(text))


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float, *, lines: int) -> list[str]:
    """Text broken between words so that no line is wider than ``width`` pixels; an ellipsis ends what does not fit.

    Args:
        text: words; spaces that do not break hold them together.
        font: the face it is drawn with.
        width: of a line, pixels.
        lines: at most so many.
    """
    done: list[str] = []
    current = ""
    for word in text.split(" "):
        longer = f"{current} {word}".strip()
        if current and length(longer, font) > width:
            done.append(current)
            current = word
        else:
            current = longer
    done.append(current)
    if len(done) > lines:
        done = done[:lines]
        done[-1] = _cut(f"{done[-1]} …", font, width)
    return [line if length(line, font) <= width else _cut(f"{line}…", font, width) for line in done]


def _cut(line: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """A line that ends with an ellipsis, shortened until it fits."""
    kept = line.removesuffix("…")
    while kept and length(f"{kept}…", font) > width:
        kept = kept[:-1]
    return f"{kept}…"
