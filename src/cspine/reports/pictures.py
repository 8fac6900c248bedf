"""``pictures.html``: what was said of single pictures, one file without scripts that asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from cspine.inference.pictures import PictureAnswer
from cspine.reports import words
from cspine.reports.images import Gray, bone_window, encode_gray, encode_overlay, heat_overlay
from cspine.reports.picture_findings import THRESHOLD, PictureFinding, PictureFindings
from cspine.studies.images import SliceImage

# The longer side of a picture on the page, and the pictures that a page holds; all of them are in pictures.csv.
SIDE_PX, MOST_SHOWN = 384, 300
# Levels that are less surely shown, and boxes that are less sure, are not on the page.
SHOWN_FROM = 0.5


@dataclass(frozen=True, slots=True)
class Card:
    """One picture as the page shows it.

    Attributes:
        finding: what is said of it.
        picture: JPEG.
        overlay: PNG of the heat, or None when there is nothing to be seen.
    """

    finding: PictureFinding
    picture: bytes
    overlay: bytes | None

    @classmethod
    def of(cls, finding: PictureFinding, image: SliceImage, answer: PictureAnswer) -> Card:
        """The picture and its heat, made small."""
        heat = None
        if answer.heat is not None:
            values = answer.heat.over((finding.rows, finding.columns))
            heat = heat_overlay(np.asarray(_small(Image.fromarray(values)), dtype=np.float32))
        gray = _small(Image.fromarray(_gray(image)))
        return cls(finding, encode_gray(np.asarray(gray)), None if heat is None else encode_overlay(heat))

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.finding.probability is None:
            return "not judged"
        return "fracture suspected" if self.finding.fracture else "no fracture suspected"

    @property
    def levels(self) -> str:
        """The levels that the picture is said to show, each with how surely; empty when none is."""
        sure = [item for item in self.finding.levels if item.shown is not None and item.shown >= SHOWN_FROM]
        return ", ".join(f"{item.level} {words.percent(item.shown)}" for item in sure)

    @property
    def boxes(self) -> list[tuple[str, float, float, float, float]]:
        """Name, left, top, width and height of each box, in pixels of the picture."""
        out = []
        for item in self.finding.boxes:
            if item.score >= SHOWN_FROM:
                x0, y0, x1, y1 = item.box_px
                out.append((item.level + (" fractured" if item.fractured else ""), x0, y0, x1 - x0, y1 - y0))
        return out


def render(findings: PictureFindings, cards: Sequence[Card]) -> bytes:
    """The page as UTF-8. Same input, same bytes.

    Everything that comes from the files (names, reasons) is escaped; a content security policy allows this style
    sheet and inline pictures, nothing else.

    Args:
        findings: of all pictures.
        cards: of those that were judged; the ones with the highest probability come first.
    """
    ordered = sorted(cards, key=lambda card: -(card.finding.probability or 0.0))
    judged = [item for item in findings.pictures if item.probability is not None]
    css = _css()
    style = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    page = (
        _environment()
        .get_template("pictures.html")
        .render(
            findings=findings,
            cards=ordered[:MOST_SHOWN],
            left_out=max(0, len(ordered) - MOST_SHOWN),
            suspected=sum(bool(item.fracture) for item in judged),
            judged=len(judged),
            refused=[item for item in findings.pictures if item.status == "refused"],
            names_levels=any(item.levels for item in findings.pictures),
            threshold=THRESHOLD,
            research=words.RESEARCH,
            limits=words.LIMITS,
            css=css,
            policy=f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; base-uri 'none'; "
            "form-action 'none'",
        )
    )
    return page.encode("utf-8", "replace")


def keep_strongest(cards: list[Card]) -> None:
    """Drop the cards that no page will show, so that many pictures take little memory."""
    cards.sort(key=lambda card: -(card.finding.probability or 0.0))
    del cards[MOST_SHOWN:]


def _gray(image: SliceImage) -> Gray:
    if image.unit == "HU":
        return bone_window(np.asarray(image.pixels, dtype=np.float32))
    return np.asarray(np.rint(np.asarray(image.pixels, np.float32) * 255), dtype=np.uint8)


def _small(picture: Image.Image) -> Image.Image:
    """At most ``SIDE_PX`` along the longer side, sides in proportion."""
    scale = min(1.0, SIDE_PX / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BILINEAR)


def _data_uri(data: bytes, kind: str) -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}")


@cache
def _css() -> Markup:
    """The style sheet, ours and free of anything a file says, so it goes into the page as it is."""
    return Markup(_environment().get_template("pictures.css").render())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cspine.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=words.percent, sentence=words.sentence, data_uri=_data_uri)
    return environment
