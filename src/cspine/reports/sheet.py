"""The key-image sheet: one result on one page that is a picture, for viewers that show nothing but pictures.

It carries no name of a patient, file or folder, and no identifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cspine.findings import Findings, LevelFinding
from cspine.reports import colours, figures, fonts, key_images, words
from cspine.reports.inputs import ReportInput
from cspine.reports.key_images import KeyImage

WIDTH, HEIGHT = 1600, 1200
MARGIN = 48
GAP = 16
# A calm dark page: beside a CT in a dark reading room a bright one would dazzle.
PAGE = (17, 19, 23)
CARD = (30, 33, 39)
TRACK = (58, 63, 72)
INK = (232, 234, 237)
QUIET = (160, 166, 176)
WARM = (255, 196, 110)
PICTURES_TOP = 424
FOOT = 1152
# Height under a picture for what it shows.
CAPTION = 108
# So many levels are shown from two sides; more of them need the room.
ROOM_FOR_VIEWS = 2
SHOWN_WARNINGS = 3
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Page:
    """The picture that is being drawn."""

    image: Image.Image = field(default_factory=lambda: Image.new("RGB", (WIDTH, HEIGHT), PAGE))

    @property
    def draw(self) -> ImageDraw.ImageDraw:
        """What draws on it."""
        return ImageDraw.Draw(self.image)

    def text(
        self,
        at: tuple[float, float],
        text: str,
        size: int,
        *,
        colour: Colour = INK,
        bold: bool = False,
        anchor: str = "ls",
    ) -> None:
        """One line; ``at`` is its start on the base line unless ``anchor`` says otherwise."""
        font = fonts.of_size(size, bold=bold)
        self.draw.text(at, fonts.drawn(text), font=font, fill=colour, anchor=anchor)

    def paragraph(
        self,
        at: tuple[float, float],
        text: str,
        size: int,
        *,
        width: float,
        lines: int,
        colour: Colour = INK,
    ) -> float:
        """Lines no wider than ``width``; gives the base line on which the next one would stand."""
        x, y = at
        for line in fonts.wrapped(text, fonts.of_size(size), width, lines=lines):
            self.text((x, y), line, size, colour=colour)
            y += round(size * 1.42)
        return y


def draw(report: ReportInput) -> NDArray[np.uint8]:
    """The sheet as RGB, uint8 ``[1200, 1600, 3]``. Same input, same pixels."""
    page = Page()
    _head(page, report.findings)
    _levels(page, report.findings.levels)
    _pictures(page, report)
    _foot(page, report.findings)
    return np.asarray(page.image)


def png(report: ReportInput) -> bytes:
    """The sheet as PNG."""
    stream = BytesIO()
    Image.fromarray(draw(report)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _head(page: Page, findings: Findings) -> None:
    """What is said of the patient."""
    page.text((MARGIN, 70), f"Cervical spine CT · {words.moment(findings.provenance.created)}", 20, colour=QUIET)
    patient = findings.patient
    page.text((MARGIN, 128), words.headline(findings), 46, bold=True, colour=WARM if words.suspected(findings) else INK)
    page.paragraph((MARGIN, 172), " ".join(words.said(findings)), 22, width=1120, lines=3, colour=INK)
    if patient.probability is None:
        return
    right = WIDTH - MARGIN
    page.text((right, 128), words.percent(patient.probability), 64, bold=True, anchor="rs")
    page.text((right, 160), "patient probability of a fracture", 18, colour=QUIET, anchor="rs")
    _bar(page, (right - 300, 178, right, 190), patient.probability, patient.threshold)
    if patient.threshold is not None:
        page.text((right, 218), f"threshold {words.percent(patient.threshold)}", 18, colour=QUIET, anchor="rs")


def _levels(page: Page, levels: Sequence[LevelFinding]) -> None:
    """A card a level, side by side."""
    width = (WIDTH - 2 * MARGIN - GAP * (len(levels) - 1)) / len(levels)
    top, bottom = 258, 384
    for number, item in enumerate(levels):
        left = MARGIN + number * (width + GAP)
        page.draw.rounded_rectangle((left, top, left + width, bottom), radius=10, fill=CARD)
        key_images.paste_shape(page.image, item, (left + 26, top + 34), 10)
        page.text((left + 46, top + 43), item.level, 26, bold=True)
        page.text((left + width - 16, top + 43), words.percent(item.probability), 26, anchor="rs")
        box = (left + 16, top + 62, left + width - 16, top + 70)
        if item.probability is not None:
            _bar(page, box, item.probability, item.threshold)
        colour = WARM if item.fracture else QUIET
        page.text((left + 16, top + 106), words.finding(item), 20, colour=colour)


def _bar(page: Page, box: tuple[float, float, float, float], value: float, threshold: float | None) -> None:
    """A probability on a scale from 0 to 1, the threshold as a tick across it."""
    x0, y0, x1, y1 = box
    step = figures.step_of(value) or 0
    page.draw.rounded_rectangle(box, radius=3, fill=TRACK)
    page.draw.rounded_rectangle((x0, y0, max(x0 + 4, x0 + (x1 - x0) * value), y1), 3, fill=colours.ramp("dark")[step])
    if threshold is not None:
        at = x0 + (x1 - x0) * threshold
        page.draw.line([(at, y0 - 4), (at, y1 + 4)], fill=INK, width=2)


def _pictures(page: Page, report: ReportInput) -> None:
    """The key images in a row, as large as they may be."""
    count = len(key_images.chosen(report.findings.levels))
    views = key_images.VIEWS if count <= ROOM_FOR_VIEWS else 1
    columns = max(1, count * views)
    across = (WIDTH - 2 * MARGIN - GAP * (columns - 1)) / columns
    edge = int(min(across, _warnings_top(report.findings) - 44 - CAPTION - PICTURES_TOP))
    shown = key_images.key_images(report, edge, views=views)
    if not shown:
        text = "The source says that names are burned into its pictures; none is shown."
        if not key_images.burned_in(report):
            text = "No picture: nothing was judged." if count == 0 else "No picture: the slices were not at hand."
        page.text((MARGIN, PICTURES_TOP + 32), text, 22, colour=QUIET)
        return
    for number, one in enumerate(shown):
        _tile(page, one, (MARGIN + number * (edge + GAP), PICTURES_TOP), edge)


def _tile(page: Page, one: KeyImage, at: tuple[int, int], edge: int) -> None:
    """A key image with its caption below."""
    x, y = at
    page.image.paste(one.picture, at)
    page.text((x, y + edge + 30), f"{one.item.level}  {words.percent(one.item.probability)}", 22, bold=True)
    below: float = y + edge + 56
    if one.item.type:
        likely = f"likely {words.fracture_type(one.item.type)}"
        below = page.paragraph((x, below), likely, 18, width=edge, lines=1)
    page.paragraph((x, below), one.caption, 17, width=edge, lines=2, colour=QUIET)


def _foot(page: Page, findings: Findings) -> None:
    """Warnings, what this is not, and where it comes from."""
    y: float = _warnings_top(findings)
    for line in _warnings(findings):
        page.paragraph((MARGIN, y), line, 18, width=WIDTH - 2 * MARGIN, lines=1, colour=QUIET)
        y += 26
    page.draw.line([(MARGIN, FOOT - 58), (WIDTH - MARGIN, FOOT - 58)], fill=TRACK, width=1)
    page.text((MARGIN, FOOT - 26), words.RESEARCH, 20, bold=True)
    wide = fonts.of_size(20, bold=True).getlength(words.RESEARCH)
    page.text((MARGIN + wide + 12, FOOT - 26), words.LIMITS, 20)
    page.text((MARGIN, FOOT + 4), _origin(findings), 16, colour=QUIET)


def _origin(findings: Findings) -> str:
    """Version and digest of what judged."""
    made = findings.provenance
    if made.bundle is None:
        return f"cspine {made.cspine}"
    bundle = made.bundle
    return f"cspine {made.cspine} · bundle {bundle.name} {bundle.version} · SHA-256 {bundle.sha256}"


def _warnings(findings: Findings) -> list[str]:
    """What the reader must know, a line each; the reasons of a refused study stand in its head already."""
    if findings.status == "refused":
        return []
    missing = [item for item in findings.levels if item.probability is None]
    lines = [f"{item.level}: {words.sentence(words.verdict(item))}" for item in missing]
    lines = lines[: SHOWN_WARNINGS - 1] if len(lines) > SHOWN_WARNINGS else lines
    lines += [words.sentence(warning.message) for warning in findings.warnings]
    if len(lines) > 2 * SHOWN_WARNINGS:
        rest = len(lines) - 2 * SHOWN_WARNINGS + 1
        lines = [*lines[: 2 * SHOWN_WARNINGS - 1], f"and {rest} more in the report."]
    return lines


def _warnings_top(findings: Findings) -> int:
    """Base line of the first warning: the last one stands clear of the foot."""
    return FOOT - 82 - 26 * max(0, len(_warnings(findings)) - 1)
