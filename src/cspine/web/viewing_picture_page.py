"""What the page of single pictures is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cspine.reports import colours, words
from cspine.reports.picture_findings import THRESHOLD, PictureBox, PictureFinding, PictureFindings
from cspine.web.models import Study
from cspine.web.strings import t
from cspine.web.viewing_page import ALARMS, MISSES
from cspine.web.viewing_pictures import ShownPicture

# Levels that are less surely shown, and boxes that are less sure, are not on the page; as in pictures.html.
SHOWN_FROM = 0.5
PER_PAGE = 24


@dataclass(frozen=True, slots=True)
class PictureView:
    """One picture with what was said of it.

    Attributes:
        number: from 1, in the order of the page.
        finding: what is said.
        shown: its files.
    """

    number: int
    finding: PictureFinding
    shown: ShownPicture

    @property
    def verdict(self) -> str:
        """In a few words, as in pictures.html."""
        if self.finding.probability is None:
            return words.NOT_JUDGED
        return t("read.pictures.suspected") if self.finding.fracture else t("read.pictures.clear")

    @property
    def step(self) -> int | None:
        """Of the colour, 0 to 10."""
        return None if self.finding.probability is None else colours.step_of(self.finding.probability)

    @property
    def levels(self) -> str:
        """The levels that it is said to show, each with how surely; empty when none is."""
        sure = [item for item in self.finding.levels if item.shown is not None and item.shown >= SHOWN_FROM]
        return ", ".join(f"{item.level} {words.percent(item.shown)}" for item in sure)

    @property
    def boxes(self) -> list[PictureBox]:
        """Those that are sure enough to be drawn, pixels of the picture."""
        return [item for item in self.finding.boxes if item.score >= SHOWN_FROM]


def pictures_room(
    study: Study, findings: PictureFindings, shown: Sequence[ShownPicture], asked: dict[str, str]
) -> dict[str, Any]:
    """Everything that ``reading/pictures.html`` uses: the most suspicious pictures first, a page at a time."""
    files = {item.name: item for item in shown}
    judged = [item for item in findings.pictures if item.name in files]
    ordered = sorted(judged, key=lambda item: -(item.probability or 0.0))
    views = [PictureView(k + 1, item, files[item.name]) for k, item in enumerate(ordered)]
    last = max(1, -(-len(views) // PER_PAGE))
    wanted = asked.get("page", "")
    at = min(max(int(wanted), 1), last) if wanted.isascii() and wanted.isdigit() and len(wanted) < 7 else 1
    return {
        "study": study,
        "findings": findings,
        "views": views[(at - 1) * PER_PAGE : at * PER_PAGE],
        "count": len(views),
        "at": at,
        "last": last,
        "suspected": sum(bool(item.fracture) for item in judged),
        "refused": [item for item in findings.pictures if item.status == "refused"],
        "threshold": THRESHOLD,
        "words": words,
        "percent_of": words.percent,
        "sentence_of": words.sentence,
        "alarms": ALARMS,
        "misses": MISSES,
    }
